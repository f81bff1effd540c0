"""Signals are true: the effect is there when the call returns, and what is shown is what Linux says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from world import SYSTEM_PYTHON, Host, carriers, hostile_host, state_of, ticks_of, wait_until

QUIET_S = 2.0


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Start a program under a host; closed at the end of the test."""
    hosts: list[Host] = []

    def start(code: str, **options: Any) -> Host:
        hosts.append(Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", code], **options}))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


def test_a_stopped_tree_makes_no_progress_until_it_is_continued(tmp_path: Path) -> None:
    with hostile_host(tmp_path) as host:
        before = host.tick_files()
        wait_until(lambda: all(size > before.get(name, 0) for name, size in host.tick_files().items()), what="progress")
        answer = host.call("signal", signal=signal.SIGSTOP)
        assert answer["ok"]
        assert answer["state"] == "stopped"
        tree = carriers(host.cookie)
        assert len(tree) >= 13
        assert {state_of(pid) for pid in tree} <= set("Tt")
        files, ticks = host.tick_files(), {pid: ticks_of(pid) for pid in tree}
        time.sleep(QUIET_S)
        assert host.tick_files() == files
        assert {pid: ticks_of(pid) for pid in tree} == ticks
        assert host.call("status")["state"] == "stopped"
        assert host.call("signal", signal=signal.SIGCONT)["state"] == "running"
        wait_until(lambda: all(size > files[name] for name, size in host.tick_files().items()), what="progress again")


def test_a_tree_that_is_forking_is_stopped_to_the_last_process(program: Any, tmp_path: Path) -> None:
    """150 forks with setsid and double fork while STOP looks for them; capped by count."""
    code = (
        "import os, time\n"
        "for i in range(150):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0: time.sleep(30)\n"
        "        os._exit(0)\n"
        "    time.sleep(0.002)\n"
        "time.sleep(30)\n"
    )
    host = program(code)
    wait_until(lambda: len(carriers(host.cookie)) > 20, what="the tree to grow")
    assert host.call("signal", signal=signal.SIGSTOP)["ok"]
    tree = carriers(host.cookie)
    assert {state_of(pid) for pid in tree} <= set("Tt")
    time.sleep(0.3)
    assert sorted(carriers(host.cookie)) == sorted(tree)
    assert host.call("signal", signal=signal.SIGKILL)["ok"]
    assert carriers(host.cookie) == []


def test_a_stopped_agent_is_shown_as_stopped_also_while_it_waits_for_what_it_just_forked(tmp_path: Path) -> None:
    """A shell forks by vfork and is in D until its child has executed, which it does not while it is stopped."""
    host = Host(tmp_path, {"argv": ["sh", "-c", "while :; do sleep 0.001; done"]})
    try:
        seen = set()
        for _ in range(200):
            answer = host.call("signal", signal=signal.SIGSTOP)
            seen.add((answer["ok"], answer["state"], host.call("status")["state"]))
            host.call("signal", signal=signal.SIGCONT)
        assert seen == {(True, "stopped", "stopped")}
    finally:
        host.close()


def test_what_others_do_to_the_agent_is_shown_too(program: Any) -> None:
    host = program("import time; time.sleep(30)")
    os.kill(host.facts["pid"], signal.SIGSTOP)
    wait_until(lambda: host.call("status")["state"] == "stopped", what="the foreign SIGSTOP to be shown")
    os.kill(host.facts["pid"], signal.SIGCONT)
    wait_until(lambda: host.call("status")["state"] == "running", what="the foreign SIGCONT to be shown")


def test_term_and_usr1_reach_the_leader_alone_unless_the_tree_is_asked_for(program: Any, tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "role = 'leader' if os.fork() else 'child'\n"
        "signal.signal(signal.SIGUSR1, lambda *_: open(f'got-{role}', 'a').write('x'))\n"
        "open(f'ready-{role}', 'w').close()\n"
        "while True: time.sleep(0.01)\n"
    )
    host = program(code)
    work = tmp_path / "work"
    wait_until(lambda: (work / "ready-leader").exists() and (work / "ready-child").exists())
    assert host.call("signal", signal=signal.SIGUSR1)["processes"] == 1
    wait_until((work / "got-leader").exists)
    time.sleep(0.1)
    assert not (work / "got-child").exists()
    assert host.call("signal", signal=signal.SIGUSR1, scope="tree")["processes"] == 2
    wait_until((work / "got-child").exists)


def test_stop_lets_the_agent_clean_up_within_its_grace(program: Any, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    open('cleaned', 'w').close()\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "open('ready', 'w').close()\n"
        "while True: time.sleep(0.01)\n"
    )
    host = program(code)
    wait_until((tmp_path / "work" / "ready").exists)
    host.call("signal", signal=signal.SIGSTOP)
    assert host.call("stop", grace_s=5)["exit_code"] == 7  # TERM waits while stopped: stop continues it
    assert (tmp_path / "work" / "cleaned").exists()


def test_a_timeout_counts_running_time_only(program: Any) -> None:
    host = program("import time; time.sleep(30)", timeout_s=1.0)
    host.call("signal", signal=signal.SIGSTOP)
    time.sleep(1.5)
    assert host.call("status")["state"] == "stopped"
    host.call("signal", signal=signal.SIGCONT)
    ended = host.call("wait", timeout_s=10)
    assert ended["exit_signal"] == signal.SIGALRM  # its default action; the grace was not needed
    assert ended["ended_by"] == "timeout"


def test_a_timeout_that_is_ignored_ends_in_a_kill(program: Any) -> None:
    code = "import signal, time; signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(30)"
    host = program(code, timeout_s=0.5, grace_s=0.3)
    assert host.call("wait", timeout_s=10)["exit_signal"] == signal.SIGKILL


def test_an_agent_started_paused_has_run_nothing(program: Any, tmp_path: Path) -> None:
    host = program("open('ran', 'w').close(); import time; time.sleep(30)", start_paused=True)
    assert host.facts["state"] == "stopped"
    time.sleep(0.2)
    assert not (tmp_path / "work" / "ran").exists()
    assert host.call("signal", signal=signal.SIGCONT)["ok"]
    wait_until((tmp_path / "work" / "ran").exists)
    wait_until(lambda: host.call("status")["state"] == "running")


def test_a_signal_to_an_ended_agent_is_an_answer_not_an_error(program: Any) -> None:
    host = program("pass")
    host.call("wait", timeout_s=10)
    assert host.call("signal", signal=signal.SIGTERM)["detail"] == "already ended"


def test_exit_status_is_never_lost(program: Any) -> None:
    host = program("import os, signal; os.kill(os.getpid(), signal.SIGUSR2)")
    ended = host.call("wait", timeout_s=10)
    assert (ended["exit_code"], ended["exit_signal"]) == (None, signal.SIGUSR2)
