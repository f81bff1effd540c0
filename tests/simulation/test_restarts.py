"""Restarts, clocks and children on a virtual clock: the kernel's own parts on real pipes, hours in no time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from lives_world import GRACE_S, Script, World

from agentos.errors import AgentosError, AgentTimeoutError, ProgramNotRunnable
from agentos.lifecycle import State
from agentos.signals import AgentSignal
from agentos.supervisor import restarts
from agentos.supervisor.agents import Agent
from agentos.supervisor.lineage import last_life, latest
from agentos.supervisor.outcome import outcome

CRASH = Script(runs_s=0.01, code=3)
FINE = Script(runs_s=0.01)
LONGEST = 0.999  # the dice that delay most


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def test_a_crash_loop_is_started_ten_times_and_has_then_failed_for_good(tmp_path: Path) -> None:
    for seed in range(20):
        directory = tmp_path / str(seed)
        directory.mkdir()
        with World(directory, dice=random.Random(seed).random) as world:

            async def story(world: World = world) -> None:
                first = await world.start("loop", CRASH, restart="always")
                last = await last_life(first)
                assert (last.restarts, last.exit_code) == (9, 3)
                assert last.failed == "it was started 10 times within 120 s"
                assert world.agents.living() == []
                await asyncio.sleep(1_000)

            world.run(story())
            starts = world.starts["loop"]
            assert len(starts) == restarts.STARTS_MAX
            assert starts[-1] - starts[0] < 52
            assert len({event.agent_id for event in world.events("agent_exited")}) == 10
            [failed] = world.events("agent_failed")
            assert failed.data["restarts"] == 9


def test_lives_have_ids_of_their_own_one_name_one_execution_and_hand_on_what_was_saved(world: World) -> None:
    async def story() -> None:
        first = await world.start("flaky", CRASH, CRASH, FINE, restart="on-failure:5")
        first.saved_state = b"saved"
        last = await last_life(first)
        middle = first.successor
        assert middle is not None
        assert middle.successor is last
        assert len({first.id, middle.id, last.id}) == 3
        assert {one.execution_id for one in (first, middle, last)} == {first.id}
        assert {one.name for one in (first, middle, last)} == {"flaky"}
        assert (last.exit_code, last.failed, last.saved_state) == (0, "", b"saved")
        assert [one.state for one in (first, middle, last)] == [State.TERMINATED] * 3
        row = middle.row("run")
        assert (row["previous_id"], row["next_id"], row["restarts"]) == (first.id, last.id, 1)

    world.run(story())
    told = world.events("agent_restarting")
    assert [event.data["attempt"] for event in told] == [1, 2]
    assert [event.data["why"] for event in told] == ["exit code 3"] * 2
    begun = world.events("agent_starting")
    assert [(event.data["old_id"], event.data["new_id"]) for event in told] == [
        (begun[0].agent_id, begun[1].agent_id),
        (begun[1].agent_id, begun[2].agent_id),
    ]
    assert [event.agent_id for event in told] == [event.agent_id for event in begun[:2]]
    assert {event.execution_id for event in begun} == {begun[0].agent_id}


def test_an_agent_in_its_back_off_is_shown_holds_no_slot_and_can_be_told_not_to_start(tmp_path: Path) -> None:
    with World(tmp_path, slots=1, dice=lambda: LONGEST) as world:

        async def story() -> None:
            first = await world.start("loop", CRASH, restart="always")
            await world.until(lambda: latest(first).restarts == 7)  # the delay before the seventh is 6.4 s
            waiting = latest(first)
            row = waiting.row("run")
            assert (row["state"], row["pid"], row["restarts"]) == ("waiting", 0, 7)
            assert row["restart_at"]
            await world.start("other", FINE)  # there is one slot
            assert world.starts["other"]
            stopped = await world.endings.send(waiting, AgentSignal.SIGSTOP, None, "cli")
            assert (stopped.ok, stopped.detail) == (False, "it has not started: it waits to be restarted")
            await world.endings.stop(waiting, None, "cli")
            assert await last_life(first) is not waiting
            assert waiting.row("run")["restart_at"] is None
            await asyncio.sleep(1_000)
            assert len(world.starts["loop"]) == 7
            assert world.agents.living() == []
            assert first.lineage is not None
            assert first.lineage.stdin is None
            assert world.starting._line_bytes == 0

        world.run(story())


@pytest.mark.parametrize("signal", [AgentSignal.SIGTERM, AgentSignal.SIGKILL])
def test_who_is_told_to_end_stays_ended(world: World, signal: AgentSignal) -> None:
    async def story() -> None:
        agent = await world.start("served", restart="always")
        await world.endings.send(agent, signal, None, "cli")
        assert await last_life(agent) is agent
        reluctant = await world.start(
            "reluctant", Script(runs_s=500, code=9, ignores=frozenset({AgentSignal.SIGTERM})), restart="always"
        )
        await world.endings.send(reluctant, AgentSignal.SIGTERM, None, "cli")
        assert not reluctant.ended
        assert await last_life(reluctant) is reluctant
        assert reluctant.exit_code == 9

    world.run(story())
    assert world.events("agent_restarting") == []


def test_a_signal_that_nobody_commanded_is_a_failure_and_enforcement_is_none(world: World) -> None:
    async def story() -> None:
        killed = await world.start("killed", Script(runs_s=1, signal=9), FINE, restart="on-failure")
        assert (await last_life(killed)).restarts == 1
        for why in ("policy", "protocol"):
            agent = await world.start(why, restart="always")
            agent.ended_by = why
            world.endings.send_soon(agent, AgentSignal.SIGKILL, "tree")
            assert await last_life(agent) is agent

    world.run(story())


@pytest.mark.parametrize(
    ("signal", "vetoed", "ended_by"),
    [("SIGSTOP", False, ""), ("SIGCONT", False, ""), ("SIGTERM", True, ""), ("SIGKILL", False, "policy")],
)
def test_only_what_was_sent_and_may_end_an_agent_is_said_to_have_ended_it(
    world: World, monkeypatch: pytest.MonkeyPatch, signal: str, vetoed: bool, ended_by: str
) -> None:
    async def before(*_: object) -> str:
        return "a handler vetoed it" if vetoed else ""

    async def story() -> None:
        agent = await world.start("sent", Script(runs_s=60))
        world.endings.send_soon(agent, AgentSignal[signal], "tree")
        await asyncio.sleep(1)
        assert agent.ended_by == ended_by

    monkeypatch.setattr(world.endings.hearings, "concerns", lambda *_: True)
    monkeypatch.setattr(world.endings.hearings, "before", before)
    world.run(story())


def test_a_veto_takes_nothing_back_of_what_another_rule_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an agent that its policy kills would count as one that failed, and would be started again."""

    async def before(*_: object) -> str:
        await asyncio.sleep(1)
        return "a handler vetoed it"

    async def story() -> None:
        agent = await world.start("both", Script(runs_s=60), restart="always")
        world.endings.send_soon(agent, AgentSignal.SIGTERM, "tree")
        world.endings.send_soon(agent, AgentSignal.SIGKILL, "tree")
        await asyncio.sleep(5)
        assert (agent.ended_by, agent.successor) == ("policy", None)

    monkeypatch.setattr(world.endings.hearings, "concerns", lambda _, signal: signal is AgentSignal.SIGTERM)
    monkeypatch.setattr(world.endings.hearings, "before", before)
    world.run(story())


