"""An event loop whose clock jumps: it waits for nothing but descriptors that are ready, and runs a minute in no time.

Real pipes work in it, because they are asked without waiting. When nothing is ready the clock goes to the next timer.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # chosen at import
    """Never waits; instead tells the loop how long it would have."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is not None and timeout > 0:
            self.loop.skip(timeout)
        elif not ready and timeout is None:
            raise RuntimeError("everybody waits for ever")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only while nothing can happen. Deterministic, as far as Linux is about pipes."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self._now_s = 1_000.0
        self.faults: list[dict[str, Any]] = []
        super().__init__(selector)
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self._now_s

    def skip(self, seconds: float) -> None:
        self._now_s += seconds


class LoopClock:
    """The clock of a virtual loop, as an agentos.clock.Clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic_ns(self) -> int:
        return int(self._loop.time() * 1e9)

    def wall_ns(self) -> int:
        return 1_767_225_600_000_000_000 + self.monotonic_ns()
