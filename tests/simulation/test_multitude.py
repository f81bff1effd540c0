"""A million events on a virtual clock, faults at every command: each invariant holds, and each is seen to fail.

AGENTOS_STEPS=n lets it be fewer or more, AGENTOS_SEED=n brings back the dice of the seed in the name of a failed test.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import INVARIANTS, Books, Violated
from multitude import TOLD, Multitude, report

from agentos import lifecycle, wire
from agentos.clock import RunningTime
from agentos.errors import AgentosError
from agentos.lifecycle import IllegalTransition, State
from agentos.policies import Quota
from agentos.signals import AgentSignal
from agentos.supervisor import broker, decide, endings, restarts
from agentos.supervisor.admission import Admission
from agentos.supervisor.agents import Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings
from agentos.supervisor.lives import Lives
from agentos.supervisor.recording import Recording
from agentos.supervisor.sentry_link import SentryLink
from agentos.supervisor.slots import Slots

STEPS = int(os.environ.get("AGENTOS_STEPS", "1000000"))
SEED = int(os.environ.get("AGENTOS_SEED") or random.SystemRandom().randrange(10**6))
A_WORLD = 50_000  # events; each world has a seed of its own, the first that of the test
PLANTED_STEPS = 20_000


def simulate(seed: int, steps: int) -> Multitude:
    """Let one world live; returns it. Raises Violated, with the seed and the step."""
    world = Multitude(seed)
    try:
        world.live(steps)
        assert world.loop.faults == []
    except BaseException as error:
        error.add_note(f"AGENTOS_SEED={seed}, event {world.steps}")
        raise
    finally:
        world.close()
    return world


@pytest.mark.timeout(60 + STEPS // 1_000)
@pytest.mark.parametrize("seed", [pytest.param(SEED, id=f"seed-{SEED}")])
def test_the_invariants_hold_at_every_step(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    began, steps, met = time.monotonic(), 0, Counter[str]()
    while steps < STEPS:
        world = simulate(seed + steps // A_WORLD, min(A_WORLD, STEPS - steps))
        steps += min(A_WORLD, STEPS - steps)
        met.update(world.met)
    rate = steps / (time.monotonic() - began)
    report(capsys, f"AGENTOS_SEED={seed}: {steps:,} steps, {rate:,.0f}/s, {dict(met)}")
    wanted = {"born", "faults", "not recorded", "ProtocolError", "AgentTimeoutError", "SeveralFailed", *TOLD}
    assert wanted - set(met) == set()


# --- each of them is seen to fail ----------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def allow_what_cannot_be_recorded(patch: Patch) -> None:
    patch.setattr(decide, "refuse", lambda act, reason: wire.Verdict(
        act.id, "allow", reason, None, None, None, act.resource, 0, False, None))  # fmt: skip


def answer_before_the_record(patch: Patch) -> None:
    perform = Broker._perform

    def planted(self: Broker, agent: Any, act: wire.Act, commands: tuple[Any, ...]) -> None:
        record, respond, *rest = commands
        if not record.durable:
            self._respond(agent, respond.verdict._replace(seq=self._recording.last_seq + 1))
            commands = (record, *rest)
        perform(self, agent, act, commands)

    patch.setattr(Broker, "_perform", planted)


def trust_that_it_is_durable(patch: Patch) -> None:
    patch.setattr(Recording, "when_durable", lambda self, seq, then: then(True))


def some_of_the_answers(patch: Patch, times: int) -> None:
    respond = Broker._respond

    def planted(self: Broker, agent: Any, verdict: wire.Verdict) -> None:
        for _ in range(times if verdict.id % 5 == 3 else 1):
            respond(self, agent, verdict)

    patch.setattr(Broker, "_respond", planted)


def answer_twice(patch: Patch) -> None:
    some_of_the_answers(patch, 2)


def drop_an_answer(patch: Patch) -> None:
    some_of_the_answers(patch, 0)


def wake_nobody(patch: Patch) -> None:
    patch.setattr(Slots, "_release", lambda self, agent_id: None)


def rise_again(patch: Patch) -> None:
    patch.setitem(lifecycle.TRANSITIONS, (State.EXITED, lifecycle.Resumed), State.RUNNING)  # type: ignore[misc]


def overlook_a_stop(patch: Patch) -> None:
    patch.setitem(lifecycle.TRANSITIONS, (State.RUNNING, lifecycle.Paused), State.RUNNING)  # type: ignore[misc]


def take_the_last_first(patch: Patch) -> None:
    queue = Admission._queue
    patch.setattr(Admission, "_queue", lambda self, key, rank: queue(self, key, -rank))


def admit_one_too_many(patch: Patch) -> None:
    admit = Admission._admit

    def planted(self: Admission) -> list[str]:
        self._slots_max += 1
        try:
            return admit(self)
        finally:
            self._slots_max -= 1

    patch.setattr(Admission, "_admit", planted)


def go_on_while_stopped(patch: Patch) -> None:
    patch.setattr(RunningTime, "pause", lambda self, now_s: None)


def stand_still_for_any_stop(patch: Patch) -> None:
    patch.setattr(endings, "_is_held", lambda agent: agent.state is State.STOPPED)


def count_one_off(patch: Patch, by: int) -> None:
    wait_s = Quota.wait_s

    def planted(self: Quota, charge: Any, now_s: float) -> float:
        return wait_s(self, dataclasses.replace(charge, limit=charge.limit + by), now_s)

    patch.setattr(Quota, "wait_s", planted)


def let_one_more_pass(patch: Patch) -> None:
    count_one_off(patch, 1)


def let_one_less_pass(patch: Patch) -> None:
    count_one_off(patch, -1)


def kill_for_any_denial(patch: Patch) -> None:
    react = decide.react

    def planted(act: wire.Act, decision: Any, level: str, context: dict[str, Any]) -> tuple[Any, ...]:
        denied = decision.effect != "allow"
        return (*react(act, decision, level, context)[:2], *([decide.Send("SIGKILL")] if denied else []))

    patch.setattr(broker.decide, "react", planted)


def reap_before_the_record(patch: Patch) -> None:
    on_exit = SentryLink._on_exit

    def planted(self: SentryLink, agent: Any, unfinished: int) -> None:
        agent.to_sentry.write(wire.encode(wire.Reap(0)))
        on_exit(self, agent, unfinished)

    patch.setattr(SentryLink, "_on_exit", planted)


def deliver_unsaid(patch: Patch) -> None:
    patch.setattr(
        Endings, "send", lambda self, agent, signal, scope, sender: self._deliver(agent, signal, scope or "tree")
    )


def tell_an_exit_twice(patch: Patch) -> None:
    on_exit = Broker.on_exit

    def planted(self: Broker, *words: Any) -> None:
        on_exit(self, *words)
        on_exit(self, *words)

    patch.setattr(Broker, "on_exit", planted)


def forget_who_waits(patch: Patch) -> None:
    on_tree_gone = Endings.on_tree_gone

    def planted(self: Endings, agent: Any, frame: Any) -> None:
        on_tree_gone(self, agent, frame) if not agent.deliveries else self.on_gone(agent)

    patch.setattr(Endings, "on_tree_gone", planted)


def fail_without_a_name(patch: Patch) -> None:
    deliver = Endings._deliver

    def planted(self: Endings, agent: Any, signal: AgentSignal, scope: str) -> Any:
        return {}["planted"] if signal is AgentSignal.SIGUSR1 else deliver(self, agent, signal, scope)

    patch.setattr(Endings, "_deliver", planted)


def restart_whatever_ended(patch: Patch) -> None:
    patch.setattr(restarts, "_is_wanted", lambda policy, ending: True)


def forget_how_often(patch: Patch) -> None:
    patch.setattr(restarts, "STARTS_MAX", 10**6)


def restart_at_once(patch: Patch) -> None:
    when_due = Lives._when_due
    patch.setattr(
        Lives, "_when_due", lambda self, life, lineage, not_before_s: when_due(self, life, lineage, self._loop.time())
    )


def leave_the_children(patch: Patch) -> None:
    patch.setattr(Agents, "children", lambda self, agent: [])


PLANTS: dict[Callable[[Patch], None], str] = {
    allow_what_cannot_be_recorded: "recorded first",
    answer_before_the_record: "recorded first",
    trust_that_it_is_durable: "durable first",
    answer_twice: "one answer",
    drop_an_answer: "everybody hears",
    wake_nobody: "everybody hears",
    rise_again: "no way back",
    overlook_a_stop: "true states",
    take_the_last_first: "slots",
    admit_one_too_many: "slots",
    go_on_while_stopped: "running time",
    stand_still_for_any_stop: "running time",
    let_one_more_pass: "quota",
    let_one_less_pass: "quota",
    kill_for_any_denial: "reasons",
    reap_before_the_record: "said first",
    deliver_unsaid: "said first",
    tell_an_exit_twice: "closed books",
    forget_who_waits: "closed books",
    restart_whatever_ended: "restarts",
    forget_how_often: "restarts",
    restart_at_once: "restarts",
    leave_the_children: "children",
    fail_without_a_name: "commands end",
}


def simulate_some(seeds: range) -> None:
    """One world need not meet every corner."""
    for seed in seeds:
        simulate(seed, PLANTED_STEPS)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_each_invariant_is_seen_to_fail(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violated) as caught:
        simulate_some(range(1, 6))
    assert caught.value.name == PLANTS[plant]


def test_no_invariant_is_without_a_fault_that_it_catches() -> None:
    assert set(PLANTS.values()) == set(INVARIANTS)


# --- any list of events --------------------------------------------------------------------------------------------

EVENTS = st.sampled_from([one for _, one in lifecycle.TRANSITIONS]).map(lambda event: event())


@given(st.lists(EVENTS, max_size=40))
def test_any_list_of_events_ends_in_a_known_state_or_a_named_error(events: list[Any]) -> None:
    state = State.STARTING
    for event in events:
        try:
            state = lifecycle.after(state, event)
        except IllegalTransition as error:
            assert (error.state, error.event) == (state, event)
            assert state is State.TERMINATED or isinstance(event, lifecycle.StartFailed)
        assert state in State
        assert lifecycle.public_state(state) in {"running", "stopped", "terminated", "waiting"}


class Silent(Books):
    """What is drawn at will need not be true, so that most invariants mean nothing here."""

    def __getattribute__(self, name: str) -> Any:
        return (lambda *_, **__: None) if name.startswith("on_") else super().__getattribute__(name)


numbers, words = (
    st.integers(0, 130),
    st.sampled_from(["", "x", "running", "stopped", "exec", "job control", "signal(tree)"]),
)
sentry_frames = st.one_of(
    st.builds(wire.Spawned, numbers, numbers), st.builds(wire.SpawnFailed, numbers, words),
    st.builds(wire.StateSeen, words, words), st.builds(wire.Exited, numbers, st.none(), numbers),
    st.builds(wire.Exited, st.none(), numbers, numbers), st.builds(wire.TreeGone, numbers),
    st.builds(wire.Delivered, numbers, st.booleans(), numbers, words, words), st.builds(wire.Pong, numbers),
    st.builds(wire.LogGrew, numbers, numbers), st.builds(wire.Hello, numbers, words, numbers),
)  # fmt: skip
agent_frames = st.one_of(
    st.builds(wire.Act, numbers, words, words, st.none(), st.none(), words, st.just({}), words),
    st.builds(wire.Outcome, numbers, st.booleans(), words), st.builds(wire.Result, st.binary()),
    st.builds(wire.Raised, words, words, words, st.none() | st.just({"rule": 1, "x": []})),
    st.builds(wire.Answer, numbers, st.booleans(), st.binary(), words), st.builds(wire.Hello, numbers, words, numbers),
    st.builds(wire.Call, numbers, words, st.just({})),
)  # fmt: skip
happenings = st.one_of(
    st.tuples(st.just("sentry"), sentry_frames), st.tuples(st.just("agent"), agent_frames),
    st.tuples(st.just("signal"), st.sampled_from(AgentSignal)), st.tuples(st.just("stop"), st.sampled_from([0.0, 5.0])),
    st.tuples(st.just("time"), st.sampled_from([0.0, 0.01, 1.0, 100.0])), st.tuples(st.just("die"), st.none()),
    st.tuples(st.just("confirm"), numbers), st.tuples(st.just("fail"), st.sampled_from([0.0, 1.0])),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(happenings, max_size=30), numbers)
def test_whatever_is_said_in_whatever_order_the_books_end_closed(events: list[tuple[str, Any]], seed: int) -> None:
    world = Multitude(seed, Silent)
    life = world.start()

    async def play() -> None:
        for kind, value in events:
            match kind:
                case "sentry":
                    life.say(value)
                case "agent":
                    life.take(value)
                case "signal":
                    world.do(world.endings.send(life.agent, value, None, "host"))
                case "stop":
                    world.do(world.endings.stop(life.agent, value, "host"))
                case "time":
                    await asyncio.sleep(value)
                case "die":
                    life.die()
                case "confirm":
                    world.recording.acknowledged(value)
                case _:
                    world.journal_fails_until_s = world.loop.time() + value
            assert life.agent.state in State
        life.die()
        await asyncio.sleep(300)

    try:
        world.loop.run_until_complete(play())
        assert life.agent.state is State.TERMINATED
        assert world.loop.faults == []
        assert not world.commands
        errors = {name for name in world.met if name.endswith(("Error", "Transition", "Alive"))}
        assert errors <= {one.__name__ for one in _named(AgentosError)}
    finally:
        world.close()


def _named(cls: type[Exception]) -> set[type[Exception]]:
    return {cls, *(below for one in cls.__subclasses__() for below in _named(one))}
