"""`agentos run`: everything a person can get wrong is found here, before anything is started.

`prepare` turns what was typed into the parameters of the kernel's `start` call and touches nothing; only then is a
kernel started. Attached (agentos.cli.attached) unless -d.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from agentos.cli import attached
from agentos.cli.options import Duration, Level, Operations, Pair, Restart, Rule
from agentos.cli.output import say
from agentos.cli.what import natural_name, what_to_run
from agentos.client import launch
from agentos.errors import AgentosError, BadRequest, HostError, LevelUnavailable, PolicyLoadError, nearest
from agentos.identity import NAME_CHARS_MAX
from agentos.policies import BUILTINS, EffectivePolicy, Policy
from agentos.runs import is_homeless, state_dir
from agentos.supervisor.policy_source import parse_rule

DEFAULT_GRACE_S: Final = 10.0  # as docker and podman: people know it
ROOM_BYTES_MIN: Final = 1024 * 1024  # an empty record and its journal take a third of it
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"  # execvp(3) without PATH, plus what distributions add

_HOOKS_ONLY: Final = "this version mediates Python agents by audit hooks (level 'hooks'); pass --require hooks or none"
_NOT_MEDIATED: Final = (
    "this version cannot mediate executables; pass --require none to run this one supervised, recorded and "
    "signalled, but with nothing between it and the system"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was typed, each option parsed by itself."""

    words: tuple[str, ...]
    detach: bool = False
    name: str | None = None
    policy: str = "workspace"
    permissions: list[str] | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    context: tuple[tuple[str, str], ...] = ()
    workspace: str | None = None
    cwd: str | None = None
    env: tuple[str, ...] = ()
    env_all: bool = False
    timeout_s: float | None = None
    grace_s: float = DEFAULT_GRACE_S
    require: str | None = None
    start_paused: bool = False
    restart: str = "never"


@click.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@click.option("-d", "--detach", is_flag=True, help="Print the agent's id and return; the agent goes on.")
@click.option("--name", metavar="NAME", help="What ps shows; the program's or function's name if not given.")
@click.option(
    "--policy", default="workspace", show_default=True, metavar="NAME|FILE", help="A built-in policy or a YAML file."
)
@click.option(
    "--permissions", type=Operations(), metavar="LIST", help="Comma-separated operations; none but these are possible."
)
@click.option(
    "--allow", multiple=True, type=Rule(), metavar="OP:RESOURCE", help="Allow this before the policy is asked."
)
@click.option("--deny", multiple=True, type=Rule(), metavar="OP:RESOURCE", help="Deny this before anything is asked.")
@click.option(
    "--context", multiple=True, type=Pair(), metavar="K=V", help="A fact that the policy's conditions may use."
)
@click.option(
    "--workspace", metavar="DIR", help="What relative resources are relative to; the current directory if not given."
)
@click.option("--cwd", metavar="DIR", help="Where the agent starts; the workspace if not given.")
@click.option("-e", "--env", multiple=True, metavar="NAME|K=V", help="Pass on one variable, or set one.")
@click.option("--env-all", is_flag=True, help="Pass on the whole environment, secrets included; goes on record.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    metavar="DURATION",
    help="SIGALRM after this, then grace, then SIGKILL; none if not given.",
)
@click.option(
    "--grace",
    "grace_s",
    type=Duration(),
    default=DEFAULT_GRACE_S,
    metavar="DURATION",
    help="Between asking to end and SIGKILL; 10s if not given.",
)
@click.option(
    "--require",
    type=Level(),
    metavar="LEVEL",
    help="Start nothing unless these walls are up: full, syscalls, hooks, none.",
)
@click.option(
    "--restart",
    type=Restart(),
    default="never",
    metavar="WHEN",
    help="never, on-failure, on-failure:N (at most N times) or always; never if not given.",
)
@click.option("--start-paused", is_flag=True, help="Stopped before its first instruction, until `agentos resume`.")
@click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, metavar="[--] CMD... | module:function ARG... | file.py:function ARG..."
)
def run(**options: Any) -> int:
    """Run a program or a Python function as an agent.

    Attached to this terminal unless -d, with --restart until its last life is over: Ctrl-C stops it (twice: kills it), Ctrl-Z pauses it and agentos with it. The
    exit code is the agent's own; 128+n when a signal ended it, 124 time-out, 4 ended by policy.
    """
    wishes = Wishes(**options)
    plan = prepare(wishes, os.environ)
    _check_room()
    _say_what_is_not_as_usual(plan, wishes)
    started = launch.start_kernel(
        policy=plan.policy.name,
        policy_text=plan.policy.text,
        policy_files=plan.policy.files,
        workspace=plan.workspace,
        attached=not wishes.detach,
        debug=bool(os.environ.get("AGENTOS_DEBUG")),
    )
    if wishes.detach:
        return _detach(started, plan.params)
    return attached.attend(started, plan.params, grace_s=wishes.grace_s)


