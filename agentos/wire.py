"""THE protocol: every frame that crosses a process border, bytes in, typed frames out.

One frame is a 4-byte big-endian length and a msgpack array `[tag, field, …]`. No I/O, no decisions. Bounded in size
and depth; whatever is not a well-formed frame of a kind that this peer may send is a ProtocolError, and nothing else
can leave `Decoder.feed`. Frames are NamedTuples: immutable, and the cheapest thing CPython can build on the hot path.

Rules for editors: a new frame is one class here and one line in `_TAGS`; tags are never reused; a changed frame raises
VERSION, because both ends compare it in Hello before anything else.
"""

from __future__ import annotations

import struct
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgpack

from agentos.errors import ProtocolError
from agentos.shape import check_items, check_plain

VERSION: Final = 1
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024  # a result or a function; what an agent's action may hold is far less
ACTION_BYTES_MAX: Final = 256 * 1024  # ARG_MAX-sized argv are refused rather than buffered for every agent
DEPTH_MAX: Final = 32  # deeper values are an attack on whoever prints them
COUNTED_FROM_BYTES: Final = 4_096  # what is smaller cannot decode into much; counting it would cost every action

_LENGTH: Final = struct.Struct(">I")
_pack: Final = msgpack.Packer(use_bin_type=True).pack
_new_tuple: Final[Callable[..., Any]] = tuple.__new__
_HEADER_BYTES: Final = _LENGTH.size


class Hello(NamedTuple):
    """First frame in both directions between the kernel and an agent, a client or the recorder."""

    version: int
    role: str
    pid: int


# --- agent → kernel (up pipe) ------------------------------------------------------------------------------------


class Act(NamedTuple):
    """An action that is about to happen; the sender waits for its Verdict. `id` is unique within the agent."""

    id: int
    operation: str
    resource: str
    resolved: str | None
    argv: list[Any] | None
    cwd: str
    claims: dict[str, Any]
    source: str  # sdk | hook


class Outcome(NamedTuple):
    """What became of an allowed action."""

    id: int
    ok: bool
    detail: str


class Result(NamedTuple):
    """The function returned; `value` is packed by agentos.values."""

    value: bytes


class Raised(NamedTuple):
    """The function ended with an exception. `violation` holds the fields of an uncaught PolicyViolationError."""

    type: str
    message: str
    traceback: str
    violation: dict[str, Any] | None


class Answer(NamedTuple):
    """Reply to Query."""

    id: int
    ok: bool
    value: bytes
    error: str


# --- kernel → agent ----------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Down pipe: the decision on one Act; on record before this frame leaves."""

    id: int
    effect: str  # allow | deny
    reason: str
    rule: int | None
    rule_name: str | None
    on_violation: str | None
    resource: str
    seq: int
    cacheable: bool
    retry_after_s: float | None


class Start(NamedTuple):
    """Calls pipe: what a Python agent shall run. Exactly one of `target` and `pickle` is set."""

    agent_id: str
    name: str
    run_id: str
    target: str | None  # module:function or /path/file.py:function
    pickle: bytes | None
    args: bytes
    kwargs: bytes
    sys_path: list[Any]
    level: str


class Saved(NamedTuple):
    """Calls pipe, before Start, if there is one: the state that a previous life of this agent saved last."""

    state: bytes


class Query(NamedTuple):
    """Calls pipe: cleanup | save_state | get_state, asked of the agent's runtime, which answers each with its state."""

    id: int
    what: str


# --- calls: agent or client → kernel, and call-backs the other way -------------------------------------------------


class Call(NamedTuple):
    id: int
    method: str
    params: dict[str, Any]


class Reply(NamedTuple):
    id: int
    value: Any


class Fault(NamedTuple):
    """The error branch of Reply: a class name of agentos.errors and the fields to rebuild it."""

    id: int
    error: str
    message: str
    fields: dict[str, Any]


class Notice(NamedTuple):
    """Kernel → a client that follows: topic `log`, `agent` or `denied`; coalesced, never queued without bound."""

    topic: str
    data: dict[str, Any]


class Callback(NamedTuple):
    """Kernel → host program: run handlers or a module there. Answered by Returned; `limit_s` in params is how soon."""

    id: int
    name: str
    params: dict[str, Any]


class Returned(NamedTuple):
    """Host program → kernel, and from nobody else. `error` says why there is no value: an exception's type and text."""

    id: int
    value: Any
    error: str | None


