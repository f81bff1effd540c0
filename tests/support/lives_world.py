"""Whole lives of agents on a virtual clock: the real Starting, Endings, Lives, Slots and Broker; sentries by script.

A script is what one life does: how many seconds it runs, and how it ends. It runs only while nobody stopped it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from virtual import LoopClock, VirtualLoop

from agentos import wire
from agentos.clock import RunningTime
from agentos.policies import Policy, Quota
from agentos.recorder.journal import JournalReader, JournalWriter
from agentos.signals import AgentSignal
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings
from agentos.supervisor.lives import Lives
from agentos.supervisor.policy_in_force import PolicyInForce
from agentos.supervisor.recording import Recording
from agentos.supervisor.requests import Request, parse_request
from agentos.supervisor.slots import Slots
from agentos.supervisor.starting import Starting

GRACE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Script:
    """One life: it runs for `runs_s` unless it is ended before, and obeys the signals that it does not ignore."""

    runs_s: float = 1_000_000.0
    code: int = 0
    signal: int | None = None
    ignores: frozenset[AgentSignal] = frozenset()
    handles: tuple[tuple[AgentSignal, float, int], ...] = ()  # signal, how long it then takes, exit code
    fails_to_start: bool = False


FOR_EVER: Final = Script()


class Sentry:
    """Acts one script for the kernel's side, which sees nothing but the frames."""

    def __init__(self, world: World, agent_id: str, script: Script, reads: int, writes: int, pid: int) -> None:
        self._world, self._loop, self._script = world, world.loop, script
        self._reads, self._writes = reads, writes
        self.agent_id, self.pid = agent_id, pid
        self._decoder = wire.Decoder(wire.TO_SENTRY)
        self._clock = RunningTime(script.runs_s)
        self._ends: tuple[int | None, int | None] = (None if script.signal else script.code, script.signal)
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = self._over = False
        os.set_blocking(reads, False)
        self._loop.add_reader(reads, self._read)
        self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._say(wire.Spawned(10_000 + self.pid, 1))
        if self._script.fails_to_start:
            self._say(wire.SpawnFailed(2, "prog"))
            self._end(127, None)
            return
        self._say(wire.StateSeen("running", "exec"))
        self._run()

    def _run(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now_s = self._loop.time()
        (self._clock.pause if self._stopped else self._clock.resume)(now_s)
        if not self._stopped and not self._over:
            self._timer = self._loop.call_later(self._clock.left_s(now_s), self._end, *self._ends)

    def _end(self, code: int | None, number: int | None) -> None:
        if not self._over:
            self._over = True
            self._say(wire.Exited(code, number, 1))

    def _say(self, frame: Any) -> None:
        os.write(self._writes, wire.encode(frame))

    def _read(self) -> None:
        data = os.read(self._reads, 65_536)
        if not data:
            self._leave()
            return
        for frame in self._decoder.feed(data):
            if isinstance(frame, wire.Deliver):
                self._deliver(frame)
            elif isinstance(frame, wire.Reap):
                self._say(wire.TreeGone(0))
                self._leave()
                return

    def _deliver(self, frame: wire.Deliver) -> None:
        number = AgentSignal(frame.signal)
        if number in (AgentSignal.SIGSTOP, AgentSignal.SIGCONT):
            self._stopped = number is AgentSignal.SIGSTOP
            self._say(wire.StateSeen("stopped" if self._stopped else "running", "signal(tree)"))
            self._run()
        self._say(wire.Delivered(frame.id, True, 1, "signal(tree)", ""))
        handled = next((one for one in self._script.handles if one[0] is number), None)
        if handled is not None:
            self._clock, self._ends = RunningTime(handled[1]), (handled[2], None)
            self._run()
        elif number is AgentSignal.SIGKILL or number not in {
            AgentSignal.SIGSTOP, AgentSignal.SIGCONT, *self._script.ignores,
        }:  # fmt: skip
            self._end(None, frame.signal)

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._reads)
        os.close(self._reads)
        os.close(self._writes)
        self._world.sentries.pop(self.pid)


