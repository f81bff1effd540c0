"""The kernel's side of the recorder: record, then act; who waits, for how long, and what is told of what was lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from records import RUN
from world import PROJECT, wait_until

from agentos import wire
from agentos.clock import SystemClock
from agentos.errors import RecorderUnavailable
from agentos.recorder.event import AuditEvent
from agentos.recorder.journal import JournalReader, JournalWriter
from agentos.recorder.reader import RunReader
from agentos.supervisor import recorder_link, recording
from agentos.supervisor.recorder_link import RecorderLink
from agentos.supervisor.recording import Recording


class Desk:
    """A Recording over a real journal, and what it sent to a recorder that is not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = JournalWriter(directory, run_id=RUN)
        self.recording = Recording(asyncio.get_running_loop(), self.journal, SystemClock())
        self.sent: list[wire.TailTo] = []
        self.recording.send = self.sent.append

    def recorded(self) -> list[AuditEvent]:
        with contextlib.closing(JournalReader(self.directory)) as reader:
            return reader.read()

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """Nothing more can be written to the journal."""
        real, self.journal._descriptor = self.journal._descriptor, os.open("/dev/full", os.O_WRONLY)
        try:
            yield
        finally:
            os.close(self.journal._descriptor)
            self.journal._descriptor = real
            self.journal._torn = False


def play(story: Callable[[Desk], Awaitable[None]], directory: Path) -> None:
    async def main() -> None:
        await story(Desk(directory))

    asyncio.run(main())


def test_an_event_is_in_the_journal_before_anybody_hears_of_it(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        assert desk.recording.append("x", {"n": 1}, agent_id="a", severity="warning") == 1
        (one,) = desk.recorded()
        assert (one.event_type, one.agent_id, one.severity, one.data) == ("x", "a", "warning", {"n": 1})
        assert desk.sent == []
        await asyncio.sleep(recording.QUIET_BELL_S * 3)
        assert desk.sent == [wire.TailTo(1, False)]

    play(story, tmp_path)


def test_who_waits_is_told_in_order_and_only_when_it_is_committed(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        told: list[tuple[int, bool]] = []
        for number in (1, 2, 3):
            seq = desk.recording.append("x", {}, durable=True)
            desk.recording.when_durable(seq, lambda ok, number=number: told.append((number, ok)))
        assert desk.sent == [wire.TailTo(1, True), wire.TailTo(2, True), wire.TailTo(3, True)]
        desk.recording.acknowledged(2)
        assert told == [(1, True), (2, True)]
        desk.recording.acknowledged(1)  # late news from nobody: nothing goes back
        assert desk.recording.durable_seq == 2
        desk.recording.when_durable(1, lambda ok: told.append((4, ok)))
        assert told[2:] == [(4, True)]
        desk.sent.clear()
        desk.recording.reconnected()
        assert desk.sent == [wire.TailTo(3, True)]

    play(story, tmp_path)


def test_who_waits_too_long_is_told_so_with_the_recorders_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "DURABLE_LIMIT_S", 0.05)

    async def story(desk: Desk) -> None:
        desk.recording.why_not = "flight.db: FullError: disk is full"
        first = desk.recording.append("x", {})
        with pytest.raises(RecorderUnavailable, match=r"did not confirm event 1 within 0.05 s: flight.db: FullError"):
            await desk.recording.durable(first)
        second = asyncio.ensure_future(desk.recording.durable(desk.recording.append("x", {})))
        await asyncio.sleep(0)
        desk.recording.acknowledged(2)
        await second
        assert desk.recording.why_not == ""

    play(story, tmp_path)


def test_no_more_may_wait_than_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "WAITING_MAX", 2)

    async def story(desk: Desk) -> None:
        told: list[bool] = []
        for _ in range(3):
            desk.recording.when_durable(desk.recording.append("x", {}), told.append)
        assert told == [False]

    play(story, tmp_path)


