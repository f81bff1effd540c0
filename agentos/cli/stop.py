"""`agentos stop`, `pause`, `resume`: the three things people want of signals, by name."""

from __future__ import annotations

from typing import Any

import click

from agentos.cli.calls import ANSWER_TIMEOUT_S, Request, gather
from agentos.cli.kill import chosen, deliver, say_done
from agentos.cli.options import Duration
from agentos.cli.output import print_json, say
from agentos.cli.targets import Agent
from agentos.errors import AgentosError
from agentos.signals import AgentSignal, describe_exit

GRACE_S_WHEN_UNSAID = 3600.0  # the agent's own grace is the kernel's to know; we only must not give up before it


@click.command()
@click.option(
    "-t",
    "--time",
    "grace_s",
    type=Duration(),
    metavar="DURATION",
    help="Grace between SIGTERM and SIGKILL; the agent's own if not given.",
)
@click.option("-a", "--all", "everyone", is_flag=True, help="Every agent that lives.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when it worked.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array of what was done.")
@click.argument("targets", nargs=-1, metavar="TARGET...")
def stop(grace_s: float | None, everyone: bool, quiet: bool, as_json: bool, targets: tuple[str, ...]) -> int:
    """End agents: SIGTERM, then after a grace SIGKILL of the tree. Returns when nothing of it lives.

    All TARGETs share one grace. An agent that has ended already is a success.
    """
    agents, problems = chosen(targets, everyone)
    for problem in problems:
        say(str(problem))
    code = max((problem.exit_code for problem in problems), default=0)
    done = [_row(agent, agent.row) for agent in agents if not agent.living]
    for agent in agents:
        if not (agent.living or quiet or as_json):
            say_done(agent, f"had ended, {agent.ending}")
    requests = [Request(agent, "stop", {"id": agent.id, "grace_s": grace_s}) for agent in agents if agent.living]
    patience_s = (GRACE_S_WHEN_UNSAID if grace_s is None else grace_s) + ANSWER_TIMEOUT_S
    for request, answer in gather(requests, patience_s):
        code = max(code, _report(request.agent, answer, quiet=quiet or as_json))
        done.append(_row(request.agent, answer))
    if as_json:
        print_json(done)
    return code


def _report(agent: Agent, answer: Any, *, quiet: bool) -> int:
    if isinstance(answer, AgentosError):
        say(f"{agent.label}: {answer}")
        return answer.exit_code
    if not answer.get("ok"):
        say(f"{agent.label}: still alive: {answer.get('detail') or 'no reason given'}")
        return 6
    if not quiet:
        code, number = answer.get("exit_code"), answer.get("exit_signal")
        known = (code, number) != (None, None)
        say_done(agent, describe_exit(code, number) if known else "it had not started, and will not")
    return 0


def _row(agent: Agent, answer: Any) -> dict[str, Any]:
    row = {"id": agent.id, "name": agent.name, "run": agent.run.run_id}
    if isinstance(answer, AgentosError):
        return {**row, "ok": False, "error": type(answer).__name__, "detail": str(answer)}
    return {
        **row,
        "ok": answer.get("ok", True),
        "exit_code": answer.get("exit_code"),
        "exit_signal": answer.get("exit_signal"),
        "detail": answer.get("detail", ""),
    }


@click.command()
@click.option("-a", "--all", "everyone", is_flag=True, help="Every agent that lives.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when it worked.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array of what was done.")
@click.argument("targets", nargs=-1, metavar="TARGET...")
def pause(everyone: bool, quiet: bool, as_json: bool, targets: tuple[str, ...]) -> int:
    """Freeze agents and everything they started. Returns when nothing of them runs."""
    return deliver(AgentSignal.SIGSTOP, "tree", chosen(targets, everyone), quiet=quiet, as_json=as_json)


@click.command()
@click.option("-a", "--all", "everyone", is_flag=True, help="Every agent that lives.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when it worked.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array of what was done.")
@click.argument("targets", nargs=-1, metavar="TARGET...")
def resume(everyone: bool, quiet: bool, as_json: bool, targets: tuple[str, ...]) -> int:
    """Continue paused agents (also: unpause, cont)."""
    return deliver(AgentSignal.SIGCONT, "tree", chosen(targets, everyone), quiet=quiet, as_json=as_json)
