"""`agentos audit`: what agents did, what was decided and why; one line an event, across runs, in order of time.

The lines are for people: every word of them may come from an agent and is made printable. `--json` is for programs:
JSON Lines of {seq, event_id, ts, event_type, severity, agent_id, execution_id, data}.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from agentos.cli.output import coloured, print_json, say
from agentos.cli.past import Event, events, find_agents
from agentos.cli.printable import printable
from agentos.errors import BadRequest, CallerError, nearest
from agentos.policies.decision import RESERVED_REASONS
from agentos.recorder.event import SEVERITIES
from agentos.runs import Run, locate, recorded_runs

POLL_S: Final = 0.25  # a person does not see the difference; a record is asked for news four times a second


class NoSuchEvent(CallerError):
    exit_code = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events of which runs."""

    runs: tuple[Run, ...]
    agent_ids: frozenset[str] = frozenset()  # empty: all
    event_types: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()

    def of(self, run: Run, after_seq: int = 0) -> Iterator[Event]:
        for event in events(run, event_types=self.event_types, severities=self.severities, after_seq=after_seq):
            if not self.agent_ids or event["agent_id"] in self.agent_ids:
                yield event


@click.command()
@click.option("--run", "run_word", metavar="RUN", help="Only this run: its id, the unique beginning of it, or latest.")
@click.option("-n", "--lines", "last", type=click.IntRange(min=1), metavar="N", help="Only the last N.")
@click.option("-f", "--follow", is_flag=True, help="Go on as events come; ends with the last TARGET.")
@click.option(
    "--type",
    "event_types",
    multiple=True,
    metavar="TYPE",
    help="Only this type, for example policy_violation; repeatable.",
)
@click.option(
    "--severity",
    type=click.Choice(SEVERITIES),
    default="info",
    show_default=True,
    help="This severity and worse; debug shows what every program reads, too.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines.")
@click.argument("words", nargs=-1, metavar="[TARGET | show EVENT_ID]")
def audit(
    run_word: str | None,
    last: int | None,
    follow: bool,
    event_types: tuple[str, ...],
    severity: str,
    as_json: bool,
    words: tuple[str, ...],
) -> int:
    """Show what agents did and what was decided: time, agent, what, verdict, rule and reason. Times are UTC.

    `agentos audit show EVENT_ID` prints one event in full.
    """
    if words and words[0] == "show":
        return _show(words[1:])
    runs = _runs(run_word)
    agent_ids: frozenset[str] = frozenset()
    if words:
        agents, unknown = find_agents(words)
        for error in unknown:
            say(str(error))
        if unknown:
            return max(error.exit_code for error in unknown)
        agent_ids = frozenset(agent.id for agent in agents)
        of_agents = {agent.run.run_id for agent in agents}
        runs = tuple(run for run in runs if run.run_id in of_agents)
    severities = SEVERITIES[SEVERITIES.index(severity) :]
    wanted = Wanted(runs, agent_ids, event_types, severities)
    teller = _Teller(as_json=as_json)
    shown: Iterator[Event] | deque[Event] = in_order(wanted)
    for event in shown if last is None else deque(shown, maxlen=last):
        teller.tell(event)
    if follow:
        _follow(wanted, teller, everything=run_word is None and not words)
    return 0


def in_order(wanted: Wanted) -> Iterator[Event]:
    """Yield the events of all runs by time; those of one run stay in the order of its record."""
    return heapq.merge(*(wanted.of(run) for run in wanted.runs), key=lambda event: str(event["ts"]))


def _runs(word: str | None) -> tuple[Run, ...]:
    runs = tuple(recorded_runs())
    if word is None:
        return runs
    if word == "latest":
        return runs[-1:]
    exact = [run for run in runs if run.run_id == word]
    found = exact or [run for run in runs if run.run_id.startswith(word)]
    if len(found) == 1:
        return tuple(found)
    if found:
        raise BadRequest(f"--run {word} is ambiguous: it matches {', '.join(run.run_id for run in found)}")
    raise BadRequest(f"--run {word}: no such run{nearest(word, [run.run_id for run in runs])}")


def _show(words: Sequence[str]) -> int:
    if len(words) != 1:
        raise click.UsageError("agentos audit show takes one EVENT_ID, as `agentos audit --json` prints them")
    run_id, _, number = words[0].rpartition("-")
    if run_id in {run.run_id for run in recorded_runs()} and number.isdecimal():
        for event in events(locate(run_id), after_seq=int(number) - 1):
            if event["event_id"] == words[0]:
                print_json(event)
                return 0
            break
    raise NoSuchEvent(f"no event {words[0]!r} in any record")


