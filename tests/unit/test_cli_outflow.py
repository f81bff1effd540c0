"""Output on its way to a reader: in order, in pieces that fit, through readers that are slow, gone or both."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from agentos.cli.logs import merge_notes
from agentos.cli.outflow import PIECE_BYTES, Outflow
from agentos.logfile import NOTE, STDERR, STDOUT, Gap, LogReader, LogWriter, Record

AGENT = "01900000-aaaa-7000-8000-000000000001"


class Reader:
    """Pipes in the place of descriptors 1 and 2, for the time of a with block."""

    def __enter__(self) -> Self:
        self.kept = {number: os.dup(number) for number in (1, 2)}
        self.ends: dict[int, int] = {}
        for number in (1, 2):
            self.ends[number], theirs = os.pipe()
            os.dup2(theirs, number)
            os.close(theirs)
        return self

    def read(self, number: int) -> bytes:
        ready, _, _ = select.select([self.ends[number]], [], [], 0)
        return os.read(self.ends[number], 1 << 20) if ready else b""

    def leave(self, number: int) -> None:
        os.close(self.ends.pop(number))

    def __exit__(self, *_: object) -> None:
        for number, descriptor in self.kept.items():
            os.dup2(descriptor, number)
            os.close(descriptor)
        for descriptor in self.ends.values():
            os.close(descriptor)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogWriter]:
    writer = LogWriter(str(tmp_path), AGENT)
    yield writer
    writer.close()


@pytest.fixture
def outflow(tmp_path: Path) -> Outflow:
    return Outflow(LogReader(tmp_path, AGENT))


def pump(outflow: Outflow) -> None:
    """Write until there is nothing left, or the reader would have to be waited for."""
    while (descriptor := outflow.next_descriptor()) is not None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not poll.poll(0):
            return
        outflow.write()


def test_each_stream_goes_to_its_own_and_talk_to_stderr(outflow: Outflow, log: LogWriter) -> None:
    with Reader() as reader:
        log.append(STDOUT, b"out\n", 1)
        log.append(STDERR, b"err\n", 2)
        outflow.say("said \x1b")
        pump(outflow)
        assert (reader.read(1), reader.read(2)) == (b"out\n", b"agentos: said \\x1b\nerr\n")
        log.append(STDOUT, b"more\n", 3)
        pump(outflow)
        assert reader.read(1) == b"", "nobody rang"
        outflow.grew()
        pump(outflow)
        assert reader.read(1) == b"more\n"


def test_a_slow_reader_gets_every_byte_and_is_never_waited_for(outflow: Outflow, log: LogWriter) -> None:
    with Reader() as reader:
        data = os.urandom(50_000)
        for _ in range(8):
            log.append(STDOUT, data, 1)
        seen = b""
        pump(outflow)  # returns although the pipe is full
        while piece := reader.read(1):
            seen += piece
            pump(outflow)
        assert seen == data * 8


def test_a_piece_fits_into_what_a_pipe_takes_at_once(outflow: Outflow, log: LogWriter) -> None:
    with Reader() as reader:
        log.append(STDOUT, b"x" * 10_000, 1)
        assert outflow.next_descriptor() == 1
        outflow.write()
        assert len(reader.read(1)) == PIECE_BYTES == select.PIPE_BUF


def test_who_left_is_passed_over_and_the_other_goes_on(outflow: Outflow, log: LogWriter) -> None:
    with Reader() as reader:
        for number in range(3):
            log.append(STDOUT, b"out\n", number)
            log.append(STDERR, b"err\n", number)
        reader.leave(1)
        assert outflow.next_descriptor() == 1
        with pytest.raises(BrokenPipeError):
            outflow.write()
        outflow.close(1)
        pump(outflow)
        assert reader.read(2) == b"err\n" * 3
        outflow.close(2)
        outflow.say("to nobody")
        assert outflow.next_descriptor() is None


def test_drops_that_follow_each_other_are_said_once_with_their_sum() -> None:
    def dropped(count: int) -> Record:
        return Record(1, NOTE, b"%d bytes dropped: disk\n" % count)

    out = Record(2, STDOUT, b"x")
    assert list(merge_notes([dropped(5), dropped(7), out, dropped(1), Gap(3), dropped(2), dropped(2)])) == [
        dropped(12), out, dropped(1), Gap(3), dropped(4),
    ]  # fmt: skip
    strange = Record(1, NOTE, b"something else\n")
    (both,) = merge_notes([dropped(5), strange])
    assert isinstance(both, Record)
    assert both.data == b"5 bytes dropped: disk; something else\n"
