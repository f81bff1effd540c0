"""`agentos ps`: who lives now, in every run of this user."""

from __future__ import annotations

from typing import Any, Final

import click

from agentos.cli.calls import living_agents
from agentos.cli.output import Column, age, print_json, table, terminal_width
from agentos.cli.targets import Agent, short_ids
from agentos.runs import Run
from agentos.signals import signal_name

# Added to, never renamed: what `ps --json` promises. What a kernel adds beyond comes after.
FIELDS: Final = (
    "id", "name", "run", "pid", "sentry_pid", "state", "level", "policy", "command", "started_at",
    "actions_count", "violations_count",
)  # fmt: skip

EXIT_NOT_ALL_KNOWN: Final = 125

COLUMNS: Final = (
    Column("ID", "id"),
    Column("NAME", "name", cells_min=8),
    Column("STATE", "state"),
    Column("PID", "pid", rank=3, right=True),
    Column("RESTARTS", "restarts", rank=2, right=True),
    Column("AGE", "age", rank=5, right=True),
    Column("ACTIONS", "actions", rank=4, right=True),
    Column("DENIED", "denied", rank=1, right=True),
    Column("LEVEL", "level", rank=6),
    Column("POLICY", "policy", rank=7, cells_min=8),
    Column("COMMAND", "command", rank=8, cells_min=10),
)


@click.command()
@click.option("-a", "--all", "everyone", is_flag=True, help="Also agents that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids, in full.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@click.option("--no-trunc", is_flag=True, help="Cut nothing, whatever the terminal's width.")
def ps(everyone: bool, quiet: bool, as_json: bool, no_trunc: bool) -> int:
    """List agents; without -a only those that live.

    Exits 125 when a run does not answer: its agents are then listed from its record, in the state `unknown`.
    """
    present = living_agents()
    agents = present.agents if everyone else [agent for agent in present.agents if agent.living]
    if everyone or present.silent:
        agents = _with_the_records(agents, present.silent, past=everyone)
    if as_json:
        print_json([as_promised(agent) for agent in agents])
    elif quiet:
        for agent in agents:
            print(agent.id)
    else:
        width = None if no_trunc else terminal_width()
        for line in table(columns(agents), rows(agents, in_full=width is None), width):
            print(line)
    return EXIT_NOT_ALL_KNOWN if present.silent else 0


def _with_the_records(agents: list[Agent], silent: list[Run], *, past: bool) -> list[Agent]:
    from agentos.cli.past import last_known_agents, past_agents  # noqa: PLC0415  # opens databases; `ps` alone must not

    found = [*(past_agents() if past else ()), *agents]
    for run in silent:
        found += last_known_agents(run)
    return sorted(found, key=lambda agent: agent.started_at)


def as_promised(agent: Agent) -> dict[str, Any]:
    """Return the row with every promised field first, null where the kernel did not say."""
    row: dict[str, Any] = {field: agent.row.get(field) for field in FIELDS}
    row["run"] = agent.run.run_id
    return {**row, **{key: value for key, value in agent.row.items() if key not in row}}


def columns(agents: list[Agent]) -> list[Column]:
    """Return the columns of the table; that of restarts only where somebody was restarted."""
    restarted = any(agent.row.get("restarts") for agent in agents)
    return [column for column in COLUMNS if restarted or column.key != "restarts"]


def rows(agents: list[Agent], *, in_full: bool) -> list[dict[str, str]]:
    """Return the cells of the table; ids are cut to what tells them apart unless `in_full`."""
    short = short_ids([agent.id for agent in agents])
    return [
        {
            "id": agent.id if in_full else short[agent.id],
            "name": agent.name,
            "state": state(agent.row),
            "pid": str(agent.row.get("pid") or "-") if agent.living else "-",
            "restarts": str(agent.row.get("restarts") or 0),
            "age": age(agent.row.get("started_at")),
            "actions": str(agent.row.get("actions_count") or 0),
            "denied": str(agent.row.get("violations_count") or 0),
            "level": str(agent.row.get("level") or "-"),
            "policy": str(agent.row.get("policy") or "-"),
            "command": command(agent.row.get("command")),
        }
        for agent in agents
    ]


def command(value: Any) -> str:
    """Return a command line as one text, whether the kernel gave words or a line."""
    return " ".join(str(word) for word in value) if isinstance(value, list | tuple) else str(value or "-")


def state(row: dict[str, Any]) -> str:
    """Return the state, and more: `terminated(3)`, `terminated(SIGKILL)`, `waiting(restart)`."""
    word = str(row.get("state") or "?")
    if row.get("restart_at"):
        return f"{word}(restart)"
    if word != "terminated":
        return word
    number, code = row.get("exit_signal"), row.get("exit_code")
    if number is None and code is None:
        return word
    return f"{word}({code if number is None else signal_name(int(number))})"
