"""A recorder that cannot record: nobody acts who could not be recorded, nothing is lost, and it goes on when it can.

The limits are Linux's own: RLIMIT_FSIZE set on running processes, a file system of one megabyte where one may be
mounted, a directory that is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash import CrashHost, complaints, crash_host, kill
from world import state_of, wait_until

from agentos import FlightRecorder, KernelSpace, errors
from agentos.supervisor.decide import RECORDER_UNAVAILABLE

LIMIT_S = 30.0


def refused_for_the_recorder(host: CrashHost) -> int:
    return sum(RECORDER_UNAVAILABLE in reason for reason in host.refusals().values())


def assert_goes_on(host: CrashHost) -> None:
    """New allowed, denied and logged events are acknowledged from now on."""
    seen = len(host.notes())
    wait_until(lambda: {note.kind for note in host.notes()[seen:]} >= {"allowed", "denied"}, LIMIT_S, "new verdicts")


def assert_complete(host: CrashHost, pids: dict[str, Any]) -> list[Any]:
    """End the run the hard way: what was acknowledged is on record, and only what was refused may be missing."""
    kill(pids["kernel_pid"])
    wait_until(lambda: state_of(pids["pid"]) in ("", "Z"), what="the agent to be gone")
    rows = host.recovered()
    assert complaints(rows, host.notes(), host.refusals()) == []
    return rows


# --- the disk is full ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_room(*pids: int) -> Iterator[None]:
    """These processes, and what they fork, cannot make any file larger than a page: EFBIG (setrlimit(2))."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_without_room_for_the_journal_every_action_is_refused_until_there_is(tmp_path: Path) -> None:
    with crash_host(tmp_path) as host:
        pids = host.start("notes")
        with no_room(pids["kernel_pid"]):
            wait_until(lambda: refused_for_the_recorder(host) > 50, LIMIT_S, "refusals")
            stuck = len([note for note in host.notes() if note.kind == "allowed"])
            refused = refused_for_the_recorder(host)
            wait_until(lambda: refused_for_the_recorder(host) > refused + 50, LIMIT_S, "more refusals")
            assert len([note for note in host.notes() if note.kind == "allowed"]) == stuck
        assert_goes_on(host)
        assert host.pids()["pid"] == pids["pid"]
        rows = assert_complete(host, pids)
    untold = [row.data for row in rows if row.event_type == "not_recorded"]
    assert sum(data.get("refused", 0) for data in untold) >= 100


def test_without_room_for_the_database_nothing_durable_happens_until_there_is(tmp_path: Path) -> None:
    with crash_host(tmp_path) as host:
        pids = host.start("notes")
        with no_room(pids["recorder_pid"], pids["zygote_pid"]):
            wait_until(lambda: refused_for_the_recorder(host) > 0, LIMIT_S, "a refusal")
            before = len([note for note in host.notes() if note.kind == "denied"])
            refused = refused_for_the_recorder(host)
            wait_until(lambda: refused_for_the_recorder(host) > refused, LIMIT_S, "another refusal")
            assert len([note for note in host.notes() if note.kind == "denied"]) == before
        assert_goes_on(host)
        rows = assert_complete(host, host.pids())
    reasons = [row.data["reason"] for row in rows if row.event_type == "recorder_restarted"]
    assert any("flight.db: " in reason for reason in reasons)
    late = [row.data for row in rows if row.event_type == "action_refused"]
    assert len(late) >= 1
    assert all(data["reason"] == RECORDER_UNAVAILABLE for data in late)


def may_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


@contextlib.contextmanager
def disk(where: Path) -> Iterator[None]:
    """A file system of its own for the run, where we may mount one; else the one there is."""
    if not may_mount():
        yield
        return
    where.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@contextlib.contextmanager
def filled(where: Path, pids: dict[str, Any]) -> Iterator[None]:
    """Linux says ENOSPC to everybody on that file system; where it is everybody's, EFBIG to this run."""
    if not may_mount():
        with no_room(pids["kernel_pid"], pids["recorder_pid"], pids["zygote_pid"]):
            yield
        return
    ballast = where / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    yield
    ballast.unlink()


def test_on_a_full_disk_nobody_acts_and_when_it_is_freed_things_go_on(tmp_path: Path) -> None:
    with disk(tmp_path / "state"), crash_host(tmp_path) as host:
        pids = host.start("notes")
        with filled(tmp_path / "state", pids):
            wait_until(lambda: refused_for_the_recorder(host) > 50, LIMIT_S, "refusals")
        assert_goes_on(host)
        assert_complete(host, host.pids())


# --- the recorder cannot come back -----------------------------------------------------------------------------------


def test_a_recorder_that_finds_no_directory_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    with crash_host(tmp_path) as host:
        pids = host.start("notes", records / "audit.db")
        away = records.rename(tmp_path / "away")
        kill(pids["recorder_pid"])
        wait_until(lambda: refused_for_the_recorder(host) > 0, LIMIT_S, "a refusal")
        assert state_of(pids["pid"]) not in ("", "Z")
        away.rename(records)
        assert_goes_on(host)
        rows = assert_complete(host, host.pids())
    reasons = [row.data["reason"] for row in rows if row.event_type == "recorder_restarted"]
    assert any("No such file or directory" in reason for reason in reasons)


def test_a_stopped_recorder_is_woken_and_nothing_is_lost(tmp_path: Path) -> None:
    """An agent has the same uid, so it may send SIGSTOP: the recorder would be there and say nothing for ever."""
    with crash_host(tmp_path) as host:
        pids = host.start("notes")
        os.kill(pids["recorder_pid"], signal.SIGSTOP)
        wait_until(lambda: state_of(pids["recorder_pid"]) == "T", LIMIT_S, "the recorder to be stopped")
        assert_goes_on(host)
        assert host.pids()["recorder_pid"] == pids["recorder_pid"]
        assert_complete(host, pids)


# --- one writer ------------------------------------------------------------------------------------------------------


def test_a_second_kernel_on_the_same_file_does_not_start_and_leaves_nothing_behind(home: Path) -> None:
    async def main() -> None:
        first = KernelSpace(flight_recorder=FlightRecorder("sqlite", "audit.db"))
        second = KernelSpace(flight_recorder=FlightRecorder("sqlite", "audit.db"))
        async with first:
            runs = sorted(path.name for path in (home / "state" / "runs").iterdir())
            with pytest.raises(errors.RecorderUnavailable, match=r"audit.db is being written by process \d+"):
                await second.__aenter__()
            for root in ("state", "run"):
                assert sorted(path.name for path in (home / root / "runs").iterdir()) == runs
        async with second:
            pass

    asyncio.run(main())
