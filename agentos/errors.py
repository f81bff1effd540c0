"""Every error agentos raises on purpose, in one tree with three branches: whose world broke.

CallerError: you asked for something wrong; the text names the thing, the place and the way out.
PeerError: an agent or another process did something wrong; the evidence is in fields.
HostError: this machine could not do what was needed; nothing was started, nothing failed open.

Owns names, fields and texts; never formats a traceback, never exits. `exit_code` is what the CLI ends with
(2 usage, 3 no such target, 4 policy, 5 not permitted, 6 alive after grace, 124 timeout, 125 agentos' own,
126 cannot run, 127 not found).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final


class AgentosError(Exception):
    """Root of every error this project raises on purpose."""

    exit_code: ClassVar[int] = 125


class CallerError(AgentosError):
    """The caller's mistake: fix the call, the file or the flag named in the text."""

    exit_code = 2


class PeerError(AgentosError):
    """An agent or a peer process misbehaved or ended in a way that the caller must hear of."""


class HostError(AgentosError):
    """This machine, not the caller and not the agent, is in the way."""


_WORD_MAX = 100


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, or "" when none is close, or the word is no word."""
    close = closest(word, known)
    return "" if close is None else f" (did you mean {close!r}?)"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`, None when none is."""
    if len(word) > _WORD_MAX:  # the search takes time by the square, and an agent may have chosen the word
        return None
    import difflib  # noqa: PLC0415 - only on the way to an error

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


# --- the caller's mistakes ---------------------------------------------------------------------------------------


class PolicyLoadError(CallerError):
    """A policy did not load. `line` and `column` are 1-based, None for policies built in Python."""

    def __init__(self, message: str, *, source: str, line: int | None = None, column: int | None = None) -> None:
        place = source if line is None else f"{source}:{line}:{column}"
        super().__init__(f"{place}: {message}")
        self.message = message
        self.source = source
        self.line = line
        self.column = column


class UnknownAgent(CallerError):
    """No agent has this name, id or prefix; or more than one has (`matches` then lists them).

    `ids` by name, given where only an id will do, says which one belongs to the name that was meant.
    """

    exit_code = 3

    def __init__(
        self,
        target: str,
        known: Sequence[str] = (),
        matches: Sequence[str] = (),
        *,
        ids: Mapping[str, str] | None = None,
    ) -> None:
        name = closest(target, ids or ())
        if ids and name is not None:
            text = f"no agent {target!r}: an id is needed, and the agent named {name!r} has the id {ids[name]}"
        elif matches:
            text = f"agent {target!r} is ambiguous: it matches {', '.join(matches)}"
        else:
            text = f"no agent {target!r}{nearest(target, known)}; `agentos ps -a` lists them"
        super().__init__(text)
        self.target = target
        self.matches = tuple(matches)


class UnknownSignal(CallerError):
    def __init__(self, signal: object, known: Sequence[str]) -> None:
        bare = [name.removeprefix("SIG") for name in known]  # whose common beginning is like everything
        hint = nearest(str(signal).upper().removeprefix("SIG"), bare)
        super().__init__(f"unknown signal {signal!r}{hint}; known: {', '.join(known)}")
        self.signal = signal


class NotSerialisable(CallerError):
    """A value cannot cross a process border. `where` says which argument or result."""

    def __init__(self, type_name: str, where: str) -> None:
        super().__init__(
            f"{where}: a value of type {type_name} cannot cross to another process; use None, bool, int, float, "
            "str, bytes, list, tuple, dict, set, datetime, date, timedelta, Decimal, UUID, Enum, a dataclass or a "
            "pydantic model"
        )
        self.type_name = type_name
        self.where = where


class DuplicateAgent(CallerError):
    def __init__(self, name: str) -> None:
        super().__init__(f"an agent named {name!r} is already registered; pass another name=")
        self.name = name


class NotRegistered(CallerError):
    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        super().__init__(f"{name!r} is not a registered agent{nearest(name, known)}; decorate it with @kernel.register")
        self.name = name


class ProgramNotFound(CallerError):
    exit_code = 127

    def __init__(self, program: str, detail: str = "not found on PATH") -> None:
        super().__init__(f"cannot run {program!r}: {detail}")
        self.program = program


class ProgramNotRunnable(CallerError):
    exit_code = 126

    def __init__(self, program: str, detail: str) -> None:
        super().__init__(f"cannot run {program!r}: {detail}")
        self.program = program


