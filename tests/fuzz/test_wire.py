"""Every decoder against mutants: frames or a ProtocolError, nothing else, at any splitting, in bounded room and time.

A sixth of AGENTOS_FUZZ_S. The seed stands in the name of each test: AGENTOS_FUZZ_SEED=n brings it back.
"""

from __future__ import annotations

import os
import random
import socket
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgpack
import mutants
import pytest
from mutants import ACCEPTS, KINDS, SECONDS, SEED, dice_of, frame_of, mutant, pieces, report

from agentos import errors, wire
from agentos.agent.channel import Channel, frames
from agentos.client.link import Link
from agentos.errors import AgentosError, KernelUnavailable, ProtocolError
from agentos.faults import rebuild
from agentos.shape import ITEMS_MAX, check_items
from agentos.supervisor.pipes import RightsReader

SHARE_S = SECONDS / 6
STREAM_LIMIT_S = 2.0  # of processor time, for at most a few megabytes
SPLIT_EVERYWHERE_BYTES = 300
BYTES_PER_BYTE_MAX = 200  # a dict of one small pair is four bytes on the wire and 184 in memory
ROOM_BYTES = 1024 * 1024  # what any decoding may cost
SHOWN_BYTES = 400
PIPE_BYTES = 60_000  # what a pipe or a socket holds without a reader

pytestmark = pytest.mark.timeout(60 + 2 * SECONDS)
seeded = pytest.mark.parametrize("share", [pytest.param(None, id=f"seed-{SEED}")])


class Stream(NamedTuple):
    """What a peer sends: whole frames, then maybe what is none, then more."""

    before: list[Any]
    broken: bytes
    after: list[Any]

    @property
    def data(self) -> bytes:
        encoded = [b"".join(map(wire.encode, some)) for some in (self.before, self.after)]
        return encoded[0] + self.broken + encoded[1]


class Told(NamedTuple):
    """What a decoder made of a stream."""

    frames: list[Any]
    fault: bool
    pending: int


def rounds(name: str, share_s: float) -> Iterator[tuple[int, random.Random]]:
    """Count rounds until the time is over; each has dice of its own."""
    deadline = time.monotonic() + share_s
    number = 0
    while number < 20 or time.monotonic() < deadline:
        yield number, dice_of(name, number)
        number += 1


def draw(dice: random.Random, accept: frozenset[Any]) -> Stream:
    kinds = sorted(accept, key=lambda cls: cls.__name__)
    before = [frame_of(dice, dice.choice(kinds)) for _ in range(dice.randrange(4))]
    if dice.random() < 0.01:
        before.append(mutants.sized_act(wire.ACTION_BYTES_MAX + dice.choice((-1, 0, 1))))
    if dice.random() < 0.05:
        before.append(frame_of(dice, dice.choice(KINDS)))
    broken = mutant(dice, frame_of(dice, dice.choice(kinds))) if dice.random() < 0.75 else b""
    return Stream(before, broken, [frame_of(dice, dice.choice(kinds)) for _ in range(dice.randrange(3))])


def feed(decoder: wire.Decoder, parts: Iterable[bytes]) -> Told:
    got: list[Any] = []
    fed = 0
    try:
        for part in parts:
            fed += len(part)
            got.extend(decoder.feed(part))
            assert decoder.pending_bytes <= fed
            assert 0 <= decoder.missing_bytes <= wire.FRAME_BYTES_MAX
    except ProtocolError:
        return Told(got, True, 0)
    return Told(got, False, decoder.pending_bytes)


def expected(stream: Stream, accept: frozenset[Any], limit: int) -> Told:
    """What must come of the frames before anything is broken."""
    due: list[Any] = []
    for frame in stream.before:
        size = len(wire.encode(frame)) - 4
        small = type(frame) in {wire.Hello, wire.Act, wire.Outcome, wire.Raised}
        if type(frame) not in accept or size > limit or (small and size > wire.ACTION_BYTES_MAX):
            return Told(due, True, 0)
        due.append(frame)
    return Told(due, False, 0)


