"""Time-outs of real agents: SIGALRM may be handled, who ignores it is killed after its grace, stopped time is free."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import SYSTEM_PYTHON, Host, wait_until

# One source for both kinds: `main` is the function of a Python agent, and what an executable runs.
SOURCE = """
import os, signal, sys, time

def tidy_up(*_):
    open("tidied", "w").close()
    sys.exit(0)

def note(*_):
    open("alarmed", "w").close()

def main(how):
    signal.signal(signal.SIGALRM, tidy_up if how == "handles" else note)
    open("ready", "w").close()
    while True:
        time.sleep(0.01)

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.fixture(params=["python", "program"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Start an agent that handles SIGALRM, or takes no more than note of it."""
    hosts: list[Host] = []
    (tmp_path / "source.py").write_text(SOURCE)

    def start(how: str, **options: Any) -> Host:
        source = str(tmp_path / "source.py")
        kinds: dict[str, dict[str, Any]] = {
            "python": {"kind": "python", "target": f"{source}:main", "args": [how], "require": "hooks"},
            "program": {"argv": [SYSTEM_PYTHON, source, how]},
        }
        hosts.append(Host(tmp_path, {**kinds[request.param], **options}))
        wait_until((tmp_path / "work" / "ready").exists)
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


def test_an_agent_may_tidy_up_when_its_time_is_over(start: Callable[..., Host], tmp_path: Path) -> None:
    host = start("handles", timeout_s=1.0, grace_s=20.0)
    assert host.call("result")["error"] == "AgentTimeoutError"
    assert (tmp_path / "work" / "tidied").exists()
    ended = host.call("wait")
    assert (ended["exit_code"], ended["ended_by"]) == (0, "timeout")  # it ended itself; no grace of 20 s was waited for


def test_who_ignores_its_time_out_is_killed_after_its_grace(start: Callable[..., Host], tmp_path: Path) -> None:
    host = start("ignores", timeout_s=1.0, grace_s=0.5)
    assert host.call("result")["error"] == "AgentTimeoutError"
    assert (tmp_path / "work" / "alarmed").exists()
    assert host.call("wait")["exit_signal"] == signal.SIGKILL
    (over,), (exited,) = host.events("agent_timeout"), host.events("agent_exited")
    assert exited.mono_ns - over.mono_ns >= 0.5e9
    sent = [(event.data["signal"], event.data["scope"]) for event in host.events("signal_sent")]
    assert sent == [("SIGALRM", "leader"), ("SIGKILL", "tree")]


@pytest.mark.parametrize("start", ["python"], indirect=True)
def test_time_out_and_grace_stand_still_while_the_agent_is_stopped(start: Callable[..., Host], tmp_path: Path) -> None:
    timeout_s, grace_s, paused_s = 2.0, 1.5, 2.1
    host = start("ignores", timeout_s=timeout_s, grace_s=grace_s)
    for moment in ("ready", "alarmed"):  # within its time, then within its grace
        wait_until((tmp_path / "work" / moment).exists)
        host.call("signal", signal=signal.SIGSTOP)
        time.sleep(paused_s)
        assert host.call("status")["state"] == "stopped", moment  # longer than it had left
        assert (tmp_path / "work" / "alarmed").exists() is (moment == "alarmed")
        host.call("signal", signal=signal.SIGCONT)
    assert host.call("result")["error"] == "AgentTimeoutError"
    started, over, exited = (
        host.events(kind)[0].mono_ns for kind in ("agent_started", "agent_timeout", "agent_exited")
    )
    stopped, going = host.events("agent_stopped"), host.events("agent_continued")
    held = [on.mono_ns - off.mono_ns for off, on in zip(stopped, going, strict=True)]
    assert min(held) >= paused_s * 1e9
    slack = 0.05e9  # the clock starts a little after the record of the start
    assert over - started - held[0] >= timeout_s * 1e9 - slack
    assert exited - over - held[1] >= grace_s * 1e9 - slack
