"""The README's tour and docs/cli.md, walked: every command as it stands, every verb and exit code that is promised."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, CommandLine
from world import PROJECT, wait_until

from agentos import errors
from agentos.cli.main import VERBS


@pytest.fixture
def agentos(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    yield world
    world.close()


def blocks(kind: str) -> list[str]:
    tour = (PROJECT / "README.md").read_text().split("## A short tour")[1].split("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```", tour, re.DOTALL | re.MULTILINE)


def test_the_tour(agentos: CommandLine) -> None:
    first, second = blocks("sh")
    here = shlex.join(PROGRAM)
    process = agentos.start(*shlex.split(first.replace("bin/agentos", "", 1)))
    assert process.stdout is not None
    assert process.stdout.readline() == b"step 1\n"
    told = {line: agentos.shell(line.replace("bin/agentos", here, 1)).stdout for line in second.splitlines()}
    ps, stop, cont, logs, end, audit, doctor = told.values()
    assert " steps " in ps
    assert "now stopped" in stop
    assert "now running" in cont
    assert logs.startswith("step 1\n")
    assert end == "steps: killed by SIGTERM\n"
    assert "SIGSTOP confirmed" in audit
    assert "best level" in doctor
    assert process.wait(60) == 143
    assert {shlex.split(line)[1] for line in told} <= VERBS.keys()


def test_the_policy_of_the_tour(agentos: CommandLine) -> None:
    (text,) = blocks("yaml")
    (agentos.work / "reports.yaml").write_text(text)
    (agentos.work / "report.py").write_text(
        "import time, agentos\n"
        "def report(name):\n    agentos.act('read', name)\n    print('read', name, flush=True)\n"
        "def insists(name):\n"
        "    try:\n        agentos.act('read', name)\n    finally:\n        time.sleep(60)\n"
    )
    assert agentos.out("run", "--policy", "reports.yaml", "report.py:report", "data/x") == "read data/x\n"
    told = agentos("run", "--policy", "reports.yaml", "report.py:insists", "secrets/x", code=4).stderr
    assert "denied read secrets/x: Reports do not need them" in told
    assert "insists was ended: policy, killed by SIGKILL" in told


def table(title: str) -> list[list[str]]:
    section = (PROJECT / "docs/cli.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_page_names_every_verb_and_no_other() -> None:
    named = {verb for row in table("Verbs") for verb in re.findall(r"`(\w+)`", row[0])}
    assert named == VERBS.keys() | {"help"}


def test_the_page_names_every_exit_code() -> None:
    """All that errors carry, and those that are not errors: an agent's own and 128 + n, 130, 141."""
    named = {int(code) for row in table("Exit codes") for code in re.findall(r"\b\d+\b", row[0])}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AgentosError)]
    carried = {kind.exit_code for kind in kinds} - {errors.AgentFailed.exit_code}
    assert named == carried | {128, 130, 141}


def test_the_page_holds_what_it_says_of_targets(agentos: CommandLine) -> None:
    agent_id = agentos.detached("--name", "t", "--", "sleep", "60")
    assert agentos.json("inspect", agent_id[:4])["name"] == "t"
    assert f"no agent {agent_id[:3]!r}" in agentos("inspect", agent_id[:3], code=3).stderr
    agentos("stop", "t")
    wait_until(lambda: agentos.out("ps", "-q") == "", what="its end")
    again = agentos.detached("--name", "t", "--", "sleep", "60")
    assert agentos.json("inspect", "t")["id"] == again, "the living come before the ended"
    assert agentos.json("inspect", agent_id)["state"] == "terminated"
