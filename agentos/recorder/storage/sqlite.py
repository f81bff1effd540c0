"""Events in one SQLite file through apsw: WAL, synchronous=FULL, one writer by flock, any number of readers.

Plain columns and `data` as JSON text, so that SQL can question the record without us; the view `audit` adds event id
and time as text. The row key is run number << 40 | seq: unique and ordered by construction, one b-tree, no gap hidden.
Facts: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous. A failed commit is final for this connection:
after a failed fsync nobody knows what is on disk (the lesson of PostgreSQL 11.2), so the owner must reopen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import apsw

from agentos.errors import HostError, RecorderUnavailable
from agentos.recorder.event import AuditEvent
from agentos.recorder.query import RUN_SHIFT, Query, to_sql
from agentos.recorder.storage.base import check_identical, check_order

APSW_FLOOR: Final = (3, 51, 3)  # SQLite before it can corrupt a WAL that is reset while another connection writes
APPLICATION_ID: Final = 0x61674F53  # "agOS"
SCHEMA_VERSION: Final = 1
BUSY_LIMIT_MS: Final = 5_000
WAL_PAGES: Final = 4_000  # 16 MB between checkpoints: index pages are written once, not once per thousand
_SEQ_MASK: Final = (1 << RUN_SHIFT) - 1

_SCHEMA: Final = (
    "CREATE TABLE runs (run INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE)",
    f"""CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        ts_ns INTEGER NOT NULL, mono_ns INTEGER NOT NULL, event_type TEXT NOT NULL, severity TEXT NOT NULL,
        agent_id TEXT NOT NULL, agent_name TEXT NOT NULL, execution_id TEXT NOT NULL, data TEXT NOT NULL,
        durable INTEGER NOT NULL,
        seq INTEGER GENERATED ALWAYS AS (id & {_SEQ_MASK}) VIRTUAL,
        run INTEGER GENERATED ALWAYS AS (id >> {RUN_SHIFT}) VIRTUAL
    ) STRICT""",
    "CREATE INDEX events_by_time ON events (ts_ns)",
    "CREATE INDEX events_by_agent ON events (agent_id)",
    "CREATE INDEX events_by_execution ON events (execution_id)",
    """CREATE VIEW audit AS SELECT seq, run_id || '-' || seq AS event_id,
        strftime('%Y-%m-%dT%H:%M:%S', ts_ns / 1000000000, 'unixepoch') || printf('.%06dZ', ts_ns / 1000 % 1000000)
        AS ts, event_type, severity, agent_id, agent_name, execution_id, data FROM events JOIN runs USING (run)""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_COLUMNS: Final = "id, ts_ns, mono_ns, event_type, severity, agent_id, agent_name, execution_id, data, durable"
_INSERT: Final = f"INSERT INTO events ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)"  # noqa: S608 - constants only
_SELECT: Final = f"SELECT {_COLUMNS} FROM events "  # noqa: S608 - constants only

