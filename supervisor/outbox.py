"""Writing to a peer that may not read: never block the one loop, never grow without bound."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

BYTES_MAX: Final = 32 * 1024 * 1024  # two of the largest frames: beyond that the peer does not read on purpose


class Outbox:
    """Frames to one descriptor, in order. `on_stuck` is called once: the peer is gone, or `overflowed` by not reading.

    `on_room` is called whenever all that waited has left.
    """

    __slots__ = ("_buffer", "_descriptor", "_loop", "_on_room", "_on_stuck", "closed", "overflowed")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        on_stuck: Callable[[str], None],
        *,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._on_stuck = on_stuck
        self._on_room = on_room
        self._buffer = bytearray()
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

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    def close(self) -> None:
        """Stop writing. The descriptor belongs to the owner, who closes it after this."""
        if not self.closed:
            self._loop.remove_writer(self._descriptor)
            self.closed = True
            self._buffer.clear()

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
            self._on_room()

    def _fail(self, why: str) -> None:
        self.close()
        self._on_stuck(why)