def test_success_is_restarted_by_always_alone(world: World) -> None:
    async def story() -> None:
        once = await world.start("once", FINE, restart="on-failure")
        assert await last_life(once) is once
        again = await world.start("again", FINE, FINE, restart="always")
        assert (await last_life(again)).restarts == restarts.STARTS_MAX - 1

    world.run(story())


def test_nobody_is_restarted_while_the_kernel_ends(world: World) -> None:
    async def story() -> None:
        agent = await world.start("served", restart="always")
        loop = await world.start("loop", CRASH, restart="always")
        await asyncio.sleep(0.02)
        world.starting.close()
        for one in world.agents.living():
            await world.endings.kill(one, "kernel")
        assert (await last_life(agent), world.agents.living()) == (agent, [])
        assert loop.gone.is_set()

    world.run(story())
    assert world.events("agent_failed") == []  # nobody was to be restarted


def test_a_first_start_that_fails_is_the_callers_a_later_one_is_a_failure(world: World) -> None:
    async def story() -> None:
        with pytest.raises(ProgramNotRunnable):
            await world.start("never", Script(fails_to_start=True), restart="always")
        await asyncio.sleep(100)
        assert len(world.starts["never"]) == 1
        agent = await world.start("late", CRASH, Script(fails_to_start=True), FINE, restart="on-failure")
        last = await last_life(agent)
        assert (last.restarts, last.exit_code) == (2, 0)

    world.run(story())
    assert world.starting._line_bytes == 0