def check_stream(dice: random.Random, stream: Stream, accept: frozenset[Any]) -> Told:
    """Decode it whole and in pieces; returns what came of it."""
    data = stream.data
    sizes = [len(wire.encode(frame)) - 4 for frame in stream.before] or [8]
    limit = dice.choice((wire.FRAME_BYTES_MAX, wire.FRAME_BYTES_MAX, wire.ACTION_BYTES_MAX, max(sizes), max(sizes) - 1))
    items = dice.choice((None, ITEMS_MAX))
    new = lambda: wire.Decoder(accept, frame_bytes_max=limit, items_max=items)
    told = feed(new(), [data])
    due = expected(stream, accept, limit)
    assert told.frames[: len(due.frames)] == due.frames
    assert not due.fault or told == due
    if not stream.broken and limit == wire.FRAME_BYTES_MAX and not due.fault:
        assert told == Told([*stream.before, *stream.after], False, 0)
    for frame in told.frames:
        assert type(frame) in accept
        assert list(wire.Decoder(accept).feed(wire.encode(frame))) == [frame]
    assert feed(new(), pieces(dice, data)) == told
    if len(data) <= SPLIT_EVERYWHERE_BYTES:
        assert feed(new(), (data[at : at + 1] for at in range(len(data)))) == told
        for at in range(1, len(data)):
            assert feed(new(), (data[:at], data[at:])) == told, f"split at {at}"
    return told


@seeded
def test_a_decoder_yields_frames_or_a_protocol_error(share: None, capsys: pytest.CaptureFixture[str]) -> None:
    met: Counter[str] = Counter()
    for number, dice in rounds("decoder", SHARE_S * 0.6):
        name = dice.choice(sorted(ACCEPTS))
        stream = draw(dice, ACCEPTS[name])
        began = time.thread_time()
        try:
            told = check_stream(dice, stream, ACCEPTS[name])
        except BaseException as error:
            error.add_note(f"AGENTOS_FUZZ_SEED={SEED}, decoder {name}, round {number}: {stream.data[:SHOWN_BYTES]!r}")
            raise
        assert time.thread_time() - began < STREAM_LIMIT_S, f"round {number}"
        met["streams"] += 1
        met["frames"] += len(told.frames)
        met["faults"] += told.fault
        met["unfinished"] += told.pending > 0
    report(capsys, "decoder", met)
    assert min(met["frames"], met["faults"], met["unfinished"]) > 0


@seeded
def test_decoding_takes_room_in_proportion_to_what_was_fed(share: None, capsys: pytest.CaptureFixture[str]) -> None:
    """For peers that are not trusted: what is announced costs nothing, what is held is bounded."""
    tracemalloc.start()
    worst = 0.0
    try:
        for number, dice in rounds("room", SHARE_S * 0.1):
            data = dice.choice((mutants.announce, mutants.crowd, mutants.nest))(dice, b"")
            decoder = wire.Decoder(wire.FROM_AGENT, items_max=ITEMS_MAX)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            told = feed(decoder, [data])
            cost = tracemalloc.get_traced_memory()[1] - before
            worst = max(worst, cost / len(data))
            where = f"AGENTOS_FUZZ_SEED={SEED}, round {number}"
            assert cost < ROOM_BYTES + BYTES_PER_BYTE_MAX * len(data), where
            assert told.fault == exceeds(data), where
    finally:
        tracemalloc.stop()
    report(capsys, "room", {"bytes at worst for a byte": worst})


def exceeds(data: bytes) -> bool:
    """Whether this one frame holds too much, or is too deep, or is none: in the plainest words there are."""
    try:
        fields = msgpack.unpackb(data[4:], raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException):
        return True
    if len(data) - 4 > wire.COUNTED_FROM_BYTES and check_items(data[4:], 10**9) > ITEMS_MAX:
        return True
    depth, level = 0, [fields[-1]]
    while level := [item for one in level if isinstance(one, dict | list)
                    for item in (one.values() if isinstance(one, dict) else one)]:  # fmt: skip
        depth += 1
    return depth > wire.DEPTH_MAX


def blob(dice: random.Random, accept: frozenset[Any], first: Any = None) -> bytes:
    """Return a stream that fits into a pipe; now and then with `first` in it."""
    data = b""
    while not data or len(data) > PIPE_BYTES:
        stream = draw(dice, accept)
        if first is not None and dice.random() < 0.5:
            stream.before.insert(dice.randrange(len(stream.before) + 1), first)
        data = stream.data
    return data


def named_errors_only(work: Callable[[], Any], *allowed: type[Exception]) -> Any:
    try:
        return work()
    except allowed as error:
        return error


