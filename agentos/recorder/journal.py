"""The journal: an append-only file that holds every audit event before its effect, until the database has it.

One event is one `write`. A segment file is named by the first event that it may hold, begins with MAGIC and a head
record, and goes on with records: `[u32 length][u32 ~length][u32 crc32 of the body]` and a msgpack array. What was
written whole survives the death of any process; fsync is the database's part. The complement tells a damaged
length from a record that is still being written: without it one flipped bit would read as the end of the journal.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgpack

from agentos.errors import HostError, RecorderUnavailable
from agentos.mould import HOLE, Mould
from agentos.recorder.event import AuditEvent, printable, text

MAGIC: Final = b"agentjn1"
SUFFIX: Final = ".journal"
SEGMENT_BYTES: Final = 64 * 1024 * 1024  # seconds of a busy kernel: pruning keeps up, and files stay few
RECORD_BYTES_MAX: Final = 1024 * 1024  # four times the largest action
MOULD_BYTES_MAX: Final = 2_048  # of one that is kept; most events have a quarter of that
READ_LIMIT: Final = 5_000  # events held in memory at once
_CHUNK_BYTES: Final = 2 * RECORD_BYTES_MAX  # always holds one whole record

_HEADER: Final = struct.Struct(">III")
_HEADER_BYTES: Final = _HEADER.size
_ALL_ONES: Final = 0xFFFFFFFF
_SEGMENT_NAME: Final = re.compile(rf"([0-9]{{20}}){re.escape(SUFFIX)}\Z")
_OPEN_WRITE: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_OPEN_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class JournalDamaged(HostError):
    """The journal holds bytes at `offset` of `path` that are no event, with more behind them."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        super().__init__(f"{path} is damaged at byte {offset}: {what}")
        self.path = path
        self.offset = offset


class JournalPruned(HostError):
    """Event `seq` is no longer in the journal: it was committed to the database and its segment removed."""

    def __init__(self, directory: Path, seq: int) -> None:
        super().__init__(f"event {seq} is no longer in {directory}")
        self.seq = seq


