"""Nothing of an agent's tree survives: not a stop, not a kill, not the kill -9 of anybody above it.

Life is asserted first, then death, by a scan of every process of the machine for the run's cookie.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from world import Host, carriers, hostile_host, state_of, wait_until

LIMIT_S = 2.0
VICTIMS = ("kernel", "zygote", "sentry", "guard", "host")


def victim_pid(host: Host, victim: str) -> int:
    return host.process.pid if victim == "host" else int(host.facts[f"{victim}_pid"])


def assert_dead(pids: list[int]) -> None:
    """At this very moment: a scan of all processes takes long enough for others to clean up."""
    assert {pid: state for pid in pids if (state := state_of(pid)) not in ("", "Z")} == {}


def assert_none_left(host: Host) -> None:
    wait_until(lambda: not carriers(host.cookie), LIMIT_S, "the tree to be gone")
    for name in ("kernel", "zygote", "sentry", "recorder", "guard"):
        wait_until(lambda name=name: state_of(host.facts[f"{name}_pid"]) in ("", "Z"), 5.0, f"the {name} to be gone")


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_when_a_kill_or_stop_returns_nothing_of_a_hostile_tree_lives(tmp_path: Path, how: str) -> None:
    with hostile_host(tmp_path) as host:
        tree = carriers(host.cookie)
        if how == "kill":
            assert host.call("signal", signal=signal.SIGKILL)["ok"]
        else:
            assert host.call("stop", grace_s=0.2)["ok"]
        assert_dead(tree)
        assert carriers(host.cookie) == []


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_stopped_tree_ends_as_well(tmp_path: Path, how: str) -> None:
    with hostile_host(tmp_path) as host:
        assert host.call("signal", signal=signal.SIGSTOP)["ok"]
        tree = carriers(host.cookie)
        assert all(state_of(pid) in "Tt" for pid in tree)
        answer = host.call("signal", signal=signal.SIGKILL) if how == "kill" else host.call("stop", grace_s=0.2)
        assert answer["ok"]
        assert_dead(tree)
        assert carriers(host.cookie) == []


@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_9_of_anybody_above_ends_a_running_tree(tmp_path: Path, victim: str) -> None:
    with hostile_host(tmp_path) as host:
        assert len(carriers(host.cookie)) >= 12
        os.kill(victim_pid(host, victim), signal.SIGKILL)
        if victim == "sentry":
            wait_until(lambda: not carriers(host.cookie), LIMIT_S, "the tree to be gone")
        else:
            assert_none_left(host)


@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_9_of_anybody_above_ends_a_stopped_tree(tmp_path: Path, victim: str) -> None:
    with hostile_host(tmp_path) as host:
        assert host.call("signal", signal=signal.SIGSTOP)["ok"]
        os.kill(victim_pid(host, victim), signal.SIGKILL)
        wait_until(lambda: not carriers(host.cookie), LIMIT_S, "the tree to be gone")


@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_9_of_anybody_above_ends_an_agent_that_is_starting(tmp_path: Path, victim: str) -> None:
    """Paused before exec: forked, on record, not one instruction of the program run."""
    with hostile_host(tmp_path, start_paused=True) as host:
        assert state_of(host.facts["pid"]) in "Tt"
        os.kill(victim_pid(host, victim), signal.SIGKILL)
        wait_until(lambda: state_of(host.facts["pid"]) in ("", "Z"), LIMIT_S, "the agent to be gone")


def test_a_stopped_sentry_is_found_out_and_its_tree_ends(tmp_path: Path) -> None:
    """An agent of the same uid can SIGSTOP its sentry: that must end the agent, not free it."""
    with hostile_host(tmp_path) as host:
        os.kill(host.facts["sentry_pid"], signal.SIGSTOP)
        wait_until(lambda: not carriers(host.cookie), 6.0, "the tree of a stopped sentry to be gone")


def test_a_stopped_sentry_does_not_outlive_the_zygote(tmp_path: Path) -> None:
    with hostile_host(tmp_path) as host:
        os.kill(host.facts["sentry_pid"], signal.SIGSTOP)
        os.kill(host.facts["zygote_pid"], signal.SIGKILL)
        assert_none_left(host)
