"""Every code block of the API reference runs as it stands there, under both import names, and does what it says.

A block is a program's middle: what it leaves undefined stands before it, what shows that it did what it says behind.
The two names are the only letters of a block that ever change.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from reference import blocks
from world import HERE, carriers, directories

LIMIT_S = 100
FACADES = ("agent_os", "agentos")


class Around(NamedTuple):
    """What stands around a block, and what the whole then prints."""

    before: str
    after: str
    prints: list[str]


AROUND = {
    "register with permissions": Around(
        """
import asyncio
import agentos

async def transform(data):
    allowed = []
    for operation, resource in ("read", "data/x"), ("write", "data/x"), ("execute", "tools/x"), ("network", data["u"]):
        try:
            agentos.act(operation, resource)
            allowed.append(operation)
        except agentos.PolicyViolationError:
            pass
    return allowed
""",
        """
print(asyncio.run(kernel.execute(data_processor, {"u": "https://example.org/"})))
""",
        ["{'status': 'success', 'data': ['read', 'write']}"],
    ),
    "execute": Around("", "", ["{'analyzed': True, 'length': 11}"]),
    "spawn": Around(
        """
import asyncio
from agent_os import KernelSpace

kernel = KernelSpace(policy="strict")
""",
        """
print(asyncio.run(kernel.execute(coordinator, ["a", "b"])))
""",
        ["[{'task': 'a', 'status': 'complete'}, {'task': 'b', 'status': 'complete'}]"],
    ),
    "send": Around(
        """
import time
from agent_os import KernelSpace, SignalDispatcher

kernel = KernelSpace(policy="strict")

class Named(SignalDispatcher):
    async def send(self, agent_id, signal):
        delivered = await super().send({"agent_123": real_id}[agent_id], signal)
        print(agent_id, signal.name, delivered, kernel.get_agent_status(real_id).state)
        return delivered

@kernel.register
def forever():
    while True:
        time.sleep(0.01)

dispatcher = Named(kernel)
real_id = await kernel.spawn(forever)
""",
        """
from agent_os import AgentFailed
try:
    await kernel.get_agent(real_id).wait()
except AgentFailed as failed:
    print(failed.signal)
""",
        [
            "agent_123 SIGSTOP True stopped", "agent_123 SIGCONT True running", "agent_123 SIGKILL True terminated",
            "9",
        ],
    ),
    "register handlers": Around(
        """
import asyncio
import signal
import agent_os
from agent_os import AgentFailed, AgentSignal, FlightRecorder, KernelSpace, SignalDispatcher

flight_recorder = FlightRecorder()
kernel = KernelSpace(policy="strict", flight_recorder=flight_recorder)
dispatcher = SignalDispatcher(kernel)

@kernel.register
async def worker():
    signal.signal(signal.SIGUSR1, lambda *_: agent_os.save_state({"step": 2}))
    agent_os.on_cleanup(lambda: agent_os.save_state({"step": 3}))
    agent_os.save_state({"step": 1})
    await asyncio.sleep(60)
""",
        """
async def main():
    agent = kernel.get_agent(await kernel.spawn(worker))
    while await agent.get_state() is None:
        await asyncio.sleep(0.01)
    print(await dispatcher.send(agent.id, AgentSignal.SIGUSR1))  # the handler runs before the agent hears of it
    (dump,) = await flight_recorder.query(event_type="state_dump")
    print(dump["agent_id"] == agent.id, dump["data"]["state"])
    while await agent.get_state() != {"step": 2}:
        await asyncio.sleep(0.01)
    print(await dispatcher.send(agent.id, AgentSignal.SIGTERM))
    try:
        await agent.wait()
    except AgentFailed as failed:
        print(failed.signal)
    print(await agent.get_state())
    asked = await flight_recorder.query(event_type="agent_asked", newest_first=False)
    print(*[one["data"]["what"] for one in asked if one["data"]["what"] != "get_state"])
    print(await flight_recorder.query(event_type="signal_handler_failed"))

asyncio.run(main())
""",
        ["True", "True {'step': 1}", "True", "15", "{'step': 3}", "cleanup save_state", "[]"],
    ),
    "the enum": Around(
        """
from enum import Enum
import agent_os
""",
        """
print({name: one.value for name, one in AgentSignal.__members__.items()} ==
      {name: one.value for name, one in agent_os.AgentSignal.__members__.items()})
print(*[one.name for one in agent_os.AgentSignal if not one.catchable])
""",
        ["True", "SIGKILL SIGSTOP"],
    ),
    "pause and resume": Around(
        """
import agentos
import asyncio
import os
from pathlib import Path

async def process_iteration(i):
    asyncio.sleep = quick  # in the agent
    while i >= 10 and not os.path.exists("paused"):  # however slow the program beside it is
        await quick(1)
    try:
        agentos.act("read", "data/progress")
    except agentos.PolicyViolationError:
        pass  # it counts as an action all the same

async def quick(delay, real=asyncio.sleep):
    await real(delay / 200)

async def watched(delay, real=asyncio.sleep):
    if delay == 5:
        await real(0.01)
        while not kernel.current_agent_id or kernel.get_agent_status(kernel.current_agent_id).actions_count < 3:
            await real(0.01)
    if delay == 3:
        agent_id = kernel.current_agent_id
        pid = (await kernel._call("inspect", {"id": agent_id}))["pid"]
        before = kernel.get_agent_status(agent_id)
        open("paused", "w").close()
        await real(0.3)
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        after = kernel.get_agent_status(agent_id)
        print(after.state, letter, after.actions_count == before.actions_count, 3 <= after.actions_count < 100)

