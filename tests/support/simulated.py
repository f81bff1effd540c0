"""The kernel's books on one agent, with everything outside them played by dice: sentry, agent, recorder, clients.

The real Broker, Endings, SentryLink, Intake, Outbox, AgentPipes and Recording work on real pipes; what the sentry says
and when, whether it dies, what the agent sends, how long the recorder takes, comes from one seeded generator.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from virtual import LoopClock, VirtualLoop

from agentos import wire
from agentos.errors import StillAlive
from agentos.policies import EffectivePolicy, Policy
from agentos.recorder.journal import JournalReader, JournalWriter
from agentos.signals import AgentSignal
from agentos.supervisor.agent_pipes import AgentPipes
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings
from agentos.supervisor.recording import Recording
from agentos.supervisor.sentry_link import SentryLink

GRACE_S: Final = 3.0
SENTRY_PID: Final = 4_242
DEADLY: Final = (AgentSignal.SIGTERM, AgentSignal.SIGALRM, AgentSignal.SIGUSR1, AgentSignal.SIGUSR2)


class Sentry:
    """A sentry and its agent as far as a kernel can see them: commands in order, states that are true, one exit."""

    def __init__(self, world: World, reads: int, writes: int) -> None:
        self._world = world
        self._dice = world.dice
        self._loop = world.loop
        self._reads, self._writes = reads, writes
        self._decoder = wire.Decoder(wire.TO_SENTRY)
        self._ignores = set(self._dice.sample(DEADLY, self._dice.randrange(len(DEADLY) + 1)))
        self.alive = True
        self.said_goodbye = False
        self.stopped = self.began = False
        self.exit: tuple[int | None, int | None] | None = None
        self.commands: list[tuple[int, str]] = []
        os.set_blocking(reads, False)
        self._loop.add_reader(reads, self._read)

    def say(self, frame: Any) -> None:
        """Write a frame, in two pieces at times: a reader may see half of it."""
        data = wire.encode(frame)
        cut = self._dice.randrange(1, len(data)) if self._dice.random() < 0.2 else len(data)
        os.write(self._writes, data[:cut])
        if cut < len(data):
            os.write(self._writes, data[cut:])

    def begin(self) -> None:
        self.say(wire.Spawned(777, 1))
        if self._dice.random() < 0.1:
            self.say(wire.SpawnFailed(2, "lost"))
            self.end(127, None)
            return
        self.began = True
        self.say(wire.StateSeen("running", "exec"))

    def end(self, code: int | None, signal: int | None) -> None:
        """The leader dies of itself or of a signal."""
        if self.alive and self.exit is None:
            self.exit = code, signal
            self._world.agent_side.leave()
            self.say(wire.Exited(code, signal, 1))
            if self._dice.random() < 0.2:  # what was on its way
                late = [wire.StateSeen("running", "exec"), wire.StateSeen("stopped", "job control"), wire.Pong(1)]
                self.say(self._dice.choice(late))
            if self._dice.random() < 0.1:
                self.die()

    def die(self) -> None:
        """kill -9 of the sentry: its pipes close, the leader dies, and after a while the zygote says so."""
        if not self.alive:
            return
        self.alive = False
        self._world.agent_side.leave()
        self._loop.remove_reader(self._reads)
        os.close(self._reads)
        os.close(self._writes)
        if self._dice.random() < 0.5:  # heard before anything is read of what the sentry said last
            self._world.sentry_died()
        else:
            self._loop.call_later(self._dice.choice((0, 0.01, 1.0)), self._world.sentry_died)

    def _read(self) -> None:
        try:
            data = os.read(self._reads, 65_536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._reads)
        for frame in self._decoder.feed(data):
            self._loop.call_soon(self._obey, frame)

    def _obey(self, frame: Any) -> None:
        if not self.alive:
            return
        if isinstance(frame, wire.Reap):
            self.say(wire.TreeGone(self._dice.choice((0, 0, 3))))
            self.said_goodbye = True
            self.die()
        elif isinstance(frame, wire.Deliver):
            self._deliver(frame)

    def _deliver(self, frame: wire.Deliver) -> None:
        number = AgentSignal(frame.signal)
        self.commands.append((frame.signal, frame.scope))
        if self.exit is not None:
            self.say(wire.Delivered(frame.id, False, 0, "signal(leader)", "already ended"))
            return
        if number in (AgentSignal.SIGSTOP, AgentSignal.SIGCONT):
            self.stopped = number is AgentSignal.SIGSTOP
            self.say(wire.StateSeen("stopped" if self.stopped else "running", "signal(tree)"))
        self.say(wire.Delivered(frame.id, True, 1, "signal(tree)", ""))
        if number is AgentSignal.SIGKILL or (number in DEADLY and number not in self._ignores and not self.stopped):
            delay = self._dice.choice((0, 0, 0.02, 0.5))
            self._loop.call_later(delay, self.end, None, frame.signal)


class AgentSide:
    """What the agent's process writes on its pipe, and the verdicts it reads."""

    def __init__(self, world: World, up: int, down: int) -> None:
        self._loop = world.loop
        self._dice = world.dice
        self._up, self._down = up, down
        self._decoder = wire.Decoder(wire.TO_AGENT_VERDICTS)
        self.sent: list[int] = []
        self.answered: list[int] = []
        self.broke_it = self.left_half = False
        self.open = True
        os.set_blocking(down, False)
        os.set_blocking(up, False)
        self._loop.add_reader(down, self._read)

    def act(self, operation: str) -> None:
        if self.open and not self.broke_it:
            number = len(self.sent) + 1
            act = wire.Act(number, operation, f"data/{self._dice.randrange(5)}", None, None, "/", {}, "sdk")
            self._write(wire.encode(act))
            self.sent.append(number)

    def result(self) -> None:
        if self.open and not self.broke_it:
            self._write(wire.encode(wire.Result(bytes(self._dice.randrange(60_000)))))

    def break_it(self) -> None:
        if self.open and not self.broke_it:
            self.broke_it = True
            self._write(self._dice.choice((b"\xff" * 9, b"\0\0\0\1\xc1", wire.encode(wire.Reap(1)))))

    def leave(self) -> None:
        """The process is dead: its ends are closed, in the middle of a frame at times."""
        if self.open:
            if not self.broke_it and self._dice.random() < 0.1:
                self._write(b"\0\0\0\x20\x99")
                self.left_half = True
            self.open = False
            self._read()
            self._loop.remove_reader(self._down)
            os.close(self._up)
            os.close(self._down)

    def _write(self, data: bytes) -> None:
        try:
            os.write(self._up, data)
        except BlockingIOError:
            self.broke_it = True  # the pipe is full: this agent sends nothing more

    def _read(self) -> None:
        try:
            while data := os.read(self._down, 65_536):
                self.answered += [verdict.id for verdict in self._decoder.feed(data)]
            self._loop.remove_reader(self._down)
        except BlockingIOError:
            return


