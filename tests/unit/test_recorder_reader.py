"""Reading a run while it lives and after it crashed, and bringing home what its journal still holds."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import pytest
from records import RUN, RunOnDisk, event, events

from agentos.errors import RecorderUnavailable
from agentos.recorder import journal
from agentos.recorder.event import AuditEvent
from agentos.recorder.journal import (
    JournalDamaged,
    JournalPruned,
    JournalReader,
    remove_through,
    segment_path,
    segments,
)
from agentos.recorder.query import Query
from agentos.recorder.reader import RunReader, iter_runs
from agentos.recorder.recover import database_of, link_database, recover
from agentos.recorder.storage.sqlite import SqliteStorage


@pytest.fixture
def run(tmp_path: Path) -> RunOnDisk:
    return RunOnDisk(tmp_path / "run")


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1024)
    monkeypatch.setattr(journal, "RECORD_BYTES_MAX", 512)
    monkeypatch.setattr(journal, "_CHUNK_BYTES", 1024)


def seqs(reader: RunReader, after_seq: int = 0) -> list[int]:
    return [one.seq for one in reader.events(after_seq)]


def damage(path: Path) -> None:
    """Flip one byte in the middle of the file."""
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 0xFF
    path.write_bytes(text)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    reader = RunReader(tmp_path / "20260102T030405-1a2b3c")
    assert reader.read() == []
    assert reader.run_id == "20260102T030405-1a2b3c"
    (tmp_path / "20260102T030405-1a2b3c").mkdir()
    (tmp_path / "20260102T030405-1a2b3c" / "flight.db").touch()  # its writer is just making it
    assert reader.read() == []


def test_events_are_seen_at_once_wherever_they_are(run: RunOnDisk) -> None:
    reader = RunReader(run.run_dir)
    run.record(3)
    assert seqs(reader) == [1, 2, 3]
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(2))
        assert seqs(reader) == [1, 2, 3]
        storage.insert_many(events(3))
        run.record()
        assert seqs(reader) == [1, 2, 3, 4]
        assert seqs(reader, after_seq=2) == [3, 4]
    assert [one.seq for one in reader.read(limit=2)] == [1, 2]
    assert [one.seq for one in reader.select(Query(limit=2))] == [4, 3]


def test_a_run_is_followed_by_the_last_number(run: RunOnDisk) -> None:
    reader, last = RunReader(run.run_dir), 0
    with contextlib.closing(run.storage()) as storage:
        for count in range(1, 20):
            run.record()
            if count % 3 == 0:
                storage.insert_many(events(count))
            (one,) = reader.read(last)
            assert one == event(count)
            last = one.seq
    assert reader.read(last) == []


def test_what_was_read_once_stays_readable_when_the_directory_goes(run: RunOnDisk) -> None:
    run.record(3)
    reader = RunReader(run.run_dir)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(2))
        reader.read(limit=1)
        storage.insert_many(events(3))
    shutil.rmtree(run.run_dir)
    assert seqs(reader) == [1, 2, 3]
    reader.close()
    assert seqs(reader) == []


@pytest.mark.usefixtures("small_segments")
def test_a_reader_sees_every_event_while_segments_are_pruned_under_it(run: RunOnDisk) -> None:
    """The journal loses its oldest segments between the reader's look at the database and at the journal."""
    count = 600
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        seen = 0
        with contextlib.closing(RunReader(run.run_dir)) as reader:
            while not done.is_set():
                found = seqs(reader)
                if found != list(range(1, len(found) + 1)) or len(found) < seen:
                    wrong.append(f"{len(found)} events after {seen}: {found[:3]}…{found[-3:]}")
                seen = len(found)

    run.record()
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(1))
        reading = threading.Thread(target=read)
        reading.start()
        for number in range(2, count + 1):
            run.record()
            if number % 5 == 0:
                storage.insert_many(events(5, first=number - 4) if number > 5 else events(5))
                remove_through(run.journal_dir, number)
    done.set()
    reading.join()
    assert wrong == []
    assert segments(run.journal_dir)[0] > 1