class JournalWriter:
    """Appends to the journal of one run. One per run, in one process, not thread-safe.

    Opens its first segment at once. Raises RecorderUnavailable when it cannot, or when the segment exists already.
    """

    def __init__(self, directory: Path, *, run_id: str, first_seq: int = 1) -> None:
        self._directory = Path(directory)
        self._run_id = run_id
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
        self._next_seq = first_seq
        self._descriptor = -1
        self._offset = 0
        self._torn = False
        self.appended_bytes = 0  # in all segments, heads not counted
        self._roll()

    def append(
        self,
        event_type: str,
        severity: str,
        agent_id: str,
        agent_name: str,
        execution_id: str,
        data: Mapping[str, Any],
        *,
        durable: bool,
        ts_ns: int,
        mono_ns: int,
    ) -> int:
        """Write one event and return its seq; when this returns, no death of a process can lose it.

        Values that msgpack cannot hold are made printable. Raises RecorderUnavailable when the event is too large or
        the disk refuses it; nothing of it is then in the journal, its seq is not used up, and a later call may succeed.
        """
        fields = (
            self._next_seq,
            ts_ns,
            mono_ns,
            event_type,
            severity,
            agent_id,
            agent_name,
            execution_id,
            data,
            durable,
        )
        try:
            body = self._pack(fields)
        except (TypeError, ValueError, OverflowError):
            body = self._pack(_printable_fields(fields))
        return self._put(body)

    def mould(
        self, event_type: str, severity: str, agent_id: str, agent_name: str, execution_id: str, data: Mapping[str, Any]
    ) -> Mould | None:
        """Return the mould of an event that is not durable, and of which the one HOLE in `data` is all that varies."""
        try:
            body = self._pack((HOLE, HOLE, HOLE, event_type, severity, agent_id, agent_name, execution_id, data, False))
        except (TypeError, ValueError, OverflowError):
            return None
        return Mould.of(body, 4) if len(body) <= MOULD_BYTES_MAX else None

    def append_cast(self, mould: Mould, number: int, *, ts_ns: int, mono_ns: int) -> int:
        """As `append`, for an event that `mould` was made of, with `number` in its data."""
        return self._put(mould.cast(self._next_seq, ts_ns, mono_ns, number))

    def _put(self, body: bytes) -> int:
        """Write the next event."""
        seq, size = self._next_seq, len(body)
        if size > RECORD_BYTES_MAX:
            raise RecorderUnavailable(f"an event of {size} bytes is too large, the limit is {RECORD_BYTES_MAX}")
        if self._offset + size > SEGMENT_BYTES or self._torn:
            self._make_room()
        record = _HEADER.pack(size, size ^ _ALL_ONES, zlib.crc32(body)) + body
        try:
            written = os.write(self._descriptor, record)
        except OSError as error:
            if self._descriptor < 0:
                raise RecorderUnavailable("the journal is closed: its kernel is ending") from None
            self._take_back()
            raise RecorderUnavailable(f"the journal cannot be written: {error}") from error
        if written != len(record):
            self._take_back()
            raise RecorderUnavailable(f"the disk took {written} of {len(record)} bytes of an event: no space")
        self._offset += written
        self.appended_bytes += written
        self._next_seq = seq + 1
        return seq

    def close(self) -> None:
        """Close the segment; a later append raises RecorderUnavailable. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _take_back(self) -> None:
        """Cut a half-written record off, now or, when the disk refuses even that, before the next append."""
        try:
            os.ftruncate(self._descriptor, self._offset)
            self._torn = False
        except OSError:
            self._torn = True

    def _make_room(self) -> None:
        if self._torn:
            self._take_back()
        if self._torn:
            raise RecorderUnavailable("the journal ends in half a record that the disk does not let us cut off")
        if self._offset + RECORD_BYTES_MAX > SEGMENT_BYTES:
            self._roll()

    def _roll(self) -> None:
        path = segment_path(self._directory, self._next_seq)
        body = self._pack([self._run_id, self._next_seq])
        head = MAGIC + _HEADER.pack(len(body), len(body) ^ _ALL_ONES, zlib.crc32(body)) + body
        try:
            descriptor = os.open(path, _OPEN_WRITE, 0o600)
        except OSError as error:
            raise RecorderUnavailable(f"a journal segment cannot be created: {error}") from error
        try:
            if os.write(descriptor, head) != len(head):
                raise OSError(f"{path}: no space for its head")
        except OSError as error:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # the newest segment may lack a head: it is an empty one
                path.unlink()
            raise RecorderUnavailable(f"a journal segment cannot be begun: {error}") from error
        self.close()
        self._descriptor = descriptor
        self._offset = len(head)


def _printable_fields(fields: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(text(field) if isinstance(field, str) else printable(field) for field in fields)


class JournalReader:
    """Reads events after `after_seq`, in order, while the writer goes on or long after. Not thread-safe."""

    def __init__(self, directory: Path, after_seq: int = 0) -> None:
        self._directory = Path(directory)
        self._descriptor = -1
        self._start = 0  # the name of the open segment
        self._offset = 0
        self._in_segment = 0  # the seq of the last record passed, delivered or skipped
        self.seq = after_seq  # the last event delivered
        self.run_id = ""  # known once a head was read

    def read(self, limit: int = READ_LIMIT) -> list[AuditEvent]:
        """Return up to `limit` further whole events; [] when there are none (yet).

        A record still being written, or cut short by a crash, ends the newest segment and is not returned. Raises
        JournalDamaged for anything else that is no event, JournalPruned when the next event's segment is gone, and
        RecorderUnavailable when Linux refuses to read; at the next call, when events came before that.
        """
        events: list[AuditEvent] = []
        try:
            self._read_into(events, limit)
        except (JournalDamaged, JournalPruned):
            if not events:
                raise
        except OSError as error:
            if not events:
                raise RecorderUnavailable(f"the journal cannot be read: {error}") from error
        return events

    def _read_into(self, events: list[AuditEvent], limit: int) -> None:
        while len(events) < limit:
            starts = segments(self._directory)  # listed before reading: a later segment proves this one complete
            if self._descriptor < 0 and not self._open(self._first_start(starts), starts):
                break
            later = next((start for start in starts if start > self._start), None)
            self._read_segment(events, limit, newest=later is None)
            if len(events) >= limit or later is None:
                break
            if later != self._in_segment + 1:
                raise JournalDamaged(self._path, self._offset, f"event {self._in_segment + 1} is missing after it")
            self.close()
            if not self._open(later, starts):
                break

    def read_head(self) -> str:
        """Return the run, from the head of the segment that holds the next event; "" when there is none yet."""
        starts = segments(self._directory)
        try:
            self._open(self._first_start(starts), starts)
        except OSError as error:
            raise RecorderUnavailable(f"the journal cannot be read: {error}") from error
        return self.run_id

    def close(self) -> None:
        """Close the segment; the next read opens it again. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    @property
    def _path(self) -> Path:
        return segment_path(self._directory, self._start)

    def _first_start(self, starts: list[int]) -> int | None:
        """Which segment holds the event after `seq`; None when there is no journal yet."""
        holding = [start for start in starts if start <= self.seq + 1]
        if starts and not holding:
            raise JournalPruned(self._directory, self.seq + 1)
        return holding[-1] if holding else None

    def _open(self, start: int | None, starts: list[int]) -> bool:
        """Open a segment and check its head. False while the newest one has no whole head yet."""
        if start is None:
            return False
        self._start = start
        try:
            self._descriptor = os.open(self._path, _OPEN_READ)
        except FileNotFoundError:
            raise JournalPruned(self._directory, self.seq + 1) from None
        head = os.pread(self._descriptor, len(MAGIC) + _HEADER_BYTES + RECORD_BYTES_MAX, 0)
        body = _whole_body(head, len(MAGIC))
        if head[: len(MAGIC)] != MAGIC[: len(head)] or (body is None and start != starts[-1]):
            raise JournalDamaged(self._path, 0, "this is not the head of a segment")
        if body is None:
            self.close()
            return False
        run_id, first_seq = _unpacked(body, 2, self._path, 0)
        if first_seq != start or self.run_id not in {"", run_id}:
            raise JournalDamaged(self._path, 0, f"its head speaks of event {first_seq} of run {run_id}")
        self.run_id = run_id
        self._offset = len(MAGIC) + _HEADER_BYTES + len(body)
        self._in_segment = start - 1
        return True

    def _read_segment(self, events: list[AuditEvent], limit: int, *, newest: bool) -> None:
        while len(events) < limit:
            size = os.fstat(self._descriptor).st_size
            if size <= self._offset:
                return
            chunk = os.pread(self._descriptor, min(_CHUNK_BYTES, size - self._offset), self._offset)
            before = self._offset
            self._read_chunk(chunk, events, limit, ends_file=newest and before + len(chunk) == size)
            if self._offset == before:
                return

    def _read_chunk(self, chunk: bytes, events: list[AuditEvent], limit: int, *, ends_file: bool) -> None:
        """Deliver the whole records of `chunk` and move the offset past them."""
        at = 0
        while len(events) < limit and at + _HEADER_BYTES <= len(chunk):
            length, complement, crc = _HEADER.unpack_from(chunk, at)
            end = at + _HEADER_BYTES + length
            if length ^ complement != _ALL_ONES or length > RECORD_BYTES_MAX:
                if ends_file and not any(chunk[at:]):
                    break  # a crash of the machine may leave a hole of zeros where the last writes should be
                raise JournalDamaged(self._path, self._offset, "no record begins here")
            if end > len(chunk):
                break
            body = chunk[at + _HEADER_BYTES : end]
            if zlib.crc32(body) != crc:
                if ends_file and end == len(chunk):
                    break  # the very last record: cut short by a crash of the machine
                raise JournalDamaged(self._path, self._offset, "the check sum of a record does not hold")
            self._deliver(body, events)
            self._offset += end - at
            at = end

    def _deliver(self, body: bytes, events: list[AuditEvent]) -> None:
        seq = self._in_segment + 1
        if seq > self.seq:  # what the caller has already is passed over without a look inside
            fields = _unpacked(body, 10, self._path, self._offset)
            if fields[0] != seq:
                raise JournalDamaged(self._path, self._offset, f"event {fields[0]!r} where {seq} should be")
            events.append(_event(self.run_id, fields))
            self.seq = seq
        self._in_segment = seq


