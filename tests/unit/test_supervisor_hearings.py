"""What the kernel asks of its host program: how each question ends, and in which order signals leave meanwhile."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from agentos import wire
from agentos.errors import BadRequest, UnknownSignal
from agentos.signals import AgentSignal
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.callbacks import LATE, NO_HOST, RAISED, UNSENT, Callbacks, Told
from agentos.supervisor.hearings import HEARINGS_DEEP_MAX, OVERTAKEN, Hearings, parse_signals, parse_within
from agentos.supervisor.outbox import Outbox

TERM, USR1, CONT, STOP = AgentSignal.SIGTERM, AgentSignal.SIGUSR1, AgentSignal.SIGCONT, AgentSignal.SIGSTOP


class Host:
    """The other end of a kernel's socket: what it was asked, by name."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._sock, self._kernel_end = ours, theirs
        ours.settimeout(10)
        self._decoder = wire.Decoder(wire.TO_CLIENT)
        self.callbacks = Callbacks(asyncio.get_running_loop())
        self.callbacks.adopt(Outbox(asyncio.get_running_loop(), theirs.fileno(), lambda _: None))

    def asked(self) -> list[Any]:
        return list(self._decoder.feed(self._sock.recv(1 << 20)))

    def close(self) -> None:
        self._sock.close()
        self._kernel_end.close()


