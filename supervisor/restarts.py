"""Whether an agent that ended is started again, and when. Pure: the time and the dice are handed in.

Back-off and its jitter follow the advice of the AWS Architecture Blog ("Exponential Backoff And Jitter": full jitter),
the limit on how often follows OTP's supervisor(3): who needs too many starts in too short a time has failed for good.
All times are seconds of one monotonic clock. The time in which the agent was stopped does not count: `decide` moves
what lies in the past forward by it, so that the window and the healthy interval stand still meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from agentos.restart_policy import RestartPolicy, When

BACKOFF_S: Final = 0.1  # docker's first delay; doubled with every failure in a row
BACKOFF_S_MAX: Final = 30.0
HEALTHY_S: Final = 10.0  # who ran for so long had started well: the next failure is the first again
# Ten starts are the most that a minute of trouble needs. The delays before ten starts are 51 s at most, and 82 s before
# the eleventh: within two minutes, whoever ends soon after each start reaches the limit, whatever the dice say.
STARTS_MAX: Final = 10
WINDOW_S: Final = 120.0


class Ending(Enum):
    """How a life ended, as far as it matters here."""

    SUCCESS = "it succeeded"
    FAILURE = "it failed"
    COMMANDED = "it was told to end"
    ENFORCED = "it was ended for what it did"  # the same program would do the same again: that is not a way around


@dataclass(frozen=True, slots=True)
class History:
    """The lives so far: when the latest ones were started, how many were restarts, how many ended soon in a row."""

    starts: tuple[float, ...] = ()
    restarts: int = 0
    failures: int = 0

    def started(self, now_s: float) -> History:
        """Return the history with one more start."""
        return replace(self, starts=(*self.starts, now_s)[-STARTS_MAX:])


@dataclass(frozen=True, slots=True)
class Restart:
    not_before_s: float
    delay_s: float
    attempt: int  # 1 is the first restart
    history: History  # what to decide with next time


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It should be started again, and may not."""

    why: str


@dataclass(frozen=True, slots=True)
class Done:
    """It has ended, and that is right."""


Decision = Restart | GiveUp | Done


def decide(
    policy: RestartPolicy,
    history: History,
    now_s: float,
    ending: Ending,
    stopped_s: float,
    dice: Callable[[], float],
) -> Decision:
    """Return what follows the end of a life that was stopped for `stopped_s`. `dice` returns a number in [0, 1)."""
    if not _is_wanted(policy, ending):
        return Done()
    if policy.limit is not None and history.restarts >= policy.limit:
        return GiveUp(f"it was restarted {history.restarts} times, as often as {policy} allows")
    starts = tuple(start + stopped_s for start in history.starts)
    healthy = bool(starts) and now_s - starts[-1] >= HEALTHY_S
    failures = 0 if healthy else history.failures
    delay_s = dice() * backoff_s(failures)
    not_before_s = now_s + delay_s
    recent = sum(start > not_before_s - WINDOW_S for start in starts)
    if recent >= STARTS_MAX:
        return GiveUp(f"it was started {recent} times within {WINDOW_S:g} s")
    after = History(starts, history.restarts + 1, failures + 1)
    return Restart(not_before_s, delay_s, after.restarts, after)


def backoff_s(failures: int) -> float:
    """Return the longest delay after so many failures in a row before this one; the dice choose below it."""
    return min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(failures, 16))  # beyond, a float of 2**n would overflow in time


def _is_wanted(policy: RestartPolicy, ending: Ending) -> bool:
    if policy.when is When.ALWAYS:
        return ending in (Ending.SUCCESS, Ending.FAILURE)
    return policy.when is When.ON_FAILURE and ending is Ending.FAILURE
