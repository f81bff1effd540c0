"""The recorder process: it commits what the journal holds, says so only then, and dies of what it must not survive."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records import RUN, RunOnDisk, events
from world import PROJECT, wait_until

from agentos import wire
from agentos.clock import SystemClock
from agentos.errors import AgentosError, ProtocolError, RecorderUnavailable
from agentos.recorder import journal, writer
from agentos.recorder.journal import segment_path, segments
from agentos.recorder.query import Query
from agentos.recorder.recover import database_of
from agentos.recorder.storage.sqlite import SqliteStorage
from agentos.recorder.writer import Recorder

ALL = Query(limit=None, newest_first=False)


class Kernel:
    """The kernel's end of the socket, and a recorder at the other end, in a thread."""

    def __init__(self, run: RunOnDisk, main: Callable[[socket.socket], None]) -> None:
        self.run = run
        self.sock, theirs = socket.socketpair()
        self._decoder = wire.Decoder(wire.FROM_RECORDER)
        self.heard: list[Any] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(main, theirs))
        self._thread.start()
        self.send(wire.Hello(wire.VERSION, "kernel", 1))

    def _run(self, main: Callable[[socket.socket], None], theirs: socket.socket) -> None:
        try:
            main(theirs)
        except AgentosError as error:
            self.error = error
        finally:
            with contextlib.suppress(OSError):
                theirs.close()

    def send(self, frame: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.sock.sendall(wire.encode(frame))

    def announce(self, seq: int, *, urgent: bool = False) -> None:
        self.send(wire.TailTo(seq, urgent))

    def listen(self, limit_s: float = 0.0) -> None:
        while select.select([self.sock], [], [], limit_s)[0]:
            data = self.sock.recv(65_536)
            if not data:
                return
            self.heard += self._decoder.feed(data)

    @property
    def acknowledged(self) -> int:
        self.listen()
        return max((frame.seq for frame in self.heard if isinstance(frame, wire.Recorded)), default=0)

    def wait_for(self, seq: int) -> None:
        wait_until(lambda: self.acknowledged >= seq, what=f"event {seq} to be acknowledged")

    def hang_up(self) -> None:
        """Close our end and wait for the recorder to be done."""
        with contextlib.suppress(OSError):  # it hung up first
            self.sock.shutdown(socket.SHUT_WR)
        self._thread.join(20)
        assert not self._thread.is_alive()
        with contextlib.suppress(ConnectionResetError):
            self.listen()
        self.sock.close()


def recorder(run: RunOnDisk) -> Callable[[socket.socket], None]:
    def main(theirs: socket.socket) -> None:
        with contextlib.closing(run.storage()) as storage:
            Recorder(theirs, run.journal_dir, storage, SystemClock()).run()

    return main


@pytest.fixture
def run(tmp_path: Path) -> RunOnDisk:
    return RunOnDisk(tmp_path / "run")


@pytest.fixture
def kernel(run: RunOnDisk) -> Iterator[Kernel]:
    made = Kernel(run, recorder(run))
    yield made
    if made.sock.fileno() >= 0:
        made.hang_up()


def stored(run: RunOnDisk) -> list[Any]:
    with contextlib.closing(SqliteStorage(database_of(run.run_dir), read_only=True)) as storage:
        return storage.select(ALL)


def test_what_is_acknowledged_is_in_the_database(run: RunOnDisk, kernel: Kernel) -> None:
    for urgent in (True, False):
        last = run.record(3)
        kernel.announce(last, urgent=urgent)
        kernel.wait_for(last)
        assert stored(run) == events(last)
    assert isinstance(kernel.heard[0], wire.Hello)


def test_at_the_end_of_the_stream_the_journal_is_brought_home(run: RunOnDisk, kernel: Kernel) -> None:
    kernel.announce(run.record(2), urgent=True)
    kernel.wait_for(2)
    run.record(5)  # of which it has not been told
    kernel.hang_up()
    assert kernel.error is None
    assert not (run.run_dir / "flight.db-wal").exists()  # checkpointed and closed: one file is the record
    assert stored(run) == events(7)


def test_the_next_recorder_goes_on_where_the_database_ends(run: RunOnDisk) -> None:
    run.record(5)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(2))
    for _ in range(3):
        successor = Kernel(run, recorder(run))
        last = run.record(2)
        successor.announce(last, urgent=True)
        successor.wait_for(last)
        assert stored(run) == events(last)
        successor.hang_up()
    assert stored(run) == events(11)


