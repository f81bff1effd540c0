"""An agent's output on its way to our own stdout and stderr, without ever waiting for whoever reads them.

A reader that is slow (a pager, a stopped terminal) must not keep us from a key press or from the agent's end, so the
loop that owns this polls before each write and a write is small enough not to block. Nothing is kept in memory but
one record: the log itself is the queue, and where it was rotated away meanwhile the gap is said.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Final

from agentos.cli.logs import STREAMS, merge_notes, remark
from agentos.cli.output import talk
from agentos.logfile import Gap, LogReader, Record

PIECE_BYTES: Final = 4096  # PIPE_BUF: a pipe that polls as writable takes this much at once (pipe(7))
SAID_MAX: Final = 1000


class Outflow:
    """Not thread-safe. `next_descriptor` says what to poll for; `write` then moves one piece."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._entries: Iterator[Record | Gap] = iter(())
        self._grown = True
        self._said: deque[bytes] = deque(maxlen=SAID_MAX)
        self._piece: tuple[int, memoryview] | None = None
        self._closed: set[int] = set()

    def grew(self) -> None:
        """The log may hold more than when it was last read."""
        self._grown = True

    def say(self, text: str, *, fresh_line: bool = False) -> None:
        """Queue a line of talk for stderr; it comes before what of the output has not been read yet."""
        self._said.append(b"\n" * fresh_line + talk(text).encode("utf-8", "backslashreplace"))

    def close(self, descriptor: int) -> None:
        """Write no more to `descriptor`: what would go there is passed over."""
        self._closed.add(descriptor)
        if self._piece is not None and self._piece[0] == descriptor:
            self._piece = None

    def next_descriptor(self) -> int | None:
        """Return the descriptor that the next piece goes to, None when there is nothing to write now."""
        while self._piece is None:
            piece = self._next()
            if piece is None:
                return None
            if piece[0] not in self._closed and piece[1]:
                self._piece = piece
        return self._piece[0]

    def write(self) -> None:
        """Write a little of the next piece. Raises OSError when its descriptor is broken."""
        assert self._piece is not None, "next_descriptor returned one"
        descriptor, data = self._piece
        rest = data[os.write(descriptor, data[:PIECE_BYTES]) :]
        self._piece = (descriptor, rest) if rest else None

    def _next(self) -> tuple[int, memoryview] | None:
        if self._said:
            return 2, memoryview(self._said.popleft())
        entry = next(self._entries, None)
        if entry is None and self._grown:
            self._grown = False
            self._entries = merge_notes(self._reader.read())
            entry = next(self._entries, None)
        if entry is None:
            return None
        if isinstance(entry, Record) and entry.stream in STREAMS:
            return STREAMS[entry.stream], memoryview(entry.data)
        return 2, memoryview(talk(remark(entry)).encode())
