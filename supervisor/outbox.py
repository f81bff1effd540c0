"""Writing to a peer that may not read: never block the one loop, never grow without bound."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from agentos.errors import HostError

BYTES_MAX: Final = 32 * 1024 * 1024  # two of the largest frames: beyond that the peer does not read on purpose
WAITING_BYTES_MAX: Final = 32 * 1024 * 1024  # of answers whose turn has not come, beside the one that is being read


class Outbox:
    """Frames to one descriptor, in order. `on_stuck` is called once: the peer is gone, or `overflowed` by not reading.

    `on_room` is called whenever all that waited has left. What may be large waits for its `turn` before it is written.
    """

    __slots__ = (
        "_buffer", "_descriptor", "_loop", "_on_room", "_on_stuck", "_turns", "_waiting_bytes", "_waiting_bytes_max",
        "closed", "overflowed",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        on_stuck: Callable[[str], None],
        *,
        on_room: Callable[[], None] = lambda: None,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._on_stuck = on_stuck
        self._on_room = on_room
        self._buffer = bytearray()
        self._turns: list[asyncio.Future[None]] = []
        self._waiting_bytes = 0
        self._waiting_bytes_max = waiting_bytes_max
        self.closed = False
        self.overflowed = False
        os.set_blocking(descriptor, False)

    def write(self, data: bytes) -> None:
        """Send now what Linux takes, keep the rest for when there is room."""
        if self.closed:
            return
        if not self._buffer:  # hot path: the peer waits for this very frame
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:
                written = 0
            except OSError as error:
                self._fail(f"cannot write: {error.strerror}")
                return
            if written == len(data):
                return
            data = data[written:]
            self._loop.add_writer(self._descriptor, self._flush)
        self._buffer += data
        if len(self._buffer) > BYTES_MAX:
            self.overflowed = True
            self._fail("does not read what it is sent")

    async def turn(self, size: int) -> None:
        """Return when all that was written before has left, or the box is closed: `size` bytes may be written now.

        Several large answers at once are no sign that the peer does not read. Raises HostError when too much waits.
        """
        if self._buffer and self._waiting_bytes + size > self._waiting_bytes_max:
            raise HostError(f"{self._waiting_bytes} bytes of answers wait to be read already; ask for less at once")
        self._waiting_bytes += size
        try:
            while self._buffer and not self.closed:
                turn: asyncio.Future[None] = self._loop.create_future()
                self._turns.append(turn)
                await turn
        finally:
            self._waiting_bytes -= size

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    def close(self) -> None:
        """Stop writing. The descriptor belongs to the owner, who closes it after this."""
        if not self.closed:
            self._loop.remove_writer(self._descriptor)
            self.closed = True
            self._buffer.clear()
            self._call_turns()

    def _flush(self) -> None:
        try:
            written = os.write(self._descriptor, self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"cannot write: {error.strerror}")
            return
        del self._buffer[:written]
        if not self._buffer:
            self._loop.remove_writer(self._descriptor)
            self._call_turns()
            self._on_room()

    def _call_turns(self) -> None:
        """Wake everybody: one after the other looks whether those before it left room."""
        turns, self._turns = self._turns, []
        for turn in turns:
            if not turn.done():
                turn.set_result(None)

    def _fail(self, why: str) -> None:
        self.close()
        self._on_stuck(why)
