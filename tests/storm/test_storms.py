"""Ten thousand times STOP and CONT: it ends as was asked last, and what is shown meanwhile is what Linux says.

Three trees at once: a process alone, one with children, one whose grandchildren have left its session and its group.
A sampler compares what is shown with /proc all the while; that it can catch a kernel that lies is tested beside it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import truth
from truth import Sample, Sampler, lies
from world import HERE, SYSTEM_PYTHON, state_of, wait_until

from agentos import wire
from agentos.client import launch
from agentos.client.link import Link, connect
from agentos.faults import rebuild
from agentos.supervisor import tree

SIGNALS = int(os.environ.get("AGENTOS_TEST_SIGNALS", "10000"))
SEED = int(os.environ.get("AGENTOS_TEST_SEED", "0")) or random.randrange(1 << 32)
BURST_MAX = 600
REST_S = (0.06, 0.2)  # between two bursts: a state that was never told stays wrong, and is seen to
TRIES = 20
MEMBERS = {"alone": 1, "children": 4, "strays": 5}
STOP, CONT = signal.SIGSTOP, signal.SIGCONT


class Storm:
    """A kernel of its own with the three trees, and a link to command them over."""

    def __init__(self, link: Link, run: Any) -> None:
        self.link, self._run = link, run
        self.agents = {name: self._start(name) for name in MEMBERS}

    def _start(self, name: str) -> dict[str, Any]:
        argv = [SYSTEM_PYTHON, str(HERE / "family.py"), name]
        agent = self.link.call("start", {"kind": "program", "name": name, "argv": argv, "require": "none", "cwd": "/"})
        seen: dict[str, Any] = self.link.call("inspect", {"id": agent["id"]})
        wait_until(lambda: len(self.members(seen)) == MEMBERS[name], what=f"the tree of {name}")
        return seen

    def members(self, agent: dict[str, Any]) -> list[int]:
        return [one.pid for one in tree.members(agent["sentry_pid"])]

    def sampler(self) -> Sampler:
        return Sampler(connect(self._run), self.agents.values())

    def send(self, orders: list[tuple[str, signal.Signals]]) -> None:
        """Send all of them without waiting, then have every answer; each must be a yes."""
        waiting = set()
        for name, number in orders:
            call = wire.Call(self.link.new_id(), "signal", {"id": self.agents[name]["id"], "signal": int(number)})
            self.link.send(call)
            waiting.add(call.id)
        while waiting:
            frame = self.link.receive()
            if isinstance(frame, wire.Fault):
                raise rebuild(frame)
            if isinstance(frame, wire.Reply):
                waiting.remove(frame.id)
                assert frame.value["ok"], frame.value

    def assert_is(self, name: str, last: signal.Signals) -> None:
        """What was asked last is so: shown, and of every process of the tree."""
        agent, stopped = self.agents[name], last is STOP
        assert (self.link.call("status", {"id": agent["id"]})["state"] == "stopped") is stopped
        found = {pid: state_of(pid) for pid in self.members(agent)}
        assert len(found) == MEMBERS[name]
        assert all((state in "Tt") is stopped for state in found.values()), (name, last, found)


@contextmanager
def storm(base: Path, fault: str = "") -> Iterator[Storm]:
    """`fault`: Python that every process of that kernel runs before it begins, to make it a liar."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTOS_RUNTIME_DIR", str(base / "run"))
        patch.setenv("AGENTOS_STATE_DIR", str(base / "state"))
        boot = launch._BOOT_CODE.replace("from agentos", fault + "\nfrom agentos", 1)
        patch.setattr(launch, "_BOOT_CODE", boot)
        started = launch.start_kernel(policy="permissive", workspace=str(base))
        try:
            yield Storm(started.link, started.run)
        finally:
            started.link.call("shutdown")
            started.link.close()
            started.guard.wait(30)


def blow(place: Storm, count: int, chance: random.Random) -> None:
    """Send `count` signals in bursts; after each burst everybody is as was asked last."""
    left = count
    while left:
        size = min(left, chance.randint(1, BURST_MAX))
        left -= size
        orders = [(chance.choice(list(MEMBERS)), chance.choice((STOP, CONT))) for _ in range(size)]
        place.send(orders)
        for name, last in dict(orders).items():  # a dict keeps the last of each
            place.assert_is(name, last)
        time.sleep(chance.uniform(*REST_S))
        for name, last in dict(orders).items():
            place.assert_is(name, last)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [SEED])  # a failure names it
def test_a_storm_ends_as_was_asked_last_and_no_lie_gets_old(tmp_path: Path, seed: int) -> None:
    with storm(tmp_path) as place:
        sampler = place.sampler()
        sampler.start()
        blow(place, SIGNALS, random.Random(seed))
        for samples in sampler.finish().values():
            assert lies(samples) == []
            assert len(samples) > 100
            assert truth.seen_s(samples) > 0.5
            assert {one.shown for one in samples} == {True, False}


# --- a sampler that could not catch a liar would prove nothing ------------------------------------------------------

