"""The only door to time. Everything that must be testable takes a Clock; tests hand in `agentos.testing.ManualClock`.

Monotonic time orders and measures, wall time is for people and time windows; neither is ever mixed with the other.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def monotonic_ns(self) -> int: ...

    def wall_ns(self) -> int: ...


class SystemClock:
    """The machine's clocks: CLOCK_MONOTONIC and CLOCK_REALTIME (clock_gettime(2))."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()


def to_datetime(wall_ns: int) -> datetime:
    """Return an aware UTC datetime, exact to the microsecond."""
    return _EPOCH + timedelta(microseconds=wall_ns // 1000)  # a float of seconds could not hold them


def rfc3339(wall_ns: int) -> str:
    """Return `2026-01-02T03:04:05.678901Z`, the one form in which times leave this project (RFC 3339)."""
    return to_datetime(wall_ns).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class RunningTime:
    """A deadline that counts only while its agent may run: `pause` on STOP, `resume` on CONT.

    Pure: every method takes the monotonic time in seconds. A watchdog that fires on a stopped agent is a bug other
    supervisors have shipped (systemd issue 38517).
    """

    __slots__ = ("_left_s", "_paused_s", "_since_s", "_stood_s")

    def __init__(self, limit_s: float) -> None:
        self._left_s = limit_s
        self._since_s: float | None = None
        self._paused_s: float | None = None
        self._stood_s = 0.0

    def resume(self, now_s: float) -> None:
        if self._since_s is None:
            self._since_s = now_s
            self._stood_s = self.stood_s(now_s)
            self._paused_s = None

    def pause(self, now_s: float) -> None:
        if self._since_s is not None:
            self._left_s -= now_s - self._since_s
            self._since_s = None
        if self._paused_s is None:
            self._paused_s = now_s

    def left_s(self, now_s: float) -> float:
        """Return the seconds of running time left; negative once it is over."""
        spent = 0.0 if self._since_s is None else now_s - self._since_s
        return self._left_s - spent

    def stood_s(self, now_s: float) -> float:
        """Return the seconds for which it was paused so far."""
        return self._stood_s + (0.0 if self._paused_s is None else now_s - self._paused_s)