# --- clocks ----------------------------------------------------------------------------------------------------------


async def pause(world: World, agent: Agent, seconds: float) -> None:
    """Have an agent stopped for so long."""
    await world.endings.send(agent, AgentSignal.SIGSTOP, None, "cli")
    await asyncio.sleep(seconds)
    await world.endings.send(agent, AgentSignal.SIGCONT, None, "cli")


def test_the_window_of_starts_stands_still_while_the_agent_is_stopped(tmp_path: Path) -> None:
    with World(tmp_path, dice=lambda: 0.0) as world:

        async def story() -> None:
            agent = await world.start("loop", Script(runs_s=1.0, code=1), restart="always")
            await asyncio.sleep(0.5)
            await pause(world, agent, 7_200)  # no two minutes pass in these two hours
            last = await last_life(agent)
            assert last.failed == "it was started 10 times within 120 s"

        world.run(story())
        assert len(world.starts["loop"]) == restarts.STARTS_MAX


def test_a_life_is_not_healthy_for_having_been_stopped_long(tmp_path: Path) -> None:
    with World(tmp_path, dice=lambda: LONGEST) as world:

        async def story() -> None:
            agent = await world.start("loop", CRASH, CRASH, CRASH, Script(runs_s=2.0, code=1), FINE, restart="always")
            await world.until(lambda: latest(agent).restarts == 3 and bool(latest(agent).pid))
            await pause(world, latest(agent), 3_600)
            await last_life(agent)

        world.run(story())
        delays = [event.data["delay_s"] for event in world.events("agent_restarting")]
        assert delays[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6], rel=0.01)  # the fourth life began nothing anew


def test_a_healthy_life_begins_the_back_off_anew(tmp_path: Path) -> None:
    with World(tmp_path, dice=lambda: LONGEST) as world:
        well = Script(runs_s=restarts.HEALTHY_S + 1, code=1)

        async def story() -> None:
            await last_life(await world.start("loop", CRASH, CRASH, CRASH, well, CRASH, FINE, restart="on-failure"))

        world.run(story())
        delays = [event.data["delay_s"] for event in world.events("agent_restarting")]
        assert delays == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2], rel=0.01)


def test_time_out_and_grace_stand_still_while_the_agent_is_stopped(world: World) -> None:
    stubborn = Script(ignores=frozenset({AgentSignal.SIGALRM, AgentSignal.SIGTERM}))

    async def story() -> None:
        begun_s = world.loop.time()
        agent = await world.start("slow", stubborn, timeout_s=5.0)
        await asyncio.sleep(4)
        await pause(world, agent, 600)
        assert not agent.timed_out
        await asyncio.sleep(1.1)
        assert agent.timed_out
        assert not agent.ended
        await pause(world, agent, 600)  # in its grace
        assert not agent.ended
        await agent.gone.wait()
        ran_s = world.loop.time() - begun_s - 1_200
        assert ran_s == pytest.approx(5 + GRACE_S, abs=0.01)
        with pytest.raises(AgentTimeoutError):
            outcome(agent)

    world.run(story())