def _whole_body(data: bytes, at: int) -> bytes | None:
    """Return the body of the record at `at`, or None when there is no whole, sound one."""
    if len(data) < at + _HEADER_BYTES:
        return None
    length, complement, crc = _HEADER.unpack_from(data, at)
    body = data[at + _HEADER_BYTES : at + _HEADER_BYTES + length]
    sound = length ^ complement == _ALL_ONES and len(body) == length and zlib.crc32(body) == crc
    return body if sound else None


def _event(run_id: str, fields: tuple[Any, ...]) -> AuditEvent:
    """Return the event; what a storage has no column for is made to fit, so that no event can stop those after it."""
    seq, ts_ns, mono_ns, event_type, severity, agent_id, name, execution_id, data, durable = fields
    if not (type(event_type) is type(severity) is type(agent_id) is type(name) is type(execution_id) is str):
        words = (event_type, severity, agent_id, name, execution_id)
        event_type, severity, agent_id, name, execution_id = (str(printable(word)) for word in words)
    plain = printable(data) if type(data) is dict else {"value": printable(data)}
    return AuditEvent(
        run_id, seq, ts_ns, mono_ns, event_type, severity, agent_id, name, execution_id, plain, bool(durable)
    )


def _unpacked(body: bytes, fields: int, path: Path, offset: int) -> tuple[Any, ...]:
    """Return the array in `body`. As tuples, because a key of a map may be one, and a list cannot be a key."""
    try:
        found = msgpack.unpackb(body, raw=False, strict_map_key=False, use_list=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise JournalDamaged(path, offset, f"a record does not unpack: {error}") from error
    if type(found) is not tuple or len(found) != fields:
        raise JournalDamaged(path, offset, f"a record has not {fields} fields")
    return found


def segment_path(directory: Path, first_seq: int) -> Path:
    """Return the path of the segment whose first event is `first_seq`."""
    return directory / f"{first_seq:020d}{SUFFIX}"


def segments(directory: Path) -> list[int]:
    """Return the first seq of every segment, oldest first; [] when there is no journal. Other files are passed over."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(hit[1]) for hit in map(_SEGMENT_NAME.match, names) if hit)


def journal_run_id(directory: Path) -> str:
    """Return the run that wrote this journal; "" when there is none yet.

    Raises JournalDamaged for a head that is none, RecorderUnavailable.
    """
    while starts := segments(directory):
        with contextlib.closing(JournalReader(directory, starts[0] - 1)) as reader, contextlib.suppress(JournalPruned):
            return reader.read_head()  # it went while we looked: there is a newer one, which is never pruned
    return ""


def remove_through(directory: Path, seq: int) -> int:
    """Remove the segments whose events are all at or before `seq`, never the newest; return how many went."""
    starts = segments(directory)
    done = [start for start, following in itertools.pairwise(starts) if following <= seq + 1]
    for start in done:
        segment_path(directory, start).unlink(missing_ok=True)
    return len(done)
