"""What a FlightRecorder writes itself while no kernel does: one storage, one writer, commits in groups.

Each opening for writing begins a run of its own, so the runs of one file follow one another and never interleave.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentos.clock import Clock
from agentos.errors import HostError
from agentos.identity import new_run_id
from agentos.recorder.event import AuditEvent, Entry
from agentos.recorder.query import Query
from agentos.recorder.recover import DATABASE
from agentos.recorder.storage.base import Storage
from agentos.recorder.storage.memory import MemoryStorage
from agentos.recorder.storage.sqlite import SqliteStorage
from agentos.runs import locate

MEMORY: Final = "memory"
SQLITE: Final = "sqlite"


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry on its way into the record; `done` gets its event id, or why it has none."""

    entry: Entry
    ts_ns: int
    mono_ns: int
    done: Future[str] = field(default_factory=Future)


class OwnRecord:
    """Not safe for two threads at once. With storage sqlite and no path each run has a directory as kernels have."""

    def __init__(self, storage: str, path: Path | None, clock: Clock) -> None:
        self._memory = MemoryStorage() if storage == MEMORY else None
        self._path = path
        self._clock = clock
        self._writer: Storage | None = None
        self._files: list[Path] = [] if path is None else [path]
        self._run_id = ""
        self._last_seq = 0

    def write(self, waiting: Sequence[Waiting]) -> None:
        """Store all entries in one transaction and tell each its id, or tell all why not."""
        try:
            ids = self._insert(waiting)
        except HostError as error:
            self.release()  # after a failed commit nobody knows what is on disk before it is opened again
            for one in waiting:
                one.done.set_exception(error)
        except BaseException as error:
            for one in waiting:
                one.done.set_exception(error)
            raise
        else:
            for one, event_id in zip(waiting, ids, strict=True):
                one.done.set_result(event_id)

    def select(self, query: Query) -> list[AuditEvent]:
        """Return what `query` asks for. Raises RecorderUnavailable."""
        if self._memory is not None:
            return self._memory.select(query)
        found = []
        for path in self._files:
            if path.exists():
                with contextlib.closing(SqliteStorage(path, read_only=True)) as storage:
                    found += storage.select(query)
        return found

    def release(self) -> None:
        """Give up the file, so that another may write it; the next write takes it again. Idempotent."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _insert(self, waiting: Sequence[Waiting]) -> list[str]:
        writer = self._writer or self._open()
        events = [
            AuditEvent(
                self._run_id, seq, one.ts_ns, one.mono_ns, one.entry.event_type, one.entry.severity,
                one.entry.agent_id, "", "", one.entry.data, durable=self._memory is None,
            )
            for seq, one in enumerate(waiting, self._last_seq + 1)
        ]  # fmt: skip
        writer.insert_many(events)
        self._last_seq += len(events)
        return [event.event_id for event in events]

    def _open(self) -> Storage:
        self._run_id, self._last_seq = new_run_id(self._clock.wall_ns()), 0
        if self._memory is not None:
            self._writer = self._memory
        else:
            self._writer = SqliteStorage(self._path or self._new_file())
        return self._writer

    def _new_file(self) -> Path:
        directory = locate(self._run_id).state
        directory.mkdir(mode=0o700, parents=True)
        self._files.append(directory / DATABASE)
        return self._files[-1]
