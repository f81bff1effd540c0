"""What must be true before an agent is started: its program is there, its command fits, its level can be had.

Functions of a request and of what lies on the disk; they start and change nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from agentos.errors import BadRequest, LevelUnavailable, ProgramNotFound, ProgramNotRunnable
from agentos.supervisor.requests import Request
from agentos.wire import ACTION_BYTES_MAX


def check_size(request: Request) -> None:
    """The command goes on record whole, or it is not started. Raises ProgramNotRunnable."""
    size = sum(len(word) + 1 for word in request.argv)
    if size > ACTION_BYTES_MAX:
        why = f"its argv has {size} characters, the limit is {ACTION_BYTES_MAX}; pass them in a file"
        raise ProgramNotRunnable(request.argv[0][:200], why)


def size_in_line(request: Request) -> int:
    """Return how many bytes of functions, arguments and state it keeps while it waits."""
    return sum(map(len, (request.pickle or b"", request.args, request.kwargs, request.state or b"")))


def choose_level(request: Request) -> str:
    """Return the level of the run. Raises LevelUnavailable when it would be lower than required."""
    if request.kind == "python":
        best, required = "hooks", request.require or "hooks"
        why = "this version mediates Python agents by audit hooks"
    else:
        best, required = "none", request.require or "hooks"
        why = "this version does not mediate executables yet; pass --require none to run it supervised but unmediated"
    order = ("none", "hooks", "syscalls", "full")
    if required not in order:
        raise BadRequest(f"unknown level {required!r}; known: {', '.join(order)}")
    if order.index(required) > order.index(best):
        raise LevelUnavailable(required, best, why)
    return "none" if required == "none" else best


def find_program(program: str, env: Mapping[str, str], cwd: str) -> str:
    """Return the absolute path that exec would run. Raises ProgramNotFound or ProgramNotRunnable."""
    if "/" in program:
        path = os.path.join(cwd, program)
        if not os.path.exists(path):
            raise ProgramNotFound(program, f"{path} does not exist")
        if os.path.isdir(path) or not os.access(path, os.X_OK):
            raise ProgramNotRunnable(program, f"{path} is not an executable file")
        return path
    found = shutil.which(program, path=env.get("PATH", os.defpath))
    if found is None:
        raise ProgramNotFound(program)
    return os.path.join(cwd, found)
