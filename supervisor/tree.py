"""A process tree below us, without ptrace: list it, stop it, continue it, end it; each confirmed by Linux.

The caller is a subreaper, so its descendants are exactly the tree. Signals go by pidfd after parent and start time were
read again, so a reused pid is never hit. Lists are taken to a fix-point because a running process forks while we look:
stop is root first (a stopped parent cannot fork), continue is leaves first (proc(5), notes in docs/limits.md).

A chain of processes that fork and exit at once is in no list: when it is looked at, it is dead and has a child. It
leaves its dead behind, so a pass counts only when the pass before saw the same processes, the living and the dead
alike; and it is caught by signalling newcomers on sight, where the last ones came, without looking at anybody else.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from agentos.supervisor import linux

PASS_PAUSE_S: Final = 0.0005  # Linux needs a moment to stop or end what was signalled; doubled up to the next line
PASS_PAUSE_S_MAX: Final = 0.01
_CHASE_ROUNDS_MAX: Final = 500
_CHASE_QUIET_ROUNDS: Final = 3
_CHASED_PARENTS_MAX: Final = 8
_STOPPED: Final = frozenset("Tt")
_GONE: Final = frozenset("ZX")


class Member(NamedTuple):
    pid: int
    parent: int
    state: str = ""  # as it was listed
    start_ticks: int = 0  # 0: seen on somebody's list of children, and not looked at
    tasks: tuple[str, ...] = ()  # its threads; (): not listed


@dataclass(frozen=True, slots=True)
class TreeResult:
    """What a tree operation achieved: `remaining` are the pids for which it could not be confirmed."""

    processes: int
    remaining: tuple[int, ...]
    alive: frozenset[int] = frozenset()  # of a STOP: when it was confirmed

    @property
    def ok(self) -> bool:
        return not self.remaining


def members(root: int, *, but: frozenset[int] = frozenset()) -> Iterator[Member]:
    """Yield the living and zombie descendants of `root`, parents before children, without `but` and what is below."""
    queue = [(root, child) for child in linux.children_of(root) if child not in but]
    seen: set[int] = set()
    while queue:
        parent, pid = queue.pop(0)
        member = look(pid, parent) if pid not in seen else None
        if member is None:
            continue
        seen.add(pid)
        yield member
        queue.extend((pid, child) for child in linux.children_of(pid, member.tasks))


def look(pid: int, parent: int) -> Member | None:
    """Look at one process; None when it is gone."""
    found = linux.read_stat(str(pid))
    if found is None:
        return None
    tasks = (str(pid),) if found.threads == 1 else tuple(linux.tasks_of(pid))
    return Member(pid, parent, found.state, found.start_ticks, tasks)


def stop(
    root: int,
    *,
    limit_s: float,
    beat: Callable[[], None] = lambda: None,
    reap: Callable[[int], bool] = lambda _: False,
    wait: Callable[[float], None] = time.sleep,
) -> TreeResult:
    """SIGSTOP every descendant of `root` until none can run; confirmed task by task from /proc.

    `wait` may return before its seconds are over when it hears of a child that stopped or ended.
    """
    return _Operation(root, signal.SIGSTOP, runs, reap=reap, wait=wait).run(limit_s, beat)


def kill(
    root: int,
    *,
    limit_s: float,
    beat: Callable[[], None] = lambda: None,
    reap: Callable[[int], bool] = lambda _: False,
    wait: Callable[[float], None] = time.sleep,
    but: frozenset[int] = frozenset(),
) -> TreeResult:
    """SIGKILL every descendant of `root` until none lives.

    `reap` is asked to reap a dead child of `root`, and says whether it did: an operation gets slower with their number.
    """
    return _Operation(root, signal.SIGKILL, _still_lives, reap=reap, wait=wait, but=but).run(limit_s, beat)


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
        if member.start_ticks and again.start_ticks != member.start_ticks:  # the parent's pid may be another's, too
            return False
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):  # EPERM: it executed a program that became another user
        return False
    finally:
        os.close(descriptor)
    return True


class _Operation:
    """Signal whoever `needs` it until nobody does and nothing changed since the pass before."""

    def __init__(
        self,
        root: int,
        number: int,
        needs: Callable[[Member], bool],
        *,
        reap: Callable[[int], bool],
        wait: Callable[[float], None] = time.sleep,
        but: frozenset[int] = frozenset(),
    ) -> None:
        self._root = root
        self._number = number
        self._needs = needs
        self._reap = reap
        self._wait = wait
        self._but = but
        self._seen: set[int] = set()  # by the pass before
        self._signalled: set[int] = set()

    def run(self, limit_s: float, beat: Callable[[], None]) -> TreeResult:
        deadline = time.monotonic() + limit_s
        pause, before = PASS_PAUSE_S, set[tuple[int, bool]]()
        while True:
            present = list(members(self._root, but=self._but))
            pending = [member for member in present if self._needs(member)]
            now = {(member.pid, member.state in _GONE) for member in present}
            reaped = [member for member in present if self._is_reaped(member)]
            if not pending and not reaped and now == before:
                alive = frozenset(member.pid for member in present if member.state not in _GONE)
                return TreeResult(len(alive) or len(self._signalled), (), alive)
            if before and time.monotonic() > deadline:  # not before everybody was signalled once
                unsettled = pending or [one for one in present if (one.pid, one.state in _GONE) not in before]
                return TreeResult(len(present), tuple(member.pid for member in unsettled))
            for member in pending:
                send(member, self._number)
                self._signalled.add(member.pid)
            self._chase(present)
            before = now
            if pending:
                beat()
                self._wait(pause)
                pause = min(pause * 2, PASS_PAUSE_S_MAX)

    def _is_reaped(self, member: Member) -> bool:
        return member.state in _GONE and member.parent == self._root and self._reap(member.pid)

    def _chase(self, present: list[Member]) -> None:
        """Signal newcomers on sight, newest first, where the last ones came, until none comes any more."""
        came_to = {member.parent for member in present if member.pid not in self._seen}
        first, self._seen = not self._seen, {member.pid for member in present}
        if first or not came_to:
            return
        parents = [self._root, *sorted(came_to - {self._root}, reverse=True)[:_CHASED_PARENTS_MAX]]
        quiet = 0
        for _ in range(_CHASE_ROUNDS_MAX):
            found = False
            for parent in parents:
                for pid in reversed(linux.children_of(parent)):
                    if pid in self._seen or pid in self._but:
                        continue
                    found = True
                    self._seen.add(pid)
                    send(Member(pid, parent), self._number)
            quiet = 0 if found else quiet + 1
            if quiet == _CHASE_QUIET_ROUNDS:
                return


def _still_lives(member: Member) -> bool:
    return member.state not in _GONE


def runs(member: Member) -> bool:
    """Whether any task of the process could still run. A vfork parent waits in D for its child: it cannot.

    Its SIGSTOP stays pending: another thread may take one and stop, and then none that could take the next.
    """
    for state in _states_of_tasks(member):
        if state in _STOPPED or state in _GONE:
            continue
        if state == "D" and _stop_is_pending(member.pid) and linux.children_of(member.pid):
            continue
        return True
    return False


def _states_of_tasks(member: Member) -> Iterator[str]:
    """Yield the state of every task. That of the process is that of its first one, and was read when it was listed."""
    unread = member.tasks or linux.tasks_of(member.pid)
    if member.tasks:
        yield member.state
        unread = [task for task in member.tasks if task != str(member.pid)]
    for task in unread:
        found = linux.read_stat(f"{member.pid}/task/{task}")
        if found is not None:
            yield found.state


def _stop_is_pending(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = int(lines.get(b"ShdPnd", b"0"), 16) | int(lines.get(b"SigPnd", b"0"), 16)
    return bool(pending >> (signal.SIGSTOP - 1) & 1)
