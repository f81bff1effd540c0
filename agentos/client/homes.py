"""Which event loop of the host program started which agent: there its handlers run.

Holds no loop alive, and remembers the HOMES_MAX agents that were started last.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterable
from typing import Final

HOMES_MAX: Final = 8_192  # twice as many agents as may live at once


class Homes:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # the reader thread's, mostly; never taken inside a signal handler
        self._loops: dict[str, weakref.ref[asyncio.AbstractEventLoop]] = {}

    def remember(self, agent_id: str, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._loops[agent_id] = weakref.ref(loop)
            if len(self._loops) > HOMES_MAX:
                del self._loops[next(iter(self._loops))]

    def find(self, line: Iterable[str]) -> asyncio.AbstractEventLoop | None:
        """Return the loop that started the first known of `line`, an agent and those above it; None if it runs no more.

        A loop that does not run now would not run a handler either.
        """
        with self._lock:
            known = next((self._loops[agent_id] for agent_id in line if agent_id in self._loops), None)
        loop = known() if known is not None else None
        return loop if loop is not None and loop.is_running() else None