class Ask(NamedTuple):
    """Kernel → client, reserved for approvals: a rule asks a person. The id is bound to the action and never reused."""

    ask_id: str
    agent_id: str
    operation: str
    resource: str
    reason: str
    expires_in_s: float


# --- kernel ↔ sentry -----------------------------------------------------------------------------------------------


class Deliver(NamedTuple):
    """Kernel → sentry: send this signal; Delivered comes when Linux confirms the effect."""

    id: int
    signal: int
    scope: str  # tree | leader


class Delivered(NamedTuple):
    id: int
    ok: bool
    processes: int
    mechanism: str
    detail: str


class Spawned(NamedTuple):
    """Sentry → kernel: the agent process exists. That exec succeeded StateSeen (`exec`) says, else SpawnFailed."""

    pid: int
    start_ticks: int


class SpawnFailed(NamedTuple):
    errno: int
    what: str


class StateSeen(NamedTuple):
    """Sentry → kernel: what Linux says of the leader now: running | stopped."""

    state: str
    mechanism: str


class Exited(NamedTuple):
    """Sentry → kernel: the leader is a zombie (not reaped yet, WNOWAIT). Exactly one of code and signal is set."""

    code: int | None
    signal: int | None
    cpu_ms: int


class Reap(NamedTuple):
    """Kernel → sentry: the exit is on record; reap, end what is left of the tree, and go."""

    id: int


class TreeGone(NamedTuple):
    """Sentry → kernel, its last frame: nothing of the tree lives. `leftover` processes had to be killed."""

    leftover: int


class Ping(NamedTuple):
    id: int


class Pong(NamedTuple):
    id: int


class LogGrew(NamedTuple):
    """Sentry → kernel → followers: the log of this agent reaches `offset`; `dropped` bytes could not be written."""

    offset: int
    dropped: int


class Input(NamedTuple):
    """Client → kernel → sentry, reserved with WindowSize: bytes for the agent's terminal; empty is its end."""

    data: bytes


class WindowSize(NamedTuple):
    rows: int
    columns: int


# --- kernel ↔ zygote, kernel ↔ recorder ----------------------------------------------------------------------------


class Fork(NamedTuple):
    """Kernel → zygote, with descriptors by SCM_RIGHTS beside it."""

    id: int
    kind: str  # sentry | recorder
    params: dict[str, Any]


class Forked(NamedTuple):
    id: int
    pid: int
    errno: int


class Died(NamedTuple):
    """Zygote → kernel: a child that it forked is reaped; its orphans, if any, are dead."""

    pid: int
    status: int
    orphans: int


class TailTo(NamedTuple):
    """Kernel → recorder: the journal reaches `seq`; urgent: somebody waits for it."""

    seq: int
    urgent: bool


class Recorded(NamedTuple):
    """Recorder → kernel: everything up to and including `seq` is committed (synchronous=FULL)."""

    seq: int


_TAGS: Final[dict[int, type[Any]]] = {
    1: Hello,
    10: Act,
    11: Outcome,
    12: Result,
    13: Raised,
    14: Answer,
    20: Verdict,
    21: Start,
    22: Query,
    23: Saved,
    30: Call,
    31: Reply,
    32: Fault,
    33: Notice,
    34: Callback,
    35: Returned,
    36: Ask,
    40: Deliver,
    41: Delivered,
    42: Spawned,
    43: SpawnFailed,
    44: StateSeen,
    45: Exited,
    46: Reap,
    47: TreeGone,
    48: Ping,
    49: Pong,
    50: LogGrew,
    51: Input,
    52: WindowSize,
    60: Fork,
    61: Forked,
    62: Died,
    70: TailTo,
    71: Recorded,
}
_TAG_OF: Final = {cls: tag for tag, cls in _TAGS.items()}
_ACT: Final = bytes([0x90 + 1 + len(Act._fields), _TAG_OF[Act]])  # how every Act begins
_ACT_IDS: Final = {  # and the first byte of its id → where the id lies in the frame
    **{_ACT + bytes([small]): (6, 7) for small in range(128)},
    **{_ACT + bytes([0xCC + power]): (7, 7 + 2**power) for power in range(4)},
}
_LARGE_TAGS: Final = frozenset(_TAGS) - {_TAG_OF[cls] for cls in (Hello, Act, Outcome, Raised)}  # see ACTION_BYTES_MAX