FORGETS = """
from agentos.supervisor import broker
def forget(self, agent, frame, told=broker.Broker._on_state):
    if frame.state != "stopped" or agent.name != "children":
        told(self, agent, frame)
broker.Broker._on_state = forget
"""
PROMISES = """
from agentos import lifecycle
from agentos.supervisor import endings
def promise(self, agent, signal, held=endings.Endings._hold):
    held(self, agent, signal)
    agent.state = lifecycle.State.STOPPED if agent.held else lifecycle.State.RUNNING
endings.Endings._hold = promise
"""


def sampled(place: Storm, name: str, act: Callable[[], None]) -> list[Sample]:
    agent_id = place.agents[name]["id"]
    sampler = place.sampler()
    sampler.start()
    wait_until(lambda: sampler.samples.get(agent_id), what="the first samples")
    act()
    return sampler.finish()[agent_id]


def stop_while_the_sentry_is_held_up(place: Storm) -> None:
    """The command is given, and for a while nobody carries it out."""
    agent = place.agents["alone"]
    os.kill(agent["sentry_pid"], STOP)
    call = wire.Call(place.link.new_id(), "signal", {"id": agent["id"], "signal": int(STOP)})
    place.link.send(call)
    time.sleep(0.5)
    os.kill(agent["sentry_pid"], CONT)
    while not isinstance(place.link.receive(), wire.Reply):
        pass


def test_a_command_that_is_not_carried_out_yet_is_not_shown_as_done(tmp_path: Path) -> None:
    with storm(tmp_path) as place:
        samples = sampled(place, "alone", lambda: stop_while_the_sentry_is_held_up(place))
        assert lies(samples) == []
        place.assert_is("alone", STOP)


def test_a_kernel_that_shows_what_was_asked_is_caught(tmp_path: Path) -> None:
    assert stands_convicted(tmp_path, PROMISES, "alone", stop_while_the_sentry_is_held_up) == {True}


def test_a_kernel_that_misses_what_its_sentry_says_is_caught(tmp_path: Path) -> None:
    assert stands_convicted(tmp_path, FORGETS, "children", stop_and_rest) == {False}


def stop_and_rest(place: Storm) -> None:
    place.send([("children", CONT), ("children", STOP)] * 20)
    time.sleep(0.5)


def stands_convicted(tmp_path: Path, fault: str, name: str, act: Callable[[Storm], None]) -> set[bool]:
    """Return what a lying kernel was caught showing; the sampler may need some tries to be in time."""
    with storm(tmp_path, fault) as place:
        for _ in range(TRIES):
            caught = lies(sampled(place, name, lambda: act(place)))
            if caught:
                return {one.shown for one in caught}
            place.send([(name, CONT)])
    return set()


# --- the judge -----------------------------------------------------------------------------------------------------


def samples_of(*looks: tuple[float, bool, bool], held_up_s: float = 0.0, every_s: float = 0.002) -> list[Sample]:
    """Make samples from (seconds, what Linux says, what is shown)."""
    made, now_s = list[Sample](), 0.0
    for lasts_s, linux, shown in looks:
        for _ in range(round(lasts_s / every_s)):
            held_so_far_s = held_up_s if now_s > 0.12 else 0.0
            made.append(Sample(now_s, linux, now_s, shown, now_s + 0.001, linux, now_s + 0.001, held_so_far_s))
            now_s += every_s
    return made


AGREED = (0.1, False, False)


def test_a_disagreement_is_a_lie_once_it_is_older_than_the_limit() -> None:
    assert lies(samples_of(AGREED, (0.04, True, False), (0.1, True, True))) == []
    (lie,) = lies(samples_of(AGREED, (0.08, True, False), (0.1, True, True)))
    assert lie.shown is False
    assert lie.lasted_s == pytest.approx(0.077, abs=0.003)
    (lie,) = lies(samples_of(AGREED, (0.08, True, False)))  # also one that nobody ended
    assert lie.shown is False


def test_who_waits_for_a_processor_does_not_lie_meanwhile() -> None:
    assert lies(samples_of(AGREED, (0.08, True, False), AGREED, held_up_s=0.04)) == []
    assert lies(samples_of(AGREED, (0.2, True, False), AGREED, held_up_s=0.04)) != []


def test_a_change_in_between_is_a_new_disagreement() -> None:
    flicker = [(0.04, True, False), (0.002, False, False)] * 5
    assert lies(samples_of(AGREED, *flicker)) == []
    crossing = [(0.04, True, False), (0.04, False, True)] * 5
    assert lies(samples_of(AGREED, *crossing)) == []


def test_a_sampler_that_was_late_claims_nothing_of_the_time_it_missed() -> None:
    assert lies(samples_of(AGREED, (0.2, True, False), every_s=0.02)) == []
    assert truth.seen_s(samples_of((0.2, True, True), every_s=0.02)) == 0
    assert truth.seen_s(samples_of((0.2, True, True))) == pytest.approx(0.2, abs=0.003)


def test_a_few_looks_prove_nothing() -> None:
    assert lies(samples_of(AGREED, (0.08, True, False), every_s=0.009)) == []
    assert lies(samples_of(AGREED, (0.2, True, False), every_s=0.009)) != []
