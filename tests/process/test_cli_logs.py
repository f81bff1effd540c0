"""`agentos logs` beside and after real agents: all of it, in order, followed, bounded, and every gap said."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import UNMEDIATED, CommandLine
from world import state_of, wait_until

HEADER_BYTES = 13  # of a record in the log
KEPT_BYTES = 32 * 1024 * 1024  # four segments of eight megabytes


@pytest.fixture
def agentos(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    yield world
    world.close()


def ended(agentos: CommandLine, name: str, script: str) -> None:
    agentos("run", *UNMEDIATED, "--name", name, "--", "sh", "-c", script, code=None)


def test_all_the_last_the_errors_and_the_times(agentos: CommandLine) -> None:
    ended(agentos, "talk", "for i in 1 2 3; do echo out $i; echo err $i >&2; done; printf 'no newline'")
    done = agentos("logs", "talk")
    assert (done.stdout, done.stderr) == ("out 1\nout 2\nout 3\nno newline", "err 1\nerr 2\nerr 3\n")
    assert agentos.out("logs", "--stderr", "talk") == "err 1\nerr 2\nerr 3\n"
    assert agentos.out("logs", "--stderr", "-n", "2", "talk") == "err 2\nerr 3\n"
    assert agentos.out("logs", "--tail", "0", "talk") == ""
    stamped = agentos.out("logs", "-t", "talk").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (out \d|no newline)$", line) for line in stamped)
    assert len(stamped) == 4


def test_who_printed_nothing_has_an_empty_log(agentos: CommandLine) -> None:
    ended(agentos, "mute", "exit 3")
    done = agentos("logs", "mute")
    assert (done.stdout, done.stderr) == ("", "")


def test_a_follower_sees_the_past_the_present_and_the_end(agentos: CommandLine) -> None:
    agentos.detached("--name", "f", "--", "sh", "-c", "echo before; until [ -e go ]; do sleep 0.02; done; echo after")
    wait_until(lambda: agentos.out("logs", "f") == "before\n", what="the first line")
    late = agentos.start("logs", "-f", "f")
    assert late.stdout is not None
    assert late.stdout.readline() == b"before\n"
    (agentos.work / "go").touch()
    assert late.stdout.readline() == b"after\n"
    assert late.wait(60) == 0
    late.communicate()
    assert agentos.out("logs", "-f", "f") == "before\nafter\n", "of an ended agent it does not wait"


def test_two_followers_see_the_same(agentos: CommandLine) -> None:
    agentos.detached("--start-paused", "--name", "f", "--", "seq", "1", "50000")
    followers = [agentos.start("logs", "-f", "f") for _ in range(2)]
    agentos("resume", "f")
    whole = "".join(f"{number}\n" for number in range(1, 50_001)).encode()
    assert [each.communicate(timeout=60)[0] for each in followers] == [whole, whole]


def test_interrupted_it_leaves_quietly(agentos: CommandLine) -> None:
    agentos.detached("--name", "f", "--", "sh", "-c", "echo ready; exec sleep 60")
    with agentos.terminal("logs", "-f", "f") as terminal:
        terminal.until("ready")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert agentos.json("inspect", "f")["state"] == "running", "who looks on stops nobody"


def test_a_reader_that_leaves_is_a_broken_pipe(agentos: CommandLine) -> None:
    ended(agentos, "big", "seq 1 200000 >&2; seq 1 200000")
    done = agentos.shell("agentos logs big 2>/dev/null | head -n 1; echo ${PIPESTATUS[*]}")
    assert done.stdout == "1\n141 0\n"


def test_a_slow_follower_holds_nobody_up_and_hears_what_it_missed(agentos: CommandLine) -> None:
    """48 MiB are printed while the reader sleeps: the agent ends, the log stays bounded, the gap is exact."""
    size = 48 * 1024 * 1024
    line = "x" * 99
    agentos.detached("--start-paused", "--name", "loud", "--", "sh", "-c", f"yes {line} | head -c {size}")
    slow = agentos.start("logs", "-f", "loud")
    assert slow.stdout is not None
    assert slow.stderr is not None
    agentos("resume", "loud")
    assert agentos.out("wait", "--timeout", "50s", "loud") == "loud: exit code 0\n", "it did not wait for its reader"
    kept = sum(path.stat().st_size for path in agentos.state.rglob("*.log"))
    assert kept <= KEPT_BYTES + 128 * 1024
    with subprocess.Popen(["wc", "-c"], stdin=slow.stdout, stdout=subprocess.PIPE) as counter:
        slow.stdout.close()
        told = slow.stderr.read().decode()
        out, _ = counter.communicate(timeout=60)
    slow.stderr.close()
    slow.wait(60)
    missed = sum(int(number) for number in re.findall(r"agentos: … (\d+) bytes missed", told))
    assert missed > 0
    headers = int(out) + missed - size  # a gap counts those of its records, too
    assert headers >= 0
    assert headers % HEADER_BYTES == 0, "every byte was shown or is counted as missed"


def test_one_who_comes_after_the_rotation_hears_of_it(agentos: CommandLine) -> None:
    agentos.detached("--name", "loud", "--", "sh", "-c", f"yes {'y' * 99} | head -n 420000; echo end")
    agentos("wait", "loud")
    done = agentos.shell("agentos logs loud | tail -n 1")
    assert done.stdout == "end\n"
    assert re.search(r"agentos: … \d+ bytes missed: the log was rotated", done.stderr)


def test_an_agent_never_waits_for_its_log(agentos: CommandLine) -> None:
    """A follower that is frozen altogether is cut off from the bell, not from the log."""
    agentos.detached("--start-paused", "--name", "f", "--", "sh", "-c", "seq 1 20000; sleep 0.1; seq 20001 40000")
    follower = agentos.start("logs", "-f", "f")
    time.sleep(0.3)  # until it follows
    follower.send_signal(19)
    wait_until(lambda: state_of(follower.pid) == "T", what="a frozen follower")
    agentos("resume", "f")
    assert agentos.out("wait", "--timeout", "30s", "f") == "f: exit code 0\n"
    follower.send_signal(18)
    out, _ = follower.communicate(timeout=60)
    assert out.split() == [str(number).encode() for number in range(1, 40_001)]