# What each peer may send; a frame outside its set is a ProtocolError even when it is well formed.
FROM_AGENT: Final = frozenset({Hello, Act, Outcome, Result, Raised, Answer, Call})
TO_AGENT_VERDICTS: Final = frozenset({Verdict})
TO_AGENT_CALLS: Final = frozenset({Hello, Saved, Start, Query, Reply, Fault})
FROM_SENTRY: Final = frozenset({Hello, Delivered, Spawned, SpawnFailed, StateSeen, Exited, TreeGone, Pong, LogGrew})
TO_SENTRY: Final = frozenset({Deliver, Reap, Ping, Input, WindowSize})
FROM_CLIENT: Final = frozenset({Hello, Call, Returned, Input, WindowSize})
TO_CLIENT: Final = frozenset({Hello, Reply, Fault, Notice, Callback, Ask})
FROM_ZYGOTE: Final = frozenset({Hello, Forked, Died})
TO_ZYGOTE: Final = frozenset({Hello, Fork})
FROM_RECORDER: Final = frozenset({Hello, Recorded, Fault})
TO_RECORDER: Final = frozenset({Hello, TailTo})


def _accepted_types(cls: type[Any]) -> tuple[tuple[type, ...] | None, ...]:
    """Per field, the exact types its value may have after msgpack; None where anything goes."""
    checks: list[tuple[type, ...] | None] = []
    for hint in typing.get_type_hints(cls).values():
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = tuple(typing.get_origin(member) or member for member in members)
        checks.append(None if Any in members else plain)
    return tuple(checks)


_CHECKS: Final[dict[type, tuple[tuple[type, ...] | None, ...]]] = {}  # filled when needed: `ps` needs two of them


def prepare() -> None:
    """Look at the types of all frames now: for a process that forks others, none of which then has to."""
    _CHECKS.update((cls, _accepted_types(cls)) for cls in _TAG_OF)


