"""The few Linux calls that CPython does not offer: prctl(2), close_range(2) and reading one process from /proc.

The only file of the project that may import ctypes.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from typing import Final, NamedTuple

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_NR_CLOSE_RANGE: Final = 436  # the same number on every architecture (Linux 5.9)
_CLOSE_RANGE_MAX: Final = 0xFFFFFFFF
_READ_BYTES: Final = 4_096
_LINKS_OF_ONE_TASK: Final = 3  # of a directory: itself, its name, and each directory in it (proc_pid_task(5))

ZYGOTE_NAME: Final = "agentos-zygote"  # in /proc/PID/comm: nobody but a process itself can change that

_libc = ctypes.CDLL(None, use_errno=True)
# Declared, plain numbers pass: objects made for a call cost each forked child some 40 pages of memory of its own.
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
_libc.syscall.argtypes = (ctypes.c_long, *(ctypes.c_uint,) * 3)
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def set_subreaper() -> None:
    """Adopt every orphan among our descendants, setsid and double fork included (prctl(2))."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """0 hides memory and descriptors from processes of the same uid (ptrace(2), access mode checking)."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_name(name: str) -> None:
    """Be called `name` in ps(1) and in /proc/PID/comm; Linux keeps 15 bytes of it."""
    text = ctypes.create_string_buffer(name.encode("utf-8", "replace"))
    _libc.prctl(_PR_SET_NAME, ctypes.addressof(text), 0, 0, 0)


def die_with(parent: int) -> None:
    """Be killed when `parent` dies; die now when it already has. Call first thing after fork.

    PDEATHSIG belongs to the parent's *thread*, so only single-threaded parents may be named here.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def outlive_parent() -> None:
    """Undo `die_with`: whoever must end what is left when its parent is gone."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor except `keep`: a fork copies them all, and one held pipe end is an EOF never seen."""
    low = 0
    for descriptor in [*sorted(keep), _CLOSE_RANGE_MAX + 1]:
        if descriptor > low:
            _close_range(low, descriptor - 1)
        low = descriptor + 1


def _close_range(first: int, last: int) -> None:
    if _libc.syscall(_NR_CLOSE_RANGE, first, last, 0) != 0:
        os.closerange(first, min(last + 1, os.sysconf("SC_OPEN_MAX")))  # Linux < 5.9


class ProcStat(NamedTuple):
    """The fields of /proc/PID/stat that we act on (proc_pid_stat(5))."""

    pid: int
    name: str
    state: str
    ppid: int
    start_ticks: int
    threads: int


def read_stat(path: str) -> ProcStat | None:
    """Return the stat of /proc/`path`, None when the process or task is gone.

    A process whose first thread has ended lives on while others run: Linux shows it as a zombie, we show their state.
    """
    try:
        text = _read_record(f"/proc/{path}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, rest = text.rpartition(b")")  # the name in parentheses may hold anything, parentheses too
    pid, _, name = head.partition(b" (")
    fields = rest.split(None, 20)
    state, threads = fields[0].decode(), int(fields[17])
    if state in "ZX" and threads > 1 and "/" not in path:
        state = _state_of_threads(path) or state
    return ProcStat(int(pid), name.decode("utf-8", "replace"), state, int(fields[1]), int(fields[19]), threads)


def _read(path: str) -> bytes:
    """Return a whole file of /proc, with half the steps of open(): trees of a thousand processes are read like this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := os.read(descriptor, _READ_BYTES):
            data += piece
    finally:
        os.close(descriptor)
    return data


def _read_record(path: str) -> bytes:
    """Return a file of /proc that is one short record, and so comes whole in the first read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)


def dies_of(pid: int, number: int) -> bool:
    """Whether a signal whose default is to end a process ends this one: neither caught, ignored nor blocked."""
    try:
        lines = dict(line.split(b":", 1) for line in _read(f"/proc/{pid}/status").splitlines() if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return True
    taken = (int(lines.get(field, b"0"), 16) for field in (b"SigBlk", b"SigIgn", b"SigCgt"))
    return not any(mask >> (number - 1) & 1 for mask in taken)


def _state_of_threads(pid: str) -> str:
    """Return the state of a thread that has not ended, one that is not stopped if there is any; "" without one."""
    found = [thread.state for task in tasks_of(pid) if (thread := read_stat(f"{pid}/task/{task}")) is not None]
    living = [state for state in found if state not in "ZX"]
    return next((state for state in living if state not in "Tt"), living[0] if living else "")


def _is_single(pid: int) -> bool:
    """Whether a process has one thread: its directory of them counts them in its links, which is one step, not five."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink == _LINKS_OF_ONE_TASK
    except (FileNotFoundError, ProcessLookupError):
        return False


def tasks_of(pid: int | str) -> list[str]:
    """Return the thread ids of a process; [] when it is gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []


def children_of(pid: int, tasks: Iterable[str] = ()) -> list[int]:
    """Return the children of every task of `pid`; [] when it is gone. `tasks`: their ids, if they were listed already.

    The list is only certain while the tasks are stopped (proc_pid_task_children(5)): callers loop to a fix-point.
    """
    found: list[int] = []
    for task in tasks or ((str(pid),) if _is_single(pid) else tasks_of(pid)):
        try:
            found.extend(map(int, _read(f"/proc/{pid}/task/{task}/children").split()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # this thread ended while we looked; its children are another thread's now
    return found
