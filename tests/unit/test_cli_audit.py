"""Events told in one line, and the agents of past runs told from their events."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentos.cli.audit import in_order, one_line
from agentos.cli.past import fold
from agentos.runs import Run

RUN = "20260102T030405-1a2b3c"


def event(
    event_type: str, seq: int = 1, agent_id: str = "a1", agent_name: str = "report", **data: Any
) -> dict[str, Any]:
    ts = f"2026-01-02T03:04:{seq:02d}.678901Z"
    return {
        "seq": seq,
        "event_id": f"{RUN}-{seq}",
        "ts": ts,
        "event_type": event_type,
        "severity": "info",
        "agent_id": agent_id,
        "agent_name": agent_name,
        "execution_id": agent_id,
        "data": data,
    }


def test_actions_say_what_was_decided_and_why() -> None:
    told = one_line(event("action_allowed", operation="read", resource="data/a", rule=2, reason="granted"))
    assert told == "2026-01-02 03:04:01.678  report        read      data/a  allowed by rule 2: granted"
    told = one_line(event("policy_violation", operation="read", resource=".env", rule_name="secrets", reason="no"))
    assert told.endswith("read      .env  denied by secrets: no")
    told = one_line(event("policy_violation", operation="read", resource="/x", rule_name="outside", reason="Outside"))
    assert told.endswith("/x  denied by outside")
    told = one_line(event("policy_violation", operation="read", resource=".env", enforced=False))
    assert told.endswith(".env  allowed, would be denied by default")
    told = one_line(event("policy_violation_repeated", operation="read", resource=".env", rule=0, repeats=41))
    assert told.endswith("denied by rule 0 (41 more)")


def test_a_life_reads_as_a_story() -> None:
    assert one_line(event("agent_starting", command=["ls", "-l"], policy="workspace", level="none")).endswith(
        "start     ls -l  policy workspace, level none"
    )
    assert one_line(event("signal_sent", signal="SIGSTOP", scope="tree", sender="cli")).endswith(
        "signal    SIGSTOP to tree, from cli"
    )
    assert one_line(event("agent_exited", how="exit code 0", actions=3, violations=1)).endswith(
        "end       exit code 0; 3 actions, 1 denied"
    )
    assert one_line(event("kernel_stopped", agent_name="", agent_id="", why="shutdown")).endswith(
        "kernel        kernel stopped  shutdown"
    )
    assert one_line(event("agent_exited", how="exit code 0", actions=1, violations=0)).endswith("; 1 action, 0 denied")
    assert one_line(event("signal_confirmed", signal="SIGSTOP", ok=True, processes=1)).endswith("confirmed, 1 process")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)
KEYS = st.sampled_from(["operation", "resource", "rule", "rule_name", "reason", "command", "signal", "how", "x"])
TYPES = st.sampled_from(
    ["action_allowed", "policy_violation", "agent_starting", "agent_exited", "signal_sent", "new\x1b"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not a finding
@given(TYPES, st.text(), st.dictionaries(KEYS, VALUES))
def test_any_event_is_one_harmless_line(event_type: str, name: str, data: dict[str, Any]) -> None:
    assert one_line(event(event_type, agent_name=name, **data)).isprintable()


class Runs:
    """Records in memory: which are open at a time is what a thousand runs must not make many."""

    def __init__(self, spans: dict[str, list[str]]) -> None:
        self.runs = [Run(name, Path("/nowhere"), Path("/nowhere")) for name in spans]
        self._spans = spans
        self._open = 0
        self.open_max = 0

    def read(self, run: Run) -> Iterator[dict[str, Any]]:
        self._open += 1
        self.open_max = max(self.open_max, self._open)
        for number, ts in enumerate(self._spans[run.run_id]):
            yield {"ts": ts, "event_id": f"{run.run_id}-{number}"}
        self._open -= 1


def test_runs_are_told_by_time_and_opened_when_theirs_has_come() -> None:
    day = "2026-01-02T03:04:"
    spans = {f"20260102T0304{second:02d}-00000{second % 10}": [f"{day}{second:02d}.5Z", f"{day}{second + 3:02d}.2Z"]
             for second in range(50)}  # fmt: skip
    world = Runs(spans)
    told = list(in_order(list(reversed(world.runs)), world.read))
    assert [event["ts"] for event in told] == sorted(event["ts"] for event in told)
    assert len(told) == 100
    assert world.open_max <= 5
    assert list(in_order([], world.read)) == []


def test_past_agents_are_told_from_their_events() -> None:
    story = [
        event("agent_starting", 1, name="report", command=["ls"], policy="workspace", level="none", cwd="/w"),
        event("agent_started", 2, pid=42, sentry_pid=41),
        event("agent_starting", 3, agent_id="a2", name="lost", command=["sleep"], policy="workspace", level="none"),
        event("agent_exited", 4, exit_code=0, exit_signal=None, ended_by="", actions=3, violations=1),
        event("agent_exited", 5, agent_id="never-started", exit_code=0),
        event("agent_starting", 6, agent_id="a3", name="absent", command=["nothing"], policy="workspace"),
        event("agent_start_failed", 7, agent_id="a3", error="no such program"),
    ]
    report, lost, absent = fold(RUN, story)
    assert report["state"] == lost["state"] == absent["state"] == "terminated"
    assert absent["ended_by"] == "start failed"
    assert absent["ended_at"] > absent["started_at"]
    assert (report["pid"], report["exit_code"], report["actions_count"]) == (42, 0, 3)
    assert report["ended_at"] > report["started_at"]
    assert (lost["exit_code"], lost["exit_signal"]) == (None, None)  # nobody saw how, and we say so


def test_the_lives_of_a_restarted_agent_name_each_other_and_the_last_says_why_there_are_no_more() -> None:
    again = {"policy": "on-failure:1", "attempt": 1, "old_id": "a1", "new_id": "a2", "why": "exit code 1"}
    first, last = fold(RUN, [
        event("agent_starting", 1, name="loop", command=["false"]),
        event("agent_exited", 2, exit_code=1, ended_by=""),
        event("agent_restarting", 3, **again),
        event("agent_starting", 4, agent_id="a2", name="loop", command=["false"]),
        event("agent_exited", 5, agent_id="a2", exit_code=1, ended_by=""),
        event("agent_failed", 6, agent_id="a2", why="it was restarted once", policy="on-failure:1", restarts=1),
    ])  # fmt: skip
    assert (first["restart"], first["next_id"], first["ended_by"]) == ("on-failure:1", "a2", "")
    assert (last["restart"], last["restarts"], last["previous_id"]) == ("on-failure:1", 1, "a1")
    assert (last["failed"], last["exit_code"]) == ("it was restarted once", 1)
