"""Every frame that crosses a process border, by name, and who may send which. Everybody else takes them from `wire`.

Frames are NamedTuples: immutable, and the cheapest thing CPython can build on the hot path. No code, no bytes.

Rules for editors: a new frame is one class here, one line in `TAGS` and its name in `wire`; tags are never reused; a
changed frame raises VERSION, because both ends compare it in Hello before anything else.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

VERSION: Final = 1


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


TAGS: Final[dict[int, type[Any]]] = {
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
