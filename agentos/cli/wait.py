"""`agentos wait`: block until agents ended (or stopped, or run), and exit as they did."""

from __future__ import annotations

from typing import Any

import click

from agentos.cli.calls import ANSWER_TIMEOUT_S, Request, gather
from agentos.cli.kill import say_done
from agentos.cli.options import Duration
from agentos.cli.output import say
from agentos.cli.past import find_agents
from agentos.cli.targets import Agent
from agentos.errors import AgentosError, AgentTimeoutError
from agentos.signals import describe_exit


@click.command()
@click.option(
    "--timeout", "timeout_s", type=Duration(), metavar="DURATION", help="Give up after this, with exit code 124."
)
@click.option("--any", "first_only", is_flag=True, help="Return when the first of them is there.")
@click.option(
    "--state",
    type=click.Choice(["exited", "stopped", "running"]),
    default="exited",
    show_default=True,
    metavar="STATE",
    help="What to wait for: exited, stopped or running.",
)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
def wait(timeout_s: float | None, first_only: bool, state: str, targets: tuple[str, ...]) -> int:
    """Wait until agents ended and print how; exit with the code of the one, or the worst (128+n for a signal)."""
    agents, unknown = find_agents(targets)
    for error in unknown:
        say(str(error))
    code = max((error.exit_code for error in unknown), default=0)
    ended = [agent for agent in agents if not agent.living]
    for agent in ended:
        code = max(code, _report(agent, agent.row, state))
        if first_only:
            return code
    params = {"timeout_s": timeout_s, "state": state}
    requests = [Request(agent, "wait", {"id": agent.id, **params}) for agent in agents if agent.living]
    patience_s = None if timeout_s is None else timeout_s + ANSWER_TIMEOUT_S
    for request, answer in gather(requests, patience_s):
        code = max(code, _report(request.agent, answer, state))
        if first_only:
            break
    return code


def _report(agent: Agent, answer: Any, wanted: str) -> int:
    """Print how one wait ended and return its exit code."""
    if isinstance(answer, AgentTimeoutError):
        say(f"{agent.label}: not {wanted} within {answer.timeout_s:g}s")
        return answer.exit_code
    if isinstance(answer, AgentosError):
        say(f"{agent.label}: {answer}")
        return answer.exit_code
    code, number = answer.get("exit_code"), answer.get("exit_signal")
    if code is None and number is None:
        if answer.get("state") == "terminated":
            say(f"{agent.label}: has ended, and nobody saw how")
            return 125
        say_done(agent, str(answer.get("state")))
        return 0
    say_done(agent, describe_exit(code, number))
    if wanted != "exited":
        return 3  # it will never be in the wanted state again
    return exit_code_of(code, number)


def exit_code_of(code: int | None, number: int | None) -> int:
    """Return what a shell would: the code, or 128 + the signal; 125 when neither is known."""
    if number is not None:
        return 128 + number
    return 125 if code is None else code