def test_a_new_recorder_answers_what_its_predecessor_was_asked(run: RunOnDisk) -> None:
    """It died between commit and acknowledgement: nothing is left to commit, and somebody still waits."""
    run.record(4)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(events(4))
    successor = Kernel(run, recorder(run))
    successor.wait_for(4)
    successor.hang_up()


def test_many_events_take_several_commits_and_keep_their_order(run: RunOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "READ_LIMIT", 10)
    monkeypatch.setattr(journal, "READ_LIMIT", 10)
    monkeypatch.setattr(writer, "PRUNE_EVERY", 20)
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 2048)
    monkeypatch.setattr(journal, "RECORD_BYTES_MAX", 512)
    last = run.record(200)
    before = segments(run.journal_dir)
    kernel = Kernel(run, recorder(run))
    kernel.announce(last)
    kernel.wait_for(last)
    kernel.hang_up()
    assert stored(run) == events(200)
    assert len(segments(run.journal_dir)) < len(before)  # what is committed leaves the journal


def test_a_journal_that_lacks_what_the_kernel_wrote_ends_the_recorder(run: RunOnDisk, kernel: Kernel) -> None:
    kernel.announce(run.record(2) + 1, urgent=True)
    kernel.hang_up()
    assert isinstance(kernel.error, RecorderUnavailable)
    assert "ends at event 2, but the kernel wrote 3" in str(kernel.error)


def test_a_kernel_of_another_version_is_refused(run: RunOnDisk) -> None:
    kernel = Kernel(run, recorder(run))
    kernel.send(wire.Hello(wire.VERSION + 1, "kernel", 1))
    kernel.hang_up()
    assert isinstance(kernel.error, ProtocolError)


# --- the whole process ----------------------------------------------------------------------------------------------


def start_recorder(run: RunOnDisk, database: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run writer.main in a process of its own; returns it and our end."""
    ours, theirs = socket.socketpair()
    program = "import sys; from agentos.recorder import writer; writer.main(int(sys.argv[1]), *sys.argv[2:])"
    arguments = [str(theirs.fileno()), str(run.journal_dir), str(database)]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    ours.sendall(wire.encode(wire.Hello(wire.VERSION, "kernel", os.getpid())))
    return process, ours


def said(ours: socket.socket) -> list[Any]:
    """Everything the recorder says until it goes."""
    decoder, frames = wire.Decoder(wire.FROM_RECORDER), []
    with contextlib.suppress(ConnectionResetError):  # it did not read all that we said
        while data := ours.recv(65_536):
            frames += decoder.feed(data)
    ours.close()
    return frames


def test_a_process_records_elsewhere_and_leaves_a_link(run: RunOnDisk, tmp_path: Path) -> None:
    process, ours = start_recorder(run, tmp_path / "audit.db")
    ours.sendall(wire.encode(wire.TailTo(run.record(3), True)))
    ours.shutdown(socket.SHUT_WR)
    assert said(ours)[-1] == wire.Recorded(3)
    assert process.wait(10) == 0
    assert os.readlink(run.run_dir / "flight.db") == str(tmp_path / "audit.db")
    assert stored(run) == events(3)


def test_a_process_says_what_it_dies_of(run: RunOnDisk, tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_bytes(b"no database at all" * 100)
    process, ours = start_recorder(run, tmp_path / "audit.db")
    (fault,) = said(ours)
    assert isinstance(fault, wire.Fault)
    assert (fault.error, "audit.db: NotADB" in fault.message) == ("RecorderUnavailable", True)
    assert process.wait(10) == 1


def test_a_damaged_journal_is_committed_up_to_the_damage_and_told(run: RunOnDisk) -> None:
    run.record(9)
    path = segment_path(run.journal_dir, 1)
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 0xFF
    path.write_bytes(text)
    process, ours = start_recorder(run, run.run_dir / "flight.db")
    ours.sendall(wire.encode(wire.TailTo(9, True)))
    frames = said(ours)
    assert process.wait(10) == 1
    assert "is damaged at byte" in frames[-1].message
    sound = [one.seq for one in stored(run)]
    assert sound == list(range(1, len(sound) + 1))
    assert 0 < len(sound) < 9
    assert wire.Recorded(len(sound)) in frames
    assert stored(run)[0].run_id == RUN
