"""FlightRecorder by itself: what it takes, what it answers, and that one file has one writer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from world import PROJECT

from agentos import FlightRecorder, errors
from agentos.recorder.reader import iter_runs
from agentos.recorder.storage.sqlite import SqliteStorage

Make = Callable[[], FlightRecorder]


@pytest.fixture(params=["memory", "sqlite", "a run of its own"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    arguments = {"memory": (), "sqlite": ("sqlite", tmp_path / "audit.db"), "a run of its own": ("sqlite",)}
    return lambda: FlightRecorder(*arguments[request.param])


async def types(recorder: FlightRecorder, **asked: Any) -> list[str]:
    return [row["event_type"] for row in await recorder.query(**asked)]


# --- the examples of the reference ---------------------------------------------------------------------------------


def test_the_examples_of_the_reference(make: Make) -> None:
    async def main() -> None:
        recorder = make()
        await recorder.log(
            event_type="action_blocked",
            agent_id="agent_123",
            data={
                "action": "write",
                "resource": "data/phi/patient_001.json",
                "policy_rule": "deny_phi_write",
                "reason": "PHI access denied without explicit approval",
            },
            severity="warning",
        )
        await recorder.log("policy_violation", "agent_123", {"resource": "x"}, "error")
        await recorder.log("policy_violation", "agent_456", {"resource": "x"})

        violations = await recorder.query(
            event_type="policy_violation",
            start_time=datetime.now() - timedelta(hours=1),  # noqa: DTZ005 - naive, as people write it
            end_time=datetime.now() + timedelta(seconds=1),  # noqa: DTZ005
            limit=100,
        )
        activity = await recorder.query(agent_id="agent_123", severity=["warning", "error", "critical"], limit=50)
        assert [row["agent_id"] for row in violations] == ["agent_456", "agent_123"]
        assert [row["event_type"] for row in activity] == ["policy_violation", "action_blocked"]
        with pytest.raises(errors.BadRequest, match="filters= is not available in this version"):
            await recorder.query(filters={"data.resource": {"$regex": "data/phi/*"}, "data.action": "write"})
        with pytest.raises(errors.BadRequest, match=r"get_timeline\(\) is not available"):
            await recorder.get_timeline(agent_id="agent_123", execution_id="exec_456")
        with pytest.raises(errors.BadRequest, match=r"replay\(\) is not available"):
            await recorder.replay(agent_id="agent_123", execution_id="exec_456", to_event_id="evt_789")
        with pytest.raises(errors.BadRequest, match=r"export\(\) is not available"):
            await recorder.export(format="csv", output_path="audit_report.csv", fields=["timestamp", "agent_id"])

    asyncio.run(main())


def test_the_defaults_of_the_reference() -> None:
    recorder = FlightRecorder(
        storage="memory", connection_string=None, retention_days=90, compression=True, encryption_key=None
    )
    assert recorder.storage == FlightRecorder().storage == "memory"


# --- what it takes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"storage": "sqlight"}, r"unknown storage 'sqlight' \(did you mean 'sqlite'\?\); known: memory, sqlite"),
        ({"storage": "postgresql"}, "storage='postgresql' is not available in this version; use 'memory' or 'sqlite'"),
        ({"storage": "s3", "connection_string": "s3://x"}, "storage='s3' is not available"),
        ({"encryption_key": b"k" * 32}, "encryption_key= is not available in this version; leave it out"),
        ({"connection_string": "audit.db"}, "needs storage='sqlite'"),
        ({"storage": "sqlite", "connection_string": ":memory:"}, "no path of a file"),
        ({"storage": "sqlite", "connection_string": ""}, "no path of a file"),
        ({"storage": "sqlite", "connection_string": "postgresql://h/d"}, "no path of a file"),
        ({"storage": "sqlite", "connection_string": 7}, "must be a path, not int"),
        ({"storage": "sqlite", "connection_string": "missing/audit.db"}, "missing is no directory"),
        ({"storage": "sqlite", "connection_string": "."}, "is a directory"),
        ({"retention_days": 0}, "at least 1, not 0"),
        ({"retention_days": 1.5}, "at least 1, not 1.5"),
        ({"retention_days": True}, "at least 1, not True"),
        ({"compression": "zstd"}, "must be True or False, not 'zstd'"),
    ],
)
def test_wrong_arguments_are_refused_by_name_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.BadRequest, match=message):
        FlightRecorder(**arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["audit.db", "sqlite:///audit.db", "./audit.db"])
def test_a_path_may_be_said_in_several_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = FlightRecorder("sqlite", given)
    monkeypatch.chdir("/")  # it means the directory of its making
    asyncio.run(recorder.log("x", "a", {}))
    assert (tmp_path / "audit.db").stat().st_mode & 0o777 == 0o600


def test_a_row_says_what_was_logged(make: Make) -> None:
    async def main() -> None:
        recorder = make()
        before = datetime.now(UTC)
        event_id = await recorder.log("x", "agent_123", {"n": 1, "when": before}, "critical")
        (row,) = await recorder.query()
        assert row.pop("timestamp") - before < timedelta(seconds=60)
        assert row == {
            "seq": 1, "event_id": event_id, "event_type": "x", "severity": "critical", "agent_id": "agent_123",
            "agent_name": "", "execution_id": "", "data": {"n": 1, "when": before.isoformat()},
        }  # fmt: skip
        (row,) = await recorder.query()
        assert row["timestamp"].tzinfo is UTC

    asyncio.run(main())


def test_a_dumped_state_is_an_event(make: Make) -> None:
    async def main() -> None:
        recorder = make()
        event_id = await recorder.log_state_dump("agent_123", {"step": 3, "items": {1}})
        (row,) = await recorder.query(event_type="state_dump", agent_id="agent_123")
        assert (row["event_id"], row["data"]) == (event_id, {"state": {"step": 3, "items": [1]}})

    asyncio.run(main())


def test_what_cannot_be_logged_leaves_no_trace(make: Make) -> None:
    async def main() -> None:
        recorder = make()
        with pytest.raises(errors.BadRequest, match="unknown severity 'warn'"):
            await recorder.log("x", "a", {}, severity="warn")
        with pytest.raises(errors.BadRequest, match="the limit is 524288"):
            await recorder.log_state_dump("a", "x" * 600_000)
        assert await recorder.query() == []
        assert (await recorder.log("x", "a", {})).endswith("-1")

    asyncio.run(main())


# --- loops, threads, processes ---------------------------------------------------------------------------------------


def test_many_threads_and_loops_log_at_once(make: Make) -> None:
    recorder = make()
    ids: list[str] = []

    async def log(thread: int) -> None:
        for number in range(5):
            ids.extend(await asyncio.gather(*(recorder.log("x", str(thread), {"n": number}) for _ in range(10))))
            assert len(await recorder.query(agent_id=str(thread), limit=None)) == 10 * (number + 1)

    threads = [threading.Thread(target=lambda thread=thread: asyncio.run(log(thread))) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = asyncio.run(recorder.query(limit=None, newest_first=False))
    assert [row["seq"] for row in rows] == list(range(1, 201))
    assert sorted(ids) == sorted(row["event_id"] for row in rows)


def test_who_logs_at_the_same_time_shares_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = []
    real = SqliteStorage.insert_many

    def insert_many(self: SqliteStorage, events: Any) -> int:
        commits.append(len(events))
        return real(self, events)

    monkeypatch.setattr(SqliteStorage, "insert_many", insert_many)

    async def main() -> None:
        recorder = FlightRecorder("sqlite", tmp_path / "audit.db")
        await asyncio.gather(*(recorder.log("x", "a", {"n": number}) for number in range(300)))
        rows = await recorder.query(limit=None, newest_first=False)
        assert [row["data"]["n"] for row in rows] == list(range(300))

    asyncio.run(main())
    assert sum(commits) == 300
    assert len(commits) < 30


def test_a_cancelled_log_harms_nobody(make: Make) -> None:
    async def main() -> None:
        recorder = make()
        tasks = [asyncio.create_task(recorder.log("x", "a", {"n": number})) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, str) for result in results[1::2])
        seqs = [row["seq"] for row in await recorder.query(limit=None, newest_first=False)]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= 10

    asyncio.run(main())


def test_a_recorder_stays_in_its_process(make: Make) -> None:
    arrived = pickle.loads(pickle.dumps(make()))
    for call in (arrived.log("x", "a", {}), arrived.query(), arrived.log_state_dump("a", 1)):
        with pytest.raises(errors.BadRequest, match="belongs to the process that made it"):
            asyncio.run(call)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_holds_what_several_recorders_wrote_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    for number in range(3):
        recorder = FlightRecorder("sqlite", path)
        asyncio.run(recorder.log(f"x{number}", "a", {}))
        recorder.close()
        recorder.close()
    assert asyncio.run(types(FlightRecorder("sqlite", path), newest_first=False)) == ["x0", "x1", "x2"]
    assert asyncio.run(types(recorder, limit=1)) == ["x2"]
    asyncio.run(recorder.log("x3", "a", {}))  # it takes the file again
    assert asyncio.run(types(recorder, limit=2)) == ["x3", "x2"]


def test_a_second_writer_is_told_who_the_first_is_and_may_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    program = f"""
import asyncio, sys
from agentos import FlightRecorder
recorder = FlightRecorder("sqlite", {str(path)!r})
print(asyncio.run(recorder.log("theirs", "a", {{}})), flush=True)
sys.stdin.readline()
recorder.close()
print("closed", flush=True)
sys.stdin.readline()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdout.readline()
    recorder = FlightRecorder("sqlite", path)
    with pytest.raises(errors.RecorderUnavailable, match=f"being written by process {other.pid}; a record has one"):
        asyncio.run(recorder.log("mine", "a", {}))
    assert asyncio.run(types(recorder)) == ["theirs"]
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "closed\n"
    asyncio.run(recorder.log("mine", "a", {}))
    assert asyncio.run(types(recorder)) == ["mine", "theirs"]
    other.communicate("\n")