def _say_what_is_not_as_usual(plan: Plan, wishes: Wishes) -> None:
    """Say where records go that have no home, and which options have no effect on what nothing decides about."""
    if is_homeless():
        say(f"no HOME to write to: records and logs go to {state_dir()}; set AGENTOS_STATE_DIR to keep them elsewhere")
    source = click.get_current_context().get_parameter_source("policy")
    given = {
        "--policy": source is not click.core.ParameterSource.DEFAULT, "--permissions": wishes.permissions is not None,
        "--allow": wishes.allow, "--deny": wishes.deny,
    }  # fmt: skip
    if plan.params["kind"] == "program" and any(given.values()):
        which = ", ".join(option for option, is_given in given.items() if is_given)
        say(f"level none: nothing is decided between this program and the system, so {which} will have no effect on it")


def _detach(started: launch.Started, params: dict[str, Any]) -> int:
    try:
        agent_id = attached.start_agent(started, params, ())
        started.link.call("detach")
    except AgentosError:
        attached.close_run(started)
        raise
    started.link.close()
    started.guard.returncode = 0  # it is not ours to wait for any more
    print(agent_id)
    return 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The policy that --policy means, loaded once."""

    loaded: Policy
    name: str
    text: str | None = None  # of a file: the kernel gets what was checked, whatever becomes of the file
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel is started with, and the parameters of `start` without stdin."""

    policy: Choice
    workspace: str
    params: dict[str, Any]


def prepare(wishes: Wishes, environment: Mapping[str, str]) -> Plan:
    """Return the plan for what was typed. Raises a CallerError or LevelUnavailable; starts and changes nothing."""
    if not wishes.words:
        raise click.UsageError("what to run is missing: -- CMD..., module:function or file.py:function")
    if wishes.timeout_s == 0:
        raise BadRequest("--timeout must be longer than nothing; leave it out for no time-out")
    policy = _policy(wishes.policy)
    workspace = _directory(wishes.workspace or _here(), "--workspace")
    cwd = _directory(wishes.cwd, "--cwd") if wishes.cwd else workspace
    env, passed = parse_environment(wishes.env, environment)
    what = what_to_run(wishes.words, cwd, env.get("PATH") or environment.get("PATH") or DEFAULT_PATH)
    _check_level(wishes.require, what["kind"])
    _check_rules(policy.loaded, wishes, workspace)
    params = {
        **what,
        "name": _name(wishes.name, wishes.words[0]),
        "cwd": cwd,
        "env": env,
        "env_passed": passed,
        "env_all": wishes.env_all,
        "permissions": wishes.permissions,
        "allow": list(wishes.allow),
        "deny": list(wishes.deny),
        "context": dict(wishes.context),
        "timeout_s": wishes.timeout_s,
        "grace_s": wishes.grace_s,
        "require": wishes.require,
        "start_paused": wishes.start_paused,
        "restart": wishes.restart,
    }
    return Plan(policy, workspace, params)