class World:
    """One kernel's books with one agent in them."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.dice = random.Random(seed)
        self.loop = VirtualLoop()
        clock = LoopClock(self.loop)
        journal = JournalWriter(directory, run_id=f"seed-{seed}")
        self.recording = Recording(self.loop, journal, clock)
        self.recording.send = self._recorder
        self._hangs_until_s = 0.0
        self.agents = Agents()
        self.endings = Endings(self.loop, self.agents, clock)
        self.gone: list[Agent] = []
        self.endings.on_gone = self._on_gone
        self.broker = Broker(
            self.loop, self.recording, clock,
            deliver=self.endings.send_soon, on_call=lambda *_: None, notify=lambda *_: None,
        )  # fmt: skip
        self.endings.broker = self.broker
        self.sentries = SentryLink(self.loop, self.broker, self.endings)
        self.directory = directory
        self.agent = self._make_agent()

    def _make_agent(self) -> Agent:
        agent = Agent(
            id="agent", name="agent", execution_id="agent", kind="python", command=["agent"], level="hooks", cwd="/",
            policy=EffectivePolicy(Policy.builtin("permissive"), workspace="/", permissions=["read"]),
            policy_name="permissive", context={}, grace_s=GRACE_S, timeout_s=self.dice.choice((None, None, 2.0, 9.0)),
        )  # fmt: skip
        self.agents.add(agent)
        with AgentPipes(self.loop, agent, python=True, on_unread=lambda _: None) as pipes:
            reads, writes, _, up, down, calls = map(os.dup, pipes.theirs(None))
        self._calls = calls
        agent.sentry_pid = SENTRY_PID
        assert agent.from_sentry is not None
        assert agent.up is not None
        self.sentries.watch(agent, agent.from_sentry)
        self.broker.watch_agent(agent, agent.up)
        self.agent_side = AgentSide(self, up, down)
        self.sentry = Sentry(self, reads, writes)
        self.endings.watch_time(agent)
        return agent

    def _recorder(self, frame: wire.TailTo) -> None:
        """Confirm after a while; now and then confirm nothing for longer than anybody waits."""
        now_s = self.loop.time()
        if now_s >= self._hangs_until_s and self.dice.random() < 0.01:
            self._hangs_until_s = now_s + 7.0
        delay_s = max(0.0, self._hangs_until_s - now_s) + self.dice.choice((0, 0.001, 0.02))
        self.loop.call_later(delay_s, lambda: self.recording.acknowledged(max(frame.seq, self.recording.durable_seq)))

    def _on_gone(self, agent: Agent) -> None:
        self.gone.append(agent)
        agent.close(self.loop)

    def sentry_died(self) -> None:
        if not self.agent.gone.is_set():
            self.sentries.on_died(self.agent, wire.Died(SENTRY_PID, 9, 0))

    # --- a life ----------------------------------------------------------------------------------------------------

    async def live(self, steps: int) -> list[asyncio.Task[Any]]:
        """Throw the dice `steps` times, then have the agent killed. Returns the commands that were given."""
        self.sentry.begin()
        commands: list[asyncio.Task[Any]] = []
        for _ in range(steps):
            await asyncio.sleep(self.dice.choice((0, 0, 0, 0.001, 0.05, 1.0)))
            self._step(commands)
        commands.append(self.loop.create_task(self._kill()))
        await asyncio.wait(commands, timeout=600)
        return commands

    async def _kill(self) -> None:
        await self.endings.kill(self.agent, "simulation")
        assert self.agent.gone.is_set()

    def _step(self, commands: list[asyncio.Task[Any]]) -> None:
        dice, agent = self.dice, self.agent
        happens: list[tuple[int, Callable[[], Any]]] = [
            (30, lambda: self.agent_side.act("read")),
            (15, lambda: self.agent_side.act("write")),
            (4, self.agent_side.result),
            (1, self.agent_side.break_it),
            (12, lambda: commands.append(self._command(dice.choice(list(AgentSignal))))),
            (3, lambda: commands.append(self.loop.create_task(self._stop(dice.choice((None, 0.0, 1.0)))))),
            (3, lambda: self.sentry.end(dice.choice((0, 0, 1, 7)), None)),
            (2, self.sentry.die),
            (4, self._change_by_others),
        ]
        weights, actions = zip(*happens, strict=True)
        if not agent.gone.is_set():
            dice.choices(actions, weights)[0]()

    def _change_by_others(self) -> None:
        """Somebody else stops or continues the agent, or it does so itself."""
        sentry = self.sentry
        if sentry.alive and sentry.began and sentry.exit is None:
            sentry.stopped = not sentry.stopped
            sentry.say(wire.StateSeen("stopped" if sentry.stopped else "running", "job control"))

    def _command(self, signal: AgentSignal) -> asyncio.Task[Any]:
        return self.loop.create_task(self.endings.send(self.agent, signal, None, "simulation"))

    async def _stop(self, grace_s: float | None) -> str:
        try:
            await self.endings.stop(self.agent, grace_s, "simulation")
        except StillAlive:
            return "still alive"
        assert self.agent.gone.is_set()
        return "ended"

    def close(self) -> int:
        """Let every timer fire, close everything; returns how many descriptors the loop still watched then."""
        self.agent_side.leave()
        self.sentry.die()
        os.close(self._calls)
        self.loop.run_until_complete(asyncio.sleep(30))
        watched = len(self.loop._selector.get_map()) - 1  # its own
        self.recording.close()
        self.loop.close()
        return watched

    def events(self) -> list[Any]:
        reader, found = JournalReader(self.directory), []
        while batch := reader.read():
            found += batch
        reader.close()
        return found
