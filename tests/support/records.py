"""Makers of audit events and of runs on disk, for tests of the recorder; and what is on record of a run, for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentos import KernelSpace
from agentos.recorder.event import AuditEvent
from agentos.recorder.journal import JournalWriter
from agentos.recorder.query import Query
from agentos.recorder.reader import RunReader
from agentos.recorder.recover import JOURNAL
from agentos.recorder.storage.sqlite import SqliteStorage

RUN = "20260102T030405-1a2b3c"
START_NS = 1_767_322_800_000_000_000


def event(seq: int, run_id: str = RUN, **fields: Any) -> AuditEvent:
    """Return an event like many; what a test cares about is given by name."""
    known: dict[str, Any] = {
        "ts_ns": START_NS + seq * 1_000_000, "mono_ns": seq, "event_type": "action_allowed", "severity": "info",
        "agent_id": "agent-1", "agent_name": "worker", "execution_id": "execution-1", "data": {"n": seq},
    }  # fmt: skip
    return AuditEvent(run_id, seq, **(known | fields))


def events(count: int, first: int = 1, run_id: str = RUN) -> list[AuditEvent]:
    return [event(seq, run_id) for seq in range(first, first + count)]


def recorded(run_dir: Path, kind: str = "", agent_id: str = "") -> list[AuditEvent]:
    """Return what is on record of a run, all of it, of one type or of one agent, oldest first."""
    reader = RunReader(run_dir)
    wanted = Query(event_type=kind or None, agent_id=agent_id or None, limit=None, newest_first=False)
    try:
        return reader.select(wanted)
    finally:
        reader.close()


def recorded_by(kernel: KernelSpace, kind: str = "") -> list[AuditEvent]:
    """Return what is on record of the run that this kernel has now."""
    assert kernel._connection is not None
    return recorded(kernel._connection.run.state, kind)


class RunOnDisk:
    """A run directory as a kernel and its recorder leave it: a journal, and a database that may be behind."""

    def __init__(self, run_dir: Path, run_id: str = RUN) -> None:
        self.run_dir = run_dir
        self.run_id = run_id
        self.journal_dir = run_dir / JOURNAL
        self.journal_dir.mkdir(parents=True)
        self.journal = JournalWriter(self.journal_dir, run_id=run_id)
        self._last = 0

    def record(self, count: int = 1, **fields: Any) -> int:
        """Append events to the journal; return the seq of the last."""
        for _ in range(count):
            one = event(self._last + 1, self.run_id, **fields)
            self._last = self.journal.append(
                one.event_type, one.severity, one.agent_id, one.agent_name, one.execution_id, one.data,
                durable=one.durable, ts_ns=one.ts_ns, mono_ns=one.mono_ns,
            )  # fmt: skip
        return self._last

    def storage(self) -> SqliteStorage:
        return SqliteStorage(self.run_dir / "flight.db")
