"""Storages: a run's events once, in order, without gaps; the file private, durable, and one writer's."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from records import RUN, event, events

from agentos.errors import HostError, RecorderUnavailable
from agentos.recorder.query import Query
from agentos.recorder.storage.base import RecordConflict, Storage
from agentos.recorder.storage.memory import MemoryStorage
from agentos.recorder.storage.sqlite import SCHEMA_VERSION, SqliteStorage

ALL = Query(limit=None, newest_first=False)


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage = MemoryStorage() if request.param == "memory" else SqliteStorage(tmp_path / "flight.db")
    with contextlib.closing(made):
        yield made


# --- what every storage promises -----------------------------------------------------------------------------------


def test_events_come_back_as_they_were(storage: Storage) -> None:
    odd = event(2, data={"text": "a\x00b\u2028ü", "big": 2**64 - 1, "none": None, "list": [1, [True]]}, durable=True)
    assert storage.insert_many([event(1), odd]) == 2
    assert storage.select(ALL) == [event(1), odd]
    assert storage.last_seq(RUN) == 2
    assert storage.last_seq("another") == 0


def test_what_is_stored_already_is_passed_over(storage: Storage) -> None:
    storage.insert_many(events(5))
    assert storage.insert_many(events(5)) == 0
    assert storage.insert_many(events(4, first=4)) == 2
    assert storage.insert_many([]) == 0
    assert [one.seq for one in storage.select(ALL)] == list(range(1, 8))


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ([event(7)], "events 4 to 6 are missing"),
        ([event(5)], "events 4 to 4 are missing"),
        ([event(4), event(6)], "does not follow"),
        ([event(4), event(5, "another")], "does not follow"),
        ([event(3, data={"n": "forged"}), event(4)], "another event"),
        ([event(0)], "the first event is 1"),
    ],
)
def test_gaps_and_other_events_under_a_number_are_refused_and_nothing_is_stored(
    storage: Storage, batch: list[Any], what: str
) -> None:
    storage.insert_many(events(3))
    with pytest.raises(RecordConflict, match=what):
        storage.insert_many(batch)
    assert storage.select(ALL) == events(3)


def test_runs_are_apart_and_in_the_order_in_which_they_came(storage: Storage) -> None:
    storage.insert_many(events(2, run_id="b"))
    storage.insert_many(events(2, run_id="a"))
    storage.insert_many(events(1, first=3, run_id="b"))
    assert [one.event_id for one in storage.select(ALL)] == ["b-1", "b-2", "b-3", "a-1", "a-2"]
    assert [one.event_id for one in storage.select(ALL, "a")] == ["a-1", "a-2"]
    assert storage.select(ALL, "c") == []


def test_a_full_memory_says_so_and_stores_nothing_more() -> None:
    storage = MemoryStorage(events_max=3)
    storage.insert_many(events(2))
    with pytest.raises(RecorderUnavailable, match=r"full \(3 events\).*sqlite"):
        storage.insert_many(events(2, first=3))
    assert storage.select(ALL) == events(2)


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with contextlib.closing(SqliteStorage(tmp_path / "flight.db")) as storage:
            storage.insert_many(events(1))
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert modes == dict.fromkeys(("flight.db", "flight.db-wal", "flight.db-shm", "flight.db.lock"), 0o600)


def test_a_record_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "flight.db"
    SqliteStorage(path).close()
    path.chmod(0o644)
    SqliteStorage(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["flight.db", "flight.db.lock"])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecorderUnavailable, match=name):
        SqliteStorage(tmp_path / "flight.db")
    assert (tmp_path / "elsewhere").read_bytes() == b""


def test_a_reader_follows_no_link_either(tmp_path: Path) -> None:
    SqliteStorage(tmp_path / "elsewhere").close()
    (tmp_path / "flight.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecorderUnavailable, match="CantOpen"):
        SqliteStorage(tmp_path / "flight.db", read_only=True)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecorderUnavailable, match=r"missing/flight.db.lock.*No such file"):
        SqliteStorage(tmp_path / "missing" / "flight.db")


def other_schema(path: Path, script: str) -> bytes:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    path.chmod(0o644)
    return path.read_bytes()


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE mine (x)",
        f"PRAGMA application_id=1634160467; PRAGMA user_version={SCHEMA_VERSION + 1}",
        f"PRAGMA user_version={SCHEMA_VERSION}; CREATE TABLE events (x)",
    ],
)
def test_what_is_no_record_of_ours_is_left_alone(tmp_path: Path, script: str) -> None:
    path = tmp_path / "flight.db"
    before = other_schema(path, script)
    for read_only in (False, True):
        with pytest.raises(RecorderUnavailable, match=r"not a flight record of version 1; it is left alone"):
            SqliteStorage(path, read_only=read_only)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(RecorderUnavailable, match="NotADB"):
        SqliteStorage(path)


def test_an_apsw_with_the_wal_reset_bug_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(HostError, match=r"SQLite 3\.51\.2, but 3\.51\.3 is needed"):
        SqliteStorage(tmp_path / "flight.db")
    assert list(tmp_path.iterdir()) == []


def test_the_writer_syncs_every_commit_and_deletes_for_good(tmp_path: Path) -> None:
    with contextlib.closing(SqliteStorage(tmp_path / "flight.db")) as storage:
        ask = storage._connection.execute
        assert ask("PRAGMA journal_mode").get == "wal"
        assert ask("PRAGMA synchronous").get == 2  # FULL
        assert ask("PRAGMA secure_delete").get == 1


def test_a_new_file_is_synced_with_the_directories_that_lead_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    directory = tmp_path / "runs" / "run"
    directory.mkdir(parents=True)
    for _ in range(2):
        SqliteStorage(directory / "flight.db").close()
    assert synced[:3] == [directory, directory.parent, tmp_path]
    assert len(set(synced)) == len(synced)  # once: the second opening found the file


def test_a_reader_creates_nothing_and_reads_beside_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "flight.db"
    with pytest.raises(RecorderUnavailable):
        SqliteStorage(path, read_only=True)
    assert list(tmp_path.iterdir()) == []
    with (
        contextlib.closing(SqliteStorage(path)) as writer,
        contextlib.closing(SqliteStorage(path, read_only=True)) as reader,
    ):
        assert reader.select(ALL) == []
        for count in range(1, 4):
            writer.insert_many(events(count))
            assert reader.select(ALL) == events(count)
        with pytest.raises(RecorderUnavailable, match="ReadOnly"):
            reader.insert_many(events(4))


def test_any_sqlite_can_read_the_record(tmp_path: Path) -> None:
    path = tmp_path / "flight.db"
    with contextlib.closing(SqliteStorage(path)) as storage:
        storage.insert_many([event(1, data={"resource": "src/ü"})])
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        (row,) = connection.execute("SELECT event_id, ts, data->>'resource' FROM audit").fetchall()
    assert row == (f"{RUN}-1", "2026-01-02T03:00:00.001000Z", "src/ü")


# --- one writer ------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "flight.db"
    program = f"""
import sys
from pathlib import Path
from agentos.recorder.storage.sqlite import SqliteStorage
storage = SqliteStorage(Path({str(path)!r}))
print("open", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(RecorderUnavailable, match=f"being written by process {other.pid}; a record has one writer"):
        SqliteStorage(path)
    SqliteStorage(path, read_only=True).close()
    other.kill()  # Linux gives the lock back, however the writer ends
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with contextlib.closing(SqliteStorage(path)) as storage:
        assert storage.insert_many(events(1)) == 1


def test_a_writer_that_could_not_open_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "flight.db"
    path.write_bytes(b"no database at all" * 100)
    for _ in range(2):
        with pytest.raises(RecorderUnavailable, match="NotADB"):
            SqliteStorage(path)
    path.unlink()
    SqliteStorage(path).close()
