"""The kernel's side of the recorder process: start it, ring it, hear what it committed, start it again.

While there is none, durable actions wait (Recording.DURABLE_LIMIT_S) and are then denied; the journal holds what was
recorded meanwhile, and the next recorder goes on where the database ends. One that hangs is killed: alive and silent,
it would stay so. (One that was stopped is woken by heartbeat.py.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, Final

from agentos import wire
from agentos.errors import HostError, RecorderUnavailable
from agentos.supervisor.outbox import Outbox
from agentos.supervisor.pipes import READ_BYTES
from agentos.supervisor.recording import Recording
from agentos.supervisor.tasks import Tasks
from agentos.supervisor.zygote_link import ZygoteLink

OPEN_LIMIT_S: Final = 30.0  # a database of an earlier crash may have a long write-ahead log to take in
STOP_LIMIT_S: Final = 10.0
RESTART_DELAY_S: Final = 0.01
RESTART_DELAY_S_MAX: Final = 2.0
BEAT_S: Final = 1.0
HUNG_BEATS: Final = 20  # a disk may take its time


class RecorderLink:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, boot: Mapping[str, Any], recording: Recording, zygote: ZygoteLink
    ) -> None:
        self._loop = loop
        self._params = {"journal": os.path.join(boot["state"], "journal"), "database": boot["database"]}
        self._recording = recording
        self._zygote = zygote
        self._sock: socket.socket | None = None
        self._outbox: Outbox | None = None
        self._decoder = wire.Decoder(wire.FROM_RECORDER)
        self._serving: asyncio.Future[None] = loop.create_future()
        self._ended = asyncio.Event()
        self._tasks = Tasks(loop)
        self._died_early: dict[int, wire.Died] | None = None  # while a fork is under way: whoever died meanwhile
        self._pidfd = -1
        self._beats = 0  # since this recorder was started
        self._restart_delay_s = RESTART_DELAY_S
        self._stopping = False
        self.pid = 0  # while there is one

    async def open(self) -> None:
        """Start the first recorder; returns once it serves. Raises HostError, with the recorder's own words."""
        await self._start()
        try:
            await asyncio.wait_for(self._serving, OPEN_LIMIT_S)
        except TimeoutError:
            raise RecorderUnavailable(
                f"the recorder did not open {self._params['database']} within {OPEN_LIMIT_S:g} s"
            ) from None
        self._tasks.start(self._watch())

    def on_died(self, frame: wire.Died) -> bool:
        """Take in the death of a process of ours; True when that was the recorder, which is then started again."""
        if self._died_early is not None:
            self._died_early[frame.pid] = frame
        if frame.pid != self.pid:
            return False
        self.pid = 0
        served = self._serving.done()
        while self._sock is not None and self._read():
            pass  # its last words, and its end: epoll reports a reset socket as an error, which uvloop keeps to itself
        self._hang_up()
        if served and not self._stopping:
            self._tasks.start(self._restart(frame))
        return True

    async def stop(self) -> bool:
        """Have the recorder drain the journal, checkpoint and go; False when all is not known to be in the database."""
        self._stopping = True
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), STOP_LIMIT_S)
        return self._recording.durable_seq >= self._recording.last_seq

    async def _start(self) -> None:
        """Fork a recorder and connect it. Raises HostError, or OSError when there are no descriptors left."""
        ours, theirs = socket.socketpair()
        self._died_early = {}
        try:
            with theirs:
                pid = await self._zygote.fork("recorder", self._params, [theirs.fileno()])
            self._connect(ours, pid)
        except (HostError, OSError):
            ours.close()  # a recorder that was forked hears that it is not wanted, and goes
            raise
        finally:
            died, self._died_early = self._died_early, None
        if self.pid in died:  # it was gone before we knew its pid
            self.on_died(died[self.pid])

    def _connect(self, ours: socket.socket, pid: int) -> None:
        ours.setblocking(False)
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        self.pid = pid
        self._sock, self._decoder = ours, wire.Decoder(wire.FROM_RECORDER)
        self._ended.clear()
        self._beats = 0
        self._outbox = Outbox(self._loop, ours.fileno(), lambda _: None)
        self._loop.add_reader(ours.fileno(), self._read)
        self._outbox.write(wire.encode(wire.Hello(wire.VERSION, "kernel", os.getpid())))
        self._recording.send = self._send
        self._recording.reconnected()

    async def _restart(self, died: wire.Died) -> None:
        """Record the death (in the journal) and start another recorder, with growing pauses while that fails."""
        data = {"pid": died.pid, "status": died.status, "reason": self._recording.why_not}
        self._recording.try_append("recorder_restarted", data, severity="error")
        while True:
            await asyncio.sleep(self._restart_delay_s)
            self._restart_delay_s = min(self._restart_delay_s * 2, RESTART_DELAY_S_MAX)
            if self._stopping:
                return
            try:
                await self._start()
            except (HostError, OSError) as error:
                self._recording.why_not = str(error)
            else:
                return

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._beats += 1
            self._recording.beat()
            silent = min(self._beats, self._recording.silent_beats)  # a new one is not blamed for its predecessor
            if silent > HUNG_BEATS and self._pidfd >= 0:
                data = {"pid": self.pid, "silent_beats": silent}
                self._recording.try_append("recorder_hung", data, severity="error")
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _send(self, frame: wire.TailTo) -> None:
        if self._outbox is not None:
            self._outbox.write(wire.encode(frame))

    def _read(self) -> bool:
        """Hear what the recorder says; False when it has nothing to say now, or never again."""
        assert self._sock is not None
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            self._hang_up()
            return False
        for frame in self._decoder.feed(data):
            self._take(frame)
        return True

    def _take(self, frame: Any) -> None:
        if isinstance(frame, wire.Recorded):
            self._restart_delay_s = RESTART_DELAY_S
            self._recording.acknowledged(frame.seq)
        elif isinstance(frame, wire.Fault):
            self._recording.why_not = frame.message
        elif not self._serving.done():
            self._serving.set_result(None)

    def _hang_up(self) -> None:
        """There is nothing more to hear. Idempotent."""
        self._ended.set()
        if not self._serving.done():
            why = self._recording.why_not or "the recorder process ended before it served"
            self._serving.set_exception(RecorderUnavailable(why))
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            if self._outbox is not None:
                self._outbox.close()
            self._sock.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._sock, self._outbox, self._pidfd = None, None, -1
