"""The kernel's side of the recorder process: start it, ring it, hear what it committed, start it again.

While there is none, durable actions wait (Recording.DURABLE_LIMIT_S) and are then denied; the journal holds what was
recorded meanwhile, and the next recorder goes on where the database ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from agentos import wire
from agentos.errors import HostError
from agentos.supervisor.outbox import Outbox
from agentos.supervisor.pipes import READ_BYTES
from agentos.supervisor.recording import Recording
from agentos.supervisor.zygote_link import ZygoteLink

STOP_LIMIT_S: Final = 10.0
RESTART_DELAY_S_MAX: Final = 2.0


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
        self._ended = asyncio.Event()
        self._restart_delay_s = 0.01
        self.pid = 0

    async def start(self) -> None:
        """Fork a recorder and connect it. Raises HostError."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.pid = await self._zygote.fork("recorder", self._params, [theirs.fileno()])
        ours.setblocking(False)
        self._sock, self._decoder = ours, wire.Decoder(wire.FROM_RECORDER)
        self._ended.clear()
        self._outbox = Outbox(self._loop, ours.fileno(), lambda _: None)
        self._loop.add_reader(ours.fileno(), self._read)
        self._outbox.write(wire.encode(wire.Hello(wire.VERSION, "kernel", os.getpid())))
        self._recording.send = self._send
        self._recording.reconnected()

    async def restart(self, status: int) -> None:
        """The recorder died: record that (in the journal) and start another, with growing pauses while that fails."""
        self._disconnect()
        data = {"pid": self.pid, "status": status}
        self._recording.try_append("recorder_restarted", data, severity="error")
        await asyncio.sleep(self._restart_delay_s)
        self._restart_delay_s = min(self._restart_delay_s * 2, RESTART_DELAY_S_MAX)
        try:
            await self.start()
        except HostError:
            self._loop.call_later(RESTART_DELAY_S_MAX, lambda: self._loop.create_task(self.restart(status)))

    async def stop(self) -> None:
        """Close the link: the recorder drains the journal, checkpoints and goes."""
        if self._sock is None:
            return
        self._sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):  # what it could not write is in the journal, recovered at the next open
            await asyncio.wait_for(self._ended.wait(), STOP_LIMIT_S)

    def _send(self, frame: wire.TailTo) -> None:
        if self._outbox is not None:
            self._outbox.write(wire.encode(frame))

    def _read(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self._disconnect()
            self._ended.set()
            return
        for frame in self._decoder.feed(data):
            if isinstance(frame, wire.Recorded):
                self._restart_delay_s = 0.01
                self._recording.acknowledged(frame.seq)

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            if self._outbox is not None:
                self._outbox.close()
            self._sock.close()
        self._sock = self._outbox = None