def test_a_silent_recorder_stops_what_is_not_durable_too_until_it_speaks(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.recording.append("x", {})
        for _ in range(recording.SILENT_BEATS_MAX):
            desk.recording.beat()
        desk.recording.append("x", {})
        desk.recording.beat()
        with pytest.raises(RecorderUnavailable, match="confirmed nothing for 11 s"):
            desk.recording.append("x", {})
        desk.recording.try_append("ended", {})  # what happened happened: the journal still takes it
        desk.recording.acknowledged(2)  # not all of it, but it lives
        assert desk.recording.append("x", {}) == 5
        assert [one.event_type for one in desk.recorded()] == ["x", "x", "not_recorded", "ended", "x"]
        assert desk.recorded()[2].data == {"refused": 1}
        desk.recording.acknowledged(5)
        for _ in range(100):
            desk.recording.beat()  # nothing to say is no silence
        desk.recording.append("x", {})

    play(story, tmp_path)


def test_a_recorder_that_falls_behind_stops_who_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BACKLOG_BYTES_MAX", 10_000)

    async def story(desk: Desk) -> None:
        def fill() -> None:
            while True:
                desk.recording.append("x", {"x": "x" * 1000})

        with pytest.raises(RecorderUnavailable, match="more than 10000 bytes behind"):
            fill()
        assert 10 <= desk.recording.last_seq <= 11
        desk.recording._ring()
        desk.recording.acknowledged(desk.recording.last_seq)
        desk.recording.append("x", {"x": "x" * 1000})

    play(story, tmp_path)


def test_what_a_full_disk_refused_is_counted_and_on_record_first(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.recording.append("x", {})
        with desk.full_disk():
            for _ in range(3):
                with pytest.raises(RecorderUnavailable, match="No space left|half a record"):
                    desk.recording.append("x", {})
            desk.recording.try_append("ended", {})
        assert desk.recording.lost == 1
        assert desk.recording.append("x", {}) == 3
        assert desk.recording.append("x", {}) == 4
        assert [(one.seq, one.event_type) for one in desk.recorded()] == [
            (1, "x"), (2, "not_recorded"), (3, "x"), (4, "x")
        ]  # fmt: skip
        assert desk.recorded()[1].data == {"refused": 3, "lost": 1}

    play(story, tmp_path)


# --- the link to the process ----------------------------------------------------------------------------------------


def start(params: dict[str, Any], descriptors: list[int]) -> subprocess.Popen[bytes]:
    program = "import sys; from agentos.recorder import writer; writer.main(int(sys.argv[1]), *sys.argv[2:])"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(descriptors[0]), params["journal"], params["database"]],
        pass_fds=descriptors, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip


class Zygote:
    """Starts recorders in processes of their own, and reports deaths as the real one does, as early as can be."""

    def __init__(self) -> None:
        self.link: RecorderLink
        self.processes: list[subprocess.Popen[bytes]] = []
        self.reported: set[int] = set()
        self.early: set[int] = set()
        self.early_deaths = 0

    async def fork(self, _: str, params: dict[str, Any], descriptors: list[int]) -> int:
        process = start(params, descriptors)
        self.processes.append(process)
        if self.early_deaths:
            self.early_deaths -= 1
            self.early.add(process.pid)
            await asyncio.to_thread(process.wait)
            self.reported.add(process.pid)
            self.link.on_died(wire.Died(process.pid, process.returncode, 0))
        return process.pid

    async def watch(self) -> None:
        while True:
            for process in self.processes:
                if process.pid not in self.reported and process.pid not in self.early and process.poll() is not None:
                    self.reported.add(process.pid)
                    self.link.on_died(wire.Died(process.pid, process.returncode, 0))
            await asyncio.sleep(0.005)


class Office:
    """A Recording and its recorder, without a kernel around them."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        (run_dir / "journal").mkdir(parents=True)
        self.records = run_dir.parent / "records"
        self.records.mkdir(exist_ok=True)
        loop = asyncio.get_running_loop()
        journal = JournalWriter(run_dir / "journal", run_id=RUN)
        self.recording = Recording(loop, journal, SystemClock())
        self.zygote = Zygote()
        boot = {"state": str(run_dir), "database": str(self.records / "audit.db")}
        self.link = self.zygote.link = RecorderLink(loop, boot, self.recording, self.zygote)  # type: ignore[arg-type]
        self._watching = loop.create_task(self.zygote.watch())

    async def durable(self) -> int:
        """Record one event and wait until it is in the database."""
        seq = self.recording.append("x", {}, durable=True)
        await self.recording.durable(seq)
        return seq

    def recorded(self) -> list[AuditEvent]:
        with contextlib.closing(RunReader(self.run_dir)) as reader:
            return reader.read()

    async def close(self) -> None:
        await self.link.stop()
        self._watching.cancel()
        for process in self.zygote.processes:
            process.kill()
            process.wait()


def work(story: Callable[[Office], Awaitable[None]], directory: Path) -> None:
    async def main() -> None:
        office = Office(directory / "run")
        try:
            await story(office)
        finally:
            await office.close()

    asyncio.run(main())


def test_a_killed_recorder_is_replaced_and_nobody_who_waits_notices(tmp_path: Path) -> None:
    async def story(office: Office) -> None:
        await office.link.open()
        for _ in range(3):
            pid = office.link.pid
            seq = office.recording.append("x", {})
            waiting = asyncio.ensure_future(office.recording.durable(seq))
            os.kill(pid, signal.SIGKILL)
            await waiting
            await office.durable()
        seqs = [one.seq for one in office.recorded()]
        assert seqs == list(range(1, len(seqs) + 1))
        assert [one.event_type for one in office.recorded()].count("recorder_restarted") <= 3

    work(story, tmp_path)


def test_a_recorder_that_dies_before_its_pid_is_known_is_replaced_too(tmp_path: Path) -> None:
    async def story(office: Office) -> None:
        await office.link.open()
        await office.durable()
        away = office.records.rename(office.records.with_name("away"))
        office.zygote.early_deaths = 1
        os.kill(office.link.pid, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: len(office.zygote.reported) == 2)
        away.rename(office.records)
        await office.durable()  # the early death was heard of, or there would be no third
        assert len(office.zygote.processes) >= 3
        reasons = [one.data["reason"] for one in office.recorded() if one.event_type == "recorder_restarted"]
        assert reasons[0] == ""
        assert "No such file or directory" in reasons[1]

    work(story, tmp_path)


@pytest.mark.parametrize("place", [(os, "pidfd_open"), (socket, "socketpair")], ids=["pidfd_open", "socketpair"])
def test_a_recorder_is_started_again_although_descriptors_ran_out_meanwhile(
    place: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = getattr(*place), iter(range(2))

    def scarce(*args: Any) -> Any:
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*args)

    async def story(office: Office) -> None:
        await office.link.open()
        await office.durable()
        monkeypatch.setattr(*place, scarce)
        os.kill(office.link.pid, signal.SIGKILL)
        seq = office.recording.append("x", {})
        await asyncio.to_thread(wait_until, lambda: office.recording.durable_seq >= seq, 60)
        unwanted = [one for one in office.zygote.processes if one.pid != office.link.pid]
        await asyncio.to_thread(wait_until, lambda: all(one.poll() is not None for one in unwanted))
        assert [one.event_type for one in office.recorded()].count("recorder_restarted") == 1

    work(story, tmp_path)


def test_a_recorder_that_cannot_open_its_file_fails_the_start_in_its_own_words(tmp_path: Path) -> None:
    async def story(office: Office) -> None:
        (office.records / "audit.db").write_bytes(b"no database at all" * 100)
        with pytest.raises(RecorderUnavailable, match=r"audit.db: NotADB"):
            await office.link.open()

    work(story, tmp_path)


def test_a_slow_recorder_is_given_time_and_a_hung_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_link, "BEAT_S", 0.02)
    monkeypatch.setattr(recording, "SILENT_BEATS_MAX", 1_000_000)

    async def story(office: Office) -> None:
        await office.link.open()
        await office.durable()
        hung = office.link.pid
        os.kill(hung, signal.SIGSTOP)
        seq = office.recording.append("x", {})
        waiting = asyncio.ensure_future(office.recording.durable(seq))
        await asyncio.to_thread(wait_until, lambda: office.recording.silent_beats > recorder_link.HUNG_BEATS // 2)
        os.kill(hung, signal.SIGCONT)
        await waiting
        assert office.link.pid == hung
        os.kill(hung, signal.SIGSTOP)
        with contextlib.suppress(RecorderUnavailable):
            await office.durable()
        await asyncio.to_thread(wait_until, lambda: office.link.pid not in {0, hung})
        await office.durable()
        told = [one for one in office.recorded() if one.event_type == "recorder_hung"]
        assert [one.data["pid"] for one in told] == [hung]

    work(story, tmp_path)


def test_the_end_of_a_recorder_is_heard_from_the_zygote_where_the_loop_does_not_tell(tmp_path: Path) -> None:
    """It ended before it read our Hello: epoll then reports an error on the socket, which uvloop keeps to itself."""

    class DyingZygote(Zygote):
        async def fork(self, _: str, params: dict[str, Any], descriptors: list[int]) -> int:
            self.theirs = socket.socket(fileno=os.dup(descriptors[0]))
            return os.getpid()

    async def main() -> None:
        office = Office(tmp_path / "run")
        zygote = office.link._zygote = DyingZygote()  # type: ignore[assignment]
        opening = asyncio.ensure_future(office.link.open())
        await asyncio.sleep(0.05)
        zygote.theirs.sendall(wire.encode(wire.Fault(0, "RecorderUnavailable", "no room at all", {})))
        await asyncio.sleep(0.05)
        zygote.theirs.close()
        await asyncio.sleep(0.05)
        office.link.on_died(wire.Died(os.getpid(), 70, 0))
        with pytest.raises(RecorderUnavailable, match="no room at all"):
            await asyncio.wait_for(opening, 5)
        await office.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_stop_says_whether_everything_is_in_the_database(tmp_path: Path) -> None:
    async def story(office: Office) -> None:
        await office.link.open()
        last = await office.durable()
        assert await office.link.stop()
        office.recording.append("x", {})
        assert not await office.link.stop()
        assert office.recording.durable_seq == last

    work(story, tmp_path)
