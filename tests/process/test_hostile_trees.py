"""Trees that hop, hide, refuse, or attack their supervisor: none of it lives on, none of it runs while it is stopped.

Beside test_survivors, which kills everybody above an ordinary hostile tree. Life is asserted first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from world import HERE, SYSTEM_PYTHON, Client, Host, carriers, directories, hostile_host, state_of, wait_until

from agentos.client.launch import start_kernel

LIMIT_S = 2.0
ABOVE = ("kernel", "zygote", "sentry", "guard", "host")
Start = Callable[..., Host]


@pytest.fixture
def evasion(tmp_path: Path) -> Iterator[Start]:
    """Start a program of evasions.py under a host, and wait until it says that it is ready."""
    hosts: list[Host] = []

    def start(name: str, *words: object, ready: str = "ready", **options: Any) -> Host:
        argv = [SYSTEM_PYTHON, str(HERE / "evasions.py"), name, *map(str, words)]
        hosts.append(Host(tmp_path, {"argv": argv, **options}))
        if ready:
            wait_until((tmp_path / "work" / ready).exists, what=f"{name} to be ready")
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


def kill_9(host: Host, victim: str) -> None:
    os.kill(host.process.pid if victim == "host" else host.facts[f"{victim}_pid"], signal.SIGKILL)


def assert_gone(host: Host, limit_s: float = LIMIT_S) -> None:
    wait_until(lambda: not carriers(host.cookie), limit_s, "the tree to be gone")


def assert_quiet(host: Host, *files: str) -> None:
    """Nothing in the tree runs: no file grows, no process is in another state than stopped."""
    sizes = [(host.work / name).stat().st_size for name in files]
    states = {pid: state_of(pid) for pid in carriers(host.cookie)}
    time.sleep(0.3)
    assert [(host.work / name).stat().st_size for name in files] == sizes
    assert set(states) == set(carriers(host.cookie))


# --- the overlooked ------------------------------------------------------------------------------------------------


HOPS = 30_000
OTHERS = 100


def hops(host: Host) -> int:
    return int.from_bytes((host.work / "hopped").read_bytes(), "little")


@pytest.fixture
def chain(evasion: Start) -> Host:
    """At any moment one process of it lives, and by the time it is looked at it is dead and has a child."""
    host = evasion("hop", HOPS, OTHERS)
    wait_until(lambda: hops(host) > 100, what="the chain to hop")
    return host


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_chain_that_forks_and_exits_is_caught(chain: Host, how: str) -> None:
    answer = chain.call("signal", signal=signal.SIGKILL) if how == "kill" else chain.call("stop", grace_s=0.1)
    assert answer["ok"]
    at_the_end = hops(chain)
    assert at_the_end < HOPS - 1  # else it had come to its end by itself
    time.sleep(0.2)
    assert hops(chain) == at_the_end
    assert carriers(chain.cookie) == []


def test_a_chain_that_forks_and_exits_stops_and_goes_on(chain: Host) -> None:
    assert chain.call("signal", signal=signal.SIGSTOP)["ok"]
    stopped_at = hops(chain)
    assert stopped_at < HOPS - 1
    time.sleep(0.3)
    assert hops(chain) == stopped_at
    assert chain.call("signal", signal=signal.SIGCONT)["ok"]
    wait_until(lambda: hops(chain) > stopped_at, what="it to hop again")


def test_a_chain_does_not_outlive_its_sentry(chain: Host) -> None:
    kill_9(chain, "sentry")
    assert_gone(chain)
    assert hops(chain) < HOPS - 1


def test_a_process_without_its_first_thread_is_stopped_and_killed(evasion: Start) -> None:
    """Linux shows it as a zombie, while another thread of it works."""
    host = evasion("headless")
    assert host.call("signal", signal=signal.SIGSTOP)["ok"]
    assert_quiet(host, "ticking")
    assert host.call("signal", signal=signal.SIGCONT)["ok"]
    size = (host.work / "ticking").stat().st_size
    wait_until(lambda: (host.work / "ticking").stat().st_size > size, what="its thread to work again")
    assert host.call("signal", signal=signal.SIGKILL)["ok"]
    assert carriers(host.cookie) == []


@pytest.mark.parametrize("victim", ABOVE)
def test_the_overlooked_do_not_outlive_anybody_above_them(evasion: Start, victim: str) -> None:
    host = evasion("headless")
    assert len(carriers(host.cookie)) >= 1
    kill_9(host, victim)
    assert_gone(host)


@pytest.fixture
def room() -> Iterator[str]:
    """A cgroup with room for 400 processes where this user may make one, beside the bomb's own cap; "" elsewhere."""
    path = make_room()
    yield str(path or "")
    if path is not None:
        wait_until(lambda: not (path / "cgroup.procs").read_text(), what="the cgroup to be empty")
        path.rmdir()


