"""What the records say: the events of every run, and the agents of runs whose kernel is gone.

The one place of the command line that opens records, so `ps`, `kill` and the rest of the living never pay for it.
An event here is the object that `audit --json` prints. A record that cannot be read is named and passed over: it must
not hide the others.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from agentos.cli.calls import Present, living_agents
from agentos.cli.output import say
from agentos.cli.targets import Agent, resolve_all
from agentos.errors import AgentosError, HostError
from agentos.runs import Run, recorded_runs

if TYPE_CHECKING:
    from agentos.recorder.event import AuditEvent
    from agentos.recorder.query import Query
    from agentos.recorder.reader import RunReader

Event = dict[str, Any]
LIFE: Final = (
    "agent_starting", "agent_started", "agent_start_failed", "agent_exited", "agent_restarting", "agent_failed",
    "sentry_lost",
)  # fmt: skip
BATCH_EVENTS: Final = 1_000  # read at once: memory stays small, and a query costs little beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events of a run; an empty field asks for all."""

    agent_ids: Sequence[str] = ()
    event_types: Sequence[str] = ()
    severities: Sequence[str] = ()
    last: int | None = None  # only so many, the newest


def events(run: Run, wanted: Wanted | None = None, *, after_seq: int = 0) -> Iterator[Event]:
    """Yield the events of one run in the order of its record, those after `after_seq`; nothing where none is.

    Raises HostError when the record cannot be read, after what can.
    """
    from agentos.recorder.journal import JournalDamaged  # noqa: PLC0415  # as below
    from agentos.recorder.query import Query  # noqa: PLC0415  # SQLite: who only asks the living must not load it
    from agentos.recorder.reader import RunReader  # noqa: PLC0415

    _bring_home(run)
    asked = wanted or Wanted()
    severities = tuple(asked.severities) or None
    queries = [
        Query(agent_id=agent, event_type=kind, severities=severities, after_seq=after_seq)
        for agent, kind in itertools.product(asked.agent_ids or (None,), asked.event_types or (None,))
    ]
    reader = RunReader(run.state)
    try:
        for event in _selected(reader, queries, asked.last):
            after_seq = event.seq
            yield event.to_json()
    except JournalDamaged:
        for event in reader.events(after_seq):  # to the damage, and then raises it
            if any(query.matches(event) for query in queries):
                yield event.to_json()
    except OSError as error:  # something else lies where its journal or its database should
        raise HostError(f"{error.filename}: {error.strerror}") from error
    finally:
        reader.close()


def _bring_home(run: Run) -> None:
    """Commit what only the journal of a crashed run holds, and forget that the run was ever alive.

    A run that ended in order took its runtime directory with it; one that has not said who it is may be starting.
    """
    from agentos.recorder.recover import recover  # noqa: PLC0415  # as above

    if run.meta.exists() and not run.alive():
        with contextlib.suppress(
            HostError, OSError
        ):  # its recorder is still at it, or it is damaged: it is read as it is
            recover(run.state)
            shutil.rmtree(run.runtime)


def _selected(reader: RunReader, queries: Sequence[Query], last: int | None) -> Iterable[AuditEvent]:
    """Return what any of `queries` asks for, in order. An event is asked for by one of them only."""
    if last is None:
        return heapq.merge(*(_in_batches(reader, query) for query in queries), key=lambda event: event.seq)
    newest = [reader.select(replace(query, limit=last, newest_first=True)) for query in queries]
    return sorted(itertools.chain(*newest), key=lambda event: event.seq)[-last:]


def _in_batches(reader: RunReader, query: Query) -> Iterator[AuditEvent]:
    query = replace(query, limit=BATCH_EVENTS, newest_first=False)
    while batch := reader.select(query):
        yield from batch
        query = replace(query, after_seq=batch[-1].seq)


def find_agents(targets: Sequence[str], present: Present | None = None) -> tuple[list[Agent], list[AgentosError]]:
    """Return the agents that `targets` mean, in live runs first, in records after; and what means none.

    What means none while a run does not answer is not known: it may be there.
    """
    present = present or living_agents()
    found, unknown = resolve_all(targets, present.agents)
    ambiguous = [error for error in unknown if error.matches]
    missing = [error.target for error in unknown if not error.matches]
    if not missing:
        return found, list(ambiguous)
    from_records, still_unknown = resolve_all(missing, [*past_agents(), *present.agents])
    return [*found, *from_records], [*ambiguous, *present.explain(still_unknown)]


def last_known_agents(run: Run) -> list[Agent]:
    """Return who lived in a run that does not answer, as far as its record goes; whether they still do is unknown."""
    try:
        rows = fold(run.run_id, events(run, Wanted(event_types=LIFE)))
    except HostError as error:
        say(f"run {run.run_id}: {error}")
        return []
    unknown = {"state": "unknown", "ended_at": None}
    return [Agent({**row, **unknown}, run) for row in rows if "ended_by" not in row]


def past_agents() -> list[Agent]:
    """Return the agents of all runs that left a record and are not alive, oldest first."""
    found = []
    for run in recorded_runs():
        if not run.alive():
            try:
                found += [Agent(row, run) for row in fold(run.run_id, events(run, Wanted(event_types=LIFE)))]
            except HostError as error:
                say(f"run {run.run_id}: {error}")
    return found


def fold(run_id: str, story: Iterable[Event]) -> list[dict[str, Any]]:
    """Return a row for every agent that the events of one run tell of. Pure."""
    rows: dict[str, dict[str, Any]] = {}
    following: dict[str, dict[str, Any]] = {}  # by the id of a life to come: what its end before says of it
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
                **following.pop(agent_id, {}),
            }  # fmt: skip
        elif agent_id in rows:
            rows[agent_id].update(_told_by(event))
            if event["event_type"] == "agent_restarting":
                following[data.get("new_id")] = {
                    "restart": data.get("policy"), "restarts": data.get("attempt"), "previous_id": agent_id,
                }  # fmt: skip
    return list(rows.values())


def _told_by(event: Event) -> dict[str, Any]:
    data = event["data"]
    if event["event_type"] == "agent_started":
        return {"pid": data.get("pid"), "sentry_pid": data.get("sentry_pid")}
    if event["event_type"] == "agent_start_failed":
        return {"ended_at": event["ts"], "ended_by": "start failed"}
    if event["event_type"] == "agent_restarting":
        return {"restart": data.get("policy"), "next_id": data.get("new_id")}
    if event["event_type"] == "agent_failed":
        return {"restart": data.get("policy"), "failed": data.get("why")}
    if event["event_type"] == "agent_exited":
        return {
            "exit_code": data.get("exit_code"), "exit_signal": data.get("exit_signal"), "ended_at": event["ts"],
            "ended_by": data.get("ended_by"), "actions_count": data.get("actions"),
            "violations_count": data.get("violations"), "log_dropped_bytes": data.get("log_dropped_bytes", 0),
        }  # fmt: skip
    return {"ended_at": event["ts"], "ended_by": "sentry lost"}
