"""Removing a directory that an agent filled, whatever it made there, with constant stack and descriptors.

shutil.rmtree recurses and holds a descriptor per level: some hundred nested directories stop it, and one without
permissions does too. Here the tree is made shallower instead: what lies in a directory of the top moves up to the top,
so that we never look deeper than that. Follows no symbolic link (open(2), O_NOFOLLOW).
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_LOOK: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def remove_tree(path: str) -> bool:
    """Remove `path` and all below it; whether nothing is left. Never raises for what an agent can make."""
    with suppress(OSError):
        with _opened(path) as top:
            _empty(top)
        os.rmdir(path)
    return not os.path.lexists(path)


def _empty(top: int) -> None:
    """Remove everything in the directory `top`. Each pass also meets what the pass before moved up."""
    names = (f".removed-{number}" for number in itertools.count())
    progress = True
    while progress:
        progress = False
        with os.scandir(top) as entries:
            for entry in entries:
                with suppress(OSError):
                    _remove(top, entry, names)
                    progress = True


def _remove(top: int, entry: os.DirEntry[str], names: Iterator[str]) -> None:
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.name, dir_fd=top)
        return
    with _opened(entry.name, top) as inner, os.scandir(inner) as entries:
        for below in entries:
            with suppress(OSError):
                if below.is_dir(follow_symlinks=False):
                    with _opened(below.name, inner):  # to move a directory one must be able to write it (rename(2))
                        os.rename(below.name, next(names), src_dir_fd=inner, dst_dir_fd=top)
                else:
                    os.unlink(below.name, dir_fd=inner)
    os.rmdir(entry.name, dir_fd=top)


@contextmanager
def _opened(name: str, at: int | None = None) -> Iterator[int]:
    """Open a directory for reading, and give its owner all rights on it first."""
    handle = os.open(name, _LOOK, dir_fd=at)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)  # chmod(2) on the object itself, whatever its name is now
        descriptor = os.open(".", _READ, dir_fd=handle)
    finally:
        os.close(handle)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
