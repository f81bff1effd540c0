"""After a crash: bring what the journal of a dead run still holds into its database."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from agentos.errors import RecorderUnavailable
from agentos.recorder.journal import READ_LIMIT, JournalReader, journal_run_id, remove_through
from agentos.recorder.storage.sqlite import SqliteStorage

DATABASE: Final = "flight.db"
JOURNAL: Final = "journal"


def recover(run_dir: Path) -> int:
    """Commit what the journal of the run in `run_dir` holds beyond its database; return how many events that were.

    For runs whose kernel is dead (`agentos.runs.Run.alive`). Idempotent: a second call returns 0. Raises
    RecorderUnavailable while somebody else writes the database, and JournalDamaged, after everything before the
    damage is committed.
    """
    journal = Path(run_dir) / JOURNAL
    run_id = journal_run_id(journal)
    if not run_id:
        return 0
    with contextlib.closing(SqliteStorage(database_of(run_dir))) as storage:
        recovered = 0
        with contextlib.closing(JournalReader(journal, storage.last_seq(run_id))) as reader:
            while events := reader.read(READ_LIMIT):
                recovered += storage.insert_many(events)
            storage.checkpoint()
            remove_through(journal, reader.seq)
    return recovered


def database_of(run_dir: Path) -> Path:
    """Return the database of a run: `flight.db` in its directory, or the file elsewhere that it links to."""
    return Path(os.path.realpath(Path(run_dir) / DATABASE))


def link_database(run_dir: Path, database: Path) -> None:
    """Leave a link in `run_dir` when its record is written elsewhere. Raises RecorderUnavailable."""
    link = Path(run_dir) / DATABASE
    if database.absolute() == link.absolute() or link.is_symlink():
        return
    try:
        link.symlink_to(database.absolute())
    except OSError as error:
        raise RecorderUnavailable(f"{link} cannot be made a link to {database}: {error.strerror}") from error