def test_a_recorder_that_nobody_holds_any_more_gives_its_file_up(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    for number in range(3):
        recorder = FlightRecorder("sqlite", path)
        asyncio.run(recorder.log(f"x{number}", "a", {}))
        del recorder
        gc.collect()
    assert len(asyncio.run(types(FlightRecorder("sqlite", path)))) == 3


def test_after_a_failure_it_goes_on_when_it_can(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()

    async def main() -> None:
        recorder = FlightRecorder("sqlite", records / "audit.db")
        records.rmdir()
        results = await asyncio.gather(*(recorder.log("x", "a", {}) for _ in range(5)), return_exceptions=True)
        assert {type(result) for result in results} == {errors.RecorderUnavailable}
        assert await recorder.query() == []
        records.mkdir()
        await recorder.log("x", "a", {})
        assert len(await recorder.query()) == 1

    asyncio.run(main())


def test_after_a_failed_commit_the_file_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync nobody knows what is on disk: the connection is given up, and the lock with it."""

    def refuse(*_: Any) -> int:
        raise errors.RecorderUnavailable("disk I/O error")

    async def main() -> None:
        recorder = FlightRecorder("sqlite", tmp_path / "audit.db")
        await recorder.log("x", "a", {})
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStorage, "insert_many", refuse)
            with pytest.raises(errors.RecorderUnavailable, match="I/O error"):
                await recorder.log("x", "a", {})
        SqliteStorage(tmp_path / "audit.db").close()
        await recorder.log("x", "a", {})
        assert len(await recorder.query()) == 2

    asyncio.run(main())


def test_a_full_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        recorder = FlightRecorder()
        assert recorder._own._memory is not None
        recorder._own._memory._events_max = 2
        await recorder.log("x", "a", {})
        await recorder.log("x", "a", {})
        with pytest.raises(errors.RecorderUnavailable, match="memory recorder is full"):
            await recorder.log("x", "a", {})
        assert [row["seq"] for row in await recorder.query()] == [2, 1]

    asyncio.run(main())


def test_what_is_no_record_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n" * 100)
    recorder = FlightRecorder("sqlite", path)
    for call in (recorder.log("x", "a", {}), recorder.query()):
        with pytest.raises(errors.RecorderUnavailable, match=r"notes.txt"):
            asyncio.run(call)
    assert path.read_text() == "my notes\n" * 100


def test_a_run_of_its_own_lies_where_runs_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    recorder = FlightRecorder("sqlite")
    assert not (tmp_path / "state").exists()
    event_id = asyncio.run(recorder.log("x", "a", {}))
    (reader,) = iter_runs(tmp_path / "state")
    with contextlib.closing(reader):
        assert [one.event_id for one in reader.read()] == [event_id]
    assert reader.run_dir.stat().st_mode & 0o777 == 0o700
