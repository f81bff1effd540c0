"""Audit events about programs: which file would be executed, with which arguments.

What a program does after its start is not decided here; only its start is. A program that does not exist is not
asked about: the call fails by itself, and execvp(3) tries every directory of PATH.
"""

from __future__ import annotations

import _posixsubprocess
import functools
import os
import stat
import subprocess  # noqa: F401 - it keeps the bare fork_exec, and raises an event of its own before it uses it
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from agentos.agent.wanted import Wanted, file_name
from agentos.errors import PolicyViolationError

SHELL: Final = "/bin/sh"  # what system(3) runs
_INTERPRETER: Final = "another interpreter in this process would run without audit hooks (PEP 578)"


def find_program(program: Any, path: Sequence[str], cwd: str | None = None) -> str | None:
    """Return the absolute name of what execvp(3) would run, None when there is nothing."""
    name = file_name(program)
    folders = [""] if "/" in name else path
    for folder in folders:
        candidate = os.path.join(cwd or os.getcwd(), folder, name)
        try:
            mode = os.stat(candidate).st_mode
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
    return None


def _execution(program: Any, argv: Any, env: Any, cwd: Any = None) -> Iterator[Wanted]:
    if isinstance(argv, str | bytes | os.PathLike):
        argv = [argv]
    words = tuple(os.fsdecode(word) for word in argv)
    place = None if cwd is None else file_name(cwd)
    found = find_program(program, os.get_exec_path(env if isinstance(env, Mapping) else None), place)
    if found is not None:
        yield Wanted("execute", found, os.path.realpath(found), words)


def _popen(executable: Any, args: Any, cwd: Any, env: Any) -> Iterator[Wanted]:
    yield from _execution(executable, args, env, cwd)


def _system(command: Any) -> Iterator[Wanted]:
    yield from _execution(SHELL, ["sh", "-c", command], None)


def _fork_exec(argv: Any, executables: Any) -> Iterator[Wanted]:
    """The way of multiprocessing to start spawned children and servers, for which CPython raises no event."""
    yield from _execution(executables[0], argv, None)


def _interpreter() -> Iterator[Wanted]:
    raise PolicyViolationError("execute", "python/interpreter", reason=_INTERPRETER)


EVENTS: Final[dict[str, Callable[..., Iterable[Wanted]]]] = {
    "subprocess.Popen": _popen,
    "os.exec": _execution,
    "os.posix_spawn": _execution,
    "os.system": _system,
    "agentos.fork_exec": _fork_exec,  # raised by our own wrapper
    "cpython.PyInterpreterState_New": _interpreter,
}


def wrap() -> None:
    """Have a program that is started without an event raise one."""
    original = _posixsubprocess.fork_exec

    @functools.wraps(original)
    def fork_exec(argv: Any, executables: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any) -> int:
        sys.audit("agentos.fork_exec", argv, executables)
        return original(argv, executables, close_fds, pass_fds, cwd, env, *rest)

    _posixsubprocess.fork_exec = fork_exec
