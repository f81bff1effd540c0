"""`agentos inspect`: everything the kernel knows about an agent, one JSON document."""

from __future__ import annotations

from typing import Any

import click

from agentos.cli.calls import ANSWER_TIMEOUT_S, Request, gather
from agentos.cli.output import print_json, say
from agentos.cli.past import find_agents
from agentos.cli.ps import as_promised
from agentos.cli.targets import Agent
from agentos.errors import AgentosError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="What it does anyway.")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
def inspect(as_json: bool, targets: tuple[str, ...]) -> int:  # noqa: ARG001  # accepted so that --json always works
    """Show everything about agents: one object for one TARGET, an array for several.

    An agent whose run is over is told from its record; then only what was recorded is there.
    """
    agents, unknown = find_agents(targets)
    code = max((error.exit_code for error in unknown), default=0)
    for error in unknown:
        say(str(error))
    found: dict[str, dict[str, Any]] = {}
    live = [agent for agent in agents if agent.row.get("source") != "record"]
    for request, answer in gather([Request(agent, "inspect", {"id": agent.id}) for agent in live], ANSWER_TIMEOUT_S):
        if isinstance(answer, AgentosError):
            say(f"{request.agent.label}: {answer}")
            code = max(code, answer.exit_code)
        else:
            found[request.agent.id] = as_promised(Agent(answer, request.agent.run))
    found.update((agent.id, as_promised(agent)) for agent in agents if agent.row.get("source") == "record")
    documents = [found[agent.id] for agent in agents if agent.id in found]
    if len(targets) == 1 and len(documents) == 1:
        print_json(documents[0])
    elif documents:
        print_json(documents)
    return code
