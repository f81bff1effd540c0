"""`agentos audit`: what agents did, what was decided and why; one line an event, across runs, in order of time.

The lines are for people: every word of them may come from an agent and is made printable. `--json` is for programs:
JSON Lines of {seq, event_id, ts, event_type, severity, agent_id, execution_id, data}.
"""

from __future__ import annotations

import contextlib
import heapq
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import click

from agentos.cli.output import coloured, padded, print_json, say
from agentos.cli.past import Event, Wanted, events, find_agents
from agentos.errors import BadRequest, CallerError, HostError, nearest
from agentos.policies.decision import RESERVED_REASONS
from agentos.printable import printable
from agentos.recorder.event import SEVERITIES
from agentos.recorder.kinds import EVENT_TYPES
from agentos.runs import Run, locate, recorded_runs

EXIT_UNREADABLE: Final = 125
HINT_RUNS: Final = 10
HINT_EVENTS: Final = 1_000
AGENT_CELLS: Final = 12
POLL_S: Final = 0.25  # a person does not see the difference; a record is asked for news four times a second


class NoSuchEvent(CallerError):
    exit_code = 3


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
    metavar="WORD",
    help="This severity and worse: debug (what every program reads, too), info, warning, error or critical.",
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
    agent_ids: list[str] = []
    if words:
        agents, unknown = find_agents(words)
        for error in unknown:
            say(str(error))
        if unknown:
            return max(error.exit_code for error in unknown)
        agent_ids = [agent.id for agent in agents]
        of_agents = {agent.run.run_id for agent in agents}
        runs = tuple(run for run in runs if run.run_id in of_agents)
    severities = SEVERITIES[SEVERITIES.index(severity) :]
    wanted = Wanted(agent_ids=agent_ids, event_types=event_types, severities=severities, last=last)
    teller = _Teller(wanted, as_json=as_json)
    shown = in_order(runs, teller.read)
    for event in shown if last is None else deque(shown, maxlen=last):
        teller.tell(event)
    if follow:
        _follow(runs, teller, everything=run_word is None and not words)
    if not teller.seen:
        _hint_at_types(runs, event_types)
    return EXIT_UNREADABLE if teller.unreadable else 0


def in_order(runs: Sequence[Run], read: Callable[[Run], Iterator[Event]]) -> Iterator[Event]:
    """Yield the events of all runs by time; those of one run stay in the order of its record.

    A run is opened when its time has come and closed at its end, so that a thousand records take as many descriptors
    as lived at the same time.
    """
    waiting = deque(enumerate(sorted(runs, key=lambda run: run.run_id)))
    opened: list[tuple[str, int, Event, Iterator[Event]]] = []
    while waiting or opened:
        while waiting and (not opened or started_at(waiting[0][1]) <= opened[0][0]):
            number, run = waiting.popleft()
            _push(opened, number, read(run))
        if opened:
            _, number, event, rest = heapq.heappop(opened)
            yield event
            _push(opened, number, rest)


def _push(opened: list[tuple[str, int, Event, Iterator[Event]]], number: int, rest: Iterator[Event]) -> None:
    event = next(rest, None)
    if event is not None:
        heapq.heappush(opened, (str(event["ts"]), number, event, rest))


def started_at(run: Run) -> str:
    """Return a time, as text, that no event of the run is before: its id begins with the second it was made in."""
    digits = run.run_id
    return f"{digits[0:4]}-{digits[4:6]}-{digits[6:8]}T{digits[9:11]}:{digits[11:13]}:{digits[13:15]}"


def _hint_at_types(runs: Sequence[Run], event_types: Sequence[str]) -> None:
    """Nothing was found: perhaps because a type is misspelled. Programs log types of their own: the newest events say which."""
    known: set[str] = set()
    for run in runs[-HINT_RUNS:] if event_types else ():
        with contextlib.suppress(HostError):
            known.update(event["event_type"] for event in events(run, Wanted(last=HINT_EVENTS)))
    for word in event_types:
        if word not in known:
            hint = "" if word in EVENT_TYPES else nearest(word, known | EVENT_TYPES)
            say(f"no event of type {word!r}{hint}")


def _runs(word: str | None) -> tuple[Run, ...]:
    runs = tuple(recorded_runs())
    if word is None:
        return runs
    if word == "latest":
        return tuple(sorted(runs, key=lambda run: str(run.read_meta().get("started_at", "")))[-1:])
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
    """Reads and prints events, and remembers how far it got in each run."""

    def __init__(self, wanted: Wanted, *, as_json: bool) -> None:
        self._wanted = wanted
        self._as_json = as_json
        self.seen: dict[str, int] = {}
        self.unreadable: set[str] = set()

    def read(self, run: Run) -> Iterator[Event]:
        """Yield what is wanted of one run and not yet told. A record that cannot be read is said once."""
        try:
            yield from events(run, self._wanted, after_seq=self.seen.get(run.run_id, 0))
        except HostError as error:
            if run.run_id not in self.unreadable:
                say(f"run {run.run_id}: {error}")
            self.unreadable.add(run.run_id)

    def forget_the_past(self, runs: Sequence[Run]) -> None:
        """From now on read news only: `--lines` chose among what was there."""
        if self._wanted.last is None:
            return
        self._wanted = replace(self._wanted, last=None)
        for run in runs:
            for newest in () if run.run_id in self.seen else _tail(run):
                self.seen[run.run_id] = newest["seq"]

    def tell(self, event: Event) -> None:
        run_id = event["event_id"].rpartition("-")[0]
        self.seen[run_id] = event["seq"]
        if self._as_json:
            print_json(event, indent=None)
            return
        line = one_line(event)
        denied = event["event_type"].startswith("policy_violation")
        print(coloured(line, "red") if denied else line)