asyncio.sleep = watched
""",
        """
asyncio.run(main())
print(kernel.get_agent_status(kernel.current_agent_id).actions_count >= 100)
""",
        ["Agent paused", "stopped T True True", "Agent resumed", "{'completed': 100}", "True"],
    ),
    "add rules": Around(
        "",
        """
import asyncio
import time
import agentos

kernel = agentos.KernelSpace(policy=policy)

@kernel.register
def nurse():
    said = []
    for operation, resource in (
        ("read", "data/report"), ("read", "data/deep/report"), ("read", "data/phi/7"), ("read", "data/pii/7"),
        ("write", "data/report"), ("network", "https://api.approved-service.com/v1/x"),
        ("network", "https://example.org/"),
    ):
        try:
            said.append(agentos.act(operation, resource).reason)
        except agentos.PolicyViolationError as refusal:
            said.append(f"no: {refusal.reason}")
    return said

@kernel.register
def caller():
    for number in range(101):
        try:
            agentos.act("network", f"https://api.approved-service.com/{number}")
        except agentos.RateLimitedError as refusal:
            return [number, 0 < refusal.retry_after_s <= 60]

@kernel.register
def intruder():
    try:
        agentos.act("write", "data/phi/7")
    except agentos.PolicyViolationError:
        time.sleep(60)  # live on, as if nothing had happened

for line in asyncio.run(kernel.execute(nurse)):
    print(line)
print(asyncio.run(kernel.execute(caller)))
try:
    asyncio.run(kernel.execute(intruder))
except agentos.PolicyViolationError as refusal:
    print(refusal.on_violation)
print(asyncio.run(kernel._call("inspect", {"id": kernel.current_agent_id}))["exit_signal"])
""",
        [
            "Allow reading non-sensitive data", "Allow reading non-sensitive data", "no: default_deny",
            "no: default_deny", "no: default_deny", "allowed_by_rule", "no: default_deny", "[100, True]", "SIGKILL",
            "9",
        ],
    ),
    "patterns": Around(
        """
from datetime import datetime, UTC
from agentos.policies import Pattern

made = []
make = Pattern.__init__

def noted(self, *args, **kwargs):
    make(self, *args, **kwargs)
    made.append(self)

Pattern.__init__ = noted
""",
        """
from agent_os import Policy

def matching(number, cases):
    policy = Policy(name=f"pattern {number}")
    policy.add_rule("allow", made[number])
    at = datetime(2026, 1, 2, 10, 30, tzinfo=UTC)
    print(*[resource for resource, *more in cases if policy.decide(more[0], resource, context=more[1], at=at).allowed])

matching(0, [("files/a.txt", "read", {}), ("files/a/b.txt", "read", {}), ("files/a.txt", "write", {})])
matching(1, [("db/users/42", "write", {}), ("db/users/x", "write", {}), ("db/users/42/x", "write", {})])
operator = {"user_role": "operator", "cost": 99}
matching(2, [("tools/a", "execute", operator), ("tools/b", "execute", {**operator, "cost": 101}),
             ("tools/c", "execute", {**operator, "user_role": "guest"}), ("tools/d", "execute", {})])
matching(3, [("api/a", "read", {}), ("api/b", "write", {}), ("api/admin/x", "read", {}),
             ("api/internal/x", "read", {})])
""",
        ["files/a.txt", "db/users/42", "tools/a", "api/a api/b"],
    ),
}  # fmt: skip


class Program:
    """A program in files of its own, started with directories of its own; whatever it starts carries its cookie."""

    def __init__(self, base: Path, facade: str, around: Around, block: str) -> None:
        self.around = around
        self.facade = facade
        self.cookie = f"agentos-test-{uuid.uuid4().hex}"
        self.parts = [text.replace("agent_os", facade) for text in (around.before, block, around.after)]
        self.base = base / facade
        (self.base / "work").mkdir(parents=True)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        if awaits_at_its_top(self.parts[1]):
            paths = [self.base / f"cell{number}" for number in range(3)]
            for path, text in zip(paths, self.parts, strict=True):
                path.write_text(text)
            command = [str(HERE / "cells.py"), *map(str, paths)]
        else:
            script = self.base / "program.py"
            script.write_text("".join(self.parts))
            command = [str(script)]
        with directories(self.base) as environment:
            environment["TERM"] = self.cookie  # one of the variables that agents get
            return subprocess.Popen(
                [sys.executable, *command], cwd=self.base / "work", env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip

    def assert_does_what_it_says(self) -> None:
        out, err = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, f"{self.facade}: {err}"
        assert out.splitlines() == self.around.prints, self.facade
        assert carriers(self.cookie) == []

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for pid in carriers(self.cookie):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def awaits_at_its_top(block: str) -> bool:
    return any(line.startswith("await ") for line in block.splitlines())


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Program]]:
    """Both facades' programs, at work at the same time."""
    name: str = request.param
    programs = [Program(tmp_path, facade, AROUND[name], blocks("run")[name]) for facade in FACADES]
    yield programs
    for program in programs:
        program.close()


@pytest.mark.parametrize("pair", AROUND, indirect=True)
def test_a_block_does_what_it_says_under_both_names(pair: list[Program]) -> None:
    for program in pair:
        program.assert_does_what_it_says()


def test_no_block_is_left_out() -> None:
    assert set(blocks("run")) == set(AROUND)


def test_both_names_hold_the_same_things() -> None:
    import agent_os
    import agentos

    assert set(agent_os.__all__) == set(agentos.__all__)
    assert [name for name in agentos.__all__ if getattr(agent_os, name) is not getattr(agentos, name)] == []
