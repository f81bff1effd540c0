"""The journal: what was appended is read back, whole, once, in order, whatever the disk does to its end."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos.errors import RecorderUnavailable
from agentos.mould import HOLE
from agentos.recorder import journal
from agentos.recorder.event import printable
from agentos.recorder.journal import (
    JournalDamaged,
    JournalPruned,
    JournalReader,
    JournalWriter,
    journal_run_id,
    remove_through,
    segment_path,
    segments,
)

RUN = "run-1"


def add(writer: JournalWriter, data: dict[Any, Any] | None = None, **fields: Any) -> int:
    known = {"event_type": "action", "severity": "info", "agent_id": "a", "agent_name": "n", "execution_id": "e"}
    texts = {key: fields.get(key, value) for key, value in known.items()}
    times = {"durable": fields.get("durable", False), "ts_ns": 1_700_000_000_123_456_789, "mono_ns": 42}
    return writer.append(*texts.values(), data or {}, **times)


def read_all(directory: Path, after_seq: int = 0, limit: int = 7) -> list[Any]:
    reader = JournalReader(directory, after_seq)
    found = []
    while events := reader.read(limit):
        assert len(events) <= limit
        found += events
    reader.close()
    return found


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1024)
    monkeypatch.setattr(journal, "RECORD_BYTES_MAX", 512)
    monkeypatch.setattr(journal, "_CHUNK_BYTES", 1024)


def test_an_event_comes_back_as_it_was(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    assert add(writer, {"resource": "src/ü.py", "n": [1, None, True]}, severity="warning", durable=True) == 1
    assert add(writer) == 2
    first, second = read_all(tmp_path)
    assert first.event_id == "run-1-1"
    assert first.data == {"resource": "src/ü.py", "n": [1, None, True]}
    assert (first.seq, first.ts_ns, first.mono_ns, first.durable) == (1, 1_700_000_000_123_456_789, 42, True)
    assert (second.seq, second.event_type, second.severity, second.durable) == (2, "action", "info", False)
    assert first.to_json()["ts"] == "2023-11-14T22:13:20.123456Z"
    assert journal_run_id(tmp_path) == RUN


def test_an_event_that_was_cast_is_the_event_that_was_appended(tmp_path: Path) -> None:
    data = {"resource": "src/ü.py", "action_id": HOLE, "rule": None, "context": {"n": [1, 2.5, True]}}
    writer = JournalWriter(tmp_path, run_id=RUN)
    mould = writer.mould("action", "info", "a", "n", "e", data)
    assert mould is not None
    numbers = [0, 1, 127, 128, 2**32, 2**64 - 1]
    for number in numbers:
        seq = add(writer, {**data, "action_id": number})
        assert writer.append_cast(mould, number, ts_ns=1_700_000_000_123_456_789, mono_ns=42) == seq + 1
    events = read_all(tmp_path)
    assert [replace(event, seq=0) for event in events[::2]] == [replace(event, seq=0) for event in events[1::2]]
    assert [event.data["action_id"] for event in events[1::2]] == numbers
    assert [event.seq for event in events] == list(range(1, 13))


def test_there_is_no_mould_of_what_is_large_or_has_no_bytes_or_has_two_holes(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    for data in ({"x": "y" * 5_000}, {"x": {1, 2}}, {"x": HOLE}):
        assert writer.mould("action", "info", "a", "n", "e", {**data, "action_id": HOLE}) is None


def test_an_event_that_is_cast_into_a_closed_journal_is_refused(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    mould = writer.mould("action", "info", "a", "n", "e", {"action_id": HOLE})
    assert mould is not None
    writer.close()
    with pytest.raises(RecorderUnavailable):
        writer.append_cast(mould, 1, ts_ns=1, mono_ns=1)
    assert read_all(tmp_path) == []


def test_what_msgpack_cannot_hold_is_made_printable(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    add(writer, {"file": "a\udcff", "big": 2**70, "set": {1}, "nan": float("nan"), "raw": b"\xff", 3: object})
    add(writer, {"after": "a failed pack"})
    event, following = read_all(tmp_path)
    assert event.data == {
        "file": "a\\xff", "big": str(2**70), "set": [1], "nan": "nan", "raw": "\\xff", "3": "<class 'object'>"
    }  # fmt: skip
    assert following.data == {"after": "a failed pack"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner) | st.sets(st.text()),
    max_leaves=20,
)


@settings(deadline=None)
@given(data=st.dictionaries(st.text(st.characters()), values))
def test_any_data_reads_as_its_printable_form(tmp_path_factory: pytest.TempPathFactory, data: dict[Any, Any]) -> None:
    directory = tmp_path_factory.mktemp("journal")
    add(JournalWriter(directory, run_id=RUN), data)
    (event,) = read_all(directory)
    assert event.data == printable(data)
    assert printable(event.data) == event.data


def test_a_torn_tail_at_every_offset_ends_the_journal_cleanly(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    path = segment_path(tmp_path, 1)
    add(writer, {"n": 1})
    whole = path.stat().st_size
    add(writer, {"n": 2})
    text = path.read_bytes()
    for cut in range(whole, len(text)):
        path.write_bytes(text[:cut])
        reader = JournalReader(tmp_path)
        assert [event.seq for event in reader.read()] == [1]
        path.write_bytes(text)  # the write was only not finished yet
        assert [event.seq for event in reader.read()] == [2]
        reader.close()


def test_a_torn_head_is_an_empty_journal(tmp_path: Path) -> None:
    JournalWriter(tmp_path, run_id=RUN)
    path = segment_path(tmp_path, 1)
    text = path.read_bytes()
    for cut in range(len(text)):
        path.write_bytes(text[:cut])
        assert read_all(tmp_path) == []


def test_zeros_and_a_broken_last_record_are_a_torn_tail(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    add(writer)
    add(writer)
    path = segment_path(tmp_path, 1)
    text = path.read_bytes()
    path.write_bytes(text + bytes(5000))
    assert len(read_all(tmp_path)) == 2
    path.write_bytes(text[:-1] + b"?")
    assert len(read_all(tmp_path)) == 1


def test_every_flipped_byte_in_the_middle_is_named(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    path = segment_path(tmp_path, 1)
    add(writer)
    start = path.stat().st_size
    add(writer)
    end = path.stat().st_size
    add(writer)
    text = path.read_bytes()
    for at in range(start, end):
        path.write_bytes(text[:at] + bytes([text[at] ^ 0x41]) + text[at + 1 :])
        reader = JournalReader(tmp_path)
        assert [event.seq for event in reader.read()] == [1]  # what came before the damage is not lost with it
        with pytest.raises(JournalDamaged) as caught:
            reader.read()
        assert (caught.value.path, caught.value.offset) == (path, start)
        reader.close()


@pytest.mark.usefixtures("small_segments")
def test_segments_roll_and_are_read_through_from_anywhere(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    for number in range(1, 101):
        assert add(writer, {"n": number}) == number
    assert len(segments(tmp_path)) > 4
    for after in (0, 1, 50, 99, 100):
        assert [event.data["n"] for event in read_all(tmp_path, after)] == list(range(after + 1, 101))


@pytest.mark.usefixtures("small_segments")
def test_a_reader_follows_the_writer_across_segments(tmp_path: Path) -> None:
    writer, reader = JournalWriter(tmp_path, run_id=RUN), JournalReader(tmp_path)
    for number in range(1, 60):
        add(writer, {"n": number})
        assert [event.seq for event in reader.read()] == [number]
    assert reader.read() == []


@pytest.mark.usefixtures("small_segments")
def test_pruning_keeps_what_is_not_committed_and_the_newest(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    for _ in range(50):
        add(writer)
    starts = segments(tmp_path)
    assert remove_through(tmp_path, starts[1] - 2) == 0
    assert remove_through(tmp_path, starts[1] - 1) == 1
    assert read_all(tmp_path, starts[1] - 1)[0].seq == starts[1]
    with pytest.raises(JournalPruned):
        JournalReader(tmp_path).read()
    remove_through(tmp_path, 1000)
    assert segments(tmp_path) == starts[-1:]
    assert journal_run_id(tmp_path) == RUN


@pytest.mark.usefixtures("small_segments")
def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    for _ in range(80):
        add(writer)
    segment_path(tmp_path, segments(tmp_path)[2]).unlink()
    with pytest.raises(JournalDamaged, match="missing"):
        read_all(tmp_path)


def test_the_file_is_private_and_never_a_link(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        JournalWriter(tmp_path, run_id=RUN)
    finally:
        os.umask(old)
    assert segment_path(tmp_path, 1).stat().st_mode & 0o777 == 0o600
    with pytest.raises(RecorderUnavailable):
        JournalWriter(tmp_path, run_id=RUN)
    segment_path(tmp_path, 7).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecorderUnavailable):
        JournalWriter(tmp_path, run_id=RUN, first_seq=7)


def test_too_large_and_closed_are_refused(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    with pytest.raises(RecorderUnavailable, match="too large"):
        add(writer, {"x": "x" * journal.RECORD_BYTES_MAX})
    assert add(writer) == 1
    writer.close()
    writer.close()
    with pytest.raises(RecorderUnavailable, match="is closed"):
        add(writer)
    assert [event.seq for event in read_all(tmp_path)] == [1]


def test_failed_writes_leave_no_trace_and_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(tmp_path, run_id=RUN)
    add(writer)
    whole = segment_path(tmp_path, 1).stat().st_size
    real_write, real_truncate = os.write, os.ftruncate
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real_write(fd, data[:5]))
        with pytest.raises(RecorderUnavailable, match="no space"):
            add(writer)
        assert segment_path(tmp_path, 1).stat().st_size == whole

        def refuse(*_: object) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(os, "ftruncate", refuse)
        for _ in range(2):
            with pytest.raises(RecorderUnavailable):
                add(writer)
        patch.setattr(os, "write", real_write)
        with pytest.raises(RecorderUnavailable, match="half a record"):
            add(writer)
        patch.setattr(os, "ftruncate", real_truncate)
        assert add(writer, {"n": 2}) == 2
    assert [event.seq for event in read_all(tmp_path)] == [1, 2]
