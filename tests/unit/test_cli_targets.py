"""A word means one agent, or a glob's many, or it is an error that lists what it could have meant."""

from pathlib import Path

import pytest

from agentos.cli.targets import Agent, AgentEnded, resolve, resolve_all, short_ids
from agentos.errors import UnknownAgent
from agentos.runs import Run

RUN = Run("20260102T030405-1a2b3c", Path("/nowhere/r"), Path("/nowhere/s"))


def agent(agent_id: str, name: str, *, ended: str | None = None, started: str = "2026-01-02T03:04:05Z") -> Agent:
    state = "terminated" if ended else "running"
    row = {"id": agent_id, "name": name, "state": state, "started_at": started, "ended_at": ended, "exit_code": 0}
    return Agent(row, RUN)


A = agent("01900000-aaaa-7000-8000-000000000001", "report")
B = agent("01900000-aaab-7000-8000-000000000002", "worker-1")
C = agent("01900000-bbbb-7000-8000-000000000003", "worker-2")
OLD = agent("01800000-cccc-7000-8000-000000000004", "old", ended="2026-01-01T00:00:00Z", started="2026-01-01T00:00:00Z")
OLDER = agent(
    "01700000-cccc-7000-8000-000000000005", "old", ended="2025-01-01T00:00:00Z", started="2025-01-01T00:00:00Z"
)
GONE = agent("01600000-cccc-7000-8000-000000000006", "report", ended="2025-01-01T00:00:00Z")
NAMED_AS_ID = agent("01500000-cccc-7000-8000-000000000007", A.id)
NAMED_AS_GLOB = agent("01400000-cccc-7000-8000-000000000008", "w*")
ALL = [A, B, C, OLD, OLDER, GONE]

MEANINGS = [
    ("report", ALL, [A]),  # the living one of two
    (A.id, ALL, [A]),
    ("01900000-aaab", ALL, [B]),
    ("01900000bbbb", ALL, [C]),  # without dashes
    ("01900000-BBBB", ALL, [C]),
    ("0180", ALL, [OLD]),
    ("worker-*", ALL, [B, C]),
    ("worker-[1]", ALL, [B]),
    ("old", ALL, [OLD]),  # the newest of the ended
    ("old*", ALL, [OLD, OLDER]),
    (A.id, [A, NAMED_AS_ID], [NAMED_AS_ID]),  # exact name before exact id
    ("w*", [B, C, NAMED_AS_GLOB], [NAMED_AS_GLOB]),  # exact name before glob
]


@pytest.mark.parametrize(("target", "agents", "meant"), MEANINGS)
def test_what_a_target_means(target: str, agents: list[Agent], meant: list[Agent]) -> None:
    assert resolve(target, agents) == meant


@pytest.mark.parametrize("target", ["repor", "x*", "", "0190zzzz", "01", "worker-"])
def test_a_target_that_means_nobody(target: str) -> None:
    with pytest.raises(UnknownAgent) as caught:
        resolve(target, ALL)
    assert caught.value.exit_code == 3
    assert not caught.value.matches


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UnknownAgent, match="did you mean 'report'"):
        resolve("repotr", ALL)


def test_an_ambiguous_prefix_lists_its_matches() -> None:
    with pytest.raises(UnknownAgent) as caught:
        resolve("01900000-aaa", ALL)
    assert [B.id in match or A.id in match for match in caught.value.matches] == [True, True]


def test_two_living_agents_of_one_name_are_ambiguous() -> None:
    twin = agent("01900000-dddd-7000-8000-000000000009", "report")
    with pytest.raises(UnknownAgent) as caught:
        resolve("report", [*ALL, twin])
    assert len(caught.value.matches) == 2


def test_several_targets_name_each_agent_once_and_every_mistake() -> None:
    found, unknown = resolve_all(["worker-*", "worker-1", "nobody", "nobody-else"], ALL)
    assert found == [B, C]
    assert [error.target for error in unknown] == ["nobody", "nobody-else"]


def test_short_ids_tell_agents_apart() -> None:
    ids = [A.id, B.id, C.id]
    short = short_ids(ids)
    assert len(set(short.values())) == 3
    assert all(full.startswith(short[full]) for full in ids)
    assert short_ids([A.id]) == {A.id: "01900000"}
    assert short_ids([]) == {}
    assert all(resolve(short[each.id], [A, B, C]) == [each] for each in (A, B, C))


def test_an_ended_agent_says_how() -> None:
    assert str(AgentEnded(OLD)) == "agent 'old' has ended (exit code 0)"
