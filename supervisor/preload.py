"""Modules that the operator wants every agent to be born with: imported by the zygote, once, before it forks anybody.

What runs here is trusted: no policy decides about it. What cannot be imported, or would not survive a fork because it
starts threads or processes, is refused, and with it the kernel: agents must not start without what they were promised.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final

from agentos.errors import BadRequest, nearest
from agentos.supervisor import linux

PRELOAD_LIMIT_S: Final = 40.0  # of all imports together: less than the host program waits for its kernel
TEXT_MAX: Final = 1_000  # of what a module says when it fails
# The usual libraries of this kind take a word for it, before they are imported.
_THREAD_POOLS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class _TooLong(BaseException):
    """Raised into the import by SIGALRM: nothing that a module catches in passing."""


def preload(modules: Sequence[str], cwd: str) -> None:
    """Import `modules` in this process, in order. Raises BadRequest that names the first which cannot be had.

    `cwd` is where the host program is: a relative entry of its path, or a module that reads a file, means that.
    """
    if not modules:
        return
    with _there(cwd), _limited(), _same_signals():
        for name in modules:
            _import(name)
            _check_alone(name)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except _TooLong:
        raise BadRequest(f"preload: {name!r} was not imported within {PRELOAD_LIMIT_S:g} s") from None
    except BaseException as error:  # it is somebody else's code: whatever it raises, the host program is told
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise BadRequest(f"preload: there is no module {error.name!r}{_nearest(error.name)}") from None
        text = f"{type(error).__name__}: {error}"[:TEXT_MAX]
        raise BadRequest(f"preload: {name!r} cannot be imported: {text}") from None


def _nearest(name: str) -> str:
    """Return the hint at a module of that package that exists, or at one of all that can be imported."""
    package, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(package), "__path__", []) if package else None
    found = {module.name for module in pkgutil.iter_modules(path)}
    return nearest(last, found if package else found | sys.stdlib_module_names)


def _check_alone(name: str) -> None:
    """Refuse what would be lost or shared in a fork. Raises BadRequest."""
    tasks = len(os.listdir("/proc/self/task"))
    if tasks > 1:
        raise BadRequest(
            f"preload: {name!r} starts {_several(tasks - 1, 'thread')} when it is imported, which no agent would have; "
            f"import it in the agents. If it is a library's pool: {' or '.join(_THREAD_POOLS)} set to 1 in the "
            "environment of this program keeps it from starting one"
        )
    children = len(linux.children_of(os.getpid()))
    if children:
        raise BadRequest(
            f"preload: {name!r} starts {_several(children, 'process')} when it is imported, which would belong to no "
            "agent; import it in the agents"
        )


def _several(count: int, what: str) -> str:
    return f"a {what}" if count == 1 else f"{count} {what}{'e' * what.endswith('s')}s"


@contextlib.contextmanager
def _there(cwd: str) -> Iterator[None]:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise BadRequest(f"preload: the current directory {cwd!r} cannot be entered: {error.strerror}") from error
    importlib.invalidate_caches()  # what a relative entry of the path means was looked up elsewhere
    yield
    os.chdir("/")  # no process of ours keeps a directory busy


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def late(_: int, __: FrameType | None) -> None:
        raise _TooLong

    linux.die_with(os.getppid())  # code that hangs without end hears no alarm: the host program then kills the guard
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PRELOAD_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        linux.outlive_parent()


@contextlib.contextmanager
def _same_signals() -> Iterator[None]:
    """Give every signal back what it had: a handler that a module installed would run in every process of ours."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
