"""Reading one run while it lives or afterwards: its database, and behind it what only the journal holds yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agentos.errors import RecorderUnavailable
from agentos.recorder.event import AuditEvent
from agentos.recorder.journal import READ_LIMIT, JournalDamaged, JournalPruned, JournalReader, journal_run_id
from agentos.recorder.query import Query
from agentos.recorder.recover import JOURNAL, database_of
from agentos.recorder.storage.sqlite import SqliteStorage


class RunReader:
    """Events of the run in `run_dir`, committed or not. Writes nothing. Not safe for two threads at once.

    Once it has read, it can go on reading what was committed, even when the directory is removed.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self._run_id = ""
        self._database: SqliteStorage | None = None

    @property
    def run_id(self) -> str:
        """The run, as its journal says; the name of the directory while, or when, there is no journal."""
        self._run_id = self._run_id or journal_run_id(self.run_dir / JOURNAL)
        return self._run_id or self.run_dir.name

    def read(self, after_seq: int = 0, limit: int = READ_LIMIT) -> list[AuditEvent]:
        """Return up to `limit` events after `after_seq`, oldest first; [] when there are none yet.

        To follow a run, call again with the last seq. Raises RecorderUnavailable, and JournalDamaged once nothing
        sound is left to return.
        """
        found, damage = self._select(Query(after_seq=after_seq, limit=limit, newest_first=False))
        if damage is not None and not found:
            raise damage
        return found

    def events(self, after_seq: int = 0) -> Iterator[AuditEvent]:
        """Yield every event after `after_seq` that is there now, oldest first, in bounded memory. Raises as `read`."""
        while batch := self.read(after_seq):
            yield from batch
            after_seq = batch[-1].seq

    def select(self, query: Query) -> list[AuditEvent]:
        """Return what `query` asks for. Raises RecorderUnavailable; JournalDamaged when something may be missing."""
        found, damage = self._select(query)
        if damage is not None:
            raise damage
        return found

    def close(self) -> None:
        """Close the database; the next call opens it again. Idempotent."""
        if self._database is not None:
            self._database.close()
        self._database = None

    def _select(self, query: Query) -> tuple[list[AuditEvent], JournalDamaged | None]:
        committed = -1
        while True:
            try:
                return self._select_once(query)
            except JournalPruned:  # between our look at the database and at the journal
                before, committed = committed, self._committed()
                if committed <= before:  # only what was committed is ever pruned: this event is truly gone
                    raise

    def _select_once(self, query: Query) -> tuple[list[AuditEvent], JournalDamaged | None]:
        """Return what is found and, when the journal could not be read to its end, why."""
        last = self._committed()
        database, run_id = self._database, self.run_id
        if database and query.limit is not None and not query.newest_first:
            found = database.select(query, run_id)
            if len(found) >= query.limit:
                return found, None  # the journal is behind what was asked for
        tail, damage = self._tail(max(last, query.after_seq), query)
        found = database.select(query, run_id) if database else []
        merged = {event.seq: event for event in (*found, *tail)}  # what was committed meanwhile is in both
        return replace(query, after_seq=0).select(merged[seq] for seq in sorted(merged)), damage

    def _committed(self) -> int:
        """The last event that the database holds; 0 for none."""
        database = self._open_database()
        return database.last_seq(self.run_id) if database else 0

    def _tail(self, after_seq: int, query: Query) -> tuple[list[AuditEvent], JournalDamaged | None]:
        """Return the matching events that only the journal holds; no more than `query.limit` of them."""
        found: list[AuditEvent] = []
        oldest_first = replace(query, newest_first=False, limit=None)
        with contextlib.closing(JournalReader(self.run_dir / JOURNAL, after_seq)) as reader:
            try:
                while events := reader.read():
                    found += oldest_first.select(events)
                    if query.limit is not None and query.newest_first:
                        found = found[max(0, len(found) - query.limit) :]
                    elif query.limit is not None and len(found) >= query.limit:
                        return found[: query.limit], None
            except JournalDamaged as damage:
                return found, damage
        return found, None

    def _open_database(self) -> SqliteStorage | None:
        path = database_of(self.run_dir)
        if self._database is None and path.exists():
            empty = path.stat().st_size == 0
            try:
                self._database = SqliteStorage(path, read_only=True)
            except RecorderUnavailable:
                if not empty:  # its writer had not come to write anything yet
                    raise
        return self._database


def iter_runs(state_dir: Path) -> Iterator[RunReader]:
    """Yield a reader for every run under the state directory, oldest first (run ids sort by time)."""
    runs = Path(state_dir) / "runs"
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if path.is_dir():
            yield RunReader(path)