@seeded
def test_a_channel_believes_a_verdict_or_nothing(
    share: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An agent whose kernel speaks nonsense gets a verdict on this very action or KernelUnavailable; it never hangs."""
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)  # this process forks, and channels stay registered
    met: Counter[str] = Counter()
    for number, dice in rounds("channel", SHARE_S * 0.15):
        up_reads, up = os.pipe()
        down, down_writes = os.pipe()
        channel = Channel(up, down)
        verdict = frame_of(dice, wire.Verdict)._replace(id=1)
        os.write(down_writes, blob(dice, wire.TO_AGENT_VERDICTS, verdict))
        os.close(down_writes)
        got = named_errors_only(lambda channel=channel: channel.act("read", "data/x"), KernelUnavailable)
        assert isinstance(got, KernelUnavailable) or got.id == 1, f"AGENTOS_FUZZ_SEED={SEED}, channel round {number}"
        if isinstance(got, KernelUnavailable):  # and stays so
            again = named_errors_only(lambda channel=channel: channel.act("read", "data/x"), KernelUnavailable)
            assert isinstance(again, KernelUnavailable)
        met[type(got).__name__] += 1
        channel._poller.close()
        for descriptor in (up_reads, up, down):
            os.close(descriptor)
    report(capsys, "channel", met)
    assert min(met["Verdict"], met["KernelUnavailable"]) > 0


@seeded
def test_what_reads_calls_answers_and_clients_gets_frames_or_a_named_error(
    share: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent's calls pipe, the client's link and the kernel's side of a control socket."""
    met: Counter[str] = Counter()
    for number, dice in rounds("readers", SHARE_S * 0.15):
        reads, writes = os.pipe()
        os.write(writes, blob(dice, wire.TO_AGENT_CALLS))
        os.close(writes)
        try:
            calls = named_errors_only(lambda reads=reads: list(frames(reads, wire.TO_AGENT_CALLS)), ProtocolError)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                theirs.sendall(blob(dice, wire.TO_CLIENT, wire.Hello(wire.VERSION, "kernel", 1)))
                theirs.shutdown(socket.SHUT_WR)
                greeted = named_errors_only(lambda ours=ours: Link(ours).greet("cli"), AgentosError, ExceptionGroup)
            told = named_errors_only(lambda dice=dice: read_client(dice), ProtocolError)
            assert isinstance(rebuild(fault_of(dice)), AgentosError | ExceptionGroup)
        except BaseException as error:
            error.add_note(f"AGENTOS_FUZZ_SEED={SEED}, readers, round {number}")
            raise
        finally:
            os.close(reads)
        for got in (calls, greeted, told):
            met["errors" if isinstance(got, Exception) else "answers"] += 1
    report(capsys, "readers", met)
    assert min(met["errors"], met["answers"]) > 0


def fault_of(dice: random.Random) -> wire.Fault:
    """Return a failure of any name, with fields that Python has its own opinion about."""
    fault: wire.Fault = frame_of(dice, wire.Fault)
    names = ("args", "errno", "characters_written", "__class__", "__cause__", "add_note", "failures", "x y", "rule")
    fields = {**fault.fields, **{name: mutants.plain(dice) for name in dice.sample(names, 3)}, 1.5: None}
    if dice.random() < 0.3:
        fields["failures"] = [mutants.plain(dice), ["NotPermitted", "no", {"args": 1}], ["X", "x", 3], []]
    return fault._replace(error=dice.choice(["X", "SeveralFailed", *vars(errors)]), fields=fields)


def read_client(dice: random.Random) -> list[Any]:
    """Read a client that sends nonsense, descriptors beside it; none of them may be left behind."""
    ours, theirs = socket.socketpair()
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(dice.randrange(3))]
    before = len(os.listdir("/proc/self/fd"))
    reader = RightsReader(ours, wire.FROM_CLIENT)
    got: list[Any] = []
    with ours, theirs:
        data = blob(dice, wire.FROM_CLIENT)
        socket.send_fds(theirs, [data[:9]], descriptors)
        theirs.sendall(data[9:])
        theirs.shutdown(socket.SHUT_WR)
        try:
            while (pairs := reader.read()) is not None:
                for frame, came in pairs:
                    got.append(frame)
                    for descriptor in came:
                        os.close(descriptor)
        finally:
            reader.close()
            assert len(os.listdir("/proc/self/fd")) == before
            for descriptor in descriptors:
                os.close(descriptor)
    return got
