"""Questions to an agent's runtime: who is asked, what counts as the answer, and what is said when there is none.

A real broker reads real pipes, in virtual time; the agent is the test, which may answer as an attacker would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records import RUN
from virtual import LoopClock, VirtualLoop

from agentos import lifecycle, wire
from agentos.errors import BadRequest, StateUnavailable
from agentos.policies import EffectivePolicy, Policy
from agentos.recorder.event import AuditEvent
from agentos.recorder.journal import JournalReader, JournalWriter
from agentos.supervisor.agents import Agent
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings
from agentos.supervisor.outbox import Outbox
from agentos.supervisor.queries import ANSWER_LIMIT_S, OPEN_MAX, Queries
from agentos.supervisor.recording import Recording
from agentos.values import pack_value

STATE = pack_value({"step": 1}, "state")


class Line:
    """One agent as the kernel knows it, and the ends of its pipes that are the agent's."""

    def __init__(self, loop: VirtualLoop, broker: Broker, name: str) -> None:
        self.agent = Agent(
            id=f"{name}-id", name=name, execution_id="e", kind="python", command=[], level="hooks", cwd="/",
            policy=EffectivePolicy(Policy.builtin("permissive"), workspace="/"), policy_name="permissive", context={},
            grace_s=1.0, pid=1,
        )  # fmt: skip
        self.agent.move(lifecycle.Began())
        up_read, self.up = os.pipe()
        self.calls, calls_write = os.pipe()
        os.set_blocking(self.calls, False)
        self.agent.descriptors = [up_read, calls_write]
        self.agent.calls = Outbox(loop, calls_write, lambda _: None)
        broker.watch_agent(self.agent, up_read)
        self._decoder = wire.Decoder(wire.TO_AGENT_CALLS)
        self._heard: list[wire.Query] = []

    async def question(self) -> wire.Query:
        """Return the next question that arrived at the agent."""
        while not self._heard:
            with contextlib.suppress(BlockingIOError):
                self._heard.extend(self._decoder.feed(os.read(self.calls, 65_536)))
            await asyncio.sleep(0.001)
        return self._heard.pop(0)

    def say(self, *frames: Any) -> None:
        os.write(self.up, b"".join(map(wire.encode, frames)))

    def answer(self, number: int, value: bytes = STATE) -> None:
        self.say(wire.Answer(number, True, value, ""))

    def hang_up(self) -> None:
        os.close(self.calls)
        self.calls = -1

    def close(self, loop: VirtualLoop) -> None:
        self.agent.close(loop)
        for descriptor in (self.up, self.calls):
            if descriptor >= 0:
                os.close(descriptor)


class Bench:
    def __init__(self, loop: VirtualLoop, directory: Path) -> None:
        self.loop = loop
        self._directory = directory
        self.recording = Recording(loop, JournalWriter(directory, run_id=RUN), LoopClock(loop))
        self.killed: list[str] = []
        self.broker = Broker(
            loop, self.recording, LoopClock(loop), deliver=lambda agent, *_: self.killed.append(agent.name),
            on_call=lambda *_: None, notify=lambda *_: None,
        )  # fmt: skip
        self.queries = Queries(loop, self.broker)
        self.one, self.other = (Line(loop, self.broker, name) for name in ("one", "other"))

    def ask(self, what: str = "get_state", line: Line | None = None) -> asyncio.Task[bytes]:
        return self.loop.create_task(self.queries.ask((line or self.one).agent, what, "host"))

    async def why(self, what: str = "get_state", line: Line | None = None) -> str:
        """Return why there is no answer."""
        with pytest.raises(StateUnavailable) as caught:
            await self.ask(what, line)
        return str(caught.value)

    def end(self, agent: Agent) -> None:
        """It ends by itself, and its tree is gone."""
        self.broker.on_exit(agent, wire.Exited(3, None, 0), 0)
        endings = Endings(self.loop, _NoAgents(), LoopClock(self.loop))  # type: ignore[arg-type]
        endings.finish(agent)

    def recorded(self, *kinds: str) -> list[AuditEvent]:
        with contextlib.closing(JournalReader(self._directory)) as reader:
            return [event for event in reader.read() if event.event_type in kinds]

    def close(self) -> None:
        for line in (self.one, self.other):
            line.close(self.loop)
        self.recording.close()


class _NoAgents:
    def forget_results(self) -> None:
        pass


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    loop = VirtualLoop()
    made = Bench(loop, tmp_path)
    try:
        yield made
        assert not loop.faults
    finally:
        made.close()
        loop.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