@pytest.mark.usefixtures("small_segments")
def test_a_segment_pruned_between_two_looks_is_found_in_the_database(
    run: RunOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.record(40)
    storage = run.storage()
    storage.insert_many(events(1))
    real = JournalReader.read

    def read(self: JournalReader, limit: int = journal.READ_LIMIT) -> list[object]:
        monkeypatch.setattr(JournalReader, "read", real)
        storage.insert_many(events(40))
        remove_through(run.journal_dir, 40)
        return list(real(self, limit))

    monkeypatch.setattr(JournalReader, "read", read)
    assert seqs(RunReader(run.run_dir)) == list(range(1, 41))
    storage.close()


@pytest.mark.usefixtures("small_segments")
def test_a_reader_that_is_outrun_many_times_goes_on_while_the_database_does(
    run: RunOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve times in a row the segment it wants has just been committed and pruned."""
    run.record(240)
    storage = run.storage()
    storage.insert_many(events(1))
    real, committed = JournalReader.read, [1]

    def read(self: JournalReader, limit: int = journal.READ_LIMIT) -> list[object]:
        if committed[0] < 240:
            committed[0] = min(240, committed[0] + 20)
            storage.insert_many(events(committed[0]))
            remove_through(run.journal_dir, committed[0])
        return list(real(self, limit))

    monkeypatch.setattr(JournalReader, "read", read)
    assert seqs(RunReader(run.run_dir)) == list(range(1, 241))
    assert committed == [240]
    storage.close()


@pytest.mark.usefixtures("small_segments")
def test_an_event_in_neither_place_is_told_and_not_waited_for(run: RunOnDisk) -> None:
    run.record(40)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(1))
    remove_through(run.journal_dir, 40)
    with pytest.raises(journal.JournalPruned, match="event 2 is no longer in"):
        seqs(RunReader(run.run_dir))


def test_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    assert list(iter_runs(tmp_path)) == []
    for name in ("20260103T000000-000000", "20260102T000000-ffffff"):
        RunOnDisk(tmp_path / "runs" / name, name).record()
    assert [reader.run_id for reader in iter_runs(tmp_path)] == ["20260102T000000-ffffff", "20260103T000000-000000"]


# --- damage ----------------------------------------------------------------------------------------------------------


def test_what_is_sound_is_read_before_the_damage_is_told(run: RunOnDisk) -> None:
    run.record(9)
    damage(segment_path(run.journal_dir, 1))
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(2))
    reader = RunReader(run.run_dir)
    sound: list[AuditEvent] = []
    with pytest.raises(JournalDamaged, match="damaged at byte"):
        sound.extend(reader.events())
    assert [one.seq for one in sound] == list(range(1, len(sound) + 1))
    assert 2 < len(sound) < 9
    with pytest.raises(JournalDamaged):  # an answer that may lack something is no answer
        reader.select(Query())


def test_recover_commits_what_is_sound_and_then_tells_the_damage(run: RunOnDisk) -> None:
    run.record(9)
    damage(segment_path(run.journal_dir, 1))
    for _ in range(2):
        with pytest.raises(JournalDamaged):
            recover(run.run_dir)
        with contextlib.closing(run.storage()) as storage:
            assert 0 < storage.last_seq(RUN) < 9


# --- recovering ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("committed", [0, 1, 30, 60])
def test_recover_brings_home_what_is_missing_and_only_that(run: RunOnDisk, committed: int) -> None:
    run.record(60)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(committed))
    assert recover(run.run_dir) == 60 - committed
    assert recover(run.run_dir) == 0
    with contextlib.closing(SqliteStorage(run.run_dir / "flight.db", read_only=True)) as storage:
        assert storage.select(Query(limit=None, newest_first=False)) == events(60)
    assert len(segments(run.journal_dir)) == 1  # the rest is in the database
    assert seqs(RunReader(run.run_dir)) == list(range(1, 61))


def test_recover_makes_the_database_where_there_is_none_and_nothing_where_there_is_no_journal(
    run: RunOnDisk, tmp_path: Path
) -> None:
    assert recover(tmp_path / "no run") == 0
    run.record(2)
    assert recover(run.run_dir) == 2
    (tmp_path / "empty").mkdir()
    assert recover(tmp_path / "empty") == 0
    assert list((tmp_path / "empty").iterdir()) == []


def test_recover_ends_at_a_record_that_was_being_written(run: RunOnDisk) -> None:
    run.record(3)
    path = segment_path(run.journal_dir, 1)
    path.write_bytes(path.read_bytes()[:-5])
    assert recover(run.run_dir) == 2


def test_recover_keeps_out_while_somebody_writes(run: RunOnDisk) -> None:
    run.record(3)
    with contextlib.closing(run.storage()), pytest.raises(RecorderUnavailable, match="one writer"):
        recover(run.run_dir)
    assert recover(run.run_dir) == 3


def test_a_database_that_is_ahead_of_the_journal_stays_as_it_is(run: RunOnDisk) -> None:
    """A crash of the machine may take the journal's end, which was never synced, and leave what was."""
    run.record(2)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(5))
    assert recover(run.run_dir) == 0
    assert seqs(RunReader(run.run_dir)) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("small_segments")
def test_a_journal_that_does_not_continue_the_database_is_no_recovery(run: RunOnDisk) -> None:
    run.record(40)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(1))
    segment_path(run.journal_dir, 1).unlink()
    with pytest.raises(JournalPruned, match="event 2 is no longer"):
        recover(run.run_dir)
    with pytest.raises(JournalPruned):
        RunReader(run.run_dir).read()


def test_a_record_elsewhere_is_found_by_its_link(run: RunOnDisk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "audit.db"
    for _ in range(2):
        link_database(run.run_dir, elsewhere)
    assert database_of(run.run_dir) == elsewhere
    run.record(2)
    assert recover(run.run_dir) == 2
    assert seqs(RunReader(run.run_dir)) == [1, 2]
    assert elsewhere.exists()
    own = tmp_path / "own"
    own.mkdir()
    link_database(own, own / "flight.db")
    assert list(own.iterdir()) == []


def test_other_files_beside_the_journal_are_passed_over(run: RunOnDisk) -> None:
    for name in ("x.journal", "1.journal", f"{1:020d}.journal~", "\udcff.journal"):
        (run.journal_dir / name).write_bytes(b"?")
    run.record(2)
    assert recover(run.run_dir) == 2


def test_a_segment_that_is_a_link_is_not_followed(run: RunOnDisk) -> None:
    run.record(2)
    path = segment_path(run.journal_dir, 1)
    path.rename(run.run_dir / "elsewhere")
    path.symlink_to(run.run_dir / "elsewhere")
    for read in (recover, lambda run_dir: RunReader(run_dir).read()):
        with pytest.raises(RecorderUnavailable, match="cannot be read"):
            read(run.run_dir)