def make_room() -> Path | None:
    for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        path = Path(root, f"agentos-test-{os.getpid()}")
        with suppress(OSError):
            path.mkdir()
            if (path / "pids.max").exists():
                (path / "pids.max").write_text("400")
                return path
            path.rmdir()
    return None


def test_a_fork_bomb_is_stopped_and_killed(evasion: Start, room: str) -> None:
    host = evasion("bomb", 300, ready="", env={"CGROUP": room})
    wait_until(lambda: len(carriers(host.cookie)) > 60, what="the bomb to go off")
    assert host.call("signal", signal=signal.SIGSTOP)["ok"]
    assert {state_of(pid) for pid in carriers(host.cookie)} <= set("Tt")
    assert_quiet(host)
    assert host.call("signal", signal=signal.SIGKILL)["ok"]
    assert carriers(host.cookie) == []


def test_a_fork_bomb_is_killed_in_full_flight(evasion: Start, room: str) -> None:
    host = evasion("bomb", 300, ready="", env={"CGROUP": room})
    wait_until(lambda: len(carriers(host.cookie)) > 20, what="the bomb to go off")
    assert host.call("signal", signal=signal.SIGKILL)["ok"]
    assert carriers(host.cookie) == []


def test_orphans_that_the_agent_itself_adopts_end_with_it(evasion: Start) -> None:
    host = evasion("subreaper")
    os.kill(host.facts["pid"], signal.SIGKILL)
    assert host.call("wait", timeout_s=10)["exit_signal"] == signal.SIGKILL
    assert carriers(host.cookie) == []


@pytest.mark.parametrize("threads", [0, 3])
def test_a_parent_in_vfork_counts_as_stopped_and_dies(evasion: Start, threads: int) -> None:
    host = evasion("vfork", threads)
    wait_until(lambda: len(carriers(host.cookie)) == 2, what="the child that waits in open(2)")
    pid = host.facts["pid"]
    wait_until(lambda: "D" in [state_of_thread(pid, thread) for thread in os.listdir(f"/proc/{pid}/task")])
    answer = host.call("signal", signal=signal.SIGSTOP)
    assert answer["ok"], answer
    with open(host.work / "fifo", "r+b", buffering=0):  # the child could go on, if it could run
        time.sleep(0.3)
        assert not (host.work / "went on").exists()
        assert host.call("signal", signal=signal.SIGCONT)["ok"]
        wait_until((host.work / "went on").exists)
    assert host.call("signal", signal=signal.SIGKILL)["ok"]
    assert carriers(host.cookie) == []


def state_of_thread(pid: int, thread: str) -> str:
    return Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]


# --- ends ----------------------------------------------------------------------------------------------------------


def test_descendants_do_not_outlive_their_leader_and_are_on_record(evasion: Start) -> None:
    host = evasion("leave_children", 5, ready="")
    assert host.call("wait", timeout_s=20)["exit_code"] == 0
    assert carriers(host.cookie) == []
    exited, leftovers = host.events("agent_exited"), host.events("leftovers_killed")
    assert [one.data["exit_code"] for one in exited] == [0]
    assert [one.data["processes"] for one in leftovers] == [5]
    assert len(list(host.work.glob("tick-*"))) == 5


def test_a_stopped_tree_whose_leader_is_killed_ends(tmp_path: Path) -> None:
    with hostile_host(tmp_path) as host:
        assert host.call("signal", signal=signal.SIGSTOP)["ok"]
        os.kill(host.facts["pid"], signal.SIGKILL)
        assert host.call("wait", timeout_s=10)["exit_signal"] == signal.SIGKILL
        assert carriers(host.cookie) == []
        assert host.events("leftovers_killed")[0].data["processes"] >= 12


