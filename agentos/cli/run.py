"""`agentos run`: everything a person can get wrong is found here, before anything is started.

`prepare` turns what was typed into the parameters of the kernel's `start` call and touches nothing; only then is a
kernel started. Attached (agentos.cli.attached) unless -d.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from agentos.cli import attached
from agentos.cli.options import Duration, Level, Operations, Pair, Rule
from agentos.cli.output import say
from agentos.client import launch
from agentos.errors import BadRequest, LevelUnavailable, ProgramNotFound, ProgramNotRunnable, nearest
from agentos.policies import Policy

NAME_CHARS_MAX: Final = 128
DEFAULT_GRACE_S: Final = 10.0  # as docker and podman: people know it
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"  # execvp(3) without PATH, plus what distributions add

_FUNCTION: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_FILE_FUNCTION: Final = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d]\w*)")
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
@click.option("--start-paused", is_flag=True, help="Stopped before its first instruction, until `agentos resume`.")
@click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, metavar="[--] CMD... | module:function ARG... | file.py:function ARG..."
)
def run(**options: Any) -> int:
    """Run a program or a Python function as an agent.

    Attached to this terminal unless -d: Ctrl-C stops it (twice: kills it), Ctrl-Z pauses it and agentos with it. The
    exit code is the agent's own; 128+n when a signal ended it, 124 time-out, 4 ended by policy.
    """
    wishes = Wishes(**options)
    plan = prepare(wishes, os.environ)
    started = launch.start_kernel(
        policy=plan.policy,
        policy_text=plan.policy_text,
        policy_files=plan.policy_files,
        workspace=plan.workspace,
        attached=not wishes.detach,
        debug=bool(os.environ.get("AGENTOS_DEBUG")),
    )
    try:
        return _start(started, plan, wishes)
    finally:
        started.link.close()


def _start(started: launch.Started, plan: Plan, wishes: Wishes) -> int:
    passes_stdin = not wishes.detach and _has_stdin()
    params = {**plan.params, "stdin": "passed" if passes_stdin else "null"}
    agent = started.link.call("start", params, [0] if passes_stdin else ())
    for note in agent.get("notes", ()):
        say(str(note))
    if wishes.detach:
        started.link.call("detach")
        print(agent["id"])
        started.guard.returncode = 0  # it is not ours to wait for any more
        return 0
    return attached.attend(started, str(agent["id"]), grace_s=wishes.grace_s)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel is started with, and the parameters of `start` without stdin."""

    policy: str
    policy_text: str | None  # of a file: the kernel gets what was checked, whatever becomes of the file
    policy_files: tuple[str, ...]
    workspace: str
    params: dict[str, Any]


def prepare(wishes: Wishes, environment: Mapping[str, str]) -> Plan:
    """Return the plan for what was typed. Raises a CallerError or LevelUnavailable; starts and changes nothing."""
    if not wishes.words:
        raise click.UsageError("what to run is missing: -- CMD..., module:function or file.py:function")
    if wishes.timeout_s == 0:
        raise BadRequest("--timeout must be longer than nothing; leave it out for no time-out")
    policy = _policy(wishes.policy)
    workspace = _directory(wishes.workspace or os.getcwd(), "--workspace")
    cwd = _directory(wishes.cwd, "--cwd") if wishes.cwd else workspace
    env, passed = parse_environment(wishes.env, environment)
    what = _what_to_run(wishes.words, cwd, env.get("PATH") or environment.get("PATH") or DEFAULT_PATH)
    _check_level(wishes.require, what["kind"])
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
    }
    return Plan(*policy, workspace, params)


