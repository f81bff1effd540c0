"""The first process of a pid namespace, in which it makes strangers get the pids of an agent's processes that ended.

    unshare -U -r -p --fork --kill-child --mount-proc python reuse.py SCENARIO FAULT DIRECTORY

FAULT is Python that every process of the kernel runs before it begins. Prints one JSON line: {"commands": how many were
given, "harmed": what became of strangers}. A stranger says what reached it, and Linux says whether it was ever stopped
or ended; it is a stranger because no sentry is above it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from world import wait_until

from agentos import wire
from agentos.client import launch
from agentos.supervisor import linux

TRIES = 200  # whatever else forks in here may get the pid first; then it is waited for
CATCHABLE = (
    signal.SIGTERM,
    signal.SIGCONT,
    signal.SIGUSR1,
    signal.SIGALRM,
    signal.SIGCHLD,
)  # the last: of its own child
WAYS: list[dict[str, Any]] = [
    {"signal": int(number), "scope": scope}
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM, signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL)
    for scope in ("leader", "tree", None)
]
# The agent: its leader reaps by ignoring SIGCHLD, so that the pid of a child is free as soon as that is dead.
PARENT = (
    "import os, signal, time\n"
    "for number in (signal.SIGCHLD, signal.SIGUSR1): signal.signal(number, signal.SIG_IGN)\n"
    "os.fork() == 0 and os.fork()\n"
    "time.sleep(100)\n"
)
# Between listing and signalling the sentry says that it has listed, and waits until it may go on.
BARRIER = """
import os, time
from agentos.supervisor import tree
def send_later(member, number, send=tree.send):
    if os.path.exists("{where}/armed") and not os.path.exists("{where}/listed"):
        open("{where}/listed", "w").close()
        while not os.path.exists("{where}/go"):
            time.sleep(0.001)
    return send(member, number)