def test_who_ignores_term_is_killed_after_its_grace_of_running_time(evasion: Start) -> None:
    host = evasion("ignore_term")
    begin = time.monotonic()
    host.ask("stop", grace_s=1.0)
    wait_until(lambda: host.events("signal_confirmed")[1:], what="TERM and CONT to be delivered")
    other = Client(host)
    assert other.call("signal", signal=signal.SIGSTOP)["ok"]  # commanded after the stop: this holds
    time.sleep(1.5)
    assert state_of(host.facts["pid"]) == "T"
    assert other.call("signal", signal=signal.SIGCONT)["ok"]
    answer = host.answer()
    other.close()
    assert (answer["exit_code"], answer["exit_signal"]) == (None, signal.SIGKILL)
    assert time.monotonic() - begin >= 2.4
    assert carriers(host.cookie) == []


def test_an_agent_that_was_started_paused_loses_no_time(tmp_path: Path) -> None:
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"], "start_paused": True,
                           "timeout_s": 0.6})  # fmt: skip
    try:
        time.sleep(1.2)
        assert host.call("status")["state"] == "stopped"
        assert host.call("signal", signal=signal.SIGCONT)["ok"]
        assert host.call("wait", timeout_s=10)["ended_by"] == "timeout"
    finally:
        host.close()


def test_who_stops_itself_when_asked_to_end_is_ended_all_the_same(evasion: Start) -> None:
    host = evasion("stop_when_asked_to_end")
    assert host.call("stop", grace_s=0.5)["exit_signal"] == signal.SIGKILL
    assert carriers(host.cookie) == []


def test_who_stops_itself_and_lets_others_work_gains_no_time(evasion: Start) -> None:
    host = evasion("work_while_stopped", timeout_s=1.5, grace_s=0.5)
    wait_until(lambda: host.call("status")["state"] == "stopped", what="the agent to have stopped itself")
    assert host.call("wait", timeout_s=15)["ended_by"] == "timeout"
    assert carriers(host.cookie) == []


# --- attacks on the supervisor -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "limit_s"), [("SIGKILL", LIMIT_S), ("SIGSTOP", 8.0), ("zygote", 8.0)])
def test_an_agent_that_attacks_its_sentry_ends_itself(evasion: Start, how: str, limit_s: float) -> None:
    host = evasion("against_sentry", how)
    assert_gone(host, limit_s)
    ended = host.call("wait", timeout_s=10)
    assert ended["ended_by"] == "sentry lost"
    assert host.events("sentry_lost")
    if how == "zygote":
        assert [one.data["process"] for one in host.events("process_woken")][:1] == ["zygote"]
    again = host.call("start", argv=["/bin/true"], require="none")  # the kernel and its zygote are well
    assert host.call("wait", id=again["id"], timeout_s=10)["exit_code"] == 0


def test_a_sentry_cannot_be_traced_or_dies_of_it(evasion: Start) -> None:
    """Without rights Linux refuses it (PR_SET_DUMPABLE); with them the sentry stops, and that is found out."""
    host = evasion("against_sentry", "ptrace")
    told = wait_until(lambda: (host.work / "attached").exists() and (host.work / "attached").read_text())
    if told == "attached":
        assert_gone(host, 8.0)
    else:
        assert told == "refused"
        assert state_of(host.facts["sentry_pid"]) in "RS"


@pytest.mark.parametrize("victim", ["guard", "zygote", "recorder"])
def test_our_own_processes_are_woken(tmp_path: Path, victim: str) -> None:
    with hostile_host(tmp_path) as host:
        os.kill(host.facts[f"{victim}_pid"], signal.SIGSTOP)
        wait_until(lambda: state_of(host.facts[f"{victim}_pid"]) == "S", 8.0, f"the {victim} to be woken")
        assert victim in [one.data["process"] for one in host.events("process_woken")]


# --- who dies when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ABOVE)
def test_kill_9_of_anybody_above_ends_a_tree_that_is_being_stopped(tmp_path: Path, victim: str) -> None:
    """In the grace: TERM was delivered and ignored, KILL is still to come."""
    with hostile_host(tmp_path) as host:
        host.ask("stop", grace_s=30)
        wait_until(lambda: host.events("signal_confirmed"), what="TERM to be delivered")
        assert len(carriers(host.cookie)) >= 12
        kill_9(host, victim)
        assert_gone(host)