def encode(frame: Any) -> bytes:
    """Return the bytes of one frame. Raises ProtocolError when it is too large or holds what msgpack cannot."""
    try:
        body: bytes = msgpack.packb((_TAG_OF[type(frame)], *frame), use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{type(frame).__name__} cannot be encoded: {error}") from error
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"{type(frame).__name__} has {len(body)} bytes, the limit is {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def encode_plain(frame: Any) -> bytes:
    """As `encode`, in half the time, for a small frame of words, numbers and what is built of those.

    Packing them runs no code of anybody's: so threads and signal handlers can share one packer.
    """
    try:
        body: bytes = _pack((_TAG_OF[type(frame)], *frame))
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{type(frame).__name__} cannot be encoded: {error}") from error
    return _LENGTH.pack(len(body)) + body


def split_act(data: bytes) -> tuple[int, bytes]:
    """Return the id of the one Act that `data` may be, and the bytes behind that; without any when it is none.

    Whether the rest is right is not looked at: it is when it equals that of an Act which was.
    """
    begin, end = _ACT_IDS.get(data[_HEADER_BYTES : _HEADER_BYTES + 3], (0, 0))
    if not end or int.from_bytes(data[:_HEADER_BYTES]) != len(data) - _HEADER_BYTES:
        return 0, b""
    return int.from_bytes(data[begin:end]), data[end:]


def decode_whole(data: bytes, accept: frozenset[Any], bytes_max: int = COUNTED_FROM_BYTES) -> Any:
    """Return the frame when `data` is exactly one small frame, else None. Raises ProtocolError."""
    size = len(data) - _HEADER_BYTES
    if size > bytes_max or int.from_bytes(data[:_HEADER_BYTES]) != size:
        return None
    return decode_body(data[_HEADER_BYTES:], accept)


def decode_body(body: bytes | memoryview, accept: frozenset[Any]) -> Any:
    """Return the frame in `body` (without its length). Raises ProtocolError for anything but one frame of `accept`."""
    try:
        fields = msgpack.unpackb(body, raw=False, strict_map_key=False, use_list=True, ext_hook=_refuse_extension)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a frame: {type(error).__name__}: {error}") from error
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise ProtocolError("not a frame: no tag")
    cls = _TAGS.get(fields[0])
    if cls is None or cls not in accept:
        raise ProtocolError(f"unexpected frame {cls.__name__ if cls else fields[0]} from this peer")
    del fields[0]
    shape = (cls, *map(type, fields))
    inside = _SHAPES.get(shape)
    if inside is None:  # hot path: the frames of a class have a few shapes, each of them is looked at once
        inside = _SHAPES[shape] = _check_shape(*shape)
    for index in inside:
        if fields[index]:
            _check(check_plain, fields[index], DEPTH_MAX, where=cls.__name__)
    return _new_tuple(cls, fields)  # as cls._make, which would count the fields once more


# The types of whole frames that were found right. Bounded: msgpack knows ten types, few fields take more than two.
_SHAPES: Final[dict[tuple[type, ...], tuple[int, ...]]] = {}


def _check_shape(cls: type[Any], *kinds: type) -> tuple[int, ...]:
    """Return which fields may hold others, to be checked each time. Raises ProtocolError for what is wrong."""
    checks = _CHECKS.get(cls) or _CHECKS.setdefault(cls, _accepted_types(cls))
    if len(kinds) != len(checks):
        raise ProtocolError(f"{cls.__name__} takes {len(checks)} fields, got {len(kinds)}")
    for name, kind, allowed in zip(cls._fields, kinds, checks, strict=True):
        if allowed is not None and kind not in allowed:
            raise ProtocolError(f"{cls.__name__}.{name} is a {kind.__name__}")
    return tuple(index for index, kind in enumerate(kinds) if checks[index] is None or kind in (list, dict))


def _check(check: Callable[[Any, int], object], value: Any, limit: int, *, where: str) -> None:
    try:
        check(value, limit)
    except ValueError as error:
        raise ProtocolError(f"{where} {error}") from error


def _refuse_extension(code: int, _: bytes) -> Any:
    raise ValueError(f"extension type {code}")  # values travel packed, as bytes: a frame itself is plain


class Decoder:
    """Incremental: feed it whatever a read returned, get the whole frames in it. Correct at any pipe size.

    Holds at most one frame beyond what was fed. `items_max` bounds the structure of larger frames: for peers that are
    not trusted. After a ProtocolError the stream is beyond repair: drop the peer.
    """

    __slots__ = ("_accept", "_buffer", "_bytes_max", "_items_max", "_small_max", "frame_bytes")

    def __init__(
        self, accept: frozenset[Any], *, frame_bytes_max: int = FRAME_BYTES_MAX, items_max: int | None = None
    ) -> None:
        self._accept = accept
        self._buffer = bytearray()
        self._bytes_max = frame_bytes_max
        self._small_max = min(frame_bytes_max, COUNTED_FROM_BYTES)
        self._items_max = items_max
        self.frame_bytes = 0  # of the frame yielded last

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield every frame completed by `data`. Raises ProtocolError; frames before the fault are yielded first."""
        buffer = self._buffer
        if not buffer:  # hot path: one read is one frame
            frame = decode_whole(data, self._accept, self._small_max)
            if frame is not None:
                self.frame_bytes = len(data) - _HEADER_BYTES
                yield frame
                return
        buffer += data
        while len(buffer) >= _HEADER_BYTES:
            (size,) = _LENGTH.unpack_from(buffer)
            self._check_size(size)
            end = _HEADER_BYTES + size
            if len(buffer) < end:
                return
            with memoryview(buffer) as view:
                body = bytes(view[_HEADER_BYTES:end])
            del buffer[:end]
            self.frame_bytes = size
            if self._items_max is not None and size > COUNTED_FROM_BYTES:
                _check(check_items, body, self._items_max, where="a frame")
            yield decode_body(body, self._accept)

    def _check_size(self, size: int) -> None:
        """Refuse a frame by what it announces, before it is held: by its length and, once that is there, by its tag."""
        limit = self._bytes_max
        if len(self._buffer) >= _HEADER_BYTES + 2:
            kind, tag = self._buffer[_HEADER_BYTES : _HEADER_BYTES + 2]
            if kind & 0xF0 != 0x90 or tag not in _LARGE_TAGS:  # every frame is a short array, and its tag one byte
                limit = min(limit, ACTION_BYTES_MAX)
        if size > limit:
            raise ProtocolError(f"a frame of {size} bytes is announced, the limit is {limit}")

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished frame; not zero at end of stream means that it was truncated."""
        return len(self._buffer)

    @property
    def missing_bytes(self) -> int:
        """How many bytes the unfinished frame still lacks; 0 when none is begun or its length is not known yet."""
        if len(self._buffer) < _HEADER_BYTES:
            return 0
        return _HEADER_BYTES + int(_LENGTH.unpack_from(self._buffer)[0]) - len(self._buffer)
