"""FlightRecorder: the audit log as a program holds it. Logs and answers questions, with a kernel or without one.

Attached to a kernel it writes nothing itself: the kernel's recorder process is the one writer, `log` goes through the
kernel, and questions are answered from the run's database and journal. On its own it writes its storage (own.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from agentos.clock import Clock, SystemClock
from agentos.errors import BadRequest, HostError, KernelUnavailable, RecorderUnavailable, nearest
from agentos.recorder.event import Entry, parse_entry
from agentos.recorder.journal import JournalDamaged
from agentos.recorder.own import MEMORY, SQLITE, OwnRecord, Waiting
from agentos.recorder.query import LIMIT_DEFAULT, merge, parse_query
from agentos.recorder.reader import RunReader
from agentos.recorder.recover import recover
from agentos.runs import Run

SETTLE_LIMIT_NS: Final = 12_000_000_000  # the recorder of a kernel that died has ten seconds to bring its journal home
SETTLE_PAUSE_S: Final = 0.05
_LATER: Final = ("postgresql", "s3")
_URL_PREFIX: Final = "sqlite:///"


class KernelLink(Protocol):
    """A started kernel: agentos.client.connection.Connection."""

    run: Run
    lost: bool

    def submit(self, method: str, params: dict[str, Any]) -> Future[Any]: ...


@dataclass(slots=True, eq=False)
class _Attached:
    link: KernelLink
    reader: RunReader
    gone: bool = False
    settled: bool = False

    def submit(self, entry: Entry) -> Future[Any]:
        """Have the kernel record it. Raises KernelUnavailable when it is gone; it has not heard of the event then."""
        params = {
            "event_type": entry.event_type, "agent_id": entry.agent_id, "data": entry.data, "severity": entry.severity,
        }  # fmt: skip
        try:
            return self.link.submit("log", params)
        except KernelUnavailable:
            self.gone = True  # sooner than the link knows
            raise


class FlightRecorder:
    """The audit log of agents: one event for every action, decision, signal, start and end.

    `KernelSpace(flight_recorder=recorder)` has the kernel record here; without a kernel `log` writes by itself. Works
    in plain threads and under any number of event loops. It belongs to the process that made it: agents cannot use it.

    Args:
        storage: "memory" (gone with this process) or "sqlite". postgresql and s3 are not available in this version.
        connection_string: for sqlite the path of the file (also as sqlite:///PATH), created 0600. One process writes
            it at a time, whoever is second gets RecorderUnavailable; any number may read. None: every run has a file
            of its own under the state directory, where `agentos audit` finds it.
        retention_days: for how long events must be kept at least. This version removes no single event by age;
            `agentos prune --older-than` removes whole runs.
        compression: whether a storage may compress what it keeps. It is a permission: the storages of this version
            keep everything plain, so that any SQLite can read it.
        encryption_key: must be None; encryption is not available in this version.

    Raises BadRequest for what is unknown or not available.

    """

    def __init__(
        self,
        storage: str = MEMORY,
        connection_string: str | os.PathLike[str] | None = None,
        retention_days: int = 90,
        compression: bool = True,
        encryption_key: bytes | None = None,
    ) -> None:
        _check_storage(storage)
        if not isinstance(retention_days, int) or isinstance(retention_days, bool) or retention_days < 1:
            raise BadRequest(f"retention_days must be a whole number of at least 1, not {retention_days!r}")
        if not isinstance(compression, bool):
            raise BadRequest(f"compression must be True or False, not {compression!r}")
        if encryption_key is not None:
            _not_yet("encryption_key=", "leave it out and keep the record on an encrypted file system")
        self.storage = storage
        self.database_path = _database_path(storage, connection_string)
        self._clock = SystemClock()
        self._own = OwnRecord(storage, self.database_path, self._clock)
        self._attached: list[_Attached] = []
        self._queue: deque[Waiting] = deque()
        self._lock = threading.RLock()  # over both records; held while a kernel starts that shall write them
        self._pid = os.getpid()
        weakref.finalize(self, self._own.release)

    def __reduce__(self) -> tuple[Any, ...]:
        """A recorder that travels to an agent, as a global of its function, arrives but refuses to work there."""
        return _arrive, ()

    # --- the public calls ------------------------------------------------------------------------------------------

    async def log(self, event_type: str, agent_id: str, data: Mapping[str, Any], severity: str = "info") -> str:
        """Record one event; returns its id once it is as durable as the storage can make it.

        `severity` is debug, info, warning, error or critical. `data` is recorded as JSON: what JSON cannot say becomes
        text. Raises BadRequest for wrong arguments or more than 512 KiB of data, RecorderUnavailable when the event
        could not be recorded; if the kernel went away meanwhile it may be on record all the same.
        """
        self._check_process()
        entry = parse_entry(event_type, agent_id, data, severity)
        kernel = self._kernel()
        if kernel is not None:
            with contextlib.suppress(KernelUnavailable):  # it went just now, and has not heard of this event
                return await _confirmed(asyncio.wrap_future(kernel.submit(entry)))
        waiting = Waiting(entry, self._clock.wall_ns(), self._clock.monotonic_ns())
        self._queue.append(waiting)
        await asyncio.to_thread(self._flush)
        return await _confirmed(asyncio.wrap_future(waiting.done))

    async def log_state_dump(self, agent_id: str, state: Any) -> str:
        """Record the state of an agent as a `state_dump` event with {"state": …}; returns its id. Raises as `log`."""
        return await self.log("state_dump", agent_id, {"state": state})

    async def query(
        self,
        event_type: str | None = None,
        agent_id: str | None = None,
        severity: str | Iterable[str] | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        execution_id: str | None = None,
        limit: int | None = LIMIT_DEFAULT,
        filters: Mapping[str, Any] | None = None,
        *,
        after_seq: int = 0,
        newest_first: bool = True,
    ) -> list[dict[str, Any]]:
        """Return the events that match everything given, the newest first, at most `limit` (None: all).

        Covers what kernels recorded here, live or ended, what `log` wrote, and everything else in the same file. Times
        are the window [start_time, end_time); naive ones are local. A row has seq, event_id, timestamp (aware, UTC),
        event_type, severity, agent_id, agent_name, execution_id and data. `after_seq` counts within each run. Raises
        BadRequest, also for filters=, which are not available in this version; RecorderUnavailable; HostError when
        a journal is damaged and something may be missing.
        """
        self._check_process()
        query = parse_query(
            event_type=event_type, agent_id=agent_id, severity=severity, start_time=start_time, end_time=end_time,
            execution_id=execution_id, limit=limit, after_seq=after_seq, newest_first=newest_first, filters=filters,
        )  # fmt: skip

        def select() -> list[dict[str, Any]]:
            with self._lock:
                found = [event for one in self._attached for event in one.reader.select(query)]
                found += self._own.select(query)
            return [event.to_row() for event in merge(found, query)]

        return await asyncio.to_thread(select)

    async def get_timeline(self, agent_id: str, execution_id: str | None = None) -> NoReturn:
        """Not available in this version. Raises BadRequest."""
        _not_yet("get_timeline()", "query(agent_id=…, execution_id=…, newest_first=False) has the events in order")

    async def replay(self, agent_id: str, execution_id: str | None = None, to_event_id: str | None = None) -> NoReturn:
        """Not available in this version. Raises BadRequest."""
        _not_yet("replay()", "query(agent_id=…, newest_first=False) has the events in order")

    async def export(self, format: str = "json", output_path: str | None = None, **_: Any) -> NoReturn:  # noqa: A002
        """Not available in this version. Raises BadRequest."""
        _not_yet("export()", "`agentos audit --json` prints JSON Lines")

    def close(self) -> None:
        """Give up the file, so that another process may write it. A later `log` takes it again. Idempotent."""
        with self._lock:
            self._own.release()
            for one in self._attached:
                if self.storage != MEMORY:  # a reader of memory is all that is left of it
                    one.reader.close()

    # --- for KernelSpace -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def handing_over(self) -> Iterator[dict[str, Any]]:
        """Hold still while a kernel starts that will write this record; yields what `start_kernel` has to know."""
        self._check_process()
        with self._lock:
            self.settle()
            self._own.release()
            database = None if self.database_path is None else str(self.database_path)
            yield {"database": database, "keep_record": self.storage != MEMORY}

    def attach(self, link: KernelLink) -> None:
        """From now on that kernel writes this record, until its link is lost."""
        reader = RunReader(link.run.state)
        with contextlib.suppress(HostError):  # whoever asks later hears of it
            reader.read(limit=1)  # opens the database: what is open stays readable when its directory is removed
        with self._lock:
            self._attached.append(_Attached(link, reader))

    def settle(self) -> None:
        """Bring home what ended kernels left: their journals into the database, memory out of the file system."""
        with self._lock:
            for one in [one for one in self._attached if (one.gone or one.link.lost) and not one.settled]:
                if _recovered(one.link.run.state, self._clock):
                    self._close_books(one)

    def _close_books(self, ended: _Attached) -> None:
        ended.settled = True
        if self.storage == MEMORY:
            shutil.rmtree(ended.link.run.runtime, ignore_errors=True)
        else:
            ended.reader.close()
        if self.database_path is not None:
            self._attached.remove(ended)  # all of it is in the file that `_own` reads

    def _kernel(self) -> _Attached | None:
        """The kernel that writes this record now."""
        return next((one for one in reversed(tuple(self._attached)) if not (one.gone or one.link.lost)), None)

    def _flush(self) -> None:
        """Write whatever is queued; whoever comes first writes for all, in one commit."""
        with self._lock:
            batch = []
            while self._queue:
                waiting = self._queue.popleft()
                if waiting.done.set_running_or_notify_cancel():
                    batch.append(waiting)
            kernel = self._kernel()
            if kernel is None and batch:
                if self.database_path is not None:
                    self.settle()  # the recorder of a kernel that died may still be writing the same file
                self._own.write(batch)
        if kernel is not None:
            for waiting in batch:
                _pass_on(kernel, waiting)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise BadRequest(
                "this FlightRecorder belongs to the process that made it, not to a fork of it or to an agent; "
                "what an agent does is on record already"
            )


def _recovered(run_dir: Path, clock: Clock) -> bool:
    """Recover the run as soon as its recorder is gone. False when that cannot be done; it stays readable as it is."""
    deadline_ns = clock.monotonic_ns() + SETTLE_LIMIT_NS
    while True:
        try:
            recover(run_dir)
        except JournalDamaged:
            return False
        except RecorderUnavailable:
            if clock.monotonic_ns() >= deadline_ns:
                return False
            time.sleep(SETTLE_PAUSE_S)
        else:
            return True


def _pass_on(kernel: _Attached, waiting: Waiting) -> None:
    """Have the kernel, which started while this entry was waiting, record it."""

    def tell(answer: Future[Any]) -> None:
        error = answer.exception()
        if error is None:
            waiting.done.set_result(answer.result())
        else:
            waiting.done.set_exception(error)

    try:
        kernel.submit(waiting.entry).add_done_callback(tell)
    except KernelUnavailable as error:
        waiting.done.set_exception(error)


async def _confirmed(answer: Awaitable[str]) -> str:
    try:
        return await answer
    except KernelUnavailable as error:
        raise RecorderUnavailable(
            f"the kernel went away before it confirmed the event, which may be on record or not: {error}"
        ) from error


def _check_storage(storage: str) -> None:
    if storage in _LATER:
        _not_yet(f"storage={storage!r}", f"use {MEMORY!r} or {SQLITE!r}")
    if storage not in (MEMORY, SQLITE):
        hint = nearest(str(storage), (MEMORY, SQLITE, *_LATER))
        raise BadRequest(f"FlightRecorder: unknown storage {storage!r}{hint}; known: {MEMORY}, {SQLITE}")


def _database_path(storage: str, given: str | os.PathLike[str] | None) -> Path | None:
    """Return the absolute path of the file, None where there is none to name. Raises BadRequest."""
    if given is None:
        return None
    if storage == MEMORY:
        raise BadRequest(f"FlightRecorder: connection_string={given!r} needs storage='sqlite'")
    if not isinstance(given, str | os.PathLike):
        raise BadRequest(f"FlightRecorder: connection_string must be a path, not {type(given).__name__}")
    text = os.fspath(given).removeprefix(_URL_PREFIX)
    if not text or text == ":memory:" or "://" in text:
        raise BadRequest(f"FlightRecorder: connection_string={given!r} is no path of a file; for example 'audit.db'")
    path = Path(text).expanduser().absolute()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else f"cannot be made: {path.parent} is no directory"
        raise BadRequest(f"FlightRecorder: connection_string={given!r}: {path} {what}")
    return path


def _not_yet(what: str, instead: str) -> NoReturn:
    raise BadRequest(f"FlightRecorder: {what} is not available in this version; {instead}")


def _arrive() -> FlightRecorder:
    recorder = FlightRecorder()
    recorder._pid = 0  # noqa: SLF001 - no process is its own
    return recorder
