"""The output of one agent on disk: segments of records under one running offset (ADR 0003).

A record is `[u32 length][u64 wall ns][u8 stream]` and the bytes. Segments are named by the offset they start at and
only the newest `SEGMENTS_KEPT` stay, so the log is bounded; a reader that falls behind finds the gap by offsets and
says how much it missed. The writer (a sentry) never waits for a reader. What the disk refused is counted and said in
the log itself as soon as there is room.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SEGMENT_BYTES: Final = 8 * 1024 * 1024
SEGMENTS_KEPT: Final = 4  # 32 MiB an agent: a day of chatter, and a thousand agents still fit a small disk
RECORD_BYTES_MAX: Final = 64 * 1024  # one pipe read

STDOUT: Final = 1
STDERR: Final = 2
NOTE: Final = 3  # ours: dropped bytes

_HEADER: Final = struct.Struct(">IQB")


@dataclass(frozen=True, slots=True)
class Record:
    wall_ns: int
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """The reader was too slow, or the segment was rotated away: `missed_bytes` can no longer be read."""

    missed_bytes: int


class LogWriter:
    """Append-only; one per agent, in its sentry."""

    def __init__(self, directory: str, agent_id: str) -> None:
        self._directory = directory
        self._agent_id = agent_id
        self._descriptor = -1
        self._segment_end = 0
        self._unsaid_drops = 0
        self.offset = 0
        self.dropped = 0

    def append(self, stream: int, data: bytes, wall_ns: int) -> None:
        """Write one record. Never raises for a full or broken disk: the bytes are dropped and counted."""
        if self._write(self._note(wall_ns) + _pack(stream, data, wall_ns)):  # in one: notes must not take the last room
            self._unsaid_drops = 0
        else:
            self._unsaid_drops += len(data)
            self.dropped += len(data)

    def say_drops(self, wall_ns: int) -> None:
        """Say now what was dropped, if there is room for that alone: no more may be written."""
        if self._write(self._note(wall_ns)):
            self._unsaid_drops = 0

    def _note(self, wall_ns: int) -> bytes:
        count = self._unsaid_drops
        return _pack(NOTE, f"{count} bytes dropped: disk\n".encode(), wall_ns) if count else b""

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, record: bytes) -> bool:
        if not record:
            return True
        try:
            if self._descriptor < 0 or self.offset >= self._segment_end:
                self._roll()
            written = os.write(self._descriptor, record)
            if written != len(record):  # disk full half-way: take the torn record back
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                return False
        except OSError:
            return False
        self.offset += written
        return True

    def _roll(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(_segment_path(self._directory, self._agent_id, self.offset), flags, 0o600)
        self._segment_end = self.offset + SEGMENT_BYTES
        for start in _segment_starts(self._directory, self._agent_id)[:-SEGMENTS_KEPT]:
            with contextlib.suppress(FileNotFoundError):  # pruned by somebody else: that must not cost a record
                os.unlink(_segment_path(self._directory, self._agent_id, start))


class LogReader:
    """Reads from an offset on; independent of the writer. Not thread-safe."""

    def __init__(self, directory: Path | str, agent_id: str, offset: int = 0) -> None:
        self._directory = str(directory)
        self._agent_id = agent_id
        self.offset = offset
        self.dropped = 0  # as far as the notes read so far say; the writer's own count may be ahead of them

    def read(self) -> Iterator[Record | Gap]:
        """Yield what has been written since the last call, with a Gap wherever bytes are gone for good."""
        starts = _segment_starts(self._directory, self._agent_id)
        for position, start in enumerate(starts):
            following = starts[position + 1] if position + 1 < len(starts) else None
            if following is not None and following <= self.offset:
                continue
            if start > self.offset:
                yield Gap(start - self.offset)
                self.offset = start
            yield from self._read_segment(start)

    def _read_segment(self, start: int) -> Iterator[Record]:
        try:
            with open(_segment_path(self._directory, self._agent_id, start), "rb") as file:
                file.seek(self.offset - start)
                while (record := _read_record(file.read(_HEADER.size), file.read)) is not None:
                    self.offset += _HEADER.size + len(record.data)
                    self.dropped += _drops_said(record)
                    yield record
        except FileNotFoundError:
            return  # rotated away while we looked: the next call reports the gap


def _read_record(header: bytes, read: object) -> Record | None:
    if len(header) < _HEADER.size:
        return None
    length, wall_ns, stream = _HEADER.unpack(header)
    data = read(length)  # type: ignore[operator]  # a bound file.read
    return Record(wall_ns, stream, data) if len(data) == length else None


def _pack(stream: int, data: bytes, wall_ns: int) -> bytes:
    return _HEADER.pack(len(data), wall_ns, stream) + data


def _drops_said(record: Record) -> int:
    first = record.data.partition(b" ")[0]
    return int(first) if record.stream == NOTE and first.isdigit() else 0


def _segment_path(directory: str, agent_id: str, start: int) -> str:
    return os.path.join(directory, f"{agent_id}.{start:020d}.log")


def _segment_starts(directory: str, agent_id: str) -> list[int]:
    prefix = f"{agent_id}."
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(name.split(".")[1]) for name in names if name.startswith(prefix) and name.endswith(".log"))
