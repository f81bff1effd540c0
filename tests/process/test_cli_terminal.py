"""An attached run on a real terminal: its keys, its sizes, its end, and the shell that comes back afterwards."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, UNMEDIATED, CommandLine
from terminal import Terminal
from world import carriers, state_of, wait_until

POLITE = "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
CTRL_C, CTRL_Z = "\x03", "\x1a"


@pytest.fixture
def agentos(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    yield world
    world.close()


def attached(agentos: CommandLine, script: str, *options: str) -> Terminal:
    return agentos.terminal(
        "run", *UNMEDIATED, *options, "-e", f"COOKIE={agentos.cookie}", "--name", "tick", "--", "sh", "-c", script
    )


@pytest.fixture
def shell(agentos: CommandLine) -> Iterator[Terminal]:
    """A person's own shell, with job control, in which `agentos` is a command."""
    program = agentos.work / "agentos"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    more = {"TERM": "dumb", "PS1": "$ ", "PATH": f"{agentos.work}:{os.defpath}"}
    with agentos.on_terminal(["/bin/bash", "--norc", "--noprofile", "-i"], **more) as terminal:
        terminal.until(r"\$ $")
        yield terminal
        terminal.type("exit\n")
        terminal.end()


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_with_grace(agentos: CommandLine) -> None:
    with attached(agentos, POLITE) as terminal:
        terminal.until("^ready$")
        terminal.type(CTRL_C)
        assert terminal.end() == 5
    shown = terminal.text.splitlines()
    assert shown[shown.index("^C") + 1 :] == ["agentos: stopping, grace 10s; Ctrl-C again kills", "asked"]


def test_ctrl_c_again_kills_the_tree(agentos: CommandLine) -> None:
    with attached(agentos, f"setsid sh -c {shlex.quote(STUBBORN)} & {STUBBORN}", "--grace", "60s") as terminal:
        terminal.until("^ready$(.|\n)*^ready$")
        terminal.type(CTRL_C)
        terminal.until("again kills")
        assert len([pid for pid in carriers(agentos.cookie) if is_agent(pid)]) >= 2
        terminal.type(CTRL_C)
        assert terminal.end() == 137
    assert carriers(agentos.cookie) == []


def is_agent(pid: int) -> bool:
    try:
        return b"AGENTOS_AGENT_ID" in Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # a sleep of its loop, over since it was listed
        return False


def test_who_ignores_it_is_killed_after_its_grace(agentos: CommandLine) -> None:
    with attached(agentos, STUBBORN, "--grace", "0.3s") as terminal:
        terminal.until("^ready$")
        terminal.type(CTRL_C)
        assert terminal.end() == 137
    assert "grace 0.3s" in terminal.text


# --- Ctrl-Z ----------------------------------------------------------------------------------------------------------


def test_ctrl_z_stops_the_tree_then_us_and_fg_continues_both(agentos: CommandLine, shell: Terminal) -> None:
    count = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo tick $i; sleep 0.05; done; exit 6"
    script = f"setsid sleep 60 & {count}"
    shell.type(f"agentos run --require none -e COOKIE={agentos.cookie}x --name tick -- sh -c '{script}'\n")
    at = shell.until(r"^tick 3$")
    shell.type(CTRL_Z)
    at = shell.until(r"Stopped", after=at)
    at = shell.until(r"^\$ $", after=at)
    tree = [pid for pid in carriers(f"{agentos.cookie}x") if is_agent(pid)]
    assert len(tree) >= 2
    assert {state_of(pid) for pid in tree} <= set("Tt")
    shell.type("agentos ps\n")
    at = shell.until(r"tick +stopped", after=at)
    at = shell.until(r"^\$ $", after=at)
    ticks = shell.text.count("\ntick ")
    shell.type("fg\n")
    shell.until(r"^tick 60$", after=at)
    assert shell.text.count("\ntick ") == 60 > ticks
    at = shell.until(r"^\$ $", after=at)
    shell.type("echo code $?\n")
    shell.until(r"^code 6$", after=at)


def test_what_was_stopped_can_be_continued_in_the_background_and_killed(shell: Terminal) -> None:
    shell.type("agentos run --require none --name bg -- sh -c 'while :; do echo beat >> beats; sleep 0.05; done'\n")
    shell.until("not protected")
    at = len(shell.text)
    wait_until((shell.cwd / "beats").exists, what="a beat")
    shell.type(CTRL_Z)
    at = shell.until("Stopped", after=at)
    size = (shell.cwd / "beats").stat().st_size
    shell.type("bg\n")
    wait_until(lambda: (shell.cwd / "beats").stat().st_size > size, what="beats in the background")
    shell.type("kill %1; wait %1; echo code $?\n")
    shell.until(r"^code 143$", after=at)


# --- the end of the terminal -----------------------------------------------------------------------------------------


