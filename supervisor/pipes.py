"""Frames over descriptors, both ways round: blocking for zygote and sentry, SCM_RIGHTS where descriptors travel.

Writes to a sentry's or zygote's peer may block: both peers always read. Bounded by wire.FRAME_BYTES_MAX.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final

from agentos import wire

READ_BYTES: Final = 65_536
DESCRIPTORS_MAX: Final = 16


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, however small the pipe is. Raises BrokenPipeError when the reader is gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_frames(descriptor: int, decoder: wire.Decoder) -> list[Any] | None:
    """Return the frames of one read, None at the end of the stream."""
    data = os.read(descriptor, READ_BYTES)
    return list(decoder.feed(data)) if data else None


def send_with_rights(sock: socket.socket, frame: Any, descriptors: Sequence[int]) -> None:
    """Send one frame with `descriptors` attached to its first byte."""
    data = wire.encode(frame)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = sock.sendmsg([data], rights)
    sock.sendall(data[sent:])


class RightsReader:
    """Frames with the descriptors that came beside them; a frame that brings none gets [].

    Descriptors belong to the frame whose first byte they came with; senders put one such frame into one sendmsg, and
    Linux never merges two messages with rights into one read (unix(7)).
    """

    def __init__(self, sock: socket.socket, accept: frozenset[Any]) -> None:
        self._sock = sock
        self._decoder = wire.Decoder(accept)
        self._waiting: list[int] = []

    def read(self) -> Iterator[tuple[Any, list[int]]] | None:
        """Return the frames of one read, None at the end. A BlockingIOError passes through."""
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(payload) - len(payload) % array.array("i").itemsize
                self._waiting.extend(array.array("i", payload[:whole]))
        return self._pairs(data) if data else None

    def _pairs(self, data: bytes) -> Iterator[tuple[Any, list[int]]]:
        for frame in self._decoder.feed(data):
            descriptors, self._waiting = self._waiting, []
            yield frame, descriptors
