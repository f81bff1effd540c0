"""THE protocol: bytes in, typed frames out, and back. The frames themselves are in `frames`, and are had from here.

One frame is a 4-byte big-endian length and a msgpack array `[tag, field, …]`. No I/O, no decisions. Bounded in size
and depth; whatever is not a well-formed frame of a kind that this peer may send is a ProtocolError, and nothing else
can leave `Decoder.feed`.
"""

from __future__ import annotations

import struct
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack

from agentos.errors import ProtocolError
from agentos.frames import *  # noqa: F403 - whoever speaks the protocol needs one import
from agentos.frames import TAGS, Act, Hello, Outcome, Raised
from agentos.shape import check_items, check_plain

FRAME_BYTES_MAX: Final = 16 * 1024 * 1024  # a result or a function; what an agent's action may hold is far less
ACTION_BYTES_MAX: Final = 256 * 1024  # ARG_MAX-sized argv are refused rather than buffered for every agent
DEPTH_MAX: Final = 32  # deeper values are an attack on whoever prints them
COUNTED_FROM_BYTES: Final = 4_096  # what is smaller cannot decode into much; counting it would cost every action

_LENGTH: Final = struct.Struct(">I")
_pack: Final = msgpack.Packer(use_bin_type=True).pack
_new_tuple: Final[Callable[..., Any]] = tuple.__new__
_HEADER_BYTES: Final = _LENGTH.size
_TAG_OF: Final = {cls: tag for tag, cls in TAGS.items()}
_ACT: Final = bytes([0x90 + 1 + len(Act._fields), _TAG_OF[Act]])  # how every Act begins
_ACT_IDS: Final = {  # and the first byte of its id → where the id lies in the frame
    **{_ACT + bytes([small]): (6, 7) for small in range(128)},
    **{_ACT + bytes([0xCC + power]): (7, 7 + 2**power) for power in range(4)},
}
_LARGE_TAGS: Final = frozenset(TAGS) - {_TAG_OF[cls] for cls in (Hello, Act, Outcome, Raised)}  # see ACTION_BYTES_MAX


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
    cls = TAGS.get(fields[0])
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