def test_a_closed_terminal_ends_the_agent_politely(agentos: CommandLine) -> None:
    script = "trap 'echo bye; touch asked; exit 0' TERM; echo ready; while :; do echo beat; sleep 0.02; done"
    with attached(agentos, script) as terminal:
        terminal.until("^ready$")
        terminal.hang_up()
    wait_until(lambda: carriers(agentos.cookie) == [], what="all of it to end")
    assert (agentos.work / "asked").exists()


def test_a_terminal_is_given_back_as_it_was(agentos: CommandLine) -> None:
    """An agent that reads a password and is killed there must not leave its terminal without echo."""
    with attached(agentos, "stty -echo raw; echo ready; while :; do sleep 0.05; done") as terminal:
        before = terminal.modes()
        terminal.until("^ready")
        assert not terminal.modes()[3] & termios.ECHO
        terminal.signal(signal.SIGTERM)
        assert terminal.end() == 143
        assert terminal.modes()[3] & (termios.ECHO | termios.ICANON) == before[3] & (termios.ECHO | termios.ICANON)
        assert terminal.modes()[3] & termios.ECHO


def test_an_agent_reads_keys_from_the_terminal(agentos: CommandLine) -> None:
    with attached(agentos, "echo name?; read name; echo hello $name; [ -t 0 ] && echo a terminal") as terminal:
        terminal.until(r"^name\?$")
        terminal.type("ann\n")
        terminal.until("^a terminal$")
        assert terminal.end() == 0
    assert "\nhello ann\n" in terminal.text


def test_no_terminal_is_needed(agentos: CommandLine) -> None:
    """As from cron: a session of its own, nothing to read, no TERM, no home."""
    env = {key: value for key, value in agentos.env.items() if key not in {"HOME", "LANG"}}
    done = subprocess.run(
        [*PROGRAM, "run", *UNMEDIATED, "--", "sh", "-c", "tty; cat; exit 3"], cwd=agentos.work, env=env, timeout=60,
        start_new_session=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "not a tty\n")


# --- sizes and kinds of terminals ------------------------------------------------------------------------------------


def lines_of(agentos: CommandLine, *words: str, columns: int, **env: str) -> list[str]:
    with agentos.terminal(*words, columns=columns, lines=10, **env) as terminal:
        terminal.end()
    return terminal.text.splitlines()


def test_ps_fits_a_narrow_terminal_and_keeps_what_matters(agentos: CommandLine) -> None:
    agent_id = agentos.detached("--name", "a-rather-long-agent-name", "--", "sleep", "60")
    for columns in (20, 40, 80, 200):
        head, row = lines_of(agentos, "ps", columns=columns)
        assert max(len(head), len(row)) <= columns
        assert head.startswith("ID        NAME")
        assert agent_id.startswith(row.split()[0])
        assert ("running" in row) == (columns >= 40)
        assert ("sleep 60" in row) == (columns == 200)
    assert "a-rather-long-agent-name" in lines_of(agentos, "ps", "--no-trunc", columns=40)[1]
    assert "a-rather-long-agent-name" in lines_of(agentos, "ps", columns=40, COLUMNS="200")[1]
    assert agentos.json("ps")[0]["id"] == lines_of(agentos, "ps", "-q", columns=20)[0]


def test_colour_only_where_it_is_wanted(agentos: CommandLine) -> None:
    (agentos.work / "ask.py").write_text("import agentos\ndef main():\n    agentos.act('read', 'db/users')\n")
    agentos("run", "--policy", "strict", "ask.py:main", code=4)
    words = ("audit", "--type", "policy_violation")
    (line,) = lines_of(agentos, *words, columns=200)
    assert line.startswith("\x1b[31m")
    assert line.endswith("\x1b[0m")
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in lines_of(agentos, *words, columns=200, **plain)[0]
    assert "\x1b" not in agentos.out(*words)


def test_help_fits_the_terminal(agentos: CommandLine) -> None:
    for words in (["--help"], ["run", "--help"], ["audit", "--help"], ["wait", "--help"]):
        assert max(map(len, lines_of(agentos, *words, columns=40))) <= 40


def test_an_agent_cannot_draw_on_somebody_elses_terminal(agentos: CommandLine) -> None:
    """Attached it is one's own program; through `logs` and `audit` it is a stranger's."""
    agentos("run", *UNMEDIATED, "--name", "red", "--", "printf", r"\033[31mred\033]0;title\007\n")
    assert "\\x1b[31mred\\x1b]0;title\\x07" in lines_of(agentos, "logs", "red", columns=80)
    assert lines_of(agentos, "logs", "--raw", "red", columns=80) == ["\x1b[31mred\x1b]0;title\x07"]
    assert agentos.out("logs", "red") == "\x1b[31mred\x1b]0;title\x07\n", "no terminal: byte for byte"
    assert not any("\x1b" in line for line in lines_of(agentos, "ps", "-a", columns=200, NO_COLOR="1"))
