"""Agents from what a person types: at Python's prompt, at asyncio's, in a notebook's cells; no function has a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import CommandLine
from terminal import Terminal
from world import HERE, carriers

LIMIT_S = 100
PROMPT = "^>>> $"
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path)
    yield made
    for pid in carriers(made.cookie):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Prompt:
    """A person at Python's prompt: types a line or a block, and reads what is shown until the prompt comes back."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._seen = terminal.until(PROMPT)

    def type(self, text: str) -> str:
        self._terminal.type(text + "\n")
        return self._answer()

    def interrupt(self, text: str, shows: str) -> str:
        """Type what does not come back by itself, and press Ctrl-C once `shows` is there."""
        self._terminal.type(text + "\n")
        self._terminal.until(shows, after=self._seen)
        self._terminal.type(CTRL_C)
        return self._answer()

    def _answer(self) -> str:
        begin, self._seen = self._seen, self._terminal.until(PROMPT, after=self._seen)
        shown = self._terminal.text[begin : self._seen].splitlines()
        return "\n".join(line for line in shown[1:-1] if not line.startswith("... "))


FUNCTIONS = (
    "import asyncio, pathlib, time",
    "from agent_os import KernelSpace",
    "kernel = KernelSpace(policy='permissive')",
    "FACTOR = 2",
    "@kernel.register\ndef double(number):\n    return number * FACTOR\n",
    "@kernel.register\ndef slow():\n    open('began', 'w').close()\n    time.sleep(60)\n",
    # a thread tells that the agent has begun, which the prompt itself cannot while it waits
    "import threading",
    "def tell():\n    while not pathlib.Path('began').exists():\n        time.sleep(0.01)\n    print('it began')\n",
)
STATE = "kernel.get_agent_status(kernel.current_agent_id).state"


@pytest.mark.parametrize(("words", "call"), [
    (("-i",), "asyncio.run({})"),
    (("-m", "asyncio"), "await {}"),
])  # fmt: skip
def test_a_person_at_a_prompt(world: CommandLine, words: tuple[str, ...], call: str) -> None:
    with world.on_terminal([sys.executable, "-q", *words], columns=200, TERM="dumb") as terminal:
        prompt = Prompt(terminal)
        assert "".join(prompt.type(text) for text in FUNCTIONS) == ""
        assert prompt.type(call.format("kernel.execute(double, 21)")) == "42"

        prompt.type("threading.Thread(target=tell, daemon=True).start()")
        assert "KeyboardInterrupt" in prompt.interrupt(call.format("kernel.execute(slow)"), "^it began$")
        prompt.type(f"while {STATE} != 'terminated':\n    time.sleep(0.01)\n")  # its agent is not left behind
        assert prompt.type(STATE) == "'terminated'"

        prompt.type("FACTOR = 3")
        assert prompt.type("@kernel.register\ndef double(number):\n    return number * FACTOR + 1\n") == ""
        assert prompt.type(call.format("kernel.execute(double, 21)")) == "64"

        begun = prompt.type(f"pathlib.Path('began').unlink(); begun = {call.format('kernel.spawn(slow)')}; tell()")
        assert begun == "it began"
        waiting = f"print('now'); {call.format('asyncio.sleep(60)')}"
        assert "KeyboardInterrupt" in prompt.interrupt(
            waiting, "^now$"
        )  # whoever interrupts the prompt interrupts no agent
        assert prompt.type("kernel.get_agent_status(begun).state") == "'running'"
        assert carriers(world.cookie) != [terminal.process.pid]
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert carriers(world.cookie) == []


CELLS = (
    """
import asyncio
from agent_os import AgentSignal, KernelSpace

kernel = KernelSpace(policy="strict")
seen = []
""",
    """
class Sum:
    def __init__(self, number):
        self.number = number

    def plus(self, other):
        return self.number + other

@kernel.register
async def worker(number):
    await asyncio.sleep(0)
    return Sum(number).plus(1)
""",
    "seen.append(await kernel.execute(worker, 1))\n",
    """
running = asyncio.create_task(kernel.execute(worker, 2))
""",
    "seen.append(await running)\n",
    """
@kernel.register
async def worker(number):
    return await kernel.execute(helper, number) * 10

@kernel.register(priority=1)
def helper(number):
    return number + 5
""",
    "seen.append(await kernel.execute(worker, 1))\n",
    """
@kernel.register(priority=1)
def helper(number):
    return number + 6
""",
    "seen += await asyncio.gather(*(kernel.execute(worker, number) for number in range(3)))\n",
    """
for name in ("worker", "renamed"):
    try:
        kernel.register(name=name)(lambda: None)
    except Exception as error:
        print(type(error).__name__, error)
""",
    """
def forever():
    while True: pass

agent_id = await kernel.spawn(kernel.register(forever))
await kernel.send_signal(agent_id, AgentSignal.SIGSTOP)
seen.append(kernel.get_agent_status(agent_id).state)
""",
    "print(seen)\n",
)


def test_the_cells_of_a_notebook(world: CommandLine) -> None:
    """One loop that never rests, cells that await at their top, functions that are changed and run again."""
    paths = [world.work / f"cell{number}" for number in range(len(CELLS))]
    for path, text in zip(paths, CELLS, strict=True):
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(HERE / "cells.py"), *map(str, paths)], cwd=world.work, env=world.env, timeout=LIMIT_S,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "DuplicateAgent an agent named 'worker' is already registered; pass another name=",
        "[2, 3, 60, 60, 70, 80, 'stopped']",
    ]
    assert carriers(world.cookie) == []


def test_what_a_file_defines_twice_is_no_change_of_mind(world: CommandLine) -> None:
    script = world.work / "twice.py"
    script.write_text(
        "from agent_os import KernelSpace\nkernel = KernelSpace()\n"
        + "@kernel.register\ndef worker(): ...\n" * 2
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script)], env=world.env, timeout=LIMIT_S, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "DuplicateAgent: an agent named 'worker' is already registered" in done.stderr
