"""The birth of one agent: from the sentry's fork to the program's first instruction.

Everything here runs in the child between fork and exec (or the Python entry), single-threaded. An error is reported
over a close-on-exec pipe as `errno what`, so that "started" means that exec succeeded.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from agentos.agent import entry
from agentos.supervisor import linux

_PYTHON_SIGNALS: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})  # CPython ignores them; programs must not inherit


@dataclass(frozen=True, slots=True)
class Stdio:
    """Descriptors in the sentry that become the child's 0, 1 and 2."""

    stdin: int
    stdout: int
    stderr: int


def fork_agent(params: dict[str, Any], stdio: Stdio, channel: tuple[int, ...]) -> tuple[int, int]:
    """Fork the agent. Returns (pid, status_fd): the descriptor ends at exec, or holds `errno what` first."""
    parent = os.getpid()
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(status_write)
        return pid, status_read
    try:
        linux.die_with(parent)
        _become(params, stdio, channel, status_write)
    except OSError as error:
        what = os.fsdecode(error.filename) if error.filename else error.strerror
        os.write(status_write, f"{error.errno} {what}".encode(errors="replace"))
    except ValueError as error:  # a NUL inside a word: exec(3) cannot say that
        os.write(status_write, f"{errno.EINVAL} {error}".encode(errors="replace"))
    finally:
        os._exit(127)


def _become(params: dict[str, Any], stdio: Stdio, channel: tuple[int, ...], status_write: int) -> NoReturn:
    os.setsid()  # a session of its own: no SIGHUP+SIGCONT from an orphaned process group can wake a stopped agent
    linux.set_dumpable(True)
    for target, source in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
        os.dup2(source, target, inheritable=True)
    linux.close_all_but({0, 1, 2, status_write, *channel})
    _reset_signals(for_python=not params["argv"])
    os.chdir(params["cwd"])
    if params["start_paused"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    if params["argv"]:
        os.execve(params["program"], params["argv"], params["env"])
    linux.set_name(params["name"])
    _set_environment(params["env"])
    os.close(status_write)
    entry.main(*channel)


def _set_environment(env: dict[bytes, bytes]) -> None:
    """Make the environment be `env`. Most of it is the same already, and what is not written stays shared memory."""
    for name in [name for name in os.environb if name not in env]:
        del os.environb[name]
    for name, value in env.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def _reset_signals(*, for_python: bool) -> None:
    """Give the child the dispositions of a fresh process: exec keeps ignored signals ignored (signal(7))."""
    for number in signal.valid_signals():
        if number in (signal.SIGKILL, signal.SIGSTOP) or (for_python and number in _PYTHON_SIGNALS):
            continue
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    if for_python:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
