"""What every storage promises, and the one check they share: a run's events are stored once, in order, without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentos.errors import HostError
from agentos.recorder.event import AuditEvent
from agentos.recorder.query import Query


class RecordConflict(HostError):
    """Events do not continue what is stored: a gap before `seq`, or another event stored under it."""

    def __init__(self, run_id: str, seq: int, what: str) -> None:
        super().__init__(f"event {seq} of run {run_id}: {what}")
        self.run_id = run_id
        self.seq = seq


class Storage(Protocol):
    """Holds the events of any number of runs. Any thread may call, one at a time."""

    def insert_many(self, events: Sequence[AuditEvent]) -> int:
        """Store events of one run, all or none; return how many were new.

        When it returns they are as durable as this storage can make them. An event that is stored already is passed
        over if it is identical. Raises RecordConflict for a gap or a different event, RecorderUnavailable when the
        storage fails.
        """
        ...

    def last_seq(self, run_id: str) -> int:
        """Return the last seq stored of the run; 0 when there is none."""
        ...

    def select(self, query: Query, run_id: str | None = None) -> list[AuditEvent]:
        """Return what `query` asks for, of one run or of all; runs are ordered by when they were first stored."""
        ...

    def close(self) -> None:
        """Give up whatever is held open or locked. Idempotent."""
        ...


def check_order(events: Sequence[AuditEvent], last: int) -> None:
    """Raise RecordConflict unless `events` are of one run, contiguous, and leave no gap behind event `last`."""
    first = events[0]
    for offset, event in enumerate(events):
        if event.run_id != first.run_id or event.seq != first.seq + offset:
            raise RecordConflict(event.run_id, event.seq, f"does not follow {first.event_id} by {offset}")
    if first.seq > last + 1:
        raise RecordConflict(first.run_id, first.seq, f"events {last + 1} to {first.seq - 1} are missing")
    if first.seq < 1:
        raise RecordConflict(first.run_id, first.seq, "the first event is 1")


def check_identical(stored: AuditEvent, event: AuditEvent) -> None:
    """Raise RecordConflict unless the two are the same event."""
    if stored != event:
        raise RecordConflict(event.run_id, event.seq, "another event is stored under this number")