def test_the_grace_of_a_stop_stands_still_while_the_agent_is_stopped(world: World) -> None:
    async def story() -> None:
        agent = await world.start("slow", Script(ignores=frozenset({AgentSignal.SIGTERM})))
        stopping = world.loop.create_task(world.endings.stop(agent, 3.0, "cli"))
        await asyncio.sleep(1)
        begun_s = world.loop.time()
        await pause(world, agent, 600)
        assert not agent.ended
        await stopping
        assert world.loop.time() - begun_s - 600 == pytest.approx(2, abs=0.01)

    world.run(story())


def test_sigalrm_may_be_handled_within_the_grace_and_counts_as_a_failure(world: World) -> None:
    tidy = Script(handles=((AgentSignal.SIGALRM, 1.0, 0),))

    async def story() -> None:
        agent = await world.start("tidy", tidy, timeout_s=2.0, restart="on-failure:1")
        last = await last_life(agent)
        assert (agent.exit_code, last.exit_code, last.restarts) == (0, 0, 1)
        assert last.failed == "it was restarted 1 times, as often as on-failure:1 allows"
        with pytest.raises(AgentTimeoutError, match="not restarted any more"):
            outcome(last)

    world.run(story())
    assert [event.data["why"] for event in world.events("agent_restarting")] == ["exit code 0, timeout"]


# --- children --------------------------------------------------------------------------------------------------------


def test_children_are_ended_with_their_parent_down_to_the_last(world: World) -> None:
    async def story() -> None:
        parent = await world.start("parent", Script(runs_s=5.0))
        child = await world.start("child", parent=parent)
        deaf = await world.start("deaf", Script(ignores=frozenset({AgentSignal.SIGTERM})), parent=parent)
        grandchild = await world.start("grandchild", parent=child)
        crashing = await world.start("crashing", CRASH, parent=parent, restart="always")
        stranger = await world.start("stranger")
        await parent.gone.wait()
        ended_s = world.loop.time()
        for one in (child, deaf, grandchild, latest(crashing)):
            await one.gone.wait()
            assert one.ended_by == "parent ended"
        assert world.loop.time() - ended_s < GRACE_S + 0.5
        assert (child.exit_signal, deaf.exit_signal) == (15, 9)
        with pytest.raises(AgentosError, match="its parent had ended"):
            outcome(child)
        assert world.agents.living() == [stranger]
        await asyncio.sleep(100)
        assert world.agents.living() == [stranger]
        await world.endings.kill(stranger, "cli")

    world.run(story())


def test_a_child_that_ends_in_the_same_moment_is_not_restarted(world: World) -> None:
    async def story() -> None:
        parent = await world.start("parent")
        child = await world.start("child", Script(runs_s=5.0, code=1), parent=parent, restart="always")
        await asyncio.sleep(1)
        child.exit_code = 1
        world.endings.finish(parent)  # Linux tells of both ends in one turn of the loop
        world.endings.finish(child)
        await asyncio.sleep(1)
        assert world.agents.living() == []

    world.run(story())
    assert world.events("agent_restarting") == []


def test_a_restarted_parent_meets_no_children_of_its_previous_life(world: World) -> None:
    async def story() -> None:
        parent = await world.start("parent", Script(runs_s=1.0, code=1), Script(runs_s=1.0), restart="on-failure")
        child = await world.start("child", parent=parent)
        await last_life(parent)
        assert child.ended_by == "parent ended"
        assert world.agents.living() == []

    world.run(story())


def test_a_child_that_is_being_started_when_its_parent_ends_is_not_born(world: World) -> None:
    async def story() -> None:
        parent = await world.start("parent")
        world.recording.send = lambda frame: world.loop.call_later(3.0, world.recording.acknowledged, frame.seq)
        starting = world.loop.create_task(world.start("child", parent=parent))
        await asyncio.sleep(1)
        world.endings.send_soon(parent, AgentSignal.SIGKILL, "tree")
        with pytest.raises(AgentosError, match="parent, the parent of child, has ended"):
            await starting
        assert "child" not in world.starts
        orphan = await world.start("orphan", FINE, parent=parent)  # the host program names a parent that is over
        await orphan.gone.wait()
        assert orphan.ended_by == ""

    world.run(story())