tree.send = send_later
"""


class Stranger:
    """A child of ours with a pid that another process had."""

    def __init__(self, pid: int, and_then: Callable[[], None] = lambda: None) -> None:
        self.pid = pid
        self._heard, heard = os.pipe2(os.O_NONBLOCK)
        for _ in range(TRIES):
            take_next(pid)
            got = os.fork()
            if got == 0:
                self._live(heard, and_then)
            if got == pid:
                os.close(heard)
                wait_until(self._read, what="the stranger to listen")
                return
            os.kill(got, signal.SIGKILL)
            os.waitpid(got, 0)
            time.sleep(0.005)
        raise SystemExit(f"pid {pid} was not to be had in {TRIES} tries")

    @staticmethod
    def _live(heard: int, and_then: Callable[[], None]) -> None:
        for number in CATCHABLE:
            signal.signal(number, lambda number, _: os.write(heard, bytes([number])))
        and_then()
        os.write(heard, b"!")
        while True:
            time.sleep(100)

    def harm(self) -> list[str]:
        """Return what was done to it, by name; also a stop that somebody has ended since."""
        found = [signal.Signals(number).name for number in self._read()]
        flags = os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT
        seen = os.waitid(os.P_PID, self.pid, flags)
        if seen is not None:
            found.append(f"si_code {seen.si_code}, si_status {seen.si_status}")
        return found

    def _read(self) -> bytes:
        try:
            return os.read(self._heard, 100)
        except BlockingIOError:
            return b""

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def take_next(pid: int) -> None:
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))


class Place:
    """A kernel in here, and what became of strangers so far."""

    def __init__(self, fault: str, work: Path) -> None:
        self.work = work
        self.commands = 0
        self.harmed: list[str] = []
        launch._BOOT_CODE = launch._BOOT_CODE.replace("from agentos", fault + "\nfrom agentos", 1)  # type: ignore[misc]
        self.started = launch.start_kernel(policy="permissive", workspace=str(work))

    def start(self, code: str) -> dict[str, Any]:
        argv = [sys.executable, "-I", "-c", code]
        made = self.call(
            "start", kind="program", name="prey", argv=argv, require="none", cwd=str(self.work), grace_s=0.1
        )
        return dict(self.call("inspect", id=made["id"]))

    def call(self, method: str, **params: Any) -> Any:
        return self.started.link.call(method, params)

    def ask(self, **params: Any) -> int:
        call = wire.Call(self.started.link.new_id(), "signal", params)
        self.started.link.send(call)
        return call.id

    def answer(self, number: int) -> None:
        while True:
            frame = self.started.link.receive()
            if isinstance(frame, wire.Reply | wire.Fault) and frame.id == number:
                self.commands += 1
                return

    def command(self, agent: dict[str, Any], strangers: list[Stranger], **params: Any) -> None:
        answer = self.call("signal", id=agent["id"], **params)
        self.commands += 1
        self.look(strangers, f"{params} answered {answer['detail']!r}")

    def look(self, strangers: list[Stranger], after: str) -> None:
        self.harmed += [f"{one.pid} after {after}: {harm}" for one in strangers for harm in one.harm()]

    def every_way(self, agent: dict[str, Any], strangers: list[Stranger]) -> None:
        for params in WAYS:
            if not self.harmed:  # a stranger that was ended is none any more
                self.command(agent, strangers, **params)
        self.call("stop", id=agent["id"])
        self.commands += 1
        self.look(strangers, "stop")


def leader_gone(place: Place) -> None:
    """The agent ended, and somebody else has its pid."""
    agent = place.start("import time; time.sleep(0.2)")
    place.call("wait", id=agent["id"], timeout_s=20)
    wait_until(partial(is_free, agent["pid"]), what="the leader to be reaped")
    place.every_way(agent, [Stranger(agent["pid"])])


def sentry_gone(place: Place) -> None:
    """The sentry was killed and its agent with it, and others have the pids of both."""
    agent = place.start("import time; time.sleep(100)")
    os.kill(agent["sentry_pid"], signal.SIGKILL)
    place.call("wait", id=agent["id"], timeout_s=20)
    wait_until(partial(is_free, agent["pid"], agent["sentry_pid"]), what="both to be reaped")
    strangers = [Stranger(agent["pid"]), Stranger(agent["sentry_pid"])]
    place.every_way(agent, strangers)
    if not place.harmed:
        time.sleep(2.5)  # the kernel looks after its sentries once a second
        place.look(strangers, "two heartbeats")


def family_gone(place: Place) -> None:
    """A child and its child end after the sentry listed them and before it signals; others get the pids of both.

    The second of them is a child of the first, so that it also has the parent that was listed.
    """
    for number in (signal.SIGUSR1, signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
        agent = place.start(PARENT)
        child = wait_until(partial(linux.children_of, agent["pid"]), what="the child")[0]
        grandchild = wait_until(partial(linux.children_of, child), what="the child's child")[0]
        (place.work / "armed").touch()
        waiting = place.ask(id=agent["id"], signal=int(number), scope="tree")
        wait_until((place.work / "listed").exists, what="the sentry to have listed the tree")
        for pid in (grandchild, child):  # each is reaped by its parent, who lives
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(is_free, pid), what="its pid to be free")
        stranger = Stranger(child, and_then=partial(fork_as, grandchild))
        (place.work / "go").touch()
        place.answer(waiting)
        place.look([stranger], number.name)
        for name in ("armed", "listed", "go"):
            (place.work / name).unlink()
        place.call("signal", id=agent["id"], signal=int(signal.SIGKILL))
        os.kill(grandchild, signal.SIGKILL)
        stranger.end()


def is_free(*pids: int) -> bool:
    return all(linux.read_stat(str(pid)) is None for pid in pids)


def fork_as(pid: int) -> None:
    """In a stranger: fork a child that gets this pid and takes signals as its parent does."""
    for _ in range(TRIES):
        take_next(pid)
        got = os.fork()
        if got == 0 and os.getpid() == pid:
            while True:
                time.sleep(100)
        if got == 0:
            os._exit(0)
        if got == pid:
            return
        os.waitpid(got, 0)
    raise SystemExit(f"pid {pid} was not to be had in {TRIES} tries")


def main() -> None:
    scenario, fault, work = sys.argv[1:]
    barrier = BARRIER.format(where=work) if scenario == "family_gone" else ""
    place = Place(fault + barrier, Path(work))
    {"leader_gone": leader_gone, "sentry_gone": sentry_gone, "family_gone": family_gone}[scenario](place)
    print(json.dumps({"commands": place.commands, "harmed": place.harmed}), flush=True)
    os._exit(0)  # everything in here ends with us


main()