def _policy(word: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Return name, text and files of a policy, after loading it once. Raises PolicyLoadError, BadRequest."""
    path = Path(word)
    if "/" not in word and path.suffix not in {".yaml", ".yml"}:
        Policy.builtin(word)
        return word, None, ()
    if not path.is_file():
        siblings = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise BadRequest(f"--policy {word}: no such file{nearest(path.name, siblings)}")
    Policy.from_yaml(path)  # by path: its complaints then name file, line and column
    return path.stem, path.read_text(encoding="utf-8"), (str(path.resolve()),)


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
    name = wanted if wanted is not None else _natural_name(first_word)
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable() or name.startswith("-"):
        raise BadRequest(f"--name {name!r} must be 1 to {NAME_CHARS_MAX} printable characters and not begin with '-'")
    return name


def _natural_name(first_word: str) -> str:
    if _FUNCTION.fullmatch(first_word) or _FILE_FUNCTION.fullmatch(first_word):
        return first_word.rpartition(":")[2]
    name = "".join(char if char.isprintable() else "_" for char in os.path.basename(first_word)).lstrip("-")
    return name[:NAME_CHARS_MAX] or "agent"


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


def _what_to_run(words: Sequence[str], cwd: str, search_path: str) -> dict[str, Any]:
    """Return kind, argv or target and args. Raises ProgramNotFound, ProgramNotRunnable, BadRequest."""
    first = words[0]
    in_file = _FILE_FUNCTION.fullmatch(first)
    if in_file:
        path = Path(in_file["file"])
        if not path.is_file():
            raise ProgramNotFound(first, f"{path}: no such file{_nearest_file(path)}")
        return {"kind": "python", "target": f"{path.resolve()}:{in_file['function']}", "args": list(words[1:])}
    if _FUNCTION.fullmatch(first):
        _find_module(first.partition(":")[0], cwd)
        return {"kind": "python", "target": first, "args": list(words[1:])}
    check_program(first, cwd, search_path)
    return {"kind": "program", "argv": list(words)}


def _find_module(module: str, cwd: str) -> None:
    """Look for the top-level package without importing anything; what is below it only the agent may execute."""
    top = module.partition(".")[0]
    if top not in sys.builtin_module_names and importlib.machinery.PathFinder.find_spec(top, [cwd, *sys.path]) is None:
        local = [path.stem for path in Path(cwd).glob("*.py")]
        raise ProgramNotFound(module, f"no module {top!r} in {cwd} or on the Python path{nearest(top, local)}")


def _nearest_file(path: Path) -> str:
    return nearest(path.name, [each.name for each in path.parent.glob("*.py")]) if path.parent.is_dir() else ""


def check_program(word: str, cwd: str, search_path: str) -> None:
    """Look for a program as execvp(3) would from `cwd`. Raises ProgramNotFound, ProgramNotRunnable."""
    if not word or "\0" in word:
        raise ProgramNotFound(word, "this is no name of a program")
    if "/" in word:
        _check_file(word, os.path.normpath(os.path.join(cwd, word)))
        return
    candidates = [os.path.join(cwd, folder, word) for folder in search_path.split(os.pathsep)]
    files = [path for path in candidates if os.path.isfile(path)]
    if not files:
        raise ProgramNotFound(word)
    if not any(os.access(path, os.X_OK) for path in files):
        raise ProgramNotRunnable(word, f"{files[0]} is not executable")


def _check_file(word: str, path: str) -> None:
    if not os.path.exists(path):
        raise ProgramNotFound(word, "no such file")
    if os.path.isdir(path):
        raise ProgramNotRunnable(word, "it is a directory")
    if not os.access(path, os.X_OK):
        raise ProgramNotRunnable(word, f"it is not executable; chmod +x {path}")


def _check_level(required: str | None, kind: str) -> None:
    """Raise LevelUnavailable when this version cannot put up what is required, and say which flag would start it."""
    if kind == "program" and required != "none":
        raise LevelUnavailable(required or "syscalls", "none", _NOT_MEDIATED)
    if kind == "python" and required in {"syscalls", "full"}:
        raise LevelUnavailable(required, "hooks", _HOOKS_ONLY)


def _has_stdin() -> bool:
    try:
        os.fstat(0)
    except OSError:
        return False
    return True
