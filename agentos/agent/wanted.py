"""What an intercepted operation asks for, and how the names of files in it are read. Asks nobody, decides nothing.

A name is given twice: as it was asked for and, where links lead elsewhere, as the object that is there now (R2.4).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

NO_DIRECTORY: Final = -1  # what audit events hold where no dir_fd was given


@dataclass(frozen=True, slots=True)
class Wanted:
    """One action that an event is about. Names are absolute, or relative to the process's working directory."""

    operation: str
    resource: str
    resolved: str | None = None
    argv: tuple[str, ...] | None = None


def file_action(operation: str, path: Any, dir_fd: int = NO_DIRECTORY, *, follow: bool = True) -> Wanted:
    """Return the action on a file named by a path, bytes, PathLike or descriptor.

    `follow` False is for calls that act on the name itself: a link there is removed or replaced, not followed.
    The opening of a directory ends in `/`, which is what `D/*` matches (R2.5).
    """
    name = file_name(path, dir_fd)
    if follow:
        resolved = os.path.realpath(name)
    else:
        folder, last = os.path.split(name.rstrip("/") or "/")
        resolved = os.path.join(os.path.realpath(folder or "."), last)
    if operation.startswith("read") and os.path.isdir(resolved):
        name, resolved = _as_directory(name), _as_directory(resolved)
    return Wanted(operation, name, resolved)


def file_name(path: Any, dir_fd: int = NO_DIRECTORY) -> str:
    """Return the name a call means: what the descriptor is open on, or the path below `dir_fd`."""
    if isinstance(path, int):
        target = os.readlink(f"/proc/self/fd/{path}")
        return target if target.startswith("/") else f"/proc/self/fd/{path}"  # a pipe or a socket has no name
    name = os.fsdecode(path)
    if dir_fd != NO_DIRECTORY and not name.startswith("/"):
        name = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
    return name


def _as_directory(name: str) -> str:
    return name if name.endswith("/") else name + "/"
