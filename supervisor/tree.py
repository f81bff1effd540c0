"""A process tree below us, without ptrace: list it, stop it, continue it, end it; each confirmed by Linux.

The caller is a subreaper, so its descendants are exactly the tree. Signals go by pidfd after the parentage was read
again, so a reused pid is never hit. Lists are taken to a fix-point because a running process forks while we look:
stop is root first (a stopped parent cannot fork), continue is leaves first (proc(5), notes in docs/limits.md).

A process that forks and exits at once hops from list to list and may be in none. It leaves its dead behind it: a pass
counts only when the pass before saw the same processes, the living and the dead alike. For that the caller must not
reap while an operation runs.
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
    return _until_clean(root, runs, signal.SIGSTOP, limit_s, beat)


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
    """Signal one member by pidfd; False when it is gone, not ours to signal, or its pid is another process."""
    try:
        descriptor = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return False
    try:
        again = linux.read_stat(str(member.pid))
        if again is None or again.ppid not in (member.parent, os.getpid()):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):  # EPERM: it executed a program that became another user
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
    """Signal whoever `needs` it until nobody does and nothing changed since the pass before, or time is over."""
    deadline = time.monotonic() + limit_s
    pause, before, signalled = PASS_PAUSE_S, set[tuple[int, bool]](), set[int]()
    while True:
        present = list(members(root, but=but))
        pending = [member for member in present if needs(member)]
        now = {(member.pid, member.state in _GONE) for member in present}
        if not pending and now == before:
            return TreeResult(sum(member.state not in _GONE for member in present) or len(signalled), ())
        if time.monotonic() > deadline:
            unsettled = pending or [member for member in present if (member.pid, member.state in _GONE) not in before]
            return TreeResult(len(present), tuple(member.pid for member in unsettled))
        for member in pending:
            send(member, number)
            signalled.add(member.pid)
        before = now
        if pending:
            beat()
            time.sleep(pause)
            pause = min(pause * 2, PASS_PAUSE_S_MAX)


def _still_lives(member: Member) -> bool:
    return member.state not in _GONE


def runs(member: Member) -> bool:
    """Whether any task of the process could still run an instruction of its own.

    A vfork parent waits in D for its child. It cannot run once a stop waits for it: SIGSTOP is pending, or another
    task of the process took it and stopped, which stops them all (signal(7): a stop is the whole process's).
    """
    stopped = waiting = 0
    for task in linux.tasks_of(member.pid):
        found = linux.read_stat(f"{member.pid}/task/{task}")
        if found is None or found.state in _GONE:
            continue
        if found.state in _STOPPED:
            stopped += 1
        elif found.state == "D":
            waiting += 1
        else:
            return True
    if not waiting:
        return False
    return not (linux.children_of(member.pid) and (stopped or _stop_is_pending(member.pid)))


def _stop_is_pending(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = int(lines.get(b"ShdPnd", b"0"), 16) | int(lines.get(b"SigPnd", b"0"), 16)
    return bool(pending >> (signal.SIGSTOP - 1) & 1)
