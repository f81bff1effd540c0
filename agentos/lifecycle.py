"""Lifecycle of one supervised agent: which state follows which event.

Owns the transition table and nothing else: no clock, no pids, no I/O. Signal semantics follow signal(7); the states
that the public API knows are the four of `AgentStatus.state`. Rule for editors: everything that affects a transition
stands here; a pair without a row is IllegalTransition, never silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from agentos.errors import PeerError


class State(Enum):
    STARTING = "starting"  # on record, forked or about to be; has not run an instruction of the program
    RUNNING = "running"
    WAITING = "waiting"  # inside a call that waits for a person or for children
    STOPPED = "stopped"  # frozen by SIGSTOP; still holds its pid
    EXITED = "exited"  # a zombie, its exit on record; the rest of its tree is being ended
    TERMINATED = "terminated"  # reaped; the pid may already belong to someone else


@dataclass(frozen=True, slots=True)
class Began:
    """exec succeeded, or the Python entry runs."""


@dataclass(frozen=True, slots=True)
class StartFailed: ...


@dataclass(frozen=True, slots=True)
class Paused: ...


@dataclass(frozen=True, slots=True)
class Resumed: ...


@dataclass(frozen=True, slots=True)
class Blocked:
    """The agent waits for an answer that may take long."""


@dataclass(frozen=True, slots=True)
class Unblocked: ...


@dataclass(frozen=True, slots=True)
class Exited: ...


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing of the tree lives any more: told by its sentry, or by the zygote after the sentry's death."""


Event = Began | StartFailed | Paused | Resumed | Blocked | Unblocked | Exited | Gone

TRANSITIONS: Final[dict[tuple[State, type[Event]], State]] = {
    (State.STARTING, Began): State.RUNNING,
    (State.STARTING, Paused): State.STOPPED,  # --start-paused, or a stop that was faster than exec
    (State.STARTING, Resumed): State.STARTING,
    (State.STARTING, Blocked): State.WAITING,  # it calls before its sentry could tell that it runs
    (State.STARTING, Unblocked): State.RUNNING,
    (State.STARTING, StartFailed): State.EXITED,
    (State.STARTING, Exited): State.EXITED,
    (State.STARTING, Gone): State.TERMINATED,
    (State.RUNNING, Began): State.RUNNING,
    (State.RUNNING, Paused): State.STOPPED,
    (State.RUNNING, Resumed): State.RUNNING,
    (State.RUNNING, Blocked): State.WAITING,
    (State.RUNNING, Unblocked): State.RUNNING,
    (State.RUNNING, StartFailed): State.EXITED,
    (State.RUNNING, Exited): State.EXITED,
    (State.RUNNING, Gone): State.TERMINATED,
    (State.WAITING, Began): State.WAITING,
    (State.WAITING, Paused): State.STOPPED,
    (State.WAITING, Resumed): State.WAITING,
    (State.WAITING, Blocked): State.WAITING,
    (State.WAITING, Unblocked): State.RUNNING,
    (State.WAITING, Exited): State.EXITED,
    (State.WAITING, StartFailed): State.EXITED,
    (State.WAITING, Gone): State.TERMINATED,
    (State.STOPPED, Began): State.STOPPED,  # the start was confirmed late
    (State.STOPPED, Paused): State.STOPPED,
    (State.STOPPED, Resumed): State.RUNNING,
    (State.STOPPED, Blocked): State.STOPPED,
    (State.STOPPED, Unblocked): State.STOPPED,
    (State.STOPPED, StartFailed): State.EXITED,
    (State.STOPPED, Exited): State.EXITED,  # SIGKILL reaches a stopped process
    (State.STOPPED, Gone): State.TERMINATED,
    (State.EXITED, Began): State.EXITED,  # what was on its way when the agent ended
    (State.EXITED, StartFailed): State.EXITED,
    (State.EXITED, Blocked): State.EXITED,
    (State.EXITED, Paused): State.EXITED,
    (State.EXITED, Resumed): State.EXITED,
    (State.EXITED, Unblocked): State.EXITED,
    (State.EXITED, Exited): State.EXITED,
    (State.EXITED, Gone): State.TERMINATED,
}

ENDED: Final = frozenset({State.EXITED, State.TERMINATED})


class IllegalTransition(PeerError):
    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{type(event).__name__} cannot happen to a {state.value} agent")
        self.state = state
        self.event = event


def after(state: State, event: Event) -> State:
    """Return the state that follows. Total: every pair moves the state or raises IllegalTransition."""
    try:
        return TRANSITIONS[state, type(event)]
    except KeyError:
        raise IllegalTransition(state, event) from None


def public_state(state: State) -> str:
    """Return the word of `AgentStatus.state`: running | stopped | terminated | waiting."""
    if state is State.STARTING:
        return "waiting"
    return "terminated" if state in ENDED else state.value
