"""A clock that goes only when it is told to."""

from __future__ import annotations

from typing import Final

_START_WALL_NS: Final = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z


class ManualClock:
    """An agentos.clock.Clock for tests: both times stand still until `advance` or `set_wall`.

    Wall time may be set to anything, backwards too, as on a machine whose clock is corrected; monotonic time may not.
    """

    def __init__(self, *, wall_ns: int = _START_WALL_NS, monotonic_ns: int = 0) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks. Raises ValueError for a negative number."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        step_ns = round(seconds * 1_000_000_000)
        self._monotonic_ns += step_ns
        self._wall_ns += step_ns

    def set_wall(self, wall_ns: int) -> None:
        """Correct the wall clock; monotonic time does not notice."""
        self._wall_ns = wall_ns