_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class SqliteStorage:
    """A Storage in the file `path`, created 0600 when missing. Not safe for two threads at once.

    The writer holds a flock on `<path>.lock` until `close`; a second one raises RecorderUnavailable naming the first.
    With `read_only` nothing is created, locked or checkpointed, and a missing file raises RecorderUnavailable.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        _check_apsw()
        self.path = Path(os.path.realpath(Path(path).parent)) / Path(path).name  # NOFOLLOW refuses links anywhere
        self._read_only = read_only
        self._runs: dict[str, int] = {}
        self._lock = -1 if read_only else _take_lock(self.path)
        with contextlib.ExitStack() as undo, _named_errors(self.path):
            undo.callback(self._unlock)
            self._connection = self._open()
            undo.pop_all()

    def insert_many(self, events: Sequence[AuditEvent]) -> int:
        if not events:
            return 0
        with _named_errors(self.path), self._connection:
            run = self._run_number(events[0].run_id)
            last = self._last_seq(run)
            check_order(events, last)
            known = max(0, last - events[0].seq + 1)
            for event in events[:known]:
                check_identical(self._one(run, event), event)
            base = run << RUN_SHIFT
            self._connection.executemany(_INSERT, (_to_row(event, base) for event in events[known:]))
        return max(0, len(events) - known)

    def last_seq(self, run_id: str) -> int:
        with _named_errors(self.path):
            run = self._find_run(run_id)
            return 0 if run is None else self._last_seq(run)

    def select(self, query: Query, run_id: str | None = None) -> list[AuditEvent]:
        with _named_errors(self.path):
            run = None if run_id is None else self._find_run(run_id)
            if self._is_empty() or (run_id is not None and run is None):
                return []
            clause, values = to_sql(query, run)
            rows: list[Any] = self._connection.execute(_SELECT + clause, values).fetchall()
            runs: list[Any] = self._connection.execute("SELECT run, run_id FROM runs").fetchall()
        names = dict(runs)
        return [_to_event(row, names[row[0] >> RUN_SHIFT]) for row in rows]

    def checkpoint(self) -> None:
        """Move the WAL into the file, as far as readers let it, and shorten it. Raises RecorderUnavailable."""
        with _named_errors(self.path), contextlib.suppress(apsw.BusyError):
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def close(self) -> None:
        self._connection.close()
        self._unlock()

    def _open(self) -> apsw.Connection:
        mode = apsw.SQLITE_OPEN_READONLY if self._read_only else apsw.SQLITE_OPEN_READWRITE
        if not self._read_only:
            _create_private(self.path)
        connection = apsw.Connection(str(self.path), flags=mode | apsw.SQLITE_OPEN_NOFOLLOW)
        connection.set_busy_timeout(BUSY_LIMIT_MS)
        connection.transaction_mode = "IMMEDIATE"
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            self._prepare(connection)
            undo.pop_all()
        return connection

    def _prepare(self, connection: apsw.Connection) -> None:
        (application,), (version,) = _all(connection, "PRAGMA application_id", "PRAGMA user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if (application, version) != (APPLICATION_ID, SCHEMA_VERSION) and (application or version or tables):
            raise RecorderUnavailable(
                f"{self.path} is not a flight record of version {SCHEMA_VERSION}; it is left alone"
            )
        _all(connection, "PRAGMA trusted_schema = OFF")
        if self._read_only:
            _all(connection, "PRAGMA wal_autocheckpoint = 0")
            return
        _make_private(self.path)
        ((mode,),) = _all(connection, "PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise RecorderUnavailable(f"{self.path}: this file system cannot hold a write-ahead log (mode {mode})")
        _all(connection, "PRAGMA synchronous = FULL", "PRAGMA secure_delete = ON")
        _all(connection, f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        if not tables:
            _all(connection, "BEGIN IMMEDIATE", *_SCHEMA, "COMMIT")

    def _is_empty(self) -> bool:
        """Whether the writer has created the file, but not yet what is in it."""
        return bool(self._connection.execute("PRAGMA user_version").get == 0)

    def _find_run(self, run_id: str) -> int | None:
        found: Any = self._runs.get(run_id)
        if found is None and not self._is_empty():
            found = self._connection.execute("SELECT run FROM runs WHERE run_id = ?", (run_id,)).get
            if found is not None:
                self._runs[run_id] = found
        return cast("int | None", found)

    def _run_number(self, run_id: str) -> int:
        """Return the number of the run, a new one if need be; that is remembered only once it is committed."""
        found = self._find_run(run_id)
        if found is None:
            self._connection.execute("INSERT INTO runs (run_id) VALUES (?)", (run_id,)).fetchall()
            found = self._connection.last_insert_rowid()
        return found

    def _last_seq(self, run: int) -> int:
        bounds = (run << RUN_SHIFT, (run + 1) << RUN_SHIFT)
        found: Any = self._connection.execute("SELECT max(id) FROM events WHERE id > ? AND id < ?", bounds).get
        return 0 if found is None else found & _SEQ_MASK

    def _one(self, run: int, event: AuditEvent) -> AuditEvent:
        (row,) = self._connection.execute(_SELECT + "WHERE id = ?", (run << RUN_SHIFT | event.seq,)).fetchall()
        return _to_event(row, event.run_id)

    def _unlock(self) -> None:
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may hold a copy of the descriptor
            os.close(self._lock)
        self._lock = -1


def _to_row(event: AuditEvent, base: int) -> tuple[Any, ...]:
    return (
        base | event.seq, event.ts_ns, event.mono_ns, event.event_type, event.severity, event.agent_id,
        event.agent_name, event.execution_id, _to_json(event.data), int(event.durable),
    )  # fmt: skip


def _to_event(row: tuple[Any, ...], run_id: str) -> AuditEvent:
    key, ts_ns, mono_ns, event_type, severity, agent_id, agent_name, execution_id, data, durable = row
    return AuditEvent(
        run_id, key & _SEQ_MASK, ts_ns, mono_ns, event_type, severity, agent_id, agent_name, execution_id,
        json.loads(data), bool(durable),
    )  # fmt: skip


def _all(connection: apsw.Connection, *statements: str) -> list[Any]:
    """Run statements one by one, each to its end (apsw stops a text of several at its first row); return the rows."""
    return [row for statement in statements for row in connection.execute(statement).fetchall()]


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise RecorderUnavailable(f"{path}: {type(error).__name__}: {error}") from error


def _check_apsw() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < APSW_FLOOR:
        needed = ".".join(map(str, APSW_FLOOR))
        raise HostError(f"apsw brings SQLite {apsw.sqlite_lib_version()}, but {needed} is needed; pip install -U apsw")


def _create_private(path: Path) -> None:
    """Make the file ourselves: SQLite would use the umask, and gives WAL and shared memory the mode of the file."""
    new = not path.exists()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        raise RecorderUnavailable(f"{path} cannot be opened: {error.strerror}") from error
    if new:
        _sync_directories(path)


def _make_private(path: Path) -> None:
    """Close a record to others that was made under somebody's umask. Only once it is known to be a record."""
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise RecorderUnavailable(f"{path} cannot be closed to others: {error.strerror}") from error


def _sync_directories(path: Path) -> None:
    """Make the names that lead to a new file as durable as what it will hold (fsync(2)), as far up as they are ours.

    What a file system cannot sync is left alone, as SQLite does with the directory of its own files.
    """
    for directory in path.parents:
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_uid != os.geteuid():
                    return
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _take_lock(path: Path) -> int:
    """Hold `<path>.lock` and write our pid into it, for the text of the error that a second writer gets."""
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise RecorderUnavailable(f"{lock} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise RecorderUnavailable(f"{path} is being written by process {holder}; a record has one writer") from None
    with contextlib.suppress(OSError):  # a full disk: the flock counts, not the text
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
