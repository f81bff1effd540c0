"""The verbs that look at agents and act on them, on real ones: what they print, what they promise, what Linux says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from command_line import UNMEDIATED, CommandLine
from world import carriers, state_of, ticks_of, wait_until

import agentos as package
from agentos.recorder.query import parse_query
from agentos.recorder.storage.sqlite import SqliteStorage

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
TREE = "setsid sh -c 'while :; do echo x >> ticks; sleep 0.02; done' & while :; do echo x >> ticks; sleep 0.02; done"


@pytest.fixture
def agentos(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    yield world
    world.close()


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CommandLine, dict[str, str]]]:
    """Three living agents, each in a run of its own, that nobody acts on, and one that has ended."""
    world = CommandLine(tmp_path_factory.mktemp("crew"))
    agentos_ids = {name: world.detached("--name", name, "--", "sleep", "300") for name in ("w-1", "w-2", "report")}
    world("run", *UNMEDIATED, "--name", "old", "--", "sh", "-c", "exit 3", code=3)
    yield world, agentos_ids
    world.close()


Crew = tuple[CommandLine, dict[str, str]]


def is_time(text: str) -> bool:
    return text.endswith("Z") and datetime.fromisoformat(text).tzinfo == UTC


# --- what is promised field by field ---------------------------------------------------------------------------------

PS_FIELDS = {
    "id": lambda v: bool(UUID7.fullmatch(v)),
    "name": lambda v: isinstance(v, str),
    "run": lambda v: bool(re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{6}", v)),
    "pid": lambda v: v > 1,
    "sentry_pid": lambda v: v > 1,
    "state": lambda v: v in {"running", "stopped", "waiting", "terminated"},
    "level": lambda v: v in {"none", "hooks", "syscalls", "full"},
    "policy": lambda v: v == "workspace",
    "command": lambda v: v == ["sleep", "300"],
    "started_at": is_time,
    "actions_count": lambda v: v == 0,
    "violations_count": lambda v: v == 0,
}
INSPECT_FIELDS = {
    **PS_FIELDS,
    "kernel_pid": lambda v: v > 1,
    "zygote_pid": lambda v: v > 1,
    "recorder_pid": lambda v: v > 1,
    "mechanism": lambda v: isinstance(v, str),
    "walls": lambda v: v == [],
}


def test_ps_json_is_what_was_promised(crew: Crew) -> None:
    agentos, ids = crew
    rows = agentos.json("ps")
    assert [row["id"] for row in rows] == list(ids.values()), "oldest first"
    for row in rows:
        assert list(row)[: len(PS_FIELDS)] == list(PS_FIELDS)
        assert [name for name, is_right in PS_FIELDS.items() if not is_right(row[name])] == []
        assert state_of(row["pid"]) in "RS"
        assert Path(f"/proc/{row['pid']}/cmdline").read_bytes() == b"sleep\x00300\x00"


def test_inspect_is_what_was_promised_live_and_after_the_end(crew: Crew) -> None:
    agentos, ids = crew
    live = agentos.json("inspect", "report")
    assert [name for name, is_right in INSPECT_FIELDS.items() if not is_right(live[name])] == []
    assert (live["id"], live["linux_state"] in "RS") == (ids["report"], True)
    over = agentos.json("inspect", "old")
    assert [name for name in PS_FIELDS if name not in over] == []
    assert (over["state"], over["exit_code"], over["exit_signal"], over["command"]) == (
        "terminated", 3, None, ["sh", "-c", "exit 3"],
    )  # fmt: skip
    assert is_time(over["ended_at"])
    assert over["ended_at"] > over["started_at"]
    several = agentos.json("inspect", "w-1", "old")
    assert [each["name"] for each in several] == ["w-1", "old"]


def test_the_table_shows_the_living_and_with_a_the_ended(crew: Crew) -> None:
    agentos, ids = crew
    head, *rows = agentos.out("ps").splitlines()
    assert head.split() == ["ID", "NAME", "STATE", "PID", "AGE", "ACTIONS", "DENIED", "LEVEL", "POLICY", "COMMAND"]
    assert [row.split()[:3] for row in rows] == [[ids[name], name, "running"] for name in ids]
    assert len({row.index("running") for row in rows}) == 1, "aligned"
    everyone = agentos.out("ps", "-a").splitlines()[1:]
    assert [row.split()[1:3] for row in everyone][-1] == ["old", "terminated(3)"]
    assert agentos.out("ps", "-q").split() == list(ids.values())


def test_version_and_doctor(crew: Crew) -> None:
    agentos, _ = crew
    told = agentos.json("version")
    assert told["agentos"] == package.__version__
    assert agentos.out("version").startswith(f"agentos {package.__version__}, ")
    assert agentos.out("--version") == f"agentos {package.__version__}\n"
    found = agentos.json("doctor")
    assert found["ok"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert all(set(check) == {"name", "ok", "detail"} for check in checks.values())
    assert checks["pidfd"]["ok"] is True
    assert checks["state directory"]["detail"].startswith(str(agentos.state))
    assert list(agentos.state.iterdir()) == [agentos.state / "runs"], "it leaves nothing behind"
    sick = agentos("doctor", code=125, AGENTOS_RUNTIME_DIR="/proc/nowhere")
    assert "MISSING runtime directory     /proc/nowhere" in sick.stdout


@pytest.mark.parametrize("words", ["ps", "ps --json", "inspect report", "version", "--help", "kill -l"])
def test_what_could_not_be_written_is_no_success(crew: Crew, words: str) -> None:
    agentos, _ = crew
    for place, why in ((">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")):
        done = agentos.shell(f"agentos {words} {place}", code=125)
        assert done.stderr == f"agentos: cannot write to stdout: {why}\n"
    assert agentos.shell("agentos kill -q -CONT report >&-").stderr == "", "nothing was to be written"


# --- targets ---------------------------------------------------------------------------------------------------------


def test_a_target_is_a_name_an_id_a_prefix_or_a_glob(crew: Crew) -> None:
    agentos, ids = crew
    wanted = ids["report"]
    shortest = next(
        wanted[:size] for size in range(8, 36) if sum(each.startswith(wanted[:size]) for each in ids.values()) == 1
    )
    for target in ("report", wanted, shortest, wanted.upper(), wanted.replace("-", ""), "rep*", "r?port"):
        assert agentos.json("inspect", target)["id"] == wanted, target
    assert {row["id"] for row in agentos.json("inspect", "w-*", "w-1")} == {ids["w-1"], ids["w-2"]}


def test_what_is_ambiguous_or_unknown_lists_and_suggests(crew: Crew) -> None:
    agentos, ids = crew
    common = "".join(chars[0] for chars in zip(*ids.values(), strict=True) if len(set(chars)) == 1)[:6]
    told = agentos("kill", "-STOP", common, code=3).stderr
    assert all(each in told for each in ids.values())
    assert "did you mean 'report'" in agentos("pause", "reprot", code=3).stderr
    assert "no agent 'w'" in agentos("stop", "w", code=3).stderr, "a part of a name is no name"
    told = agentos("logs", "w-*", code=3).stderr
    assert "w-1" in told
    assert "w-2" in told
    assert {row["state"] for row in agentos.json("ps")} == {"running"}, "nobody was touched"


def test_who_has_ended_is_named_as_such(crew: Crew) -> None:
    agentos, _ = crew
    assert "agent 'old' has ended (exit code 3)" in agentos("kill", "old", code=3).stderr
    assert agentos.out("stop", "old") == "old: had ended, exit code 3\n"
    assert agentos.out("wait", "old", code=3) == "old: exit code 3\n"
    assert agentos.out("wait", "--state", "stopped", "old", code=3) == "old: exit code 3\n"


def test_several_targets_are_all_done_and_the_worst_is_the_exit_code(agentos: CommandLine) -> None:
    for name in ("a", "b"):
        agentos.detached("--name", name, "--", "sleep", "60")
    done = agentos("kill", "-STOP", "a", "nobody", "b", code=3)
    assert "no agent 'nobody'" in done.stderr
    assert {row["state"] for row in agentos.json("ps")} == {"stopped"}
    assert sorted(agentos.out("stop", "--all").splitlines()) == ["a: killed by SIGTERM", "b: killed by SIGTERM"]


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_stopped_tree_does_nothing_until_it_is_continued(agentos: CommandLine) -> None:
    agentos.detached("-e", f"COOKIE={agentos.cookie}!", "--name", "tree", "--", "sh", "-c", TREE)
    ticks = agentos.work / "ticks"
    wait_until(lambda: ticks.exists() and ticks.stat().st_size > 20, what="ticks")
    told = agentos.out("kill", "-STOP", "tree")
    assert re.fullmatch(r"tree: SIGSTOP, [2-6] processes, now stopped\n", told)
    tree, size = carriers(f"{agentos.cookie}!"), ticks.stat().st_size
    before = [ticks_of(pid) for pid in tree]
    assert len(tree) >= 2
    assert {state_of(pid) for pid in tree} <= set("Tt")
    time.sleep(1)
    assert (ticks.stat().st_size, [ticks_of(pid) for pid in tree]) == (size, before)
    assert agentos.json("ps")[0]["state"] == "stopped"
    agentos("kill", "-CONT", "tree")
    wait_until(lambda: ticks.stat().st_size > size, what="ticks again")
    agentos("kill", "-KILL", "tree")
    assert [pid for pid in tree if state_of(pid) not in ("", "Z")] == []
    assert carriers(f"{agentos.cookie}!") == []


@pytest.mark.parametrize("spelled", [["-STOP"], ["-19"], ["--signal=STOP"]])
def test_signals_are_spelled_as_kill_users_spell_them(crew: Crew, spelled: list[str]) -> None:
    agentos, _ = crew
    (done,) = agentos.json("kill", *spelled, "report")
    pid = agentos.pid("report")
    assert (done["name"], done["signal"], done["ok"], done["state"]) == ("report", "SIGSTOP", True, "stopped")
    assert state_of(pid) == "T"
    agentos("kill", "report", "-CONT")
    assert state_of(pid) in "RS"


def test_signals_are_listed_and_translated(crew: Crew) -> None:
    agentos, _ = crew
    assert agentos.out("kill", "-l").splitlines() == [
        " 9 SIGKILL", "19 SIGSTOP", "18 SIGCONT", "15 SIGTERM", "10 SIGUSR1", "12 SIGUSR2", "14 SIGALRM",
    ]  # fmt: skip
    assert agentos.out("kill", "-l", "19", "kill", "SIGTERM") == "STOP\n9\n15\n"


def test_scope_and_default(agentos: CommandLine) -> None:
    """TERM is the default and reaches the leader; --tree reaches its children, too."""
    child = "trap 'echo child >> got' USR1; touch child; while :; do sleep 0.02; done"
    leader = f"trap 'echo leader >> got' USR1; touch leader; ({child}) & while :; do sleep 0.02; done"
    agentos.detached("--name", "pair", "--", "sh", "-c", leader)
    wait_until(lambda: {"child", "leader"} <= set(os.listdir(agentos.work)), what="both traps to be set")
    got = agentos.work / "got"

    def after(*words: str, expected: list[str]) -> None:
        got.unlink(missing_ok=True)
        agentos("kill", "-USR1", *words, "pair")
        wait_until(lambda: got.exists() and sorted(got.read_text().split()) == expected, what=str(expected))

    after(expected=["leader"])
    after("--leader", expected=["leader"])
    after("--tree", expected=["child", "leader"])
    assert agentos.json("kill", "-USR1", "--leader", "pair")[0]["processes"] == 1
    agentos("kill", "pair")
    assert agentos.out("wait", "pair", code=143) == "pair: killed by SIGTERM\n"


def test_pause_and_resume_by_every_name(crew: Crew) -> None:
    agentos, _ = crew
    pid = agentos.pid("w-1")
    for back in ("resume", "unpause", "cont"):
        assert agentos.out("pause", "w-1") == "w-1: SIGSTOP, 1 process, now stopped\n"
        assert state_of(pid) == "T"
        assert agentos.out(back, "w-1") == "w-1: SIGCONT, 1 process, now running\n"
        assert state_of(pid) in "RS"
    assert agentos.out("pause", "-q", "w-1") == agentos.out("resume", "-q", "w-1") == ""


def test_a_foreign_hand_shows(crew: Crew) -> None:
    """The state shown is what Linux says, not what was last asked for."""
    agentos, _ = crew
    pid = agentos.pid("w-2")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: agentos.json("inspect", "w-2")["state"] == "stopped", what="stopped by somebody else")
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: agentos.json("inspect", "w-2")["state"] == "running", what="continued by somebody else")


@pytest.mark.parametrize("scope", [[], ["--leader"], ["--tree"]])
def test_who_was_killed_is_terminated_when_kill_answers(agentos: CommandLine, scope: list[str]) -> None:
    for name in ("text", "json"):
        agentos.detached("--name", name, "--", "sh", "-c", "sleep 60 & sleep 60")
    keeps = agentos.detached("--name", "other", "--", "sleep", "60")
    assert re.fullmatch(
        r"text: SIGKILL, \d process(es)?, now terminated\n", agentos.out("kill", "-KILL", *scope, "text")
    )
    (done,) = agentos.json("kill", "-KILL", *scope, "json")
    assert (done["ok"], done["state"]) == (True, "terminated")
    assert agentos.out("ps", "-q").split() == [keeps]


def test_who_died_of_a_signal_is_terminated_and_who_caught_it_runs(agentos: CommandLine) -> None:
    catches = "trap 'echo >> got' TERM USR1; touch ready; while :; do sleep 0.05; done"
    agentos.detached("--name", "catches", "--", "sh", "-c", catches)
    wait_until((agentos.work / "ready").exists, what="the trap to be set")
    for sign in ("TERM", "USR1", "ALRM"):
        agentos.detached("--name", sign, "--", "sleep", "60")
        assert agentos.out("kill", f"-{sign}", sign) == f"{sign}: SIG{sign}, 1 process, now terminated\n"
        if sign != "ALRM":
            assert agentos.out("kill", f"-{sign}", "catches") == f"catches: SIG{sign}, 1 process, now running\n"
    agentos.detached("--name", "paused", "--", "sleep", "60")
    agentos("pause", "paused")
    assert agentos.out("kill", "paused") == "paused: SIGTERM, 1 process, now stopped\n"


# --- stop and wait ---------------------------------------------------------------------------------------------------


def test_stop_asks_first_and_all_share_one_grace(agentos: CommandLine) -> None:
    stubborn = "trap '' TERM; touch $NAME; while :; do sleep 0.05; done"
    for name in ("a", "b", "c"):
        agentos.detached("--name", name, "-e", f"NAME={name}", "--grace", "60s", "--", "sh", "-c", stubborn)
    agentos.detached("--name", "nice", "--", "sh", "-c", "trap 'exit 3' TERM; touch n; while :; do sleep 0.05; done")
    wait_until(lambda: {each.name for each in agentos.work.iterdir()} == set("abcn"), what="all traps set")
    began = time.monotonic()
    done = agentos.json("stop", "-t", "1s", "--all")
    assert time.monotonic() - began < 2.9, "not one grace after the other"
    ends = {row["name"]: (row["ok"], row["exit_code"], row["exit_signal"]) for row in done}
    assert ends == {"nice": (True, 3, None)} | dict.fromkeys("abc", (True, None, 9))


def test_a_paused_agent_can_be_stopped(agentos: CommandLine) -> None:
    agentos.detached("--name", "p", "--", "sh", "-c", "trap 'exit 7' TERM; touch r; while :; do sleep 0.05; done")
    wait_until((agentos.work / "r").exists, what="the trap to be set")
    agentos("pause", "p")
    assert agentos.out("stop", "p") == "p: exit code 7\n"


def test_wait_returns_what_happened_or_124(agentos: CommandLine) -> None:
    agentos.detached("--name", "w", "--", "sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exit 9")
    agentos.detached("--name", "other", "--", "sleep", "60")
    assert agentos("wait", "--timeout", "0.1s", "w", code=124).stderr == "agentos: w: not exited within 0.1s\n"
    assert agentos.out("wait", "--state", "running", "w") == "w: running\n"
    told = agentos("wait", "--state", "stopped", "--timeout", "100ms", "w", code=124).stderr
    assert told == "agentos: w: not stopped within 0.1s\n"
    waiter = agentos.start("wait", "--state", "stopped", "w")
    agentos("pause", "w")
    assert waiter.communicate(timeout=60)[0] == b"w: stopped\n"
    agentos("resume", "w")
    first = agentos.start("wait", "--any", "other", "w")
    (agentos.work / "go").touch()
    assert first.communicate(timeout=60)[0] == b"w: exit code 9\n"
    assert (first.returncode, waiter.returncode) == (9, 0)


def test_a_kernel_that_hangs_is_named_and_holds_nobody_up(agentos: CommandLine) -> None:
    agentos.detached("--name", "stuck", "--", "sleep", "60")
    agentos.detached("--name", "fine", "--", "sleep", "60")
    kernel, run = (agentos.json("inspect", "stuck")[key] for key in ("kernel_pid", "run"))
    os.kill(kernel, signal.SIGSTOP)
    verbs = (["ps"], ["inspect", "stuck"], ["kill", "-CONT", "fine", "stuck"], ["resume", "--all"])
    try:  # side by side: each waits as long as a kernel may take
        asked = [agentos.start(*words) for words in verbs]
        told = [[text.decode() for text in process.communicate(timeout=60)] for process in asked]
        assert [process.returncode for process in asked] == [125] * 4
        (table, listing), inspecting, killing, resuming = told
        assert f"run {run} does not answer" in listing
        states = [line.split()[1:3] for line in table.splitlines()[1:]]
        assert states == [["stuck", "unknown"], ["fine", "running"]]
        for _, errors in (inspecting, killing):
            last = errors.splitlines()[-1]
            assert last == f"agentos: run {run} does not answer; its agents are not known, 'stuck' may be one of them"
        assert f"run {run} does not answer; its agents are not known" in resuming[1]
    finally:
        os.kill(kernel, signal.SIGCONT)
    assert " stuck " in agentos.out("ps")


def test_a_killed_kernel_takes_its_agents_and_the_record_says_so(agentos: CommandLine) -> None:
    agentos.detached("--name", "gone", "-e", f"COOKIE={agentos.cookie}!", "--", "sleep", "60")
    follower = agentos.start("logs", "-f", "gone")
    os.kill(agentos.json("inspect", "gone")["kernel_pid"], signal.SIGKILL)
    wait_until(lambda: carriers(f"{agentos.cookie}!") == [], 10.0, "its agent to end")
    assert agentos.out("ps", "-q") == ""
    over = agentos.json("inspect", "gone")
    assert (over["state"], over["exit_code"], over["exit_signal"]) == ("terminated", None, None)
    assert agentos("wait", "gone", code=125).stderr == "agentos: gone: has ended, and nobody saw how\n"
    assert follower.communicate(timeout=60)[0] == b""


# --- prune -----------------------------------------------------------------------------------------------------------


def age(agentos: CommandLine, run: str, days: int) -> None:
    """Make a run look as if nothing had been written for it since."""
    then = time.time() - days * 86_400
    for folder, _, names in os.walk(agentos.state / "runs" / run):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            os.utime(path, (then, then), follow_symlinks=False)


def kept_without_its_recorder(agentos: CommandLine, run: str) -> bool:
    """Whether a live run stays while nobody holds its record: its recorder has died, its kernel has not seen it yet."""
    row = agentos.json("inspect", "live")
    os.kill(row["kernel_pid"], signal.SIGSTOP)
    try:
        os.kill(row["recorder_pid"], signal.SIGKILL)
        wait_until(lambda: state_of(row["recorder_pid"]) in ("", "Z"), what="the recorder to be gone")
        agentos("prune", "--older-than", "0s")
    finally:
        os.kill(row["kernel_pid"], signal.SIGCONT)
    return run in agentos.runs()


def test_prune_removes_what_is_old_and_nothing_else(agentos: CommandLine) -> None:
    def one(name: str) -> str:
        agentos("run", *UNMEDIATED, "--name", name, "--", "true")
        return str(agentos.json("inspect", name)["run"])

    old, young = one("old"), one("young")
    agentos.detached("--name", "live", "--", "sleep", "60")
    live = agentos.json("inspect", "live")["run"]
    for run, days in ((old, 91), (live, 91), (young, 89)):
        age(agentos, run, days)
    (agentos.state / "runs" / "a file of somebody").touch()
    would = agentos.json("prune", "--older-than", "90d", "--dry-run")
    assert [(each["run"], each["removed"]) for each in would] == [(old, False)]
    assert agentos.out("prune", "--older-than", "90d").startswith(f"removed {old}  ")
    assert set(agentos.runs()) == {young, live, "a file of somebody"}
    assert agentos("prune", "--older-than", "90d").stderr == "agentos: nothing is that old\n"
    assert (
        agentos("prune", "--older-than", "90", code=2)
        .stderr.splitlines()[0]
        .endswith("'90' needs a unit: 90d, 90h or 90m")
    )
    assert "no agent 'old'" in agentos("inspect", "old", code=3).stderr
    assert agentos.json("inspect", "young")["exit_code"] == 0

    assert kept_without_its_recorder(agentos, live)
    elsewhere = agentos.place / "another runtime directory"
    told = agentos("prune", "--older-than", "0s", "--json", AGENTOS_RUNTIME_DIR=str(elsewhere)).stdout
    assert live not in {each["run"] for each in json.loads(told)}, "alive, though not by this directory's locks"
    assert agentos.json("inspect", "live")["state"] == "running"


def test_prune_leaves_what_a_program_without_a_kernel_is_writing(agentos: CommandLine) -> None:
    program = """
