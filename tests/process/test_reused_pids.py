"""A signal goes to the process that was meant, never to one that got its pid since: forced in a pid namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from world import HERE, PROJECT

UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")
LIMIT_S = 90

BY_PID_TO_THE_LEADER = """
import os
from agentos import wire
from agentos.supervisor import endings
async def already_ended(self, agent, signal, number):
    os.kill(agent.pid, signal.value)
    return wire.Delivered(number, True, 1, "none", "")
endings.Endings._already_ended = already_ended
"""
BY_PID_TO_MEMBERS = """
import os
from agentos.supervisor import tree
def send(member, number):
    os.kill(member.pid, number)
    return True
tree.send = send
"""
BY_PID_AND_PARENT = """
import os
from agentos.supervisor import linux, tree
def send(member, number):
    found = linux.read_stat(str(member.pid))
    if found is not None and found.ppid in (member.parent, os.getpid()):
        os.kill(member.pid, number)
    return True
tree.send = send
"""


def in_a_namespace(tmp_path: Path, scenario: str, fault: str = "") -> dict[str, Any]:
    """Run one scenario of tests/support/reuse.py; where no such namespace is to be had, the test fails and says so."""
    environment = {
        **os.environ, "PYTHONPATH": f"{PROJECT}:{HERE}",
        "AGENTOS_RUNTIME_DIR": str(tmp_path / "run"), "AGENTOS_STATE_DIR": str(tmp_path / "state"),
    }  # fmt: skip
    (tmp_path / "work").mkdir()
    probe = subprocess.run(
        [*UNSHARE, "test", "-w", "/proc/sys/kernel/ns_last_pid"], check=False, capture_output=True, text=True
    )
    assert probe.returncode == 0, (
        f"this test needs a user and a pid namespace, and `{' '.join(UNSHARE)}` said {probe.stderr!r}; where they are "
        "forbidden, allow them: sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns"
    )
    done = subprocess.run(
        [*UNSHARE, sys.executable, str(HERE / "reuse.py"), scenario, fault, str(tmp_path / "work")],
        env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(("scenario", "commands"), [("leader_gone", 19), ("sentry_gone", 19), ("family_gone", 4)])
def test_a_stranger_with_the_pid_of_one_that_ended_is_left_alone(tmp_path: Path, scenario: str, commands: int) -> None:
    assert in_a_namespace(tmp_path, scenario) == {"commands": commands, "harmed": []}


@pytest.mark.parametrize(
    ("scenario", "fault"),
    [
        ("leader_gone", BY_PID_TO_THE_LEADER),
        ("sentry_gone", BY_PID_TO_THE_LEADER),
        ("family_gone", BY_PID_TO_MEMBERS),
        ("family_gone", BY_PID_AND_PARENT),
    ],
)
def test_a_kernel_that_remembers_pids_is_caught(tmp_path: Path, scenario: str, fault: str) -> None:
    assert in_a_namespace(tmp_path, scenario, fault)["harmed"]
