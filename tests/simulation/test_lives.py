"""Lives of agents by dice: whatever comes in whatever order, the books end closed, true and complete.

The number in a failed test's name is its seed: `AGENTOS_SEED=n` runs that life alone, `AGENTOS_LIVES=n` runs more.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from simulated import World

from agentos import wire
from agentos.lifecycle import State

LIVES = int(os.environ.get("AGENTOS_LIVES", "150"))
SEEDS = [int(os.environ["AGENTOS_SEED"])] if "AGENTOS_SEED" in os.environ else range(LIVES)
STEPS = 60


@pytest.mark.parametrize("seed", SEEDS)
def test_a_life(seed: int, tmp_path: Path) -> None:
    world = World(seed, tmp_path)
    loop, agent = world.loop, world.agent
    try:
        commands = loop.run_until_complete(world.live(STEPS))
        # every command was answered, none with a fault
        assert all(command.done() for command in commands)
        assert [error for command in commands if (error := command.exception())] == []
        answers = [command.result() for command in commands]
        assert [one for one in answers if isinstance(one, wire.Delivered) and "not confirmed" in one.detail] == []
        # the books are closed, once
        assert agent.gone.is_set()
        assert agent.state is State.TERMINATED
        assert world.gone == [agent]
        assert agent.descriptors == []
        assert agent.to_sentry is None
        assert agent.intake is None
        assert not agent.deliveries
        assert not agent.queries
        assert loop.faults == []
    finally:
        watched = world.close()
    assert watched == 0
    assert loop.faults == []
    events = world.events()
    kinds = Counter(event.event_type for event in events)
    # the exit that was told is the exit on record, whether or not the sentry lived to be thanked for it
    told = world.sentry.exit
    exits = [
        (event.data["exit_code"], event.data["exit_signal"]) for event in events if event.event_type == "agent_exited"
    ]
    assert exits == ([told] if told is not None else [])
    assert kinds["sentry_lost"] == (0 if world.sentry.said_goodbye else 1)
    if told is None:
        assert (agent.exit_code, agent.exit_signal) == (None, 9)
    # what the agent was told had been recorded before, and all of it was told while somebody could hear it
    acted = [event for event in events if event.event_type in ("action_allowed", "policy_violation")]
    assert set(world.agent_side.answered) <= set(world.agent_side.sent)
    assert len(world.agent_side.answered) == len(set(world.agent_side.answered))
    recorded = {event.data["action_id"] for event in acted}
    repeats = sum(event.data["repeats"] for event in events if event.event_type == "policy_violation_repeated")
    assert len(recorded) + repeats >= len(world.agent_side.answered)
    # a broken stream is recorded once, and ends the agent unless it ended before
    assert kinds["protocol_error"] <= 1
    if world.agent_side.left_half and told is not None and not world.agent_side.broke_it:
        assert kinds["protocol_error"] == 1
    # no signal was sent that is not on record, and in the order of the commands
    sent = [event.data["signal"] for event in events if event.event_type == "signal_sent"]
    assert len(world.sentry.commands) <= len(sent)


def test_the_dice_reach_every_corner(tmp_path: Path) -> None:
    """A simulation that never loses a sentry or times out proves little."""
    met: Counter[str] = Counter()
    for seed in range(120):
        directory = tmp_path / str(seed)
        directory.mkdir()
        world = World(seed, directory)
        try:
            world.loop.run_until_complete(world.live(STEPS))
            met[world.agent.ended_by or "itself"] += 1
        finally:
            world.close()
        met.update(event.event_type for event in world.events())
    wanted = {
        "agent_exited", "sentry_lost", "agent_timeout", "protocol_error", "policy_violation_repeated", "action_refused",
        "agent_stopped", "agent_continued", "leftovers_killed", "agent_start_failed", "signal_confirmed",
        "itself", "stop", "timeout", "protocol",
    }  # fmt: skip
    assert wanted - set(met) == set()
