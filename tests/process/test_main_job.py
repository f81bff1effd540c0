"""The first command of the README, as it stands, on this very checkout; and what a second terminal sees meanwhile."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from world import PROJECT, carriers, state_of, ticks_of, wait_until

QUIET_S = 2.0


class Terminal:
    """Runs bin/agentos in the checkout with directories of its own, and marks what it starts with a cookie."""

    def __init__(self, base: Path) -> None:
        self._started: list[subprocess.Popen[str]] = []
        self.cookie = f"agentos-main-job-{base.name}-{os.getpid()}"
        self._environment = {
            **os.environ, "AGENTOS_RUNTIME_DIR": str(base / "run"), "AGENTOS_STATE_DIR": str(base / "state"),
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            words, cwd=PROJECT, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._started.append(started)
        return started

    def close(self) -> None:
        """End what a failed test left; an attached run ends with its starter."""
        for started in self._started:
            started.kill()
            started.communicate()

    def agentos(self, *words: str) -> str:
        done = subprocess.run(
            ["bin/agentos", *words], cwd=PROJECT, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.agentos(*words, "--json"))


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    report = PROJECT / "build/repo-report.md"
    kept = report.read_text() if report.exists() else None
    report.unlink(missing_ok=True)
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()
    if kept is not None:
        report.write_text(kept)


def first_command() -> list[str]:
    block = re.search(
        r"^## Getting started\n+```sh\n(.*?)^```", (PROJECT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert block
    return block[1].splitlines()[0].split()


def children_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]  # fmt: skip  # noqa: E501


def test_the_main_job_is_seen_frozen_continued_and_told(terminal: Terminal) -> None:
    job = terminal.start(*first_command(), "100000", "0.02")
    row = wait_until(
        lambda: next((one for one in terminal.json("ps") if one["state"] == "running"), None), 60.0, "it to be listed"
    )
    assert (row["name"], row["state"], row["level"], row["policy"]) == ("report", "running", "hooks", "repo-report")

    wait_until(lambda: len(terminal.agentos("logs", "report").splitlines()) > 3, what="progress")
    terminal.agentos("kill", "-STOP", "report")
    tree = [row["pid"], *children_of(row["pid"])]
    assert len(tree) > 1, "the agent has a child all along"
    assert {state_of(pid) for pid in tree} <= set("Tt")
    before = terminal.agentos("logs", "report"), terminal.agentos("audit", "report"), [ticks_of(pid) for pid in tree]
    time.sleep(QUIET_S)
    after = terminal.agentos("logs", "report"), terminal.agentos("audit", "report"), [ticks_of(pid) for pid in tree]
    assert after == before
    assert terminal.json("inspect", "report")["state"] == "stopped"

    terminal.agentos("kill", "-CONT", "report")
    wait_until(lambda: len(terminal.agentos("logs", "report")) > len(before[0]), what="progress again")
    out, err = job.communicate(timeout=110)
    assert job.returncode == 0, err
    assert "refused: Secrets are none of a report's business" in out
    assert (PROJECT / "build/repo-report.md").read_text().startswith("# ")
    assert "denied read .env" in err
    explains = err.splitlines()[-1].rpartition("see: bin/agentos ")[2].split()
    assert "Secrets are none" in terminal.agentos(*explains)
    assert_the_story(terminal)


def assert_the_story(terminal: Terminal) -> None:
    """`audit` tells all of it, in order: each landmark after the one before."""
    story = terminal.agentos("audit")
    at = 0
    for landmark in (
        "kernel started", "start ", "agent started", "execute   /usr/bin/git ls-files", "read      README.md",
        "git blame", "SIGSTOP to tree", "SIGSTOP confirmed", "SIGCONT to tree", "SIGCONT confirmed",
        "read      .env  denied by no secrets", "execute   tools/render", "write     build/repo-report.md",
        "end       exit code 0", "kernel stopped",
    ):  # fmt: skip
        found = story.find(landmark, at)
        assert found >= 0, f"{landmark!r} is not in its place in\n{story}"
        at = found
    events = [json.loads(line) for line in terminal.agentos("audit", "--json", "--severity", "debug").splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    actions = [e for e in events if e["event_type"] in {"action_allowed", "policy_violation"}]
    (end,) = [e for e in events if e["event_type"] == "agent_exited"]
    assert end["data"]["actions"] == len(actions)
    assert end["data"]["violations"] == 1


def test_nothing_is_left_of_it(terminal: Terminal) -> None:
    job = terminal.start(*first_command(), "5", "0")
    assert job.wait(60) == 0
    job.communicate()
    assert carriers(str(terminal._environment["AGENTOS_RUNTIME_DIR"])) == []
    assert terminal.json("ps") == []
