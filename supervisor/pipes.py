"""Frames over descriptors, both ways round: blocking for zygote and sentry, SCM_RIGHTS where descriptors travel.

Writes to a sentry's or zygote's peer may block: both peers always read. Bounded by wire.FRAME_BYTES_MAX.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from agentos import wire
from agentos.errors import ProtocolError
from agentos.shape import ITEMS_MAX

READ_BYTES: Final = 65_536
DESCRIPTORS_MAX: Final = 16  # of one frame, and of all that wait for theirs
_INT: Final = struct.Struct("i")


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, however small the pipe is. Raises BrokenPipeError when the reader is gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_frames(descriptor: int, decoder: wire.Decoder) -> list[Any] | None:
    """Return the frames of one read, None at the end of the stream."""
    data = os.read(descriptor, READ_BYTES)
    return list(decoder.feed(data)) if data else None


def bytes_inside(descriptor: int) -> int:
    """Return how many bytes the pipe holds now (FIONREAD, pipe(7))."""
    answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_INT.size))
    (held,) = _INT.unpack(answer)
    return int(held)


def send_with_rights(sock: socket.socket, data: bytes | memoryview, descriptors: Sequence[int]) -> int:
    """Send what Linux takes of `data`, `descriptors` attached to its first byte; returns how much that was."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return sock.sendmsg([data], rights)


class RightsReader:
    """Frames with the descriptors that came beside them; a frame that brings none gets [].

    Descriptors come with the first byte of the sendmsg that carried them. Linux ends a read behind such a message but
    may put earlier bytes before it (unix(7)), so they belong to the last frame that begins in the read. Whoever reads
    owns the descriptors of the frames; `close` closes those whose frame never came.
    """

    def __init__(self, sock: socket.socket, accept: frozenset[Any]) -> None:
        self._sock = sock
        self._decoder = wire.Decoder(accept, items_max=ITEMS_MAX)
        self._waiting: deque[tuple[int, list[int]]] = deque()  # the number of a frame, and what came with it
        self._frames = 0  # yielded so far

    def read(self) -> list[tuple[Any, list[int]]] | None:
        """Return the frames of one read, None at the end. BlockingIOError passes through; raises ProtocolError."""
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * _INT.size)
        data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        came: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(payload) - len(payload) % _INT.size
                came.extend(array.array("i", payload[:whole]))
        if came:
            self._waiting.append((-1, came))  # ours from here on, whatever the bytes are worth
        if sum(len(descriptors) for _, descriptors in self._waiting) > DESCRIPTORS_MAX:
            raise ProtocolError(f"more than {DESCRIPTORS_MAX} descriptors wait for their frames")
        return self._frames_of(data) if data else None

    def _frames_of(self, data: bytes) -> list[tuple[Any, list[int]]]:
        frames = list(self._decoder.feed(data))
        if self._waiting and self._waiting[-1][0] < 0:
            last_begun = self._frames + len(frames) - (0 if self._decoder.pending_bytes else 1)
            self._waiting[-1] = (last_begun, self._waiting[-1][1])
        pairs = [(frame, self._belonging_to(self._frames + index)) for index, frame in enumerate(frames)]
        self._frames += len(frames)
        return pairs

    def _belonging_to(self, number: int) -> list[int]:
        return self._waiting.popleft()[1] if self._waiting and self._waiting[0][0] <= number else []

    def close(self) -> None:
        """Close every descriptor whose frame has not come. The socket belongs to the owner."""
        for _, descriptors in self._waiting:
            for descriptor in descriptors:
                os.close(descriptor)
        self._waiting.clear()