def _tail(run: Run) -> Iterator[Event]:
    """Yield the newest event of a run, if its record can be read."""
    with contextlib.suppress(HostError):
        yield from events(run, Wanted(last=1))


def _follow(runs: Sequence[Run], teller: _Teller, *, everything: bool) -> None:
    """Print what comes; until interrupted, or until no run that was asked for is alive."""
    teller.forget_the_past(runs)
    over: set[str] = set()
    while True:
        asked = [run for run in (recorded_runs() if everything else runs) if run.run_id not in over]
        alive = [run for run in asked if run.alive()]  # asked before reading: what it wrote last is still read below
        for run in asked:
            for event in teller.read(run):
                teller.tell(event)
        over.update(run.run_id for run in asked if run not in alive)
        sys.stdout.flush()  # a pipe must not keep what is news
        if not everything and not alive:
            return
        time.sleep(POLL_S)


# --- one line an event -----------------------------------------------------------------------------------------------


def one_line(event: Event) -> str:
    """Return the event as one printable line: time, agent, what happened."""
    data = event.get("data") or {}
    tell = _TELLING.get(event["event_type"], _tell_anything)
    agent = printable(str(event.get("agent_name") or event.get("agent_id") or "kernel"))
    when = str(event["ts"])[:23].replace("T", " ")
    return printable(f"{when}  {padded(agent, AGENT_CELLS)}  {tell(event, data)}")


def _tell_action(event: Event, data: dict[str, Any]) -> str:
    denied = event["event_type"].startswith("policy_violation")
    verdict = "denied" if denied else "allowed"
    if denied and data.get("enforced") is False:
        verdict = "allowed, would be denied"
    repeats = f" ({data['repeats']} more)" if data.get("repeats") else ""
    reason = str(data.get("reason") or "")
    said = reason.lower() == str(data.get("rule_name")).lower()  # a rule may be called what it says
    why = f": {reason}" if reason and reason not in RESERVED_REASONS and not said else ""
    argv = data.get("argv")
    words = argv[1:] if isinstance(argv, list) else []
    what = " ".join([str(data.get("resource", "?")), *(str(word) for word in words)])
    return _line(str(data.get("operation")), f"{what}  {verdict} by {_who_decided(data)}{why}{repeats}")


def _tell_refused(_: Event, data: dict[str, Any]) -> str:
    """An action that had been allowed, until it could not be put on record in time."""
    return _line("refused", f"the action of event {data.get('first_seq')}: {data.get('reason')}")


def _who_decided(data: dict[str, Any]) -> str:
    if data.get("rule_name"):
        return str(data["rule_name"])
    if data.get("rule") is not None:
        return f"rule {data['rule']}"
    layer = str(data.get("layer") or "")
    return layer if layer.startswith("@") else str(data.get("reason") or "default").replace("_", " ")


def _tell_kernel(_: Event, data: dict[str, Any]) -> str:
    mode = "attached" if data.get("attached") else "detached"
    return _line(
        "kernel started", f"run {data.get('run')}, policy {data.get('policy')}, in {data.get('workspace')}, {mode}"
    )


def _tell_kernel_end(_: Event, data: dict[str, Any]) -> str:
    return _line("kernel stopped", str(data.get("why") or ""))


def _tell_starting(_: Event, data: dict[str, Any]) -> str:
    command = data.get("command")
    text = " ".join(str(word) for word in command) if isinstance(command, list) else str(command)
    return _line("start", f"{text}  policy {data.get('policy')}, level {data.get('level')}")


def _tell_raised(_: Event, data: dict[str, Any]) -> str:
    return _line("raised", f"{data.get('type')}: {data.get('message')}")


def _tell_exited(_: Event, data: dict[str, Any]) -> str:
    by = f", ended by {data['ended_by']}" if data.get("ended_by") else ""
    actions = data.get("actions", "?")
    counts = f"{actions} action{'' if actions == 1 else 's'}, {data.get('violations', '?')} denied"
    return _line("end", f"{data.get('how') or 'nobody saw how'}{by}; {counts}")


def _tell_signal(event: Event, data: dict[str, Any]) -> str:
    if event["event_type"] == "signal_sent":
        return _line("signal", f"{data.get('signal')} to {data.get('scope')}, from {data.get('sender')}")
    outcome = "confirmed" if data.get("ok") else "not confirmed"
    count = data.get("processes")
    return _line("signal", f"{data.get('signal')} {outcome}, {count} process{'' if count == 1 else 'es'}")


def _tell_anything(event: Event, data: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in data.items() if value not in (None, "", [], {}))
    return _line(event["event_type"].replace("_", " "), facts)


def _line(word: str, text: str) -> str:
    return f"{word:<8}  {text}".rstrip()


_TELLING: Final[dict[str, Callable[[Event, dict[str, Any]], str]]] = {
    "action_allowed": _tell_action,
    "action_refused": _tell_refused,
    "policy_violation": _tell_action,
    "policy_violation_repeated": _tell_action,
    "kernel_started": _tell_kernel,
    "kernel_stopped": _tell_kernel_end,
    "agent_starting": _tell_starting,
    "agent_raised": _tell_raised,
    "agent_exited": _tell_exited,
    "signal_sent": _tell_signal,
    "signal_confirmed": _tell_signal,
}