@pytest.mark.parametrize("also", ["", "SIGSTOP to the tree"])
def test_a_kernel_that_is_stopped_frees_nobody_and_may_be_killed(tmp_path: Path, also: str) -> None:
    with hostile_host(tmp_path) as host:
        if also:
            assert host.call("signal", signal=signal.SIGSTOP)["ok"]
        os.kill(host.facts["kernel_pid"], signal.SIGSTOP)
        time.sleep(0.5)
        assert len(carriers(host.cookie)) >= 12
        kill_9(host, "kernel")
        assert_gone(host)


def test_a_stopped_sentry_does_not_outlive_the_kernel(tmp_path: Path) -> None:
    with hostile_host(tmp_path) as host:
        os.kill(host.facts["sentry_pid"], signal.SIGSTOP)
        kill_9(host, "kernel")
        assert_gone(host)


def test_a_leader_dies_with_its_sentry_although_nobody_is_awake_to_end_it(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG, for the moment in which zygote and kernel are stopped."""
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]})
    try:
        for name in ("kernel", "zygote"):
            os.kill(host.facts[f"{name}_pid"], signal.SIGSTOP)
        kill_9(host, "sentry")
        assert_gone(host)
    finally:
        for name in ("zygote", "kernel"):
            os.kill(host.facts[f"{name}_pid"], signal.SIGCONT)
        host.close()


def test_what_the_zygote_made_dies_with_it_although_the_guard_is_stopped(tmp_path: Path) -> None:
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]})
    try:
        for name in ("kernel", "sentry", "guard"):  # the kernel would wake it
            os.kill(host.facts[f"{name}_pid"], signal.SIGSTOP)
        kill_9(host, "zygote")
        assert_gone(host)
        for name in ("kernel", "sentry"):
            wait_until(lambda name=name: state_of(host.facts[f"{name}_pid"]) in ("", "Z"), LIMIT_S, f"the {name}")
    finally:
        os.kill(host.facts["guard_pid"], signal.SIGCONT)
        host.close()


def test_a_kernel_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG is about a thread: named after the wrong one, it kills what should live."""
    made: list[Any] = []
    with directories(tmp_path) as environment, pytest.MonkeyPatch.context() as patch:
        for name in ("AGENTOS_RUNTIME_DIR", "AGENTOS_STATE_DIR"):
            patch.setenv(name, environment[name])
        thread = threading.Thread(target=lambda: made.append(start_kernel(policy="permissive")))
        thread.start()
        thread.join()
        link = made[0].link
        agent = link.call("start", {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"], "require": "none"})
        time.sleep(0.3)
        assert link.call("status", {"id": agent["id"]})["state"] == "running"
        link.call("shutdown")
        link.close()
        assert made[0].guard.wait(10) == 0


def test_the_host_is_missed_although_a_child_of_its_own_holds_its_socket(tmp_path: Path) -> None:
    """multiprocessing's fork copies every descriptor of the host program, ours among them."""
    code = (
        "import os, sys, time\n"
        "from agentos.client.launch import start_kernel\n"
        "started = start_kernel(policy='permissive')\n"
        f"argv = [{SYSTEM_PYTHON!r}, '-c', 'import time; time.sleep(60)']\n"
        "agent = started.link.call('start', {'argv': argv, 'require': 'none', 'env': {'COOKIE': sys.argv[1]}})\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    time.sleep(20)\n"
        "    os._exit(0)\n"
        "print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    cookie = f"agentos-test-{os.getpid()}-{tmp_path.name}"
    with directories(tmp_path) as environment:
        host = Popen([sys.executable, "-c", code, cookie], env=environment, stdout=PIPE, text=True)
    assert host.stdout is not None
    child = int(host.stdout.readline())
    try:
        wait_until(lambda: carriers(cookie), what="the agent to run")
        host.kill()
        wait_until(lambda: not carriers(cookie), LIMIT_S, "the agent to be gone")
        assert state_of(child) == "S"
    finally:
        os.kill(child, signal.SIGKILL)
        host.wait()
        host.stdout.close()
