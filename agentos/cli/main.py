"""`agentos`: finds the verb, imports only that verb, and turns every ending into an exit code.

Exit codes: the agent's own when attached, 128+n by signal, 124 time-out, 125 agentos' own, 126/127 cannot run / not
found, 2 usage, 3 no such target, 4 ended by policy, 5 not permitted, 6 still alive after grace. A user's mistake never
shows a traceback; a bug does, because hiding it would help nobody.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn

import click

from agentos import __version__
from agentos.cli.output import ensure_standard_streams, say, take_launcher, terminal_width
from agentos.errors import AgentosError, nearest

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE, as any other program in a pipeline
HELP_COLUMNS_MAX: Final = 80  # longer lines are hard to read
EXIT_OWN: Final = 125


class Verb(NamedTuple):
    """Where a verb lives and what the list of verbs says of it, so that the list imports none of them."""

    module: str
    attribute: str
    summary: str


VERBS: Final = {
    "run": Verb("run", "run", "Run a program or a Python function as an agent."),
    "ps": Verb("ps", "ps", "List agents."),
    "kill": Verb("kill", "kill", "Send a signal; returns when Linux confirmed it."),
    "stop": Verb("stop", "stop", "End agents: SIGTERM, grace, then SIGKILL of the tree."),
    "pause": Verb("stop", "pause", "Freeze agents and everything they started."),
    "resume": Verb("stop", "resume", "Continue paused agents."),
    "wait": Verb("wait", "wait", "Wait until agents ended, and exit as they did."),
    "logs": Verb("logs", "logs", "Show what agents printed."),
    "inspect": Verb("inspect", "inspect", "Show everything about an agent, as JSON."),
    "audit": Verb("audit", "audit", "Show what agents did and what was decided."),
    "doctor": Verb("doctor", "doctor", "Try what this machine can do."),
    "prune": Verb("prune", "prune", "Remove the records and logs of old runs."),
    "version": Verb("version", "version", "Print the version."),
}
ALIASES: Final = {"unpause": "resume", "cont": "resume"}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for: click itself is most of what `ps` may cost."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        columns = terminal_width()
        if columns is not None:
            ctx.terminal_width = min(columns, HELP_COLUMNS_MAX)  # click alone would not go below fifty
        return super().parse_args(ctx, [*args[1:2], "--help"] if args[:1] == ["help"] else args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(ALIASES.get(cmd_name, cmd_name))
        if verb is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"agentos.cli.{verb.module}"), verb.attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and ALIASES.get(args[0], args[0]) not in VERBS:
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], [*VERBS, *ALIASES])}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        print(f"agentos {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Run AI agents as supervised processes: every action decided and on record before it takes effect.

    TARGET is an agent's name, id, unique beginning of an id, or a quoted glob such as 'worker-*'.

    Exit codes: of `run`, when attached, the agent's own, or 128+n when signal n ended it. Otherwise 2 asked wrongly,
    3 no such agent, 4 ended by policy, 5 not permitted, 6 still alive, 124 time-out, 125 agentos' own trouble,
    126 cannot run it, 127 not found.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; `arguments` defaults to the process's own.

    Leaves by _exit: taking the interpreter apart is a sixth of what `agentos ps` would cost, and nothing waits for it.
    """
    ensure_standard_streams()
    take_launcher()
    code = run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or EXIT_BROKEN_PIPE
    except OSError as error:  # its disk is full: what was printed is lost
        say(f"cannot write to stdout: {error.strerror}")
        code = code or EXIT_OWN
    os._exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="agentos", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        say(error.format_message())
        _hint(error)
        return error.exit_code
    except AgentosError as error:
        say(str(error))
        return error.exit_code
    except SystemExit:  # click's own answer to a broken pipe; no verb leaves that way
        return _give_up_stdout()
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except OSError as error:  # a disk, a directory: the machine's, not ours; without a name it is our output
        say(f"{error.filename or 'cannot write to stdout'}: {error.strerror or error}")
        _give_up_stdout()
        return EXIT_OWN
    return result if isinstance(result, int) else 0


def _hint(error: click.ClickException) -> None:
    context = getattr(error, "ctx", None)
    if context is not None:
        say(f"`{context.command_path} --help` tells how")


def _give_up_stdout() -> int:
    """Point stdout at /dev/null, so that the interpreter's last flush does not complain about a reader that left."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for number in {1, sys.stdout.fileno()}:  # two when it was closed
        os.dup2(devnull, number)
    os.close(devnull)
    return EXIT_BROKEN_PIPE