class World:
    """One kernel without a kernel process. `scripts` says what each start of a name does; the last one is repeated."""

    def __init__(self, directory: Path, *, slots: int = 10, dice: Callable[[], float] | None = None) -> None:
        self.loop = VirtualLoop()
        clock = LoopClock(self.loop)
        (directory / "journal").mkdir()
        self.directory = directory / "journal"
        self.recording = Recording(self.loop, JournalWriter(self.directory, run_id="lives"), clock)
        self.recording.send = lambda frame: self.recording.acknowledged(frame.seq)
        self._in_force = PolicyInForce(Policy.builtin("permissive"), self.recording)
        self.agents = Agents()
        self.endings = Endings(self.loop, self.agents, clock)
        self.endings.on_gone = self._on_gone
        self.broker = Broker(
            self.loop, self.recording, clock,
            deliver=self.endings.send_soon, on_call=lambda *_: None, notify=lambda *_: None,
        )  # fmt: skip
        self.endings.broker = self.broker
        self.slots = Slots(self.loop, slots)
        self._boot = {
            "tmp": str(directory / "tmp"), "logs": str(directory), "run_id": "lives", "env": {"PATH": "/usr/bin:/bin"},
            "cwd": str(directory), "workspace": str(directory), "sys_path": [], "state": str(directory),
            "runtime": str(directory), "policy_files": [], "places": [], "database": str(directory / "flight.db"),
        }  # fmt: skip
        self.starting = Starting(
            self.loop, self._boot, self.agents, self.recording, clock, self.broker, self.endings, self._fork,
            self.slots,
        )  # fmt: skip
        throw = random.Random(3).random if dice is None else dice
        self.lives = Lives(self.loop, self.agents, clock, self.broker, self.endings, self.starting, throw)
        self.scripts: dict[str, list[Script]] = {}
        self.starts: dict[str, list[float]] = {}
        self.sentries: dict[int, Sentry] = {}
        self.forks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self.recording.close()
        self.loop.close()
        if kind is None:
            assert self.loop.faults == []

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(story)

    async def _fork(self, params: dict[str, Any], descriptors: list[int]) -> int:
        self.forks += 1
        name = params["name"]
        starts = self.starts.setdefault(name, [])
        scripts = self.scripts.get(name, [FOR_EVER])
        script = scripts[min(len(starts), len(scripts) - 1)]
        starts.append(self.loop.time())
        reads, writes, *_ = map(os.dup, descriptors[:2])
        self.sentries[self.forks] = Sentry(self, params["id"], script, reads, writes, self.forks)
        return self.forks

    def _on_gone(self, agent: Agent) -> None:
        agent.close(self.loop)
        self.slots.leave(agent.id)
        self.lives.on_gone(agent)

    async def start(self, name: str, *scripts: Script, parent: Agent | None = None, **params: Any) -> Agent:
        """Start a program of this name, the first of the scripts now, the next ones when it is restarted."""
        self.scripts[name] = list(scripts) or [FOR_EVER]
        words = {"argv": ["/bin/true"], "name": name, "require": "none", "grace_s": GRACE_S, **params}

        def again(agent_id: str, state: bytes | None = None) -> Request:
            request = parse_request(
                words, parent, bounded=True, in_force=self._in_force, boot=self._boot, quota=Quota(),
                agent_id=agent_id, private=str(self.starting.private_path(agent_id)), state=state,
            )  # fmt: skip
            return replace(request, kind="program")

        return await self.starting.start(again(self.starting.new_id()), None, again)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(100_000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it never came to be")

    def events(self, kind: str) -> list[Any]:
        reader = JournalReader(self.directory)
        found = []
        while batch := reader.read():
            found += [event for event in batch if event.event_type == kind]
        reader.close()
        return found