def play(bench: Bench, story: Callable[[], Awaitable[None]]) -> None:
    bench.loop.run_until_complete(story())  # type: ignore[arg-type]


def test_a_question_and_its_answer_are_on_record(bench: Bench) -> None:
    async def story() -> None:
        asked = bench.ask("get_state")
        query = await bench.one.question()
        assert query.what == "get_state"
        assert [one.event_type for one in bench.recorded("agent_asked", "agent_answered")] == ["agent_asked"]
        bench.one.answer(query.id)
        assert await asked == STATE
        first, second = bench.recorded("agent_asked", "agent_answered")
        data = {"what": "get_state", "sender": "host"}
        assert (first.agent_id, first.data) == ("one-id", data)
        assert (second.agent_id, second.data) == ("one-id", {**data, "ok": True, "bytes": len(STATE)})
        assert not bench.one.agent.queries

    play(bench, story)


def test_each_answer_finds_its_own_question_in_whatever_order_they_come(bench: Bench) -> None:
    async def story() -> None:
        tasks = [bench.ask() for _ in range(5)]
        queries = [await bench.one.question() for _ in tasks]
        for query in reversed(queries):
            bench.one.answer(query.id, pack_value(query.id, "state"))
        assert await asyncio.gather(*tasks) == [pack_value(query.id, "state") for query in queries]

    play(bench, story)


def test_an_agent_that_answers_for_another_ends_and_the_other_is_still_asked(bench: Bench) -> None:
    async def story() -> None:
        asked = bench.ask(line=bench.other)
        query = await bench.other.question()
        bench.one.answer(query.id, pack_value("forged", "state"))
        await until(lambda: bool(bench.killed))
        assert bench.killed == ["one"]
        (fault,) = bench.recorded("protocol_error")
        assert (fault.agent_id, fault.data["error"]) == ("one-id", f"Answer {query.id} to no question that is open")
        bench.other.answer(query.id)
        assert await asked == STATE

    play(bench, story)


@pytest.mark.parametrize("number", [0, 2, 2**63])
def test_an_answer_to_what_was_not_asked_ends_the_agent(bench: Bench, number: int) -> None:
    async def story() -> None:
        asked = bench.ask()
        await bench.one.question()
        bench.one.answer(number)
        with pytest.raises(StateUnavailable):
            await asked
        assert bench.killed == ["one"]

    play(bench, story)


def test_a_second_answer_to_one_question_ends_the_agent_and_changes_nothing(bench: Bench) -> None:
    async def story() -> None:
        asked = bench.ask()
        query = await bench.one.question()
        bench.one.say(wire.Answer(query.id, True, STATE, ""), wire.Answer(query.id, True, b"other", ""))
        assert await asked == STATE
        assert bench.killed == ["one"]

    play(bench, story)


def test_an_answer_that_comes_late_is_no_fault_and_no_answer_to_the_next_question(bench: Bench) -> None:
    async def story() -> None:
        began = bench.loop.time()
        assert "get_state of one (one-id): no answer within 2 s" in await bench.why()
        assert bench.loop.time() - began == pytest.approx(ANSWER_LIMIT_S, abs=0.01)
        first = await bench.one.question()
        asked = bench.ask()
        second = await bench.one.question()
        bench.one.answer(first.id, pack_value("late", "state"))
        bench.one.answer(second.id)
        assert await asked == STATE
        assert not bench.killed
        assert not bench.one.agent.queries
        detail = bench.recorded("agent_answered")[0]
        assert (detail.severity, detail.data["ok"]) == ("warning", False)

    play(bench, story)


def test_an_agent_that_never_answers_is_asked_a_bounded_number_of_times(bench: Bench) -> None:
    async def story() -> None:
        tasks = [bench.ask() for _ in range(OPEN_MAX)]
        assert len(await asyncio.gather(*tasks, return_exceptions=True)) == OPEN_MAX
        began = bench.loop.time()
        assert f"has not answered {OPEN_MAX} questions" in await bench.why()
        assert bench.loop.time() == began
        queries = [await bench.one.question() for _ in tasks]
        bench.one.answer(queries[0].id)  # late, and yet: it does answer
        await until(lambda: len(bench.one.agent.queries) < OPEN_MAX)
        asked = bench.ask()
        bench.one.answer((await bench.one.question()).id)
        assert await asked == STATE

    play(bench, story)


def test_what_the_agent_says_went_wrong_is_cut_short(bench: Bench) -> None:
    async def story() -> None:
        asked = bench.ask("cleanup")
        query = await bench.one.question()
        bench.one.say(wire.Answer(query.id, False, b"x" * 100, "y" * 20_000))
        with pytest.raises(StateUnavailable, match=r"cleanup of one \(one-id\): it answered: y+$") as caught:
            await asked
        assert len(str(caught.value)) < 400

    play(bench, story)