def _policy(word: str) -> Choice:
    """Load what --policy means. Raises PolicyLoadError, BadRequest."""
    path = Path(word)
    if "/" not in word and path.suffix not in {".yaml", ".yml"}:
        if word not in BUILTINS:
            hint = f"; for the file write ./{word}" if path.is_file() else nearest(word, BUILTINS)
            raise BadRequest(f"--policy {word}: no built-in policy{hint}; known: {', '.join(BUILTINS)}, or a YAML file")
        return Choice(Policy.builtin(word), word)
    if path.is_dir():
        raise BadRequest(f"--policy {word} is a directory; name the YAML file in it")
    if not path.exists():
        siblings = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise BadRequest(f"--policy {word}: no such file{nearest(path.name, siblings)}")
    if not path.is_file():
        raise BadRequest(f"--policy {word} is no regular file; a policy is read more than once")
    loaded = Policy.from_yaml(path)  # by path: its complaints then name file, line and column
    return Choice(loaded, path.stem, path.read_text(encoding="utf-8"), (str(path.resolve()),))


def _check_rules(policy: Policy, wishes: Wishes, workspace: str) -> None:
    """Make the rules of --allow and --deny as the kernel will. Raises PolicyLoadError, BadRequest, naming the rule."""
    for action, texts in (("allow", wishes.allow), ("deny", wishes.deny)):
        for text in texts:
            try:
                EffectivePolicy(policy, workspace=workspace, extra_rules=(parse_rule(action, text),))
            except PolicyLoadError as error:
                raise BadRequest(f"--{action} {text}: {error.message}") from error


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise BadRequest("the current directory does not exist any more; cd to one that does") from None


def _directory(word: str, option: str) -> str:
    path = Path(word)
    if not path.is_dir():
        siblings = [str(each) for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        what = "is not a directory" if path.exists() else "does not exist"
        raise BadRequest(f"{option} {word} {what}{nearest(word, siblings)}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise BadRequest(f"{option} {word} may not be entered by uid {os.getuid()}")
    return str(path.resolve())


def _name(wanted: str | None, first_word: str) -> str:
    name = natural_name(first_word)[:NAME_CHARS_MAX] if wanted is None else wanted
    if len(name) > NAME_CHARS_MAX:
        raise BadRequest(f"--name {name[:20]!r}… is {len(name)} characters long; {NAME_CHARS_MAX} are possible")
    if not name or not name.isprintable() or name.startswith("-"):
        raise BadRequest(f"--name {name!r} must be printable, not empty, and not begin with '-'")
    return name


def parse_environment(wanted: Sequence[str], ours: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables to set and the names to pass on. Raises BadRequest for a name that is not set here."""
    env, passed = {}, []
    for word in wanted:
        name, equals, value = word.partition("=")
        if not name or "\0" in word:
            raise BadRequest(f"-e {word!r} is neither NAME nor NAME=VALUE")
        if equals:
            env[name] = value
        elif name in ours:
            passed.append(name)
        else:
            raise BadRequest(f"-e {name}: not set in this environment{nearest(name, ours)}")
    return env, passed


def _check_level(required: str | None, kind: str) -> None:
    """Raise LevelUnavailable when this version cannot put up what is required, and say which flag would start it."""
    if kind == "program" and required != "none":
        raise LevelUnavailable(required or "syscalls", "none", _NOT_MEDIATED)
    if kind == "python" and required in {"syscalls", "full"}:
        raise LevelUnavailable(required, "hooks", _HOOKS_ONLY)


def _check_room() -> None:
    """Refuse to start where the record would not fit: found now it costs nothing, later it costs the agent."""
    place = state_dir()
    free = os.statvfs(place)
    free_bytes = free.f_bavail * free.f_frsize
    if free_bytes < ROOM_BYTES_MIN:
        raise HostError(
            f"{place} has {free_bytes // 1024} KiB left, too little for a record; make room, or set AGENTOS_STATE_DIR"
        )