import asyncio, sys
from agentos import FlightRecorder

async def main():
    recorder = FlightRecorder(storage="sqlite")
    for line in sys.stdin:
        print(await recorder.log("mark", "host", {}), len(await recorder.query()), flush=True)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], env=agentos.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdin
        assert host.stdout
        print(file=host.stdin, flush=True)
        run, _, _ = host.stdout.readline().partition("-1 ")
        age(agentos, run, 91)
        assert agentos("prune", "--older-than", "90d").stderr == "agentos: nothing is that old\n"
        print(file=host.stdin, flush=True)
        assert host.stdout.readline() == f"{run}-2 2\n"
        host.stdin.close()
    age(agentos, run, 91)
    assert agentos.out("prune", "--older-than", "90d").startswith(f"removed {run}  ")


@pytest.mark.parametrize("damaged", [False, True])
def test_prune_brings_home_what_the_journal_holds_of_a_record_elsewhere(agentos: CommandLine, damaged: bool) -> None:
    agentos.detached("--name", "gone", "--", "sleep", "60")
    row = agentos.json("inspect", "gone")
    os.kill(row["recorder_pid"], signal.SIGSTOP)  # what comes now reaches the journal alone
    os.kill(row["pid"], signal.SIGUSR2)
    state = agentos.state / "runs" / row["run"]
    journal = state / "journal"
    wait_until(lambda: b"agent_exited" in b"".join(each.read_bytes() for each in journal.iterdir()), what="the exit")
    for process in ("recorder_pid", "kernel_pid"):
        os.kill(row[process], signal.SIGKILL)
    wait_until(lambda: agentos.out("ps", "-q") == "", what="the kernel to be gone")
    for each in state.glob("flight.db*"):
        each.rename(agentos.place / each.name)
    (state / "flight.db").symlink_to(agentos.place / "flight.db")
    if damaged:
        first = min(journal.iterdir())
        first.write_bytes(first.read_bytes().replace(b"agent_exited", b"agent_excited"))
    age(agentos, row["run"], 91)
    told = agentos("prune", "--older-than", "90d")
    with contextlib.closing(SqliteStorage(agentos.place / "flight.db", read_only=True)) as database:
        types = [event.event_type for event in database.select(parse_query(limit=None))]
    assert ("agent_exited" in types) is not damaged
    assert state.exists() is damaged
    assert (f"agentos: {row['run']} is kept, its journal holds what" in told.stderr) is damaged


# --- cheap -----------------------------------------------------------------------------------------------------------


def facts_of(done: Any) -> set[str]:
    return {key for each in done for key in each}


def test_json_of_what_was_done(crew: Crew) -> None:
    agentos, _ = crew
    done = agentos.json("kill", "-CONT", "report", "w-1")
    assert {"id", "name", "run", "signal", "ok", "processes", "mechanism", "detail", "state"} <= facts_of(done)
    assert agentos.json("kill", "-CONT", "old", "report", code=3)[0]["name"] == "report"