# --- who cannot be asked ---------------------------------------------------------------------------------------------


def test_who_cannot_answer_is_not_waited_for(bench: Bench) -> None:
    async def story() -> None:
        began, agent = bench.loop.time(), bench.one.agent
        agent.kind = "program"
        assert "it is a program" in await bench.why()
        agent.kind, agent.pid = "python", 0
        assert "it is being started" in await bench.why()
        agent.in_line = True
        assert "it waits for a free slot" in await bench.why()
        agent.restart_at_ns = 1
        assert "it waits to be started again" in await bench.why()
        agent.restart_at_ns = 0
        agent.pid, agent.in_line = 1, False
        agent.move(lifecycle.Paused())
        assert "it is stopped, and can answer only once it is continued; send it SIGCONT" in await bench.why()
        agent.move(lifecycle.Resumed())
        bench.one.hang_up()
        assert "it has closed its pipe" in await bench.why()
        assert "it has closed its pipe" in await bench.why()
        assert bench.loop.time() == began
        assert [one.data["ok"] for one in bench.recorded("agent_answered")] == [False] * 7

    play(bench, story)


def test_an_agent_that_stops_while_it_is_asked_is_said_to_be_stopped_at_once(bench: Bench) -> None:
    async def story() -> None:
        asked = bench.ask("cleanup")
        query = await bench.one.question()
        began = bench.loop.time()
        bench.one.agent.move(lifecycle.Paused())
        with pytest.raises(StateUnavailable, match=r"it is stopped.*; the clean-up is not confirmed, what began of it"):
            await asked
        assert bench.loop.time() - began < 0.1
        bench.one.agent.move(lifecycle.Resumed())
        bench.one.answer(query.id)
        again = bench.ask()
        bench.one.answer((await bench.one.question()).id)
        assert await again == STATE
        assert not bench.killed

    play(bench, story)


@pytest.mark.parametrize("at_once", [False, True])
def test_an_agent_that_ends_has_the_state_that_it_saved(bench: Bench, at_once: bool) -> None:
    """Whether it ended before it was asked or meanwhile. Nothing else can be had of it."""

    async def story() -> None:
        asked = None if at_once else bench.ask()
        if asked is not None:
            await bench.one.question()
        bench.end(bench.one.agent)
        with pytest.raises(StateUnavailable, match=r"it has ended \(exit code 3\)"):
            await (asked or bench.ask())
        bench.one.agent.saved_state = STATE
        assert await bench.ask() == STATE
        for what in ("cleanup", "save_state"):
            assert "it has ended (exit code 3)" in await bench.why(what)

    play(bench, story)


def test_of_a_life_that_is_over_the_next_one_is_named(bench: Bench) -> None:
    """Its state went to the next life; so should the question."""

    async def story() -> None:
        bench.end(bench.one.agent)
        bench.one.agent.successor = bench.other.agent
        assert (await bench.why()).endswith("it has ended (exit code 3) and lives on as other-id")

    play(bench, story)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_save_state_keeps_what_the_agent_answers(bench: Bench) -> None:
    async def story() -> None:
        asked = bench.ask("save_state")
        bench.one.answer((await bench.one.question()).id)
        await asked
        assert bench.one.agent.saved_state == STATE
        assert [one.data for one in bench.recorded("state_saved")] == [{"bytes": len(STATE)}]

    play(bench, story)


def test_what_the_agent_saved_itself_meanwhile_is_newer_and_stays(bench: Bench) -> None:
    async def story() -> None:
        bench.one.agent.saved_state = b"old"
        asked = bench.ask("save_state")
        query = await bench.one.question()
        bench.one.agent.saved_state = b"new"
        bench.one.answer(query.id)
        await asked
        assert bench.one.agent.saved_state == b"new"

    play(bench, story)


@pytest.mark.parametrize("what", ["get_state", "cleanup"])
def test_other_questions_save_nothing(bench: Bench, what: str) -> None:
    async def story() -> None:
        asked = bench.ask(what)
        bench.one.answer((await bench.one.question()).id)
        await asked
        assert bench.one.agent.saved_state is None

    play(bench, story)


def test_an_unknown_question_is_a_mistake_and_is_not_asked(bench: Bench) -> None:
    async def story() -> None:
        with pytest.raises(BadRequest, match=r"'get_stat' \(did you mean 'get_state'\?\); known: cleanup, save_state"):
            await bench.ask("get_stat")
        assert not bench.one.agent.queries

    play(bench, story)
