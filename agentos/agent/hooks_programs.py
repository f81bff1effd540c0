"""Audit events about programs: which file would be executed, with which arguments.

What a program does after its start is not decided here; only its start is. A program that does not exist is not
asked about: the call fails by itself, and execvp(3) tries every directory of PATH.
"""

from __future__ import annotations

import _posixsubprocess
import functools
import os
import posix
import stat
import subprocess  # noqa: F401 - it keeps the bare fork_exec, and raises an event of its own before it uses it
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from agentos.agent.wanted import Wanted, file_name
from agentos.errors import PolicyViolationError

SHELL: Final = "/bin/sh"  # what system(3) runs
_INTERPRETER: Final = "another interpreter in this process would run without audit hooks (PEP 578)"


def find_programs(program: Any, folders: Sequence[str], cwd: str) -> list[str]:
    """Return the absolute names of the files that a call may execute: the first that is there below `folders`."""
    name = file_name(program)
    for folder in [""] if "/" in name else folders:
        candidate = os.path.join(cwd, folder, name)
        try:
            mode = os.stat(candidate).st_mode
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(mode):
            return [candidate]
    return []


def _wanted(found: Iterable[str], argv: Any) -> Iterator[Wanted]:
    if isinstance(argv, str | bytes | os.PathLike):
        argv = [argv]
    words = tuple(os.fsdecode(word) for word in argv)
    for program in dict.fromkeys(found):
        yield Wanted("execute", program, os.path.realpath(program), words)


def _search_path(env: Any) -> list[str]:
    return os.get_exec_path(env if isinstance(env, Mapping) else None)


def _popen(executable: Any, args: Any, cwd: Any, env: Any) -> Iterator[Wanted]:
    """fork_exec looks through PATH itself, and raises no further event."""
    place = os.getcwd() if cwd is None else file_name(cwd)
    yield from _wanted(find_programs(executable, _search_path(env), os.path.abspath(place)), args)


def _exec(path: Any, args: Any, _env: Any) -> Iterator[Wanted]:
    """execve(2) takes the name as it is: execvp(3) has put a directory of PATH before it already."""
    yield from _wanted(find_programs(path, [""], os.getcwd()), args)


def _posix_spawn(path: Any, argv: Any, env: Any) -> Iterator[Wanted]:
    """One event for posix_spawn, which takes the name as it is, and posix_spawnp, which looks through PATH: both."""
    here = os.getcwd()
    yield from _wanted([*find_programs(path, [""], here), *find_programs(path, _search_path(env), here)], argv)


def _system(command: Any) -> Iterator[Wanted]:
    yield from _wanted([SHELL], ["sh", "-c", command])


def _fork_exec(argv: Any, executables: Any) -> Iterator[Wanted]:
    """The way of multiprocessing to start spawned children and servers, for which CPython raises no event."""
    yield from _wanted(find_programs(executables[0], [""], os.getcwd()), argv)


def _interpreter() -> Iterator[Wanted]:
    raise PolicyViolationError("execute", "python/interpreter", reason=_INTERPRETER)


EVENTS: Final[dict[str, Callable[..., Iterable[Wanted]]]] = {
    "subprocess.Popen": _popen,
    "os.exec": _exec,
    "os.posix_spawn": _posix_spawn,
    "os.system": _system,
    "agentos.fork_exec": _fork_exec,  # raised by our own wrapper
    "cpython.PyInterpreterState_New": _interpreter,
}


def wrap() -> None:
    """Have a program that is started without an event raise one, and a file that is opened for one."""
    original = _posixsubprocess.fork_exec

    @functools.wraps(original)
    def fork_exec(argv: Any, executables: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any) -> int:
        sys.audit("agentos.fork_exec", argv, executables)
        return original(argv, executables, close_fds, pass_fds, cwd, env, *rest)

    _posixsubprocess.fork_exec = fork_exec
    for name in ("posix_spawn", "posix_spawnp"):
        setattr(os, name, _opening_files(getattr(os, name)))
        setattr(posix, name, getattr(os, name))


def _opening_files(original: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(original)
    def spawn(path: Any, argv: Any, env: Any, /, *, file_actions: Any = None, **options: Any) -> int:
        actions = None if file_actions is None else [tuple(action) for action in file_actions]
        for action in actions or ():
            if action[0] == os.POSIX_SPAWN_OPEN:
                sys.audit("open", action[2], None, action[3])
        return original(path, argv, env, file_actions=actions, **options)

    return spawn
