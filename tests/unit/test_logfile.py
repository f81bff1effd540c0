"""The log by offset: bounded on disk, never in anybody's way, and honest about what was missed."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from agentos import logfile
from agentos.logfile import Gap, LogReader, LogWriter, Record


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "SEGMENT_BYTES", 100)
    monkeypatch.setattr(logfile, "SEGMENTS_KEPT", 2)


def test_a_reader_gets_what_was_written_and_only_once(tmp_path: Path) -> None:
    writer, reader = LogWriter(str(tmp_path), "a"), LogReader(tmp_path, "a")
    assert list(reader.read()) == []
    writer.append(logfile.STDOUT, b"one", 1)
    writer.append(logfile.STDERR, b"two", 2)
    assert list(reader.read()) == [Record(1, logfile.STDOUT, b"one"), Record(2, logfile.STDERR, b"two")]
    writer.append(logfile.STDOUT, b"three", 3)
    assert list(reader.read()) == [Record(3, logfile.STDOUT, b"three")]
    assert reader.offset == writer.offset
    assert list(LogReader(tmp_path, "ab").read()) == []


def test_a_slow_reader_is_told_how_much_it_missed(tmp_path: Path, small: None) -> None:
    writer, reader = LogWriter(str(tmp_path), "a"), LogReader(tmp_path, "a")
    for number in range(100):
        writer.append(logfile.STDOUT, b"x" * 10, number)
    assert len(list(tmp_path.iterdir())) == 2
    gap, *records = list(reader.read())
    assert isinstance(gap, Gap)
    record_bytes = writer.offset // 100
    assert gap.missed_bytes + len(records) * record_bytes == writer.offset
    assert records[-1] == Record(99, logfile.STDOUT, b"x" * 10)


def test_what_a_full_disk_refuses_is_counted_and_said_later(tmp_path: Path) -> None:
    """In a child with RLIMIT_FSIZE: the same short writes and errors as a full disk, for root too."""
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        writer = LogWriter(str(tmp_path), "a")
        writer.append(logfile.STDOUT, b"before", 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
        writer.append(logfile.STDOUT, b"y" * 50, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.append(logfile.STDOUT, b"after", 3)
        os._exit(0 if writer.dropped == 50 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(LogReader(tmp_path, "a").read()) == [
        Record(1, logfile.STDOUT, b"before"),
        Record(3, logfile.NOTE, b"50 bytes dropped: disk\n"),
        Record(3, logfile.STDOUT, b"after"),
    ]


def test_notes_of_drops_leave_room_for_the_last_one(tmp_path: Path) -> None:
    """A disk that stays full: one sum at the end, not a note a drop until none fits any more."""
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
        writer = LogWriter(str(tmp_path), "a")
        for _ in range(100):
            writer.append(logfile.STDOUT, b"y" * 50, 1)
        writer.say_drops(2)
        writer.say_drops(3)
        os._exit(0 if writer.dropped == 5000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    reader = LogReader(tmp_path, "a")
    assert list(reader.read()) == [Record(2, logfile.NOTE, b"5000 bytes dropped: disk\n")]
    assert reader.dropped == 5000
