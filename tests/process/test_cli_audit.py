"""`agentos audit` on real records: the whole story in order, by agent, type and severity, live and after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command_line import PROGRAM, UNMEDIATED, CommandLine
from world import wait_until

from agentos.recorder.storage.sqlite import SqliteStorage

AGENT = """
import agentos
def asks(*resources):
    for resource in resources:
        try:
            agentos.act("read", resource)
        except agentos.PolicyViolationError as refusal:
            print("refused:", refusal.reason, flush=True)
def insists():
    agentos.act("read", "secrets/key")
"""
POLICY = """
name: reports
rules:
  - {name: no secrets, action: deny, operation: read, resource: secrets/*, reason: Reports do not need them}
  - {action: allow, operation: read, resource: "*"}
"""
EVENT_FIELDS = {
    "seq": int, "event_id": str, "ts": str, "event_type": str, "severity": str, "agent_id": str, "execution_id": str,
    "data": dict,
}  # fmt: skip
DECISION_FIELDS = {"operation", "resource", "effect", "rule", "rule_name", "reason"}


@pytest.fixture
def agentos(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    (world.work / "agents.py").write_text(AGENT)
    (world.work / "reports.yaml").write_text(POLICY)
    yield world
    world.close()


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A record with two runs: an agent that is refused twice among what it may do, and a program that fails."""
    world = CommandLine(tmp_path_factory.mktemp("past"))
    (world.work / "agents.py").write_text(AGENT)
    (world.work / "reports.yaml").write_text(POLICY)
    world("run", "--policy", "reports.yaml", "agents.py:asks", "data/1", "secrets/a", "data/2", "secrets/b")
    world("run", *UNMEDIATED, "--name", "fails", "--", "sh", "-c", "exit 3", code=3)
    yield world
    world.close()


# --- order and fields ------------------------------------------------------------------------------------------------


def test_the_story_is_told_in_order(past: CommandLine) -> None:
    story = past.out("audit")
    at = -1
    for landmark in (
        "kernel started", "start ", "read      data/1  allowed by rule 1",
        "read      secrets/a  denied by no secrets: Reports do not need them", "read      data/2",
        "read      secrets/b", "end       exit code 0; ", "kernel stopped", "start     sh -c exit 3",
        "end       exit code 3; 0 actions, 0 denied",
    ):  # fmt: skip
        found = story.find(landmark, at + 1)
        assert found > at, f"{landmark!r} is not in its place in\n{story}"
        at = found
    times = [line[:23] for line in story.splitlines()]
    assert times == sorted(times)


def test_every_event_has_the_promised_fields(past: CommandLine) -> None:
    events = past.events("--severity", "debug")
    for event in events:
        assert {name: type(event[name]) for name in EVENT_FIELDS} == EVENT_FIELDS
        assert datetime.fromisoformat(event["ts"]).tzinfo == UTC
        assert event["ts"].endswith("Z")
    runs = {event["event_id"].rpartition("-")[0] for event in events}
    assert len(runs) == 2
    for run in runs:
        mine = [event for event in events if event["event_id"].startswith(run)]
        assert [event["seq"] for event in mine] == list(range(1, len(mine) + 1)), "all of it, once, in order"
    denied = [event for event in events if event["event_type"] == "policy_violation"]
    assert all(event["data"].keys() >= DECISION_FIELDS for event in denied)
    facts = denied[0]["data"]
    assert {name: facts[name] for name in DECISION_FIELDS} == {
        "operation": "read", "resource": "secrets/a", "effect": "deny", "rule": 0, "rule_name": "no secrets",
        "reason": "Reports do not need them",
    }  # fmt: skip


def test_filters(past: CommandLine) -> None:
    (asks, fails) = past.json("ps", "-a")
    everything = past.events("--severity", "debug")
    for target, row in (("asks", asks), (fails["id"], fails), ("f*", fails)):
        assert past.events("--severity", "debug", target) == [e for e in everything if e["agent_id"] == row["id"]]
    assert past.events("--run", asks["run"], "--severity", "debug") == [
        e for e in everything if e["event_id"].startswith(asks["run"])
    ]
    assert past.events("--run", "latest", "--type", "agent_exited")[0]["agent_id"] == fails["id"]
    both = past.events("--type", "agent_exited", "--type", "policy_violation")
    assert [e["event_type"] for e in both] == ["policy_violation"] * 2 + ["agent_exited"] * 2
    assert {e["severity"] for e in past.events("--severity", "warning")} == {"warning"}
    assert past.events("-n", "3", "--severity", "debug") == everything[-3:]
    assert past.events("-n", "1", "--type", "policy_violation")[0]["data"]["resource"] == "secrets/b"


def test_one_event_is_shown_in_full(past: CommandLine) -> None:
    denied = past.events("--type", "policy_violation")[0]
    assert json.loads(past.out("audit", "show", denied["event_id"])) == denied
    run, _, number = denied["event_id"].rpartition("-")
    for absent in (f"{run}-9999", f"{run}-0", "x-1", number):
        assert f"no event {absent!r}" in past("audit", "show", absent, code=3).stderr


def test_asked_for_what_there_is_not(past: CommandLine) -> None:
    done = past("audit", "--type", "policy_violatoin")
    assert (done.stdout, done.stderr) == (
        "", "agentos: no event of type 'policy_violatoin' (did you mean 'policy_violation'?)\n",
    )  # fmt: skip
    assert "did you mean 'agent_waiting'" in past("audit", "--type", "agent_waitng").stderr  # none was ever recorded
    assert past("audit", "--type", "agent_waiting").stderr == "agentos: no event of type 'agent_waiting'\n"
    assert "did you mean 'asks'" in past("audit", "akss", code=3).stderr
    assert "ambiguous" in past("audit", "--run", "2", code=2).stderr


# --- a reader that leaves, a record that lives, one that died --------------------------------------------------------


def test_a_reader_that_leaves_is_a_broken_pipe(past: CommandLine) -> None:
    done = past.shell("agentos audit --severity debug | head -n 1; echo ${PIPESTATUS[*]}")
    first, codes = done.stdout.splitlines()
    assert "kernel started" in first
    assert codes in {"141 0", "0 0"}, "0 when all of it fitted into the pipe"
    assert done.stderr == ""
    done = past.shell("agentos audit >&-; agentos audit --json >/dev/full", code=125)
    reasons = ("Bad file descriptor", "No space left on device")
    assert done.stderr == "".join(f"agentos: cannot write to stdout: {why}\n" for why in reasons)


def test_it_is_followed_as_it_happens_and_ends_with_its_agent(agentos: CommandLine) -> None:
    agentos("run", *UNMEDIATED, "--name", "before", "--", "true")
    agentos.detached("--name", "f", "--", "sh", "-c", "until [ -e go ]; do sleep 0.02; done")
    follower = agentos.start("audit", "-f", "f")
    assert follower.stdout is not None
    assert b"start " in follower.stdout.readline()
    assert b"agent started" in follower.stdout.readline(), "at once, though it is a pipe"
    agentos("pause", "f")
    agentos("resume", "f")
    (agentos.work / "go").touch()
    rest = follower.stdout.read().decode()
    assert follower.wait(60) == 0
    assert re.search(r"SIGSTOP to tree(.|\n)*SIGCONT confirmed(.|\n)*end       exit code 0", rest)
    assert "before" not in rest
    assert agentos.out("audit", "-f", "-n", "1", "f").endswith("0 actions, 0 denied\n"), "of a past one it ends at once"


def test_a_crashed_kernels_record_is_read_to_its_end(agentos: CommandLine) -> None:
    agentos.detached("--name", "gone", "--", "sleep", "60")
    row = agentos.json("inspect", "gone")
    os.kill(row["kernel_pid"], signal.SIGKILL)
    wait_until(lambda: agentos.out("ps", "-q") == "", what="the kernel to be gone")
    assert [e["event_type"] for e in agentos.events("gone")] == ["agent_starting", "agent_started"]


def test_to_ask_for_a_crashed_record_brings_its_journal_home(agentos: CommandLine) -> None:
    agentos.detached("--name", "gone", "--", "sleep", "60")
    row = agentos.json("inspect", "gone")
    os.kill(row["recorder_pid"], signal.SIGSTOP)  # what comes now reaches the journal alone
    os.kill(row["pid"], signal.SIGUSR2)
    journal = agentos.state / "runs" / row["run"] / "journal"
    wait_until(lambda: b"agent_exited" in b"".join(each.read_bytes() for each in journal.iterdir()), what="the exit")
    for process in ("recorder_pid", "kernel_pid"):
        os.kill(row[process], signal.SIGKILL)
    wait_until(lambda: agentos.out("ps", "-q") == "", what="the kernel to be gone")
    with contextlib.closing(SqliteStorage(journal.parent / "flight.db", read_only=True)) as database:
        before = database.last_seq(row["run"])
        told = agentos.events("--run", row["run"], "--severity", "debug")
        assert database.last_seq(row["run"]) == told[-1]["seq"] > before
    assert not (agentos.runtime / "runs" / row["run"]).exists()


def test_a_damaged_record_is_named_and_hides_no_other(agentos: CommandLine) -> None:
    for name in ("one", "two"):
        agentos("run", *UNMEDIATED, "--name", name, "--", "true")
    run = agentos.json("inspect", "one")["run"]
    for each in (agentos.state / "runs" / run).glob("flight.db*"):
        each.write_bytes(b"this is no database, whatever its name says" * 100)
    done = agentos("audit", "--json", code=125)
    assert done.stderr.startswith(f"agentos: run {run}: ")
    assert done.stderr.count("\n") == 1
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert next(e["event_type"] for e in told if e["agent_name"] == "two") == "agent_starting"
    assert " two " in agentos("ps", "-a").stdout


def test_what_is_no_run_is_none_and_a_run_with_a_file_for_its_journal_hides_no_other(agentos: CommandLine) -> None:
    agentos("run", *UNMEDIATED, "--name", "one", "--", "true")
    runs = agentos.state / "runs"
    (runs / "evil").touch()
    (runs / "foreign").mkdir()
    (runs / "foreign" / "journal").touch()
    for words in (("audit",), ("wait", "one"), ("logs", "one"), ("inspect", "one"), ("ps", "-a")):
        assert agentos(*words).stderr == ""
    odd = runs / "20260102T030405-1a2b3c"
    odd.mkdir()
    (odd / "journal").touch()
    assert agentos("wait", "one").stderr == f"agentos: run {odd.name}: {odd}/journal: Not a directory\n"
    assert "agent_exited" in {event["event_type"] for event in agentos.events("one")}


# --- a denial on the terminal ----------------------------------------------------------------------------------------


def test_a_denial_ends_with_the_command_that_explains_it(agentos: CommandLine) -> None:
    """As printed, in the shell that it was printed in; by id, because another agent of that name may live by then."""
    words = "run --policy reports.yaml --name 'two words' agents.py:insists"
    told = agentos.shell(f"agentos {words}", code=4).stderr.splitlines()
    assert "agentos: denied read secrets/key: Reports do not need them (no secrets)" in told
    says, command = told[-1].split("; see: ")
    assert says == "agentos: 1 action denied"
    other = agentos.detached("--name", "two words", "--", "sleep", "60")
    explained = run_as_printed(agentos, command)
    assert explained.endswith("read      secrets/key  denied by no secrets: Reports do not need them\n")
    assert other not in command


def run_as_printed(agentos: CommandLine, command: str, **env: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=agentos.work, env={**agentos.env, **env}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("typed", ["agentos", "here"])
def test_the_command_is_spelled_as_it_was_typed(agentos: CommandLine, typed: str) -> None:
    """From PATH, by a path, or through a launcher: what is printed can be typed again."""
    folder = agentos.place / "bin"
    folder.mkdir()
    installed = folder / "agentos"
    if typed == "here":  # what bin/agentos does
        installed.write_text(f'#!/bin/bash\nAGENTOS_LAUNCHER=$0 exec {shlex.join(PROGRAM)} "$@"\n')
        typed = "../bin/agentos"
    else:  # what an installer writes
        code = "import sys\nfrom agentos.cli.main import main\nsys.exit(main())\n"
        installed.write_text(f"#!{PROGRAM[0]}\n{code}")
    installed.chmod(0o755)
    path = f"{folder}:{os.defpath}" if typed == "agentos" else os.defpath
    done = subprocess.run(
        [typed, "run", "--policy", "reports.yaml", "--env-all", "agents.py:insists"], cwd=agentos.work, timeout=60,
        env={**agentos.env, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    command = done.stderr.splitlines()[-1].split("; see: ")[1]
    assert command.startswith(f"{typed} audit ")
    assert "Reports do not need them" in run_as_printed(agentos, command, PATH=path)
    (start,) = agentos.events("--type", "agent_starting")
    assert "AGENTOS_LAUNCHER" not in start["data"]["environment_names"]


def test_many_denials_are_few_lines(agentos: CommandLine) -> None:
    resources = [f"secrets/{number}" for number in range(40)]
    done = agentos("run", "--policy", "reports.yaml", "agents.py:asks", *resources, *resources)
    shown = [line for line in done.stderr.splitlines() if line.startswith("agentos: denied ")]
    assert 5 <= len(shown) <= 20
    assert len(set(shown)) == len(shown)
    assert done.stderr.splitlines()[-1].startswith("agentos: 80 actions denied; see: ")
    assert done.stdout.count("refused: Reports do not need them") == 80


def test_what_is_not_enforced_is_told_as_such(agentos: CommandLine) -> None:
    done = agentos("run", "--policy", "audit", "agents.py:asks", "secrets/id_rsa")
    assert "refused" not in done.stdout
    assert "allowed, would be denied by" in agentos.out("audit", "--type", "policy_violation")


def test_what_an_agent_chose_is_one_harmless_line(agentos: CommandLine) -> None:
    evil = "data/\x1b[2J\n2026-01-01 00:00:00.000  asks          end       exit code 0"
    agentos("run", "--policy", "reports.yaml", "agents.py:asks", evil)
    assert not any(char in agentos.out("audit") for char in "\x1b\r")
    (line,) = [line for line in agentos.out("audit").splitlines() if "2J" in line]
    assert "data/\\x1b[2J\\n2026" in line
    told = [event["data"].get("resource", "") for event in agentos.events()]
    assert any(resource.startswith("data/") for resource in told)
