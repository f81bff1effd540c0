"""`agentos doctor`: what this machine can do, found out by doing it.

Every line is the result of a trial made now, never of a version number. What this version does not use yet is not
reported. Trials run in children of ours and leave nothing behind.
"""

from __future__ import annotations

import os
import platform
import resource
import select
import signal as posix
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import apsw
import click

from agentos.cli.output import coloured, print_json
from agentos.errors import HostError
from agentos.printable import printable
from agentos.runs import is_homeless, runtime_dir, state_dir
from agentos.supervisor.linux import children_of, set_subreaper

NOFILE_COMFORTABLE: Final = 4096  # a dozen descriptors an agent: below this a few hundred agents are the end
PIDS_COMFORTABLE: Final = 32_768  # Linux's own default; less is exhausted by one hostile tree
TRIAL_S: Final = 5.0
EXIT_SOMETHING_MISSING: Final = 125


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `ok` None is worth knowing and neither good nor bad."""

    name: str
    ok: bool | None
    detail: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> int:
    """Try what this machine can do. Exits 125 when something is missing that agents need."""
    checks = [_tried(name, trial) for name, trial in TRIALS.items()]
    healthy = all(check.ok is not False for check in checks)
    if as_json:
        print_json({"ok": healthy, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            print(_line(check))
    return 0 if healthy else EXIT_SOMETHING_MISSING


def _line(check: Check) -> str:
    word = {True: "ok", False: "MISSING", None: "note"}[check.ok]
    padded = f"{word:<8}"
    return f"{coloured(padded, 'red') if check.ok is False else padded}{check.name:<22}{printable(check.detail)}"


def _tried(name: str, trial: Callable[[], tuple[bool | None, str]]) -> Check:
    """Run one trial. What the system refuses is the finding, not a failure of ours."""
    try:
        ok, detail = trial()
    except (OSError, HostError, apsw.Error) as error:
        return Check(name, False, str(error))
    return Check(name, ok, detail)


def _system() -> tuple[bool | None, str]:
    return None, f"Linux {platform.release()} {platform.machine()}, uid {os.getuid()}"


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 11), f"{platform.python_version()} at {sys.executable}"


def _pidfd() -> tuple[bool, str]:
    """Open a child by pidfd, kill it through it, see it readable: the three things a sentry does with one."""
    with _child(posix.pause) as pid:
        descriptor = os.pidfd_open(pid)
        try:
            posix.pidfd_send_signal(descriptor, posix.SIGKILL)
            readable, _, _ = select.select([descriptor], [], [], TRIAL_S)
        finally:
            os.close(descriptor)
    return bool(readable), "opened, signalled and waited for a child" if readable else "a killed child was not seen"


def _subreaper() -> tuple[bool, str]:
    """Let a grandchild lose its parent inside a child of ours and ask it who its parent is now."""
    reader, writer = os.pipe()
    try:
        with _child(lambda: _orphan_to(writer)) as pid:
            readable, _, _ = select.select([reader], [], [], TRIAL_S)
            adopted = bool(readable) and int(os.read(reader, 32) or b"0") == pid
    finally:
        os.close(reader)
        os.close(writer)
    return adopted, "an orphan came back to its subreaper" if adopted else "an orphan went to another process"


def _orphan_to(writer: int) -> None:
    set_subreaper()
    middle = os.fork()
    if middle == 0:
        born_of = os.getpid()
        if os.fork() == 0:
            while os.getppid() == born_of:
                select.select([], [], [], 0.002)
            os.write(writer, str(os.getppid()).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    os.wait()  # the orphan, now ours


def _children_files() -> tuple[bool, str]:
    with _child(posix.pause) as pid:
        listed = pid in children_of(os.getpid())
    return listed, "/proc/PID/task/*/children lists a child" if listed else "CONFIG_PROC_CHILDREN is off in this Linux"


class _child:  # noqa: N801  # read as a with statement's verb
    """A forked child that runs one function and is gone, whatever happens, when the block ends."""

    def __init__(self, body: Callable[[], object]) -> None:
        self._body = body

    def __enter__(self) -> int:
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._body()
            finally:
                os._exit(0)  # never back into our caller's code
        return self._pid

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, posix.SIGKILL)  # not reaped yet, so the pid is still its own
        os.waitpid(self._pid, 0)


def _descriptors() -> tuple[bool | None, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (None if hard < NOFILE_COMFORTABLE else True), f"{soft} soft, {hard} hard"


def _pids() -> tuple[bool | None, str]:
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    limit = "unlimited" if processes == resource.RLIM_INFINITY else str(processes)
    return (None if pid_max < PIDS_COMFORTABLE else True), f"pid_max {pid_max}, processes of this user {limit}"


def _runtime() -> tuple[bool, str]:
    """Bind a socket where a run would: filesystems without sockets show only then."""
    root = runtime_dir()
    with tempfile.TemporaryDirectory(dir=root, prefix="doctor-") as place, socket.socket(socket.AF_UNIX) as server:
        handle = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            server.bind(f"/proc/self/fd/{handle}/sock")
        finally:
            os.close(handle)
    return True, str(root)


def _state() -> tuple[bool | None, str]:
    """Commit one row in WAL mode with synchronous=FULL where records will lie."""
    root = state_dir()
    with tempfile.TemporaryDirectory(dir=root, prefix="doctor-") as place:
        connection = apsw.Connection(f"{place}/trial.db")
        try:
            mode = connection.execute("pragma journal_mode=wal").fetchall()[0][0]
            connection.execute("pragma synchronous=full")
            connection.execute("create table trial (n integer)")
            connection.execute("insert into trial values (1)")
            rows = connection.execute("select n from trial").fetchall()
        finally:
            connection.close()
    good = mode == "wal" and rows == [(1,)]
    free = os.statvfs(root)
    told = f"{root}: SQLite {apsw.sqlite_lib_version()}, {mode}, {free.f_bavail * free.f_frsize >> 20} MiB free"
    if good and is_homeless():
        return None, f"{told}; there for want of a HOME to write to, set AGENTOS_STATE_DIR to keep records elsewhere"
    return good, told


def _level() -> tuple[bool | None, str]:
    return None, "hooks for Python agents; none for executables, and only with --require none"


TRIALS: Final[dict[str, Callable[[], tuple[bool | None, str]]]] = {
    "system": _system,
    "python": _python,
    "pidfd": _pidfd,
    "subreaper": _subreaper,
    "children of a task": _children_files,
    "open files": _descriptors,
    "processes": _pids,
    "runtime directory": _runtime,
    "state directory": _state,
    "best level": _level,
}
