"""KernelSpace(debug=True): what happens is said on stderr, but no word of what is passed; a full pipe stops nobody."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import agentos

F_SETPIPE_SZ = 1031  # fcntl(2)
PROGRAM = """
import asyncio, sys
from agentos import AgentSignal, KernelSpace, act

kernel = KernelSpace(policy="permissive", debug=sys.argv[1] == "debug")

@kernel.signal_dispatcher.register_handler(AgentSignal.SIGUSR1)
def veto(agent, signal):
    return False

@kernel.register
async def worker(argument, times):
    act("read", "db/1", token="CLAIM-7")
    for _ in range(3):
        act("read", "db/again")
    secret = "GLOBAL-7"
    try:
        open("/no/such/dir/x", "w")
    except OSError:
        pass
    for number in range(times):
        act("read", f"db/{number}")
    await asyncio.sleep(0.3 if times == 0 else 0)
    return "RESULT-7"

async def main():
    times = int(sys.argv[2])
    agent = await kernel.spawn(worker, "ARGUMENT-7", times)
    if not times:
        await kernel.send_signal(agent, AgentSignal.SIGSTOP)
        await kernel.send_signal(agent, AgentSignal.SIGCONT)
        await kernel.send_signal(agent, AgentSignal.SIGUSR1)
    print(await kernel.wait_all([agent]))
    await kernel.shutdown()

asyncio.run(main())
"""


def start(tmp_path: Path, *words: str, stderr: Any) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "AGENTOS_RUNTIME_DIR": str(tmp_path / "run"), "AGENTOS_STATE_DIR": str(tmp_path / "state"),
        "SECRET_7": "ENVIRONMENT-7", "PYTHONPATH": str(Path(agentos.__file__).parent.parent),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip


def test_frames_decisions_transitions_and_signals_are_said_and_nothing_that_they_carry(tmp_path: Path) -> None:
    said, errors = start(tmp_path, "debug", "0", stderr=subprocess.PIPE).communicate(timeout=60)
    assert said == "['RESULT-7']\n", errors
    for line in (
        "worker/", "← Act ", " bytes", "allow read db/1: default_allow, ", " ms", "starting → running by Began",
        "SIGSTOP to its tree, from host", "SIGSTOP reached 1 processes", "running → stopped by Paused",
        "stopped → running by Resumed", "SIGCONT to its tree, from host", "← sentry: Spawned", "← Result, ",
        "exited → terminated by Gone", "← Call spawn ", "← Call wait_all ", "← Call shutdown ",
        "← Returned 1", "SIGUSR1 was vetoed by ",
    ):  # fmt: skip
        assert line in errors, (line, errors)
    assert errors.count("allow read db/again: ") == 3  # what is decided again is said again
    for secret in ("CLAIM-7", "ARGUMENT-7", "RESULT-7", "GLOBAL-7", "ENVIRONMENT-7", "token"):
        assert secret not in errors
    for line in errors.splitlines():
        assert line[2] + line[5] + line[8] == "::.", line


def test_without_debug_nothing_is_said(tmp_path: Path) -> None:
    said, errors = start(tmp_path, "quiet", "0", stderr=subprocess.PIPE).communicate(timeout=60)
    assert (said, errors) == ("['RESULT-7']\n", "")


def test_a_stderr_that_nobody_reads_holds_up_neither_kernel_nor_agents(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
    try:
        said, _ = start(tmp_path, "debug", "2000", stderr=writing).communicate(timeout=60)
    finally:
        os.close(writing)
    with os.fdopen(reading) as unread:
        seen = unread.read()
    assert said == "['RESULT-7']\n"
    assert 1_000 < len(seen) <= 70_000  # what fits into the pipe, and what was on its way into it: the rest was dropped
