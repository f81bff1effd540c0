"""What the records say: the events of every run, and the agents of runs whose kernel is gone.

The one place of the command line that opens records, so `ps`, `kill` and the rest of the living never pay for it.
An event here is the object that `audit --json` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from agentos.cli.calls import living_agents
from agentos.cli.targets import Agent, resolve_all
from agentos.errors import UnknownAgent
from agentos.runs import Run, recorded_runs

Event = dict[str, Any]
LIFE: Final = ("agent_starting", "agent_started", "agent_exited", "sentry_lost")


def events(
    run: Run,
    *,
    event_types: Sequence[str] = (),
    severities: Sequence[str] = (),
    after_seq: int = 0,
) -> Iterator[Event]:
    """Yield the events of one run in the order of its record, those after `after_seq`; nothing where none is."""
    from agentos.recorder.reader import RunReader  # noqa: PLC0415  # SQLite: who only asks the living must not load it

    reader = RunReader(run.state)
    try:
        for event in reader.events(after_seq=after_seq):
            if (not event_types or event.event_type in event_types) and (
                not severities or event.severity in severities
            ):
                yield event.to_json()
    finally:
        reader.close()


def find_agents(targets: Sequence[str]) -> tuple[list[Agent], list[UnknownAgent]]:
    """Return the agents that `targets` mean, in live runs first, in records after; and what means none."""
    present = living_agents()
    found, unknown = resolve_all(targets, present)
    ambiguous = [error for error in unknown if error.matches]
    missing = [error.target for error in unknown if not error.matches]
    if not missing:
        return found, ambiguous
    from_records, still_unknown = resolve_all(missing, [*past_agents(), *present])
    return [*found, *from_records], [*ambiguous, *still_unknown]


def past_agents() -> list[Agent]:
    """Return the agents of all runs that left a record and are not alive, oldest first."""
    found = []
    for run in recorded_runs():
        if not run.alive():
            found += [Agent(row, run) for row in fold(run.run_id, events(run, event_types=LIFE))]
    return found


def fold(run_id: str, story: Iterable[Event]) -> list[dict[str, Any]]:
    """Return a row for every agent that the events of one run tell of. Pure."""
    rows: dict[str, dict[str, Any]] = {}
    policy = None
    for event in story:
        data, agent_id = event["data"], event["agent_id"]
        if event["event_type"] == "agent_starting":
            policy = data.get("policy")
            rows[agent_id] = {
                "id": agent_id, "name": data.get("name"), "run": run_id, "pid": None, "sentry_pid": None,
                "state": "terminated", "level": data.get("level"), "policy": policy, "command": data.get("command"),
                "started_at": event["ts"], "actions_count": None, "violations_count": None, "exit_code": None,
                "exit_signal": None, "ended_at": event["ts"], "cwd": data.get("cwd"), "source": "record",
            }  # fmt: skip
        elif agent_id in rows:
            rows[agent_id].update(_told_by(event))
    return list(rows.values())


def _told_by(event: Event) -> dict[str, Any]:
    data = event["data"]
    if event["event_type"] == "agent_started":
        return {"pid": data.get("pid"), "sentry_pid": data.get("sentry_pid")}
    if event["event_type"] == "agent_exited":
        return {
            "exit_code": data.get("exit_code"), "exit_signal": data.get("exit_signal"), "ended_at": event["ts"],
            "ended_by": data.get("ended_by"), "actions_count": data.get("actions"),
            "violations_count": data.get("violations"),
        }  # fmt: skip
    return {"ended_at": event["ts"], "ended_by": "sentry lost"}
