"""An event loop whose clock jumps: it waits for nothing but descriptors that are ready, and runs a minute in no time.

Real pipes work in it, because they are asked without waiting. When nothing is ready the clock goes to the next timer.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, Final

MOMENT_S: Final = 1e-9  # a turn of the loop takes some time: who waits for less than a float can add waits for ever


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


class _Timers(selectors.BaseSelector):
    """Asks Linux nothing: for worlds in which no descriptor is ever ready."""

    loop: VirtualLoop

    def __init__(self) -> None:
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[fileobj] = selectors.SelectorKey(fileobj, descriptor, events, data)
        return self._keys[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Any:
        return self._keys

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.loop.skip(max(timeout, MOMENT_S))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only while nothing can happen. Deterministic, as far as Linux is about pipes.

    `descriptors=False` makes a loop for timers and tasks alone, which is several times faster.
    """

    def __init__(self, *, descriptors: bool = True) -> None:
        selector = _Selector() if descriptors else _Timers()
        selector.loop = self
        self._now_s = 1_000.0
        self.on_skip: Callable[[float], None] = lambda _: None
        self.faults: list[dict[str, Any]] = []
        super().__init__(selector)
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self._now_s

    def skip(self, seconds: float) -> None:
        self.on_skip(seconds)
        self._now_s += seconds


class LoopClock:
    """The clock of a virtual loop, as an agentos.clock.Clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic_ns(self) -> int:
        return int(self._loop.time() * 1e9)

    def wall_ns(self) -> int:
        return 1_767_225_600_000_000_000 + self.monotonic_ns()
