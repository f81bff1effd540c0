"""Rate limits: an exact log of the last 60 s for each (rule, agent name) (R8).

At most N allowed calls in any 60 s, not N by the clock's minute and not 2N after idling. Denied calls do not
count. Time is an argument; the log outlives a reload of the policy, since a rule keeps its identity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 60.0
LOGS_BEFORE_SWEEP: Final = 1_024  # agents choose their names: logs of names that fell silent are dropped


@dataclass(frozen=True, slots=True)
class Charge:
    """One call to be counted: against which rule's log, of which agent, with which limit."""

    rule: str
    name: str
    limit: int


class Quota:
    """The logs of one kernel. Not thread-safe: the kernel is one loop."""

    __slots__ = ("_logs", "_sweep_at")

    def __init__(self) -> None:
        self._logs: dict[tuple[str, str], deque[float]] = {}
        self._sweep_at = LOGS_BEFORE_SWEEP

    def wait_s(self, charge: Charge, now_s: float) -> float:
        """Return 0.0 when the call may be made at `now_s`, else the seconds until the oldest one leaves the window."""
        log = self._current(charge, now_s)
        if log is None or len(log) < charge.limit:
            return 0.0
        return log[len(log) - charge.limit] + WINDOW_S - max(now_s, log[-1])

    def spend(self, charges: Sequence[Charge], now_s: float) -> None:
        """Count one call against each log. The caller has asked `wait_s` for all of them first: all or nothing."""
        if len(self._logs) >= self._sweep_at:
            self._sweep(now_s)
        for charge in charges:
            log = self._logs.setdefault((charge.rule, charge.name), deque())
            log.append(max(now_s, log[-1]) if log else now_s)

    def forget(self, name: str) -> None:
        """Drop the logs of an agent name that will not come back."""
        for key in [key for key in self._logs if key[1] == name]:
            del self._logs[key]

    def _sweep(self, now_s: float) -> None:
        """Drop the logs in which nothing counts any more; the next sweep waits until twice as many are left."""
        self._logs = {key: log for key, log in self._logs.items() if log and log[-1] + WINDOW_S > now_s}
        self._sweep_at = max(LOGS_BEFORE_SWEEP, 2 * len(self._logs))

    def _current(self, charge: Charge, now_s: float) -> deque[float] | None:
        log = self._logs.get((charge.rule, charge.name))
        if log is None:
            return None
        while log and log[0] + WINDOW_S <= now_s:  # half-open: a call exactly 60 s old no longer counts
            log.popleft()
        return log
