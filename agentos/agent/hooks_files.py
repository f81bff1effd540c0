"""Audit events about files: which of them read, which write, and under which names.

CPython tells no `dir_fd` with `open`: os.open is wrapped so that it is known. Descriptors that are open already, and
os.stat and its like, raise no event and are not decided.
"""

from __future__ import annotations

import functools
import os
import posix
import sqlite3
import sys
import threading
import tokenize
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from agentos.agent.wanted import NO_DIRECTORY, Wanted, file_action

_IMPORT: Final = frozenset({"<frozen importlib._bootstrap_external>", "<frozen zipimport>"})
_CALLER: Final = 3  # frames from `_reading` to the code that caused the event: its reader, the hook, the code
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SQLITE_OK, _SQLITE_DENY, _SQLITE_ATTACH = 0, 1, 24  # sqlite3.h
_opening = threading.local()  # (path, dir_fd) of the os.open that this thread is in


def _open(path: Any, _mode: str | None, flags: int) -> Iterable[Wanted]:
    if isinstance(path, int):
        return ()  # a descriptor that is open already
    dir_fd = _take_directory(path)
    follow = not flags & os.O_NOFOLLOW
    wanted = []
    if flags & os.O_ACCMODE != os.O_WRONLY:  # O_CREAT and O_TRUNC write, and leave what they open readable
        wanted.append(file_action(_reading(), path, dir_fd, follow=follow))
    if flags & _WRITES:
        wanted.append(file_action("write", path, dir_fd, follow=follow))
    return wanted


def _reading() -> str:
    """Return `read/import` when Python itself reads source: to import it, or to show it in a traceback."""
    code = sys._getframe(_CALLER).f_code  # noqa: SLF001 - the only way to see who opens
    return "read/import" if code.co_filename in _IMPORT or code is tokenize.open.__code__ else "read"


def _take_directory(path: Any) -> int:
    """Return the dir_fd of the os.open that this event is of. What a signal handler opens meanwhile is its own."""
    opening, dir_fd = getattr(_opening, "now", (None, NO_DIRECTORY))
    if opening is None or os.fspath(opening) != path:
        return NO_DIRECTORY
    _opening.now = (None, NO_DIRECTORY)
    return int(dir_fd)


def _list(path: Any) -> Iterable[Wanted]:
    return [file_action(_reading(), "." if path is None else path)]


def _read(path: Any, *_: Any) -> Iterator[Wanted]:
    yield file_action("read", path)


def _change(operation: str, *, follow: bool = True) -> Callable[..., Iterable[Wanted]]:
    """A reader for events that begin with a path and tell no directory."""

    def read(path: Any, *_: Any) -> Iterator[Wanted]:
        yield file_action(operation, path, follow=follow)

    return read


def _change_at(operation: str, *, follow: bool = True) -> Callable[..., Iterable[Wanted]]:
    """A reader for events that begin with a path and end with its dir_fd."""

    def read(path: Any, *rest: Any) -> Iterator[Wanted]:
        yield file_action(operation, path, rest[-1], follow=follow)

    return read


def _truncate(path: Any, *_: Any) -> Iterator[Wanted]:
    if not isinstance(path, int):  # what is open for writing was decided when it was opened
        yield file_action("write/truncate", path)


def _rename(source: Any, target: Any, source_fd: int, target_fd: int) -> Iterator[Wanted]:
    yield file_action("write/rename", source, source_fd, follow=False)
    yield file_action("write/rename", target, target_fd, follow=False)


def _link(source: Any, target: Any, source_fd: int, target_fd: int) -> Iterator[Wanted]:
    """A second name for an object gives whoever holds it all that the first one would: both operations must pass."""
    yield file_action("read", source, source_fd)
    yield file_action("write/link", source, source_fd)
    yield file_action("write/link", target, target_fd, follow=False)


def _symlink(_source: Any, target: Any, dir_fd: int) -> Iterator[Wanted]:
    """Where it leads is decided when it is followed."""
    yield file_action("write/symlink", target, dir_fd, follow=False)


def _database(database: Any, *_: Any) -> Iterator[Wanted]:
    """SQLite opens its file by itself; "" and ":memory:" are no files."""
    name = os.fsdecode(database)
    if name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    if name and name != ":memory:":
        yield file_action("read", name)
        yield file_action("write", name)


def _authorize(code: int, name: str | None, *_: Any) -> int:
    """SQL opens further files, with ATTACH and VACUUM INTO: SQLite asks here for each (sqlite3_set_authorizer).

    A name that is no literal is not told: such an ATTACH cannot be decided, and is refused.
    """
    if code == _SQLITE_ATTACH and name is None:
        return _SQLITE_DENY
    if code == _SQLITE_ATTACH and name:
        sys.audit("sqlite3.connect", name)  # a refusal raised here is a refusal to SQLite
    return _SQLITE_OK


EVENTS: Final[dict[str, Callable[..., Iterable[Wanted]]]] = {
    "open": _open,
    "os.listdir": _list,
    "os.scandir": _list,
    "os.getxattr": _read,
    "os.listxattr": _read,
    "os.truncate": _truncate,
    "os.remove": _change_at("write/delete", follow=False),
    "os.rmdir": _change_at("write/rmdir", follow=False),
    "os.mkdir": _change_at("write/create", follow=False),
    "os.mkfifo": _change_at("write/create", follow=False),  # raised by our own wrappers
    "os.mknod": _change_at("write/create", follow=False),
    "os.chmod": _change_at("write/chmod"),
    "os.chown": _change_at("write/chown"),
    "os.utime": _change_at("write/utime"),
    "os.setxattr": _change("write/xattr"),
    "os.removexattr": _change("write/xattr"),
    "os.rename": _rename,
    "os.link": _link,
    "os.symlink": _symlink,
    "sqlite3.connect": _database,
}


def wrap() -> None:
    """Let os.open say which directory its path is relative to, and have the calls that raise no event raise one."""
    os.open = posix.open = _knowing_directory(os.open)
    for name in ("mkfifo", "mknod"):
        setattr(os, name, _decided_like_mkdir(getattr(os, name)))
        setattr(posix, name, getattr(os, name))
    sqlite3.connect = sqlite3.dbapi2.connect = _with_authorizer(sqlite3.connect)


def _with_authorizer(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> Any:
        connection = original(*args, **kwargs)
        connection.set_authorizer(_authorize)
        return connection

    return connect


def _knowing_directory(original: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(original)
    def open_at(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is None:
            return original(path, flags, mode)
        before = getattr(_opening, "now", (None, NO_DIRECTORY))
        _opening.now = (path, dir_fd)
        try:
            return original(path, flags, mode, dir_fd=dir_fd)
        finally:
            _opening.now = before

    return open_at


def _decided_like_mkdir(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def make(path: Any, *args: Any, **kwargs: Any) -> None:
        dir_fd = kwargs.get("dir_fd")
        sys.audit(f"os.{original.__name__}", path, NO_DIRECTORY if dir_fd is None else dir_fd)
        original(path, *args, **kwargs)

    return make
