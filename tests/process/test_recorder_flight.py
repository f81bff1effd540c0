"""FlightRecorder with a kernel: what the kernel records is answered here, while it runs and after it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from world import state_of, wait_until

import agentos
from agentos import FlightRecorder, KernelSpace, PolicyViolationError, errors
from agentos.recorder.event import ENTRY_ITEMS_MAX
from agentos.recorder.reader import iter_runs
from agentos.recorder.recover import recover

Make = Callable[[], FlightRecorder]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


@pytest.fixture(params=["memory", "sqlite", "the run's own file"])
def make(request: pytest.FixtureRequest, home: Path) -> Make:
    arguments = {"memory": (), "sqlite": ("sqlite", home / "audit.db"), "the run's own file": ("sqlite",)}
    return lambda: FlightRecorder(*arguments[request.param])


def one_read_one_write() -> str:
    agentos.act("read", "data/allowed")
    try:
        agentos.act("write", "data/denied")
    except PolicyViolationError as refusal:
        return refusal.event_id or ""
    return "written"


def kernel_with(recorder: FlightRecorder) -> KernelSpace:
    kernel = KernelSpace(policy="strict", flight_recorder=recorder)
    kernel.register(permissions=["read"])(one_read_one_write)
    return kernel


async def story(recorder: FlightRecorder) -> list[str]:
    """What is on record, oldest first, without what Python reads to start."""
    rows = await recorder.query(limit=None, newest_first=False)
    assert rows == sorted(rows, key=lambda row: row["timestamp"])
    for run_id in {row["event_id"].rpartition("-")[0] for row in rows}:
        seqs = [row["seq"] for row in rows if row["event_id"].startswith(run_id)]
        assert seqs == sorted(set(seqs))
    actions = ("data/allowed", "data/denied", None)
    return [row["event_type"] for row in rows if row["data"].get("resource") in actions]


async def one_run(recorder: FlightRecorder) -> None:
    async with kernel_with(recorder) as kernel:
        await kernel.execute(one_read_one_write)


RUN = ["kernel_started", "agent_starting", "agent_started", "action_allowed", "policy_violation", "agent_exited"]


def test_a_kernel_s_record_is_answered_while_it_runs_and_afterwards(home: Path, make: Make) -> None:
    async def main() -> None:
        recorder = make()
        kernel = kernel_with(recorder)
        denied = await kernel.execute(one_read_one_write)
        (row,) = await recorder.query(event_type="policy_violation")
        assert row["event_id"] == denied
        assert (row["agent_name"], row["severity"]) == ("one_read_one_write", "warning")
        assert (row["data"]["operation"], row["data"]["resource"]) == ("write", "data/denied")
        assert len(await recorder.query(execution_id=row["execution_id"], limit=3)) == 3
        during = await story(recorder)
        assert [event for event in during if event in RUN] == RUN
        await kernel.shutdown()
        assert await story(recorder) == [*during, "kernel_stopped"]
        assert list((home / "run" / "runs").iterdir()) == []

    asyncio.run(main())


def test_a_record_that_nobody_asked_before_the_end_is_answered_after_it(home: Path, make: Make) -> None:
    async def main() -> None:
        recorder = make()
        await one_run(recorder)
        assert [event for event in await story(recorder) if event in RUN] == RUN

    asyncio.run(main())


def test_log_goes_through_the_kernel_and_keeps_the_order(home: Path, make: Make) -> None:
    async def main() -> None:
        recorder = make()
        await recorder.log("before", "agent_1", {})
        kernel = kernel_with(recorder)
        await kernel.execute(one_read_one_write)
        agent_id = kernel.current_agent_id
        assert agent_id is not None
        event_id = await recorder.log("during", agent_id, {"n": 1}, "warning")
        (row,) = await recorder.query(event_type="during")
        assert (row["event_id"], row["agent_name"], row["execution_id"]) == (event_id, "one_read_one_write", agent_id)
        assert event_id.startswith((await recorder.query(event_type="kernel_started"))[0]["data"]["run"])
        await kernel.shutdown()
        await recorder.log("after", "agent_1", {})
        told = await story(recorder)
        assert [event for event in told if event in ("before", *RUN, "during", "after")] == [
            "before", *RUN, "during", "after"
        ]  # fmt: skip

    asyncio.run(main())


def test_what_no_frame_holds_is_refused_by_name_and_costs_no_agent(home: Path) -> None:
    async def main() -> None:
        recorder = FlightRecorder("sqlite", home / "audit.db")
        async with kernel_with(recorder) as kernel:
            forever = kernel.register(time.sleep)
            agent_id = await kernel.spawn(forever, 60)
            for data in ({"v": [0] * 70_000}, dict.fromkeys(map(str, range(40_000)))):
                with pytest.raises(errors.BadRequest, match=r"log: .* more than \d+ keys and values"):
                    await recorder.log("x", "a", data)
            largest = {"v": [0] * (ENTRY_ITEMS_MAX - 3)}
            await recorder.log("large", "a", largest)
            deep: list[Any] = []
            for _ in range(40):
                deep = [deep]
            for context in ({"v": [0] * 70_000}, {"v": deep}, {"v": b"x" * 17_000_000}):
                with pytest.raises(errors.BadRequest, match=r"start: .*(items|deeper|the limit)"):
                    await kernel.execute(one_read_one_write, context=context)
            with pytest.raises(errors.BadRequest, match="wait_all: a frame holds more than"):
                await kernel.wait_all([agent_id] * 70_000)
            assert kernel.get_agent_status(agent_id).state == "running"
            assert (await recorder.query(event_type="large"))[0]["data"] == largest
            assert await recorder.query(event_type="protocol_error") == []

    asyncio.run(main())


def test_a_host_that_is_hung_up_on_leaves_on_record_why(home: Path) -> None:
    async def main() -> None:
        recorder = FlightRecorder("sqlite", home / "audit.db")
        kernel = kernel_with(recorder)
        await kernel.execute(one_read_one_write)
        assert kernel._connection is not None
        kernel._connection._link.socket.sendall(b"\0\0\0\1\0")
        await kernel.shutdown()
        (row,) = await recorder.query(event_type="protocol_error")
        assert row["data"] == {"client": "host", "error": "not a frame: no tag"}

    asyncio.run(main())


def test_kernels_one_after_the_other_share_a_recorder(home: Path, make: Make) -> None:
    async def main() -> None:
        recorder = make()
        for _ in range(2):
            await one_run(recorder)
        told = await story(recorder)
        assert [event for event in told if event in RUN] == RUN * 2
        assert len(await recorder.query(event_type="kernel_stopped")) == 2
        assert len(await recorder.query(limit=5)) == 5

    asyncio.run(main())


def test_what_a_killed_kernel_recorded_is_answered_and_the_next_kernel_goes_on(home: Path, make: Make) -> None:
    async def main() -> None:
        recorder = make()
        kernel = kernel_with(recorder)
        await kernel.execute(one_read_one_write)
        ids = await asyncio.gather(*(recorder.log("mark", "host", {"n": number}) for number in range(50)))
        (started,) = await recorder.query(event_type="kernel_started")
        os.kill(started["data"]["kernel_pid"], signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: state_of(started["data"]["kernel_pid"]) in ("", "Z"))
        assert sorted(row["event_id"] for row in await recorder.query(event_type="mark")) == sorted(ids)
        await asyncio.to_thread(wait_until, lambda: kernel._connection is None or kernel._connection.lost)
        await kernel.execute(one_read_one_write)  # starts another kernel, once the old one's recorder is done
        assert sorted(row["event_id"] for row in await recorder.query(event_type="mark")) == sorted(ids)
        assert len(await recorder.query(event_type="policy_violation")) == 2
        await kernel.shutdown()
        assert [event for event in await story(recorder) if event in RUN] == RUN * 2

    asyncio.run(main())


def test_log_goes_on_by_itself_when_the_kernel_was_killed(home: Path, make: Make) -> None:
    async def main() -> None:
        recorder = make()
        kernel = kernel_with(recorder)
        await kernel.execute(one_read_one_write)
        (started,) = await recorder.query(event_type="kernel_started")
        os.kill(started["data"]["kernel_pid"], signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: state_of(started["data"]["kernel_pid"]) in ("", "Z"))
        logged = 0
        while logged < 3:
            with contextlib.suppress(errors.RecorderUnavailable):  # it may have been on its way to the dying kernel
                await recorder.log("mark", "host", {})
                logged += 1
        assert len(await recorder.query(event_type="mark")) == 3
        assert [event for event in await story(recorder) if event in RUN] == RUN
        await kernel.shutdown()

    asyncio.run(main())


def test_what_only_the_journal_holds_is_not_lost_with_the_run(home: Path) -> None:
    """The directory of a run in memory goes with its kernel, unless the recorder could not write all of it."""

    async def main() -> None:
        recorder = FlightRecorder()
        kernel = kernel_with(recorder)
        await kernel.execute(one_read_one_write)
        before = await story(recorder)
        facts = await kernel._call("inspect", {"id": kernel.current_agent_id})
        for pid in (facts["recorder_pid"], facts["zygote_pid"]):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        await kernel.shutdown()
        told = await story(recorder)
        assert told[: len(before)] == before
        assert "kernel_stopped" in told
        assert not any((home / "run" / "runs").iterdir())

    asyncio.run(main())


def test_other_threads_log_while_a_kernel_starts_and_ends(home: Path, make: Make) -> None:
    recorder = make()
    done = threading.Event()
    ids: list[str] = []
    refusals: list[str] = []

    async def log() -> None:
        while not done.is_set():
            try:
                ids.append(await recorder.log("mark", "host", {}))
            except errors.RecorderUnavailable as error:
                refusals.append(str(error))
            await asyncio.sleep(0.002)

    thread = threading.Thread(target=lambda: asyncio.run(log()))
    thread.start()
    for _ in range(2):
        time.sleep(0.05)
        asyncio.run(one_run(recorder))
    time.sleep(0.05)
    done.set()
    thread.join()
    for refusal in refusals:  # on its way to a kernel that was leaving
        assert "may be on record or not" in refusal or "its kernel is ending" in refusal
    rows = asyncio.run(recorder.query(event_type="mark", limit=None))
    found = [row["event_id"] for row in rows]
    assert len(found) == len(set(found))
    assert set(ids) <= set(found)
    assert len({event_id.rpartition("-")[0] for event_id in ids}) >= 3  # by itself, through kernels, by itself


def test_the_storage_shows(home: Path, make: Make) -> None:
    async def main() -> None:
        recorder = make()
        async with kernel_with(recorder) as kernel:
            await kernel.execute(one_read_one_write)
            facts = await kernel._call("inspect", {"id": kernel.current_agent_id})
            assert facts["recorder"]["storage"] == recorder.storage

    asyncio.run(main())


def test_a_record_in_one_file_is_found_by_its_runs_and_by_its_path(home: Path) -> None:
    async def main() -> None:
        recorder = FlightRecorder("sqlite", home / "audit.db")
        await one_run(recorder)
        await one_run(recorder)
        recorder.close()
        assert [event for event in await story(FlightRecorder("sqlite", home / "audit.db")) if event in RUN] == RUN * 2
        for reader in iter_runs(home / "state"):
            types = [one.event_type for one in reader.events()]
            assert [event for event in types if event in RUN and event != "action_allowed"] == [
                event for event in RUN if event != "action_allowed"
            ]
            reader.close()
            assert recover(reader.run_dir) == 0
        shutil.rmtree(home / "state")
        assert [event for event in await story(recorder) if event in RUN] == RUN * 2

    asyncio.run(main())


def test_an_agent_cannot_use_the_recorder_of_its_host(home: Path, make: Make) -> None:
    recorder = make()

    async def main() -> None:
        kernel = KernelSpace(policy="permissive", flight_recorder=recorder)

        @kernel.register
        async def meddler() -> str:
            try:
                return await recorder.log("forged", "somebody_else", {})
            except errors.BadRequest as refusal:
                return str(refusal)

        answer: Any = await kernel.execute(meddler)
        assert "belongs to the process that made it, not to a fork of it or to an agent" in answer
        assert await recorder.query(event_type="forged") == []
        await kernel.shutdown()

    asyncio.run(main())
