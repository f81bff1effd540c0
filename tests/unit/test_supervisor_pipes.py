"""Pipes, sockets and what waits in them: frames are whole at any size, nothing grows without bound."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentos import wire
from agentos.errors import HostError, ProtocolError
from agentos.supervisor import pipes, zygote_link
from agentos.supervisor.intake import Intake
from agentos.supervisor.outbox import BYTES_MAX, Outbox
from agentos.supervisor.zygote_link import FORKS_AT_ONCE, ZygoteLink

F_SETPIPE_SZ = 1031
ACT = wire.Act(7, "read", "data/x", None, None, "/", {}, "sdk")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page; closed where the test has not done it."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], F_SETPIPE_SZ, 4096)
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


# --- blocking ------------------------------------------------------------------------------------------------------


def test_every_byte_passes_through_one_page(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    data = os.urandom(300_000)
    writer = threading.Thread(target=lambda: (pipes.write_all(writes, data), os.close(writes)))
    writer.start()
    got = b"".join(iter(lambda: os.read(reads, 1_000), b""))
    writer.join()
    assert got == data


def test_what_is_in_a_pipe_is_counted(pipe: tuple[int, int]) -> None:
    assert pipes.bytes_inside(pipe[0]) == 0
    os.write(pipe[1], b"x" * 1_234)
    assert pipes.bytes_inside(pipe[0]) == 1_234


# --- outbox --------------------------------------------------------------------------------------------------------


def test_an_outbox_keeps_order_and_says_when_there_is_room(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    pieces = [bytes([number % 256]) * (number * 37 % 3_000) for number in range(200)]

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        outbox = Outbox(loop, writes, pytest.fail, on_room=room.set)
        for piece in pieces:
            outbox.write(piece)
        assert outbox.pending_bytes == sum(map(len, pieces)) - pipes.bytes_inside(reads)
        got = b""
        while outbox.pending_bytes or pipes.bytes_inside(reads):
            got += os.read(reads, 4_096)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert room.is_set()
        outbox.close()
        return got

    assert asyncio.run(main()) == b"".join(pieces)


@pytest.mark.parametrize("how", ["unread", "closed"])
def test_an_outbox_gives_up_once_and_says_why(pipe: tuple[int, int], how: str) -> None:
    async def main() -> list[str]:
        said: list[str] = []
        outbox = Outbox(asyncio.get_running_loop(), pipe[1], said.append)
        if how == "closed":
            os.close(pipe[0])
        for _ in range(BYTES_MAX // 1_000_000 + 3):
            outbox.write(bytes(1_000_000))
            assert outbox.pending_bytes <= BYTES_MAX
        assert outbox.closed
        assert outbox.overflowed is (how == "unread")
        return said

    expected = "does not read what it is sent" if how == "unread" else "cannot write: Broken pipe"
    assert asyncio.run(main()) == [expected]


def test_large_answers_take_turns_and_one_too_many_is_refused_alone(pipe: tuple[int, int]) -> None:
    reads, writes = pipe

    async def main() -> tuple[bytes, list[str]]:
        outbox = Outbox(asyncio.get_running_loop(), writes, pytest.fail, waiting_bytes_max=20_000)
        most = 0

        async def answer(letter: bytes) -> str:
            nonlocal most
            try:
                await outbox.turn(8_000)
            except HostError as error:
                return str(error)
            outbox.write(letter * 8_000)
            most = max(most, outbox.pending_bytes)
            return ""

        tasks = [asyncio.create_task(answer(letter)) for letter in (b"a", b"b", b"c", b"d")]
        got = b""
        while len(got) < 24_000:
            await asyncio.sleep(0.001)
            got += os.read(reads, 1_000)
        assert most <= 8_000
        outbox.close()
        return got, [await task for task in tasks]

    got, said = asyncio.run(asyncio.wait_for(main(), 20))
    assert got == b"a" * 8_000 + b"b" * 8_000 + b"c" * 8_000
    assert said == ["", "", "", "16000 bytes of answers wait to be read already; ask for less at once"]


@pytest.mark.parametrize("how", ["closed", "stuck"])
def test_whose_turn_cannot_come_any_more_is_not_held(pipe: tuple[int, int], how: str) -> None:
    async def main() -> None:
        outbox = Outbox(asyncio.get_running_loop(), pipe[1], lambda _: None)
        outbox.write(bytes(100_000))
        waiting, given_up = (asyncio.create_task(outbox.turn(1)) for _ in range(2))
        await asyncio.sleep(0)
        given_up.cancel()
        if how == "closed":
            outbox.close()
        else:
            outbox.write(bytes(BYTES_MAX))
        await waiting
        await outbox.turn(10**9)

    asyncio.run(asyncio.wait_for(main(), 20))


# --- intake --------------------------------------------------------------------------------------------------------


class Taker:
    def __init__(self, reads: int, full_at: int = 10**9) -> None:
        self.frames: list[object] = []
        self.faults: list[str] = []
        self.full_at = full_at
        self.intake = Intake(
            asyncio.get_running_loop(), reads,
            take=self.frames.append,
            fault=lambda error: self.faults.append(str(error)),
            is_full=lambda: len(self.frames) >= self.full_at,
        )  # fmt: skip

    async def drained(self) -> int:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.intake.drain(done.set_result)
        return await done


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=20), st.integers(0, 20))
@settings(deadline=None)
def test_frames_are_whole_wherever_they_are_cut_and_wherever_the_process_dies(cuts: list[int], read: int) -> None:
    """Some of it is read while the agent lives, the rest when it is dead; a frame may lie across that moment."""
    reads, writes = os.pipe()
    stream = b"".join(wire.encode(ACT._replace(id=number, resource="x" * number)) for number in range(1, 60))

    async def main() -> list[object]:
        taker = Taker(reads)
        position = 0
        for index, cut in enumerate(cuts):
            os.write(writes, stream[position : position + cut])
            position += cut
            if index < read:
                await settle()
        os.write(writes, stream[position:])
        assert await taker.drained() == 0
        assert taker.faults == []
        return taker.frames

    try:
        frames = asyncio.run(main())
    finally:
        os.close(reads)
        os.close(writes)
    assert [frame.id for frame in frames] == list(range(1, 60))  # type: ignore[attr-defined]


def test_what_is_written_after_the_death_is_not_read() -> None:
    """A descendant may hold the pipe and write for ever: the kernel must not read for ever."""
    reads, writes = os.pipe()

    async def main() -> int:
        taker = Taker(reads)
        os.write(writes, wire.encode(ACT) * 500)
        done = asyncio.ensure_future(taker.drained())
        while not done.done():
            os.write(writes, wire.encode(ACT) * 10)
            await asyncio.sleep(0)
        return len(taker.frames)

    taken = asyncio.run(main())
    assert 500 <= taken < 700
    os.close(reads)
    os.close(writes)


def test_a_drain_serves_others_meanwhile_and_one_at_once_does_not() -> None:
    reads, writes = os.pipe()

    async def main() -> None:
        taker = Taker(reads)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(others())
        os.write(writes, wire.encode(ACT) * 1_000 + wire.encode(ACT)[:9])
        assert await taker.drained() == 9
        assert turns > 5
        task.cancel()
        assert len(taker.frames) == 1_000

    asyncio.run(main())
    os.close(writes)
    os.close(reads)
    reads, writes = os.pipe()

    async def at_once() -> None:
        taker = Taker(reads)
        os.write(writes, wire.encode(ACT) * 1_000 + wire.encode(ACT)[:9])
        said: list[int] = []
        taker.intake.drain(said.append)
        assert taker.intake.drain_at_once() == 9
        assert len(taker.frames) == 1_000
        await settle()
        assert said == [0]  # the other drain finds that everything was taken

    asyncio.run(at_once())
    os.close(writes)
    os.close(reads)


def test_who_is_full_is_not_read_until_it_is_not() -> None:
    reads, writes = os.pipe()

    async def main() -> None:
        taker = Taker(reads, full_at=10)
        os.write(writes, wire.encode(ACT) * 1_000)
        await settle()
        held = len(taker.frames)
        assert 10 <= held < 200
        await settle()
        assert len(taker.frames) == held
        taker.full_at = 10**9
        taker.intake.go_on()
        await asyncio.sleep(0.05)
        assert len(taker.frames) == 1_000
        taker.intake.close()

    asyncio.run(main())
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize("after", [b"", wire.encode(ACT) * 50])
def test_a_fault_is_told_once_and_the_rest_is_not_believed(after: bytes) -> None:
    reads, writes = os.pipe()

    async def main() -> None:
        taker = Taker(reads)
        os.write(writes, wire.encode(ACT) + b"\0\0\0\1\xc1" + after)
        await settle()
        os.write(writes, wire.encode(ACT))
        taker.intake.go_on()
        await settle()
        assert await taker.drained() == 0
        assert len(taker.frames) == 1
        assert len(taker.faults) == 1

    asyncio.run(main())
    os.close(reads)
    os.close(writes)


# --- descriptors beside frames -------------------------------------------------------------------------------------


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for one in pair:
        one.close()


def files(count: int) -> list[int]:
    return [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]


def inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 70_000)), min_size=1, max_size=8))
@settings(deadline=None)
def test_descriptors_come_with_their_own_frame(sends: list[tuple[int, int]]) -> None:
    """Frames with and without, small and larger than a read, all in the socket before the first is read."""
    ours, theirs = socket.socketpair()
    expected = []

    def send() -> None:
        for number, (count, size) in enumerate(sends):
            data = wire.encode(wire.Call(number, "start", {"padding": bytes(size)}))
            ends = [os.pipe() for _ in range(count)]
            expected.append([inode(end[0]) for end in ends])
            sent = pipes.send_with_rights(theirs, data, [end[0] for end in ends])
            theirs.sendall(data[sent:])
            for end in ends:
                os.close(end[0])
                os.close(end[1])

    sender = threading.Thread(target=send)
    sender.start()
    reader, got = pipes.RightsReader(ours, wire.FROM_CLIENT), []
    while len(got) < len(sends):
        for frame, descriptors in reader.read() or ():
            assert frame.id == len(got)
            got.append([inode(descriptor) for descriptor in descriptors])
            for descriptor in descriptors:
                os.close(descriptor)
    sender.join()
    assert got == expected
    ours.close()
    theirs.close()


def test_descriptors_that_wait_for_ever_are_limited_and_closed(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    before = len(os.listdir("/proc/self/fd"))
    reader = pipes.RightsReader(ours, wire.FROM_CLIENT)
    null = files(1)
    theirs.sendall(wire.encode(wire.Call(1, "start", {"x": bytes(100)}))[:20])
    assert reader.read() == []
    for _ in range(3):
        pipes.send_with_rights(theirs, b"\0", null * 5)
        assert reader.read() == []
    pipes.send_with_rights(theirs, b"\0", null * 5)
    with pytest.raises(ProtocolError, match="descriptors wait"):
        reader.read()
    reader.close()
    os.close(null[0])
    assert len(os.listdir("/proc/self/fd")) == before


# --- the zygote's link ---------------------------------------------------------------------------------------------


def test_requests_wait_for_a_busy_zygote_and_the_loop_does_not(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        link = ZygoteLink(loop, ours, on_died=lambda _: None)
        forks = [asyncio.ensure_future(link.fork("sentry", {"x": bytes(200_000)}, [])) for _ in range(40)]
        await asyncio.sleep(0.05)  # nobody reads: a link that blocked would never come back from here
        assert not any(fork.done() for fork in forks)
        theirs.setblocking(False)
        decoder, served = wire.Decoder(wire.TO_ZYGOTE), 0
        while served < 40:
            try:
                data = theirs.recv(65_536)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            frames = list(decoder.feed(data))
            assert len(frames) <= FORKS_AT_ONCE
            for frame in frames:
                served += 1
                theirs.send(wire.encode(wire.Forked(frame.id, 1_000 + frame.id, 0)))
        pids = await asyncio.gather(*forks)
        loop.remove_reader(ours.fileno())
        return pids

    assert asyncio.run(main()) == [1_000 + number for number in range(1, 41)]


def test_a_zygote_that_never_answers_costs_a_start_and_no_descriptor(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote_link, "FORK_LIMIT_S", 0.05)
    ours, theirs = sockets

    async def main() -> None:
        loop = asyncio.get_running_loop()
        link = ZygoteLink(loop, ours, on_died=lambda _: None)
        for size in (10, 1_000_000, 10):  # the second fills the socket, the third cannot even begin
            with pytest.raises(HostError, match="did not answer"):
                await link.fork("sentry", {"x": bytes(size)}, [])
        assert len(link._queue) <= 1
        late = wire.encode(wire.Forked(1, 5, 0))
        theirs.send(late)
        await asyncio.sleep(0.01)
        loop.remove_reader(ours.fileno())
        loop.remove_writer(ours.fileno())

    asyncio.run(main())


def test_a_request_whose_descriptor_is_closed_fails_by_itself(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = sockets
    closed = 1_000_000

    async def main() -> None:
        loop = asyncio.get_running_loop()
        link = ZygoteLink(loop, ours, on_died=lambda _: None)
        with pytest.raises(HostError, match="Bad file descriptor"):
            await link.fork("sentry", {}, [closed])
        loop.remove_reader(ours.fileno())

    asyncio.run(main())


def test_a_death_is_told_after_whoever_waits_for_the_pid_knows_it(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    seen: list[str] = []

    async def start(link: ZygoteLink) -> None:
        seen.append(f"born {await link.fork_sentry({}, [])}")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        link = ZygoteLink(loop, ours, on_died=lambda frame: seen.append(f"died {frame.pid}"))
        task = asyncio.ensure_future(start(link))
        await asyncio.sleep(0)
        theirs.send(wire.encode(wire.Forked(1, 77, 0)) + wire.encode(wire.Died(77, 9, 0)))
        await task
        await settle()
        loop.remove_reader(ours.fileno())

    asyncio.run(main())
    assert seen == ["born 77", "died 77"]
