"""Events in this process's memory: gone with it, and bounded, because nothing is ever dropped silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentos.errors import RecorderUnavailable
from agentos.recorder.event import AuditEvent
from agentos.recorder.query import Query
from agentos.recorder.storage.base import check_identical, check_order

EVENTS_MAX: Final = 1_000_000  # about 1 GB: whoever has more wants a file


class MemoryStorage:
    """A Storage that holds up to `events_max` events and then raises RecorderUnavailable."""

    def __init__(self, events_max: int = EVENTS_MAX) -> None:
        self._runs: dict[str, list[AuditEvent]] = {}
        self._events_max = events_max

    def insert_many(self, events: Sequence[AuditEvent]) -> int:
        if not events:
            return 0
        run = self._runs.get(events[0].run_id, [])
        check_order(events, len(run))
        fresh = []
        for event in events:
            if event.seq <= len(run):
                check_identical(run[event.seq - 1], event)
            else:
                fresh.append(event)
        if sum(map(len, self._runs.values())) + len(fresh) > self._events_max:
            raise RecorderUnavailable(
                f"the memory recorder is full ({self._events_max} events); use FlightRecorder(storage='sqlite', …)"
            )
        self._runs.setdefault(events[0].run_id, run).extend(fresh)
        return len(fresh)

    def last_seq(self, run_id: str) -> int:
        return len(self._runs.get(run_id, ()))

    def select(self, query: Query, run_id: str | None = None) -> list[AuditEvent]:
        runs = self._runs.values() if run_id is None else [self._runs.get(run_id, [])]
        return query.select(event for run in runs for event in run)

    def close(self) -> None:
        """Forgets nothing: what is in memory stays readable."""