class BadRequest(CallerError):
    """An argument is wrong in a way that no more specific type names."""


class NotPermitted(CallerError):
    """The peer may not make this call (an agent widening its rights, a stranger on the control socket)."""

    exit_code = 5


class StillAlive(PeerError):
    """Something of the tree still lives after the grace and SIGKILL (a task in uninterruptible sleep)."""

    exit_code = 6


# --- what agents and peers did -----------------------------------------------------------------------------------


class ProtocolError(PeerError):
    """Bytes that are no valid frame, or a frame that may not come from this peer. Ends the agent that sent it."""


UNDECIDED: Final = {
    "recorder_unavailable": "it could not be recorded",
    "kernel_fault": "it could not be decided",
}  # reasons that are no decision: no rule and no default is to blame


def _denied(reason: str, rule: int | None, rule_name: str | None) -> str:
    if reason in UNDECIDED:
        return f"denied: {reason}: {UNDECIDED[reason]}"
    by = rule_name or ("the default" if rule is None else f"rule {rule}")
    return f"denied by {by}: {reason}"


class PolicyViolationError(PeerError, PermissionError):
    """An action was refused. Inside an agent it is raised at the refused call; uncaught, it reaches the caller.

    It is a PermissionError too, so that code which already copes with refused files copes with this.
    """

    exit_code = 4

    def __init__(
        self,
        operation: str,
        resource: str,
        *,
        reason: str,
        rule: int | None = None,
        rule_name: str | None = None,
        event_id: str | None = None,
        on_violation: str | None = None,
    ) -> None:
        Exception.__init__(self, f"{operation} {resource} {_denied(reason, rule, rule_name)}")
        self.operation = operation
        self.resource = resource
        self.reason = reason
        self.rule = rule
        self.rule_name = rule_name
        self.event_id = event_id
        self.on_violation = on_violation

    def __str__(self) -> str:  # OSError's own __str__ would hide the text
        return str(self.args[0]) if self.args else ""


class RateLimitedError(PolicyViolationError):
    """Over a rate limit; try again after `retry_after_s` seconds."""

    def __init__(self, operation: str, resource: str, *, retry_after_s: float, **fields: Any) -> None:
        super().__init__(operation, resource, **fields)
        self.retry_after_s = retry_after_s


class AgentFailed(PeerError):
    """The agent ended without a result: it raised (`remote_type`, `remote_traceback`), exited or was killed."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        agent_id: str,
        exit_code: int | None = None,
        signal: int | None = None,
        remote_type: str | None = None,
        remote_traceback: str | None = None,
    ) -> None:
        super().__init__(message)
        self.agent_id = agent_id
        self.code = exit_code
        self.signal = signal
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback


class ResultWithheld(AgentFailed):
    """The agent returned a result that a module of the host program did not verify: nobody is given it."""

    def __init__(self, name: str, *, agent_id: str, module: str, reason: str) -> None:
        super().__init__(f"the result of {name} is withheld by {module}: {reason}", agent_id=agent_id, exit_code=0)
        self.module = module
        self.reason = reason


class AgentTimeoutError(PeerError, TimeoutError):
    """The agent ran longer than its time-out (time while stopped does not count)."""

    exit_code = 124

    def __init__(self, message: str, *, agent_id: str, timeout_s: float) -> None:
        Exception.__init__(self, message)
        self.agent_id = agent_id
        self.timeout_s = timeout_s


# --- what this machine could not do ------------------------------------------------------------------------------


class KernelUnavailable(HostError):
    """The kernel could not be started or is gone; its agents are ended."""


class RecorderUnavailable(HostError):
    """An event could not be recorded; what depended on it was denied."""


class LevelUnavailable(HostError):
    """The run requires walls that this host or this version cannot put up; nothing was started."""

    def __init__(self, required: str, available: str, why: str) -> None:
        super().__init__(f"level {required!r} is required, but only {available!r} can be had here: {why}")
        self.required = required
        self.available = available


class SignalQueueFull(HostError):
    """A dispatcher has as many deliveries under way as it may; this one was not begun."""

    def __init__(self, signal: str, size: int) -> None:
        super().__init__(
            f"{signal} was not sent: {size} deliveries are under way, which is the queue_size of this dispatcher; "
            "await some of them first, or make it with a larger queue_size (SIGKILL and SIGSTOP never queue)"
        )
        self.size = size


class StateUnavailable(HostError):
    """The agent's runtime did not answer in time, or cannot: stopped, ended, not started, or a program without one."""
