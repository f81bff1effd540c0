"""`agentos kill`: signals, spelled as kill(1) users spell them.

click would read `-STOP` as five short options, so known signal words are rewritten to `--signal=` before it parses.
Our own short options stay lower case for that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from agentos.cli.calls import ANSWER_TIMEOUT_S, Request, RunSilent, gather, living_agents
from agentos.cli.options import Signal
from agentos.cli.output import print_json, say
from agentos.cli.targets import Agent, AgentEnded, resolve_all
from agentos.errors import AgentosError, UnknownSignal
from agentos.printable import printable
from agentos.signals import AgentSignal, Scope, parse_signal

_TAKES_A_VALUE: Final = frozenset({"-s", "--signal"})
EXIT_NOT_DELIVERED: Final = 125


def rewrite_signal_words(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `-STOP`, `-SIGSTOP` and `-19` as `--signal=…`. Raises UnknownSignal for `-STOPP`.

    Whatever follows `--` or belongs to `-s` is left alone, and so are our own, lower-case, options.
    """
    words = list(arguments)
    for index, word in enumerate(words):
        if word == "--":
            break
        if index and words[index - 1] in _TAKES_A_VALUE:
            continue
        if word.startswith("-") and not word.startswith("--") and len(word) > 1 and _meant_as_signal(word[1:]):
            words[index] = f"--signal={parse_signal(word[1:]).name}"
    return words


def _meant_as_signal(word: str) -> bool:
    """Upper case or a digit can only be a signal here; in lower case only a signal's exact name is one."""
    if word[0].isupper() or word[0].isdecimal():
        return True
    try:
        parse_signal(word)
    except UnknownSignal:
        return False
    return True


class KillCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if {"--tree", "--leader"} <= set(args[: args.index("--")] if "--" in args else args):
            raise click.UsageError("either --tree or --leader, not both", ctx)
        return super().parse_args(ctx, rewrite_signal_words(args))


@click.command(cls=KillCommand)
@click.option(
    "-s",
    "--signal",
    "signal",
    type=Signal(),
    default="TERM",
    show_default=True,
    metavar="SIG",
    help="Also -SIG: -STOP, -SIGSTOP, -19.",
)
@click.option(
    "-l", "--list", "listing", is_flag=True, help="List the signals, or translate the names or numbers given."
)
@click.option("-a", "--all", "everyone", is_flag=True, help="Every agent that lives.")
@click.option("--tree", "scope", flag_value="tree", help="To every process of the agent.")
@click.option("--leader", "scope", flag_value="leader", help="To the agent's first process only.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when it worked.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array of what was done.")
@click.argument("targets", nargs=-1, metavar="TARGET...")
def kill(
    signal: AgentSignal,
    listing: bool,
    everyone: bool,
    scope: Scope | None,
    quiet: bool,
    as_json: bool,
    targets: tuple[str, ...],
) -> int:
    """Send a signal to agents, TERM unless told otherwise (other tools default to KILL; `agentos stop` ends for sure).

    STOP, CONT and KILL reach the agent's whole process tree, the others its first process. Returns when Linux
    confirmed the effect: after -STOP nothing of the tree runs, after -KILL nothing of it lives.
    """
    if listing:
        return _list_signals(targets)
    return deliver(signal, scope, chosen(targets, everyone), quiet=quiet, as_json=as_json)


def _list_signals(words: tuple[str, ...]) -> int:
    for word in words:
        signal = parse_signal(word)
        print(signal.name.removeprefix("SIG") if word.isdecimal() else signal.value)
    if not words:
        for signal in AgentSignal:
            print(f"{signal.value:>2} {signal.name}")
    return 0


def chosen(targets: tuple[str, ...], everyone: bool) -> tuple[list[Agent], list[AgentosError]]:
    """Return the agents that a verb shall act on, and what is wrong with the other targets."""
    if everyone == bool(targets):
        raise click.UsageError(
            "name at least one TARGET, or --all" if not targets else "either TARGETs or --all, not both"
        )
    present = living_agents()
    if everyone:
        return [agent for agent in present.agents if agent.living], [RunSilent(run) for run in present.silent]
    found, unknown = resolve_all(targets, present.agents)
    if any(not error.matches for error in unknown):
        from agentos.cli.past import find_agents  # noqa: PLC0415  # opens records: only for who is not among the living

        return find_agents(targets, present)
    return found, list(unknown)


def deliver(
    signal: AgentSignal,
    scope: Scope | None,
    choice: tuple[list[Agent], list[AgentosError]],
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Send `signal` to all at once, report each, return the worst exit code."""
    agents, problems = choice
    errors: list[AgentosError] = [*problems, *(AgentEnded(agent) for agent in agents if not agent.living)]
    for error in errors:
        say(str(error))
    code = max((error.exit_code for error in errors), default=0)
    params = {"signal": signal.value, "scope": scope}
    requests = [Request(agent, "signal", {"id": agent.id, **params}) for agent in agents if agent.living]
    done = []
    for request, answer in gather(requests, ANSWER_TIMEOUT_S):
        code = max(code, report(request.agent, signal.name, answer, quiet=quiet or as_json))
        done.append(as_row(request.agent, signal, answer))
    if as_json:
        print_json(done)
    return code


def report(agent: Agent, what: str, answer: Any, *, quiet: bool) -> int:
    """Say what became of one delivery and return its exit code."""
    if isinstance(answer, AgentosError):
        say(f"{agent.label}: {answer}")
        return answer.exit_code
    if not answer.get("ok"):
        say(f"{agent.label}: {what} was not delivered: {answer.get('detail') or 'no reason given'}")
        return EXIT_NOT_DELIVERED
    if not quiet:
        count = answer.get("processes")
        say_done(agent, f"{what}, {count} process{'' if count == 1 else 'es'}, now {answer.get('state')}")
    return 0


def say_done(agent: Agent, text: str) -> None:
    print(printable(f"{agent.label}: {text}"))


def as_row(agent: Agent, signal: AgentSignal, answer: Any) -> dict[str, Any]:
    row = {"id": agent.id, "name": agent.name, "run": agent.run.run_id, "signal": signal.name}
    if isinstance(answer, AgentosError):
        return {**row, "ok": False, "error": type(answer).__name__, "detail": str(answer)}
    return {**row, **answer}