class _Teller:
    """Prints events and remembers how far it got in each run."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.seen: dict[str, int] = {}

    def tell(self, event: Event) -> None:
        run_id = event["event_id"].rpartition("-")[0]
        self.seen[run_id] = event["seq"]
        if self._as_json:
            print_json(event, indent=None)
            return
        line = one_line(event)
        denied = event["event_type"].startswith("policy_violation")
        print(coloured(line, "red") if denied else line)


def _follow(wanted: Wanted, teller: _Teller, *, everything: bool) -> None:
    """Print what comes; until interrupted, or until no run that was asked for is alive."""
    while True:
        runs = tuple(recorded_runs()) if everything else wanted.runs
        alive = [run for run in runs if run.alive()]  # asked before reading: what it wrote last is still read below
        for run in runs:
            if run in alive or everything or run.run_id not in teller.seen:
                for event in wanted.of(run, teller.seen.get(run.run_id, 0)):
                    teller.tell(event)
        if not everything and not alive:
            return
        time.sleep(POLL_S)


# --- one line an event -----------------------------------------------------------------------------------------------


def one_line(event: Event) -> str:
    """Return the event as one printable line: time, agent, what happened."""
    data = event.get("data") or {}
    tell = _TELLING.get(event["event_type"], _tell_anything)
    agent = str(event.get("agent_name") or event.get("agent_id") or "kernel")
    when = str(event["ts"])[:23].replace("T", " ")
    return printable(f"{when}  {agent:<12}  {tell(event, data)}")


def _tell_action(event: Event, data: dict[str, Any]) -> str:
    denied = event["event_type"].startswith("policy_violation")
    verdict = "denied" if denied else "allowed"
    if denied and data.get("enforced") is False:
        verdict = "allowed, would be denied"
    repeats = f" ({data['repeats']} more)" if data.get("repeats") else ""
    reason = data.get("reason")
    why = f": {reason}" if reason and reason not in RESERVED_REASONS else ""
    what = " ".join([str(data.get("resource", "?")), *(str(word) for word in (data.get("argv") or ())[1:])])
    return f"{data.get('operation')!s:<8}  {what}  {verdict} by {_who_decided(data)}{why}{repeats}"


def _who_decided(data: dict[str, Any]) -> str:
    if data.get("rule_name"):
        return str(data["rule_name"])
    if data.get("rule") is not None:
        return f"rule {data['rule']}"
    layer = str(data.get("layer") or "")
    return layer if layer.startswith("@") else str(data.get("reason") or "default").replace("_", " ")


def _tell_starting(_: Event, data: dict[str, Any]) -> str:
    command = data.get("command")
    text = " ".join(str(word) for word in command) if isinstance(command, list) else str(command)
    return f"{'start':<8}  {text}  policy {data.get('policy')}, level {data.get('level')}"


def _tell_exited(_: Event, data: dict[str, Any]) -> str:
    by = f", ended by {data['ended_by']}" if data.get("ended_by") else ""
    return (
        f"{'end':<8}  {data.get('how') or 'nobody saw how'}{by}; "
        f"{data.get('actions', '?')} actions, {data.get('violations', '?')} denied"
    )


def _tell_signal(event: Event, data: dict[str, Any]) -> str:
    if event["event_type"] == "signal_sent":
        return f"{'signal':<8}  {data.get('signal')} to {data.get('scope')}, from {data.get('sender')}"
    outcome = "confirmed" if data.get("ok") else "not confirmed"
    return f"{'signal':<8}  {data.get('signal')} {outcome}, {data.get('processes')} processes"


def _tell_anything(event: Event, data: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in data.items() if value not in (None, "", [], {}))
    return f"{event['event_type'].replace('_', ' '):<8}  {facts}".rstrip()


_TELLING: Final[dict[str, Callable[[Event, dict[str, Any]], str]]] = {
    "action_allowed": _tell_action,
    "policy_violation": _tell_action,
    "policy_violation_repeated": _tell_action,
    "agent_starting": _tell_starting,
    "agent_exited": _tell_exited,
    "signal_sent": _tell_signal,
    "signal_confirmed": _tell_signal,
}
