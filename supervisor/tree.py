"""A process tree below us, without ptrace: list it, stop it, continue it, end it; each confirmed by Linux.

The caller is a subreaper, so its descendants are exactly the tree. Signals go by pidfd after the parentage was read
again, so a reused pid is never hit. Lists are taken to a fix-point because a running process forks while we look:
stop is root first (a stopped parent cannot fork), continue is leaves first (proc(5), notes in docs/limits.md).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from agentos.supervisor import linux

PASS_PAUSE_S: Final = 0.0005  # Linux needs a moment to stop or end what was signalled; doubled up to the next line
PASS_PAUSE_S_MAX: Final = 0.01
_CLEAN_PASSES: Final = 2  # one clean pass can miss a child born between two reads of a running parent
_STOPPED: Final = frozenset("Tt")
_GONE: Final = frozenset("ZX")


@dataclass(frozen=True, slots=True)
class Member:
    pid: int
    parent: int
    state: str


@dataclass(frozen=True, slots=True)
class TreeResult:
    """What a tree operation achieved: `remaining` are the pids for which it could not be confirmed."""

    processes: int
    remaining: tuple[int, ...]

    @property
    def ok(self) -> bool:
        return not self.remaining


def members(root: int, *, but: frozenset[int] = frozenset()) -> Iterator[Member]:
    """Yield the living and zombie descendants of `root`, parents before children, without `but` and what is below."""
    queue = [(root, child) for child in linux.children_of(root) if child not in but]
    seen: set[int] = set()
    while queue:
        parent, pid = queue.pop(0)
        found = linux.read_stat(str(pid))
        if found is None or pid in seen:
            continue
        seen.add(pid)
        yield Member(pid, parent, found.state)
        queue.extend((pid, child) for child in linux.children_of(pid))


def stop(root: int, *, limit_s: float, beat: Callable[[], None] = lambda: None) -> TreeResult:
    """SIGSTOP every descendant of `root` until none can run; confirmed task by task from /proc."""
    return _until_clean(root, _still_runs, signal.SIGSTOP, limit_s, beat)


def kill(
    root: int, *, limit_s: float, beat: Callable[[], None] = lambda: None, but: frozenset[int] = frozenset()
) -> TreeResult:
    """SIGKILL every descendant of `root` until none lives. Zombies of `root` itself are left for the caller to reap."""
    return _until_clean(root, _still_lives, signal.SIGKILL, limit_s, beat, but)


def resume(root: int) -> TreeResult:
    """SIGCONT every descendant, leaves first, so that no parent finds its children still stopped."""
    alive = [member for member in members(root) if member.state not in _GONE]
    for member in reversed(alive):
        send(member, signal.SIGCONT)
    return TreeResult(len(alive), ())


def send(member: Member, number: int) -> bool:
    """Signal one member by pidfd; False when it is gone or the pid now belongs to somebody else."""
    try:
        descriptor = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return False
    try:
        again = linux.read_stat(str(member.pid))
        if again is None or again.ppid not in (member.parent, os.getpid()):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _until_clean(
    root: int,
    needs: Callable[[Member], bool],
    number: int,
    limit_s: float,
    beat: Callable[[], None],
    but: frozenset[int] = frozenset(),
) -> TreeResult:
    """Signal whoever `needs` it until `_CLEAN_PASSES` passes in a row find nobody, or the time is over."""
    deadline = time.monotonic() + limit_s
    pause, clean, signalled = PASS_PAUSE_S, 0, set[int]()
    while True:
        present = list(members(root, but=but))
        pending = [member for member in present if needs(member)]
        clean = 0 if pending else clean + 1
        if clean >= _CLEAN_PASSES or (clean and not signalled):
            return TreeResult(sum(member.state not in _GONE for member in present) or len(signalled), ())
        if time.monotonic() > deadline:
            return TreeResult(len(present), tuple(member.pid for member in pending))
        for member in pending:
            send(member, number)
            signalled.add(member.pid)
        if pending:
            beat()
            time.sleep(pause)
            pause = min(pause * 2, PASS_PAUSE_S_MAX)


def _still_lives(member: Member) -> bool:
    return member.state not in _GONE


def _still_runs(member: Member) -> bool:
    """Whether any task of the process could still run. A vfork parent waits in D for its child: it cannot."""
    try:
        tasks = os.listdir(f"/proc/{member.pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    for task in tasks:
        found = linux.read_stat(f"{member.pid}/task/{task}")
        if found is None or found.state in _STOPPED or found.state in _GONE:
            continue
        if found.state == "D" and _stop_is_pending(member.pid) and linux.children_of(member.pid):
            continue
        return True
    return False


def _stop_is_pending(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = int(lines.get(b"ShdPnd", b"0"), 16) | int(lines.get(b"SigPnd", b"0"), 16)
    return bool(pending >> (signal.SIGSTOP - 1) & 1)
