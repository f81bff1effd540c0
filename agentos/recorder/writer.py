"""The recorder process: the one writer of a run's database.

Tails the journal, commits in groups, and acknowledges only what a commit with synchronous=FULL returned for. The
running sync is the batching window: whatever arrives meanwhile goes into the next commit (a delay made it slower). It
dies of any failed commit, because after a failed fsync nobody knows what is on disk; the next one goes on where the
database ends. It outlives the kernel by as long as it takes to bring the journal home.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from pathlib import Path
from typing import Final

from agentos import wire
from agentos.clock import Clock, SystemClock
from agentos.errors import AgentosError, ProtocolError, RecorderUnavailable
from agentos.faults import to_fault
from agentos.recorder.journal import READ_LIMIT, JournalReader, journal_run_id, remove_through
from agentos.recorder.recover import link_database
from agentos.recorder.storage.sqlite import SqliteStorage

COMMIT_INTERVAL_NS: Final = 20_000_000  # nobody waits: fifty syncs a second are plenty
PRUNE_EVERY: Final = 10_000  # events; a look at the directory costs less than one of them
_READ_BYTES: Final = 65_536
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGPIPE)


def main(sock_fd: int, journal_dir: str, db_path: str) -> None:
    """Run as the recorder process until the kernel closes its end; then the journal is in the database.

    Tells the kernel and raises RecorderUnavailable, JournalDamaged, RecordConflict or ProtocolError when it must not
    go on; whoever forked it then ends the process with 70, and may start another.
    """
    for number in _IGNORED:  # the kernel's end is what ends us
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=sock_fd) as sock:
        sock.setblocking(True)
        try:
            with contextlib.closing(SqliteStorage(Path(db_path))) as storage:
                link_database(Path(journal_dir).parent, Path(db_path))
                Recorder(sock, Path(journal_dir), storage, SystemClock()).run()
        except AgentosError as error:
            with contextlib.suppress(OSError):
                sock.sendall(wire.encode(to_fault(0, error)))
            raise


class Recorder:
    """The loop of the recorder process; `acknowledge` is apart so that a test can plant an early acknowledgement."""

    def __init__(self, sock: socket.socket, directory: Path, storage: SqliteStorage, clock: Clock) -> None:
        self._sock = sock
        self._directory = directory
        self._storage = storage
        self._clock = clock
        self._decoder = wire.Decoder(wire.TO_RECORDER)
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._reader: JournalReader | None = None
        self._announced = 0  # the journal reaches this event, says the kernel
        self._committed = 0
        self._pruned = 0
        self._owed = True  # the kernel has asked, or may have asked our predecessor, and has had no answer
        self._urgent = True
        self._last_commit_ns = 0

    def run(self) -> None:
        """Serve until end of stream, then bring the journal home and checkpoint."""
        self.send(wire.Hello(wire.VERSION, "recorder", os.getpid()))
        self.commit_all()
        while self._listen(self._wait_ms()):
            if self._wait_ms() == 0:
                self.commit_all()
        self.commit_all()
        self._storage.checkpoint()

    def commit_all(self) -> None:
        """Commit whatever the journal holds, one transaction a batch, each acknowledged. Raises on any failure."""
        while (found := self._commit_batch()) and (found == READ_LIMIT or self._committed < self._announced):
            pass  # what a batch ends at, be it damage, is told by the next one
        if self._committed < self._announced:  # the kernel's write had returned before it told us
            raise RecorderUnavailable(
                f"the journal ends at event {self._committed}, but the kernel wrote {self._announced}"
            )
        if self._owed and self._committed:
            self.acknowledge(self._committed)
        self._owed = self._urgent = False
        self._last_commit_ns = self._clock.monotonic_ns()

    def acknowledge(self, seq: int) -> None:
        """Tell the kernel that everything up to `seq` is committed."""
        self.send(wire.Recorded(seq))
        self._owed = False

    def send(self, frame: wire.Hello | wire.Recorded) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the kernel is gone; reading says so next
            self._sock.sendall(wire.encode(frame))

    def _commit_batch(self) -> int:
        reader = self._reader or self._open_reader()
        events = reader.read(READ_LIMIT) if reader else []
        if events:
            self._storage.insert_many(events)
            self._committed = events[-1].seq
            self.acknowledge(self._committed)
        if self._committed >= self._pruned + PRUNE_EVERY:
            remove_through(self._directory, self._committed)
            self._pruned = self._committed
        return len(events)

    def _open_reader(self) -> JournalReader | None:
        """Go on where the database ends; None while the kernel has not begun its journal."""
        run_id = journal_run_id(self._directory)
        if run_id:
            self._committed = self._storage.last_seq(run_id)
            self._reader = JournalReader(self._directory, self._committed)
        return self._reader

    def _wait_ms(self) -> int | None:
        """How long to wait for more before the next commit: 0 is now, None is until somebody asks."""
        if not self._owed:
            return None
        if self._urgent or self._announced - self._committed >= READ_LIMIT:
            return 0
        left = self._last_commit_ns + COMMIT_INTERVAL_NS - self._clock.monotonic_ns()
        return max(0, -(-left // 1_000_000))

    def _listen(self, wait_ms: int | None) -> bool:
        """Take in what the kernel has said, waiting for it up to `wait_ms`. False at end of stream."""
        if not self._poll.poll(wait_ms):
            return True
        try:
            data = self._sock.recv(_READ_BYTES)
        except ConnectionResetError:
            return False
        for frame in self._decoder.feed(data):
            if isinstance(frame, wire.TailTo):
                self._announced = max(self._announced, frame.seq)
                self._urgent = self._urgent or frame.urgent
                self._owed = True
            elif frame.version != wire.VERSION:
                raise ProtocolError(f"the kernel speaks version {frame.version}, the recorder {wire.VERSION}")
        return bool(data)