def with_host(story: Callable[[Host], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        host = Host()
        try:
            await story(host)
        finally:
            host.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_an_answer_an_error_and_silence_are_told_apart_and_late_words_are_dropped() -> None:
    async def story(host: Host) -> None:
        asking = [asyncio.ensure_future(host.callbacks.ask("signal", {"n": n}, 30.0)) for n in range(2)]
        late = asyncio.ensure_future(host.callbacks.ask("signal", {"n": 2}, 0.01))
        assert (await late).failure == LATE
        frames = host.asked()
        assert [(frame.name, frame.params["n"]) for frame in frames] == [("signal", 0), ("signal", 1), ("signal", 2)]
        host.callbacks.on_returned(wire.Returned(frames[2].id, True, None))
        host.callbacks.on_returned(wire.Returned(10_000, True, None))
        host.callbacks.on_returned(wire.Returned(frames[1].id, None, "E" * 10_000))
        host.callbacks.on_returned(wire.Returned(frames[0].id, {"veto": True}, None))
        host.callbacks.on_returned(wire.Returned(frames[0].id, "twice", None))
        told, failed = await asyncio.gather(*asking)
        assert told == Told({"veto": True})
        assert failed == Told(failure=RAISED, text="E" * 500)

    with_host(story)


def test_the_end_of_the_host_ends_every_question_at_once_and_later_ones_are_not_put() -> None:
    async def story(host: Host) -> None:
        asking = [asyncio.ensure_future(host.callbacks.ask("verify", {}, 1e6)) for _ in range(3)]
        await asyncio.sleep(0)
        host.callbacks.leave()
        assert {told.failure for told in await asyncio.gather(*asking)} == {NO_HOST}
        assert (await host.callbacks.ask("verify", {}, 1e6)).failure == NO_HOST

    with_host(story)


def test_what_no_frame_holds_is_a_failure_and_not_the_end_of_the_kernel() -> None:
    async def story(host: Host) -> None:
        told = await host.callbacks.ask("verify", {"result": b"x" * wire.FRAME_BYTES_MAX}, 1e6)
        assert told.failure == UNSENT

    with_host(story)


# --- the order of signals -----------------------------------------------------------------------------------------


class Line:
    """An agent, its hearings, and what left in which order; questions wait until they are answered by name."""

    def __init__(self, *heard: AgentSignal) -> None:
        loop = asyncio.get_running_loop()
        self.agent = Agent(
            id="a", name="a", execution_id="", kind="python", command=[], level="none", cwd="",
            policy=cast("Any", None), policy_name="", context={}, grace_s=0.0,
        )  # fmt: skip
        self.hearings = Hearings(loop, Agents())
        self.hearings.hear(frozenset(heard))
        self.hearings.ask = self._ask
        self.hearings.note = lambda _, kind, data, **__: self.notes.append((kind, data))
        self.notes: list[Any] = []
        self.left: list[str] = []
        self.asked: list[tuple[str, asyncio.Future[Told]]] = []

    async def _ask(self, _: str, params: dict[str, Any], __: float) -> Told:
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self.asked.append((AgentSignal(params["signal"]).name, future))
        return await future

    def send(self, signal: AgentSignal, **options: Any) -> asyncio.Task[str]:
        async def send() -> str:
            refusal = ""
            if self.hearings.concerns(self.agent, signal):
                refusal = await self.hearings.before(self.agent, signal, {}, **options)
            if not refusal:
                self.left.append(signal.name)
                self.agent.stops += signal is STOP
            return refusal

        return asyncio.ensure_future(send())

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def answer(self, value: Any = None, failure: str = "") -> None:
        self.asked.pop(0)[1].set_result(Told(value, failure, failure))
        await self.settle()


def in_line(*heard: AgentSignal) -> Callable[[Callable[[Line], Coroutine[Any, Any, None]]], None]:
    def run(story: Callable[[Line], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            await story(Line(*heard))

        asyncio.run(asyncio.wait_for(main(), 30))

    return run


def test_signals_without_handlers_ask_nobody_and_wait_for_nobody() -> None:
    @in_line(TERM)
    async def story(line: Line) -> None:
        line.send(USR1)
        line.send(STOP)
        await line.settle()
        assert (line.left, line.asked) == (["SIGUSR1", "SIGSTOP"], [])


def test_what_came_later_leaves_later_also_behind_one_that_was_given_up() -> None:
    @in_line(TERM, USR1)
    async def story(line: Line) -> None:
        line.send(TERM)
        await line.settle()
        given_up = line.send(USR1)
        line.send(CONT)
        last = line.send(USR1)
        await line.settle()
        given_up.cancel()
        await line.settle()
        assert line.left == []
        assert [name for name, _ in line.asked] == ["SIGTERM"]
        await line.answer({"veto": False})
        assert line.left == ["SIGTERM", "SIGCONT"]
        await line.answer({"veto": True, "handler": "h"})
        assert line.left == ["SIGTERM", "SIGCONT"]
        assert await last == "vetoed by the handler h of the host program"
        assert line.hearings._last == {}


def test_a_stop_overtakes_and_spends_the_cont_before_it_and_not_the_one_after() -> None:
    @in_line(TERM)
    async def story(line: Line) -> None:
        line.send(TERM)
        await line.settle()
        before = line.send(CONT)
        await line.settle()
        line.send(STOP)
        await line.settle()
        after = line.send(CONT)
        await line.settle()
        assert line.left == ["SIGSTOP"]
        await line.answer({"veto": False})
        assert await before == OVERTAKEN
        assert await after == ""
        assert line.left == ["SIGSTOP", "SIGTERM", "SIGCONT"]


def test_what_a_handler_sends_is_ahead_and_is_not_heard_again() -> None:
    @in_line(TERM, USR1)
    async def story(line: Line) -> None:
        line.send(TERM)
        line.send(CONT)
        await line.settle()
        line.send(TERM, within=[("a", TERM.value)])
        await line.settle()
        assert line.left == ["SIGTERM"]
        line.send(USR1, within=[("a", TERM.value)])
        line.send(USR1, within=[("b", USR1.value)] * HEARINGS_DEEP_MAX)
        await line.settle()
        assert line.left == ["SIGTERM", "SIGUSR1"]
        assert [name for name, _ in line.asked] == ["SIGTERM", "SIGUSR1"]


@pytest.mark.parametrize("failure", [RAISED, LATE, NO_HOST, UNSENT])
def test_no_answer_of_whatever_kind_delivers_and_is_on_record(failure: str) -> None:
    @in_line(TERM)
    async def story(line: Line) -> None:
        line.send(TERM)
        await line.settle()
        await line.answer(failure=failure)
        assert line.left == ["SIGTERM"]
        assert line.notes == [("signal_handler_failed", {"reason": failure, "error": failure})]


@pytest.mark.parametrize("said", [None, True, 0, "veto", {}, {"veto": 1}, {"veto": "yes"}, {"veto": False}])
def test_only_a_veto_is_a_veto(said: Any) -> None:
    @in_line(TERM)
    async def story(line: Line) -> None:
        line.send(TERM)
        await line.settle()
        await line.answer(said)
        assert line.left == ["SIGTERM"]


def test_what_the_host_says_of_handlers_is_read_strictly() -> None:
    assert parse_signals([15, 10]) == {TERM, USR1}
    with pytest.raises(BadRequest, match="KILL and STOP have none"):
        parse_signals([15, 9])
    with pytest.raises(UnknownSignal):
        parse_signals([77])
    assert parse_within([["a", 15]]) == [("a", 15)]
    assert parse_within(None) == []
    for wrong in ([["a"]], [["a", "b"]], [5], ["ab"]):
        with pytest.raises(BadRequest, match="pairs"):
            parse_within(wrong)
