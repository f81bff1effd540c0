"""Trees of real processes, below a root of their own: who is in them, who is not touched, what is confirmed.

Each test is a program of its own, because the root of a tree must be the process that asks, and a subreaper.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from world import PROJECT

BEGIN = """
import os, signal, sys, threading, time
from agentos.supervisor import linux, tree
from agentos.supervisor.tree import Member
linux.set_subreaper()
ME = os.getpid()

def reap(pid): return os.waitpid(pid, os.WNOHANG)[0] == pid

def child(work=lambda: time.sleep(60)):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid

def state(pid):
    found = linux.read_stat(str(pid))
    return found.state if found else ''

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
"""


def run(body: str, base: Path) -> None:
    with open(base / "said", "w") as said:  # a file: children that are left would hold a pipe
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + body], cwd=PROJECT, check=False, stdout=said, stderr=said, timeout=60,
            env={"PYTHONPATH": str(PROJECT)},
        )  # fmt: skip
    assert done.returncode == 0, (base / "said").read_text()


def test_a_pid_that_now_belongs_to_somebody_else_is_not_signalled(tmp_path: Path) -> None:
    """The number was noted as another process's child: whoever has it now is a stranger."""
    run(
        """
read, write = os.pipe()
def other():
    os.write(write, str(child()).encode())
    time.sleep(60)
other = child(other)
stranger = int(os.read(read, 20))
assert not tree.send(Member(stranger, parent=999_999, state='S'), signal.SIGKILL)
assert not tree.send(Member(1, parent=ME, state='S'), signal.SIGKILL)
time.sleep(0.05)
assert state(stranger) == 'S'
assert tree.send(Member(stranger, parent=other, state='S'), signal.SIGKILL)
until(lambda: state(stranger) == 'Z')
assert tree.kill(ME, limit_s=10, reap=reap).ok
""",
        tmp_path,
    )


def test_a_member_that_moved_up_to_us_is_still_ours(tmp_path: Path) -> None:
    run(
        """
read, write = os.pipe()
def middle():
    below = child()
    os.write(write, str(below).encode())
parent = child(middle)
below = int(os.read(read, 20))
until(lambda: state(parent) == 'Z')
assert linux.read_stat(str(below)).ppid == ME
assert tree.send(Member(below, parent=parent, state='S'), signal.SIGKILL)
until(lambda: state(below) == 'Z')
""",
        tmp_path,
    )


def test_children_of_every_thread_are_found_and_a_thread_that_ends_hides_none(tmp_path: Path) -> None:
    run(
        """
born = []
go = threading.Event()
def spawn():
    born.append(child())
    go.wait()
threads = [threading.Thread(target=spawn) for _ in range(4)]
for thread in threads: thread.start()
until(lambda: len(born) == 4)
assert sorted(linux.children_of(ME)) == sorted(born)
go.set()
for thread in threads: thread.join()
assert sorted(linux.children_of(ME)) == sorted(born)
assert tree.kill(ME, limit_s=10, reap=reap).ok
assert linux.children_of(ME) == []
""",
        tmp_path,
    )


def test_stop_continue_and_kill_say_how_many_and_are_confirmed(tmp_path: Path) -> None:
    run(
        """
def family():
    child(); child()
    time.sleep(60)
child(family); child(family)
until(lambda: len(list(tree.members(ME))) == 6)
stopped = tree.stop(ME, limit_s=10)
assert (stopped.ok, stopped.processes) == (True, 6)
assert {m.state for m in tree.members(ME)} == {'T'}
again = tree.stop(ME, limit_s=10)
assert (again.ok, again.processes) == (True, 6)
assert tree.resume(ME).processes == 6
until(lambda: 'T' not in {m.state for m in tree.members(ME)})
killed = tree.kill(ME, limit_s=10)
assert (killed.ok, killed.processes) == (True, 6)
assert {m.state for m in tree.members(ME)} <= {'Z'}
""",
        tmp_path,
    )


def test_those_who_are_excepted_are_left_alone_with_all_below_them(tmp_path: Path) -> None:
    run(
        """
def family():
    child()
    time.sleep(60)
kept, other = child(family), child(family)
until(lambda: len(list(tree.members(ME))) == 4)
assert tree.kill(ME, limit_s=10, but=frozenset({kept}), reap=reap).ok
assert [m.pid for m in tree.members(ME) if m.parent == ME] == [kept]
assert {m.state for m in tree.members(ME)} == {'S'}
assert len(list(tree.members(ME))) == 2
assert tree.kill(ME, limit_s=10, reap=reap).ok
""",
        tmp_path,
    )


def test_what_cannot_be_confirmed_is_named_when_the_time_is_over(tmp_path: Path) -> None:
    """Signal 0 asks and does nothing, as SIGKILL does to a task that Linux does not let go."""
    run(
        """
victim = child()
beats = []
hopeless = tree._Operation(ME, 0, tree._still_lives, reap=reap)
begin = time.monotonic()
result = hopeless.run(0.3, lambda: beats.append(1))
assert 0.3 <= time.monotonic() - begin < 10
assert not result.ok
assert result.remaining == (victim,)
assert len(beats) > 3
assert tree.kill(ME, limit_s=10, reap=reap).ok
""",
        tmp_path,
    )
