"""The seven signals of the public API, how people spell them, and whom each reaches by default.

Numbers are Linux's own (signal(7), x86 and arm). Sends nothing: delivery is the sentry's, tracing is the tree's.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

from agentos.errors import UnknownSignal

Scope = Literal["tree", "leader"]


class AgentSignal(Enum):
    """POSIX signals for agent control; values are the POSIX numbers."""

    SIGKILL = 9  # immediate end, cannot be caught
    SIGSTOP = 19  # immediate pause, cannot be caught
    SIGCONT = 18  # resume
    SIGTERM = 15  # request to end; the agent may clean up
    SIGUSR1 = 10
    SIGUSR2 = 12
    SIGALRM = 14  # time-out

    @property
    def catchable(self) -> bool:
        """Whether an agent or a handler can intercept it (signal(7): all but KILL and STOP)."""
        return self not in (AgentSignal.SIGKILL, AgentSignal.SIGSTOP)


# A pause that leaves children running is a lie; a request to end belongs to the one who can act on it.
_TREE_WIDE: Final = frozenset({AgentSignal.SIGSTOP, AgentSignal.SIGCONT, AgentSignal.SIGKILL})
NAMES: Final = tuple(member.name for member in AgentSignal)


def default_scope(signal: AgentSignal) -> Scope:
    """Return whom `signal` goes to unless the caller chooses: STOP, CONT, KILL the tree, the rest the leader."""
    return "tree" if signal in _TREE_WIDE else "leader"


def parse_signal(text: str | int | AgentSignal) -> AgentSignal:
    """Return the signal for `STOP`, `sigstop`, `19`, 19 or a member. Raises UnknownSignal naming the nearest."""
    if isinstance(text, AgentSignal):
        return text
    word = str(text).strip().upper()
    if word.isdecimal():
        by_number = {member.value: member for member in AgentSignal}
        found = by_number.get(int(word))
    else:
        found = AgentSignal.__members__.get(word if word.startswith("SIG") else f"SIG{word}")
    if found is None:
        raise UnknownSignal(text, NAMES)
    return found


def describe_exit(code: int | None, number: int | None) -> str:
    """Return `exit code 3` or `killed by SIGKILL` for a reaped process; exactly one argument is given."""
    if number is None:
        return f"exit code {code}"
    return f"killed by {signal_name(number)}"


def signal_name(number: int) -> str:
    """Return `SIGSEGV`, or `signal 99` for a number without a name."""
    import signal as posix  # noqa: PLC0415 - a millisecond, and `ps` and `kill` seldom name one

    try:
        return posix.Signals(number).name
    except ValueError:
        return f"signal {number}"
