"""Who may run now: at most so many agents at once, the others in line by priority, then in order of arrival. Pure.

An agent that waits for its children lends its slot, or a full kernel would wait for itself. It gets the first slot
that comes free afterwards, before anybody in line.
"""

from __future__ import annotations

import heapq
import itertools
import math


class Admission:
    """Keys are agent ids; each is running, lent out, in line, or unknown."""

    def __init__(self, slots_max: int) -> None:
        self._slots_max = slots_max
        self._running: set[str] = set()
        self._lent: set[str] = set()
        self._reclaiming: set[str] = set()  # those in line that have run already
        self._line: list[tuple[float, int, str]] = []  # a heap; who left it is still in it until it comes up
        self._waiting: dict[str, int] = {}  # key → its place in `_line`
        self._arrivals = itertools.count()

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return len(self._running)

    @property
    def in_line(self) -> int:
        return len(self._waiting)

    def is_waiting(self, key: str) -> bool:
        return key in self._waiting

    def ask(self, key: str, priority: int = 0) -> list[str]:
        """Get in line; return who may run now: `key` itself, or nobody."""
        self._queue(key, -priority)
        return self._admit()

    def leave(self, key: str) -> list[str]:
        """`key` has ended, or does not want to run any more; return who may run now in its place."""
        self._running.discard(key)
        self._lent.discard(key)
        self._reclaiming.discard(key)
        self._waiting.pop(key, None)
        return self._admit()

    def lend(self, key: str) -> list[str]:
        """`key` waits for others; return who may run now in its place. What has no slot lends none.

        Who waits again before it has its slot back leaves the line: it would hold a slot that nobody can use.
        """
        if key in self._reclaiming:
            self._reclaiming.discard(key)
            del self._waiting[key]
            self._lent.add(key)
        if key not in self._running:
            return []
        self._running.remove(key)
        self._lent.add(key)
        return self._admit()

    def reclaim(self, key: str) -> list[str]:
        """`key` has what it waited for and wants its slot back; return who may run now, first of all `key`."""
        if key not in self._lent:
            return []
        self._lent.remove(key)
        self._reclaiming.add(key)
        self._queue(key, -math.inf)
        return self._admit()

    def _queue(self, key: str, rank: float) -> None:
        place = next(self._arrivals)
        self._waiting[key] = place
        heapq.heappush(self._line, (rank, place, key))

    def _admit(self) -> list[str]:
        admitted = []
        while self._line and len(self._running) < self._slots_max:
            _, place, key = heapq.heappop(self._line)
            if self._waiting.get(key) != place:
                continue  # it left the line
            del self._waiting[key]
            self._reclaiming.discard(key)
            self._running.add(key)
            admitted.append(key)
        return admitted
