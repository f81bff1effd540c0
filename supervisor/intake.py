"""What one agent sends, taken in at a pace that the kernel and everybody else can bear. Knows no frame's meaning.

Reads small pieces, so that a flood costs others a few milliseconds at most; stops reading while too much of it is
unanswered (`is_full`), so that it waits in its own write. Holds at most one unfinished frame. Once the stream has
been wrong nothing of it is believed any more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final

from agentos import wire
from agentos.errors import ProtocolError
from agentos.shape import ITEMS_MAX
from agentos.supervisor import pipes

READ_BYTES: Final = 4_096  # some eighty actions: two milliseconds of decisions
LARGE_READ_BYTES: Final = 65_536  # for the rest of a frame that has been begun
EARLY_END_S: Final = 1.0  # the end of the stream is often heard before the end of the process


class Intake:
    """One agent's up pipe. `take` gets every frame; `fault` is called once, with what was wrong with the stream.

    `again` is asked first, with the bytes of a whole read: True means that they were one frame, and are dealt with.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        *,
        take: Callable[[Any], None],
        again: Callable[[bytes], bool] = lambda _: False,
        fault: Callable[[ProtocolError], None],
        is_full: Callable[[], bool],
    ) -> None:
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor = descriptor
        self._take = take
        self._again = again
        self._fault = fault
        self._is_full = is_full
        self._decoder = wire.Decoder(wire.FROM_AGENT, items_max=ITEMS_MAX)
        self._reading = self._ended = self._closed = False
        self._left = -1  # at the end: how many bytes of what lay in the pipe are still to be read
        self._watch()

    @property
    def frame_bytes(self) -> int:
        """The size of the frame that `take` was called with last."""
        return self._decoder.frame_bytes

    def go_on(self) -> None:
        """Something was answered: read again, if this agent had to wait for that."""
        if not (self._reading or self._ended or self._closed or self._left >= 0 or self._is_full()):
            self._watch()

    def drain(self, then: Callable[[int], None]) -> None:
        """The process is dead: take what lay in its pipe at this moment, and no more, so that its result is not lost.

        `then` gets the bytes of the frame it died in, which is 0 when there was none. Others are served meanwhile.
        """
        self._pause()
        self._left = 0 if self._closed else pipes.bytes_inside(self._descriptor)
        self._drain_on(then)

    def drain_at_once(self) -> int:
        """Take the rest of what lay in the pipe without serving others meanwhile; returns the bytes unfinished."""
        self._pause()
        if self._left < 0:
            self._left = 0 if self._closed else pipes.bytes_inside(self._descriptor)
        try:
            while self._drain_once():
                pass
        finally:
            unfinished = self._end()
        return unfinished

    def close(self) -> None:
        """Read nothing more. The descriptor belongs to the owner."""
        self._pause()
        self._closed = True

    def _watch(self) -> None:
        self._reading = True
        self._loop.add_reader(self._descriptor, self._read)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def _read(self) -> None:
        if self._read_once(READ_BYTES) == 0:  # every writer closed it, early or in death
            self._pause()
            self._ended = True
            self._loop.call_later(EARLY_END_S, self._judge_end)
        elif self._is_full():
            self._pause()

    def _drain_on(self, then: Callable[[int], None]) -> None:
        more = False
        try:
            more = self._drain_once()
        finally:  # whatever goes wrong: without `then` it would never be said to have ended
            if more:
                self._loop.call_soon(self._drain_on, then)
            else:
                then(self._end())

    def _drain_once(self) -> bool:
        """Take in one read of what is left; False when nothing is."""
        if self._left <= 0 or self._closed:
            return False
        got = self._read_once(min(READ_BYTES, self._left))
        self._left -= got
        return got > 0

    def _end(self) -> int:
        unfinished = 0 if self._closed else self._decoder.pending_bytes
        self.close()
        return unfinished

    def _read_once(self, small: int) -> int:
        """Take in the frames of one read; returns its bytes, 0 at the end and -1 when there was nothing to read."""
        begun = self._decoder.pending_bytes
        size = max(small, min(self._decoder.missing_bytes, LARGE_READ_BYTES)) if begun else small
        try:
            data = os.read(self._descriptor, size)
        except BlockingIOError:
            return -1
        if not begun and self._again(data):  # hot path: one read is one action, and a known one
            return len(data)
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except ProtocolError as error:
            self.close()
            self._fault(error)
        return len(data)

    def _judge_end(self) -> None:
        unfinished = self._decoder.pending_bytes
        if unfinished and not self._closed and self._left < 0:  # it lives, and will never finish this frame
            self.close()
            self._fault(ProtocolError(f"the stream ends inside a frame, after {unfinished} bytes of it"))
