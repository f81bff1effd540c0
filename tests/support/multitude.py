"""Many agents of one kernel on a virtual clock, and everything outside the kernel's own decisions played by dice.

The real Broker, Endings, SentryLink, Recording, Slots and Calls decide over real policies; there is no descriptor, no
process and no file, so that a million events take a minute. Every command of theirs can fail, late, twice or for good:
the journal refuses, the recorder hangs or is gone, a sentry delivers late, twice or dies, time jumps.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import pytest
from invariants import Books, WatchedAdmission
from virtual import MOMENT_S, LoopClock, VirtualLoop

from agentos import lifecycle, wire
from agentos.errors import AgentosError, ProtocolError, RecorderUnavailable
from agentos.policies import EffectivePolicy, Policy, Quota
from agentos.restart_policy import NEVER, parse_restart
from agentos.signals import AgentSignal
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.calls import Caller, Calls
from agentos.supervisor.endings import Endings
from agentos.supervisor.lineage import Lineage
from agentos.supervisor.lives import Lives
from agentos.supervisor.recording import Recording
from agentos.supervisor.sentry_link import SentryLink
from agentos.supervisor.slots import Slots
from agentos.supervisor.verification import Verification

SLOTS: Final = 4
AGENTS_AT_ONCE: Final = 9
ENDED_KEPT: Final = 20  # a kernel keeps more, and looks through all of them at each end
LIMIT: Final = 5  # of rule `few`
QUIET_S: Final = 200.0  # longer than anything may take that does not wait for an agent
STOPS_LATE_S: Final = 20.0  # the recorder hangs for less
QUIET_EVERY: Final = 5_000  # events
POLICY: Final = f"""
name: multitude
default_action: allow
rules:
  - {{name: few, action: allow, operation: read, resource: data/limited, rate_limit: {LIMIT}}}
  - {{name: frozen, action: deny, operation: read, resource: data/frozen, on_violation: SIGSTOP}}
  - {{name: killed, action: deny, operation: read, resource: data/killed, on_violation: SIGKILL}}
  - {{name: safe, action: allow, operation: read, resource: data/safe, audit: durable}}
"""
TOLD: Final = ("agent_restarting", "agent_failed", "agent_timeout", "sentry_lost", "policy_violation_repeated")
DEADLY: Final = (AgentSignal.SIGTERM, AgentSignal.SIGALRM, AgentSignal.SIGUSR1, AgentSignal.SIGUSR2)
HOPELESS: Final = "n4"  # fails soon, in each of its lives
RESTARTS: Final = ("never", "never", "on-failure", "on-failure:2", "always")
RESOURCES: Final = (*("data/x",) * 12, "data/limited", "data/limited", "data/safe", "data/frozen", "//..", "data/y")


class Sink:
    """Stands for an Outbox: hands every frame on, as long as somebody is there."""

    def __init__(self, hear: Callable[[Any], None], accept: frozenset[Any]) -> None:
        self._hear = hear
        self._accept = accept
        self.closed = False
        self.pending_bytes = 0

    def write(self, data: bytes) -> None:
        if not self.closed:
            self._hear(wire.decode_body(data[4:], self._accept))

    def close(self) -> None:
        self.closed = True


class WatchedRecording(Recording):
    """Tells the books what shall be on record, whether or not the journal takes it."""

    books: Books

    def append(self, event_type: str, data: dict[str, Any], **fields: Any) -> int:
        self.books.on_attempt(event_type, fields.get("agent_id", ""), data)
        return super().append(event_type, data, **fields)

    def try_append(self, event_type: str, data: dict[str, Any], **fields: Any) -> None:
        self.books.on_attempt(event_type, fields.get("agent_id", ""), data)
        super().try_append(event_type, data, **fields)


class Life:
    """One agent, its sentry and its pipes, as far as a kernel can see them."""

    def __init__(self, world: Multitude, agent: Agent) -> None:
        self.world = world
        self.dice = world.dice
        self.agent = agent
        self.ids = itertools.count(1)
        self.broken = False  # its stream: nothing of it is believed any more
        self.alive = False  # its sentry
        self.exit: tuple[int | None, int | None] | None = None
        self.stopped = self.began = False
        self.due_s = 0.0
        self.ignores = set(self.dice.sample(DEADLY, self.dice.randrange(len(DEADLY) + 1)))

    def be_born(self) -> None:
        self.alive = True
        self.agent.to_sentry = Sink(self.obey, wire.TO_SENTRY)  # type: ignore[assignment]
        self.agent.verdicts = Sink(partial(self.world.books.on_verdict, self.agent), wire.TO_AGENT_VERDICTS)  # type: ignore[assignment]
        self.say(wire.Spawned(7, 1))
        if self.dice.random() < 0.05:
            self.say(wire.SpawnFailed(2, "exec"))
            self.end(127, None)
            return
        self.began = True
        self.say(wire.StateSeen("running", "exec"))
        if self.agent.name == HOPELESS:
            self.world.loop.call_later(self.dice.choice((0.01, 1.0)), self.end, 1, None)

    # --- the sentry ------------------------------------------------------------------------------------------------

    def say(self, frame: Any) -> None:
        """A frame of the sentry arrives, as SentryLink reads it."""
        if not self.alive:
            return
        self.world.count("sentry")
        self.world.books.on_sentry_frame(self.agent, frame)
        try:
            self.world.sentries._take(self.agent, frame)
        except (ProtocolError, lifecycle.IllegalTransition) as error:
            self.world.met[type(error).__name__] += 1
            self.world.broker.protocol_fault(self.agent, error)

    def say_later(self, frame: Any) -> None:
        """It takes its time; now and then it says so twice, or never."""
        delay_s = self.dice.choice((0, 0, 0, 0.001, 0.3, 2.0))
        chance = self.dice.random()
        if chance < 0.01 and isinstance(frame, wire.Delivered):
            return  # lost: whoever waits for it hears of a limit
        for _ in range(2 if chance > 0.97 else 1):
            self.world.loop.call_later(delay_s, self.say, frame)

    def obey(self, frame: Any) -> None:
        """A command reaches the sentry."""
        self.world.books.on_command(self.agent, frame)
        if self.dice.random() < 0.01:
            self.world.loop.call_soon(self.die)
        if isinstance(frame, wire.Reap):
            self.say_later(wire.TreeGone(self.dice.choice((0, 0, 3))))
            self.world.loop.call_later(3.0, self.die)
        elif isinstance(frame, wire.Deliver):
            delay_s = self.dice.choice((0, 0, 0.001, 0.2))
            self.due_s = max(self.due_s + MOMENT_S, self.world.loop.time() + delay_s)  # in the order of the commands
            self.world.loop.call_at(self.due_s, self.deliver, frame)

    def deliver(self, frame: wire.Deliver) -> None:
        if not self.alive:
            return
        signal = AgentSignal(frame.signal)
        if self.exit is not None:
            self.say_later(wire.Delivered(frame.id, False, 0, "signal(leader)", "already ended"))
            return
        if signal in (AgentSignal.SIGSTOP, AgentSignal.SIGCONT):
            self.change(stopped=signal is AgentSignal.SIGSTOP, mechanism="signal(tree)")
        self.say_later(wire.Delivered(frame.id, self.dice.random() < 0.98, 1, "signal(tree)", ""))
        if signal is AgentSignal.SIGKILL or (signal in DEADLY and signal not in self.ignores and not self.stopped):
            self.world.loop.call_later(self.dice.choice((0, 0.02, 0.5)), self.end, None, frame.signal)

    def change(self, *, stopped: bool, mechanism: str) -> None:
        self.stopped = stopped
        self.say(wire.StateSeen("stopped" if stopped else "running", mechanism))

    def end(self, code: int | None, signal: int | None) -> None:
        if self.alive and self.exit is None:
            self.exit = code, signal
            self.say(wire.Exited(code, signal, 1))
            if self.dice.random() < 0.2:  # what was on its way
                late = (wire.StateSeen("running", "exec"), wire.StateSeen("running", "job control"), wire.Pong(1))
                self.say(self.dice.choice(late))

    def die(self) -> None:
        """The sentry is killed; the zygote says so after a while."""
        if self.alive:
            self.alive = False
            self.world.loop.call_later(self.dice.choice((0, 0.01, 1.0)), self.world.sentry_died, self)

    # --- the agent -------------------------------------------------------------------------------------------------

    def take(self, frame: Any) -> None:
        """A frame of the agent arrives, as Intake reads it."""
        if self.broken or self.agent.gone.is_set() or self.agent.verdicts is None or self.agent.exit_on_record:
            return
        self.world.count("frames")
        try:
            self.world.broker._take(self.agent, frame)
        except ProtocolError as error:
            self.broken = True
            self.world.met["ProtocolError"] += 1
            self.world.broker.protocol_fault(self.agent, error)

    def act(self, operation: str, resource: str) -> None:
        act = wire.Act(next(self.ids), operation, resource, None, None, "/", {}, "sdk")
        if not self.broken and self.agent.verdicts is not None and not self.agent.exit_on_record:
            self.world.books.on_act(self.agent, act)
            self.take(act)


class Multitude:
    """One kernel's decisions, and the dice. `live` throws them."""

    def __init__(self, seed: int, books: type[Books] = Books) -> None:
        self.dice = random.Random(seed)
        self.loop = VirtualLoop(descriptors=False)
        self.clock = LoopClock(self.loop)
        self.books = books(self.loop, LIMIT)
        self.met: Counter[str] = Counter()
        self.steps = 0
        self.journal_fails_until_s = self.recorder_hangs_until_s = 0.0
        self.recording = WatchedRecording(self.loop, self, self.clock)  # type: ignore[arg-type]
        self.recording.books = self.books
        self.recording.send = self.recorder
        self.agents = Agents()
        self.lives: dict[str, Life] = {}
        self.slots = Slots(self.loop, SLOTS)
        self.slots._admission = WatchedAdmission(SLOTS)
        self.endings = Endings(self.loop, self.agents, self.clock)
        self.endings.on_gone = self.on_gone
        self.broker = Broker(
            self.loop, self.recording, self.clock,
            deliver=self.endings.send_soon, on_call=lambda *_: None, notify=lambda *_: None,
        )  # fmt: skip
        self.endings.broker = self.broker
        self.sentries = SentryLink(self.loop, self.broker, self.endings)
        starting: Any = SimpleNamespace(closed=False, new_id=self.new_id, prepare=self.prepare, begin=self.begin)
        self.ends = Lives(
            self.loop, self.agents, self.clock, self.broker, self.endings, starting, dice=self.dice.random
        )
        kernel: Any = SimpleNamespace(
            agents=self.agents, slots=self.slots, broker=self.broker, endings=self.endings,
            verification=Verification(self.loop, self.endings.hearings.line),
        )  # fmt: skip
        self.calls = Calls(kernel)
        self.policy, self.quota = Policy.from_yaml(POLICY), Quota()
        self.commands: set[asyncio.Task[Any]] = set()
        self.numbers = itertools.count(1)
        self.appended_bytes = 0
        self.seqs = itertools.count(1)
        self.loop.on_skip = self.books.on_time

    def count(self, what: str) -> None:
        """One event reaches the core."""
        self.steps += 1
        self.met[what] += 1

    # --- the recorder ----------------------------------------------------------------------------------------------

    def append(self, event_type: str, severity: str, agent_id: str, *rest: Any, durable: bool, **_: Any) -> int:
        """Stand for the journal."""
        data = rest[-1]
        if event_type in TOLD:
            self.met[event_type] += 1
        if self.loop.time() < self.journal_fails_until_s or self.dice.random() < 0.002:
            self.met["not recorded"] += 1
            raise RecorderUnavailable("planted")
        seq = next(self.seqs)
        self.books.on_event(seq, event_type, agent_id, data, durable=durable)
        return seq

    def recorder(self, frame: wire.TailTo) -> None:
        """Confirm after a while, maybe twice; now and then nothing for longer than anybody waits."""
        now_s = self.loop.time()
        delay_s = max(0.0, self.recorder_hangs_until_s - now_s) + self.dice.choice((0, 0, 0.001, 0.02))
        for _ in range(2 if self.dice.random() < 0.02 else 1):
            self.loop.call_later(delay_s, self.confirm, frame.seq)

    def confirm(self, seq: int) -> None:
        self.count("confirmed")
        self.books.confirmed_seq = max(self.books.confirmed_seq, seq)
        self.recording.acknowledged(seq)

    def beat(self) -> None:
        self.met["beats"] += 1
        self.recording.beat()
        self.loop.call_later(1.0, self.beat)

    # --- lives -----------------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        return f"a{next(self.numbers)}"

    def new_agent(self, agent_id: str, name: str, parent_id: str | None) -> Agent:
        agent = Agent(
            id=agent_id, name=name, execution_id="e", kind="python", command=[], level="hooks", cwd="/",
            policy=EffectivePolicy(self.policy, workspace="/", permissions=["read"], quota=self.quota),
            policy_name="multitude", context={}, grace_s=self.dice.choice((0.0, 3.0)),
            timeout_s=self.dice.choice((None, None, 2.0, 30.0)), parent_id=parent_id,
        )  # fmt: skip
        self.lives[agent.id] = Life(self, agent)
        self.books.on_start(agent)
        return agent

    def start(self, parent: Agent | None = None) -> Life:
        """Put one more agent in line, as Starting does."""
        name = f"n{self.dice.randrange(5)}"
        agent = self.new_agent(self.new_id(), name, parent.id if parent else None)
        policy = parse_restart("restart", self.dice.choice(RESTARTS))
        if policy is not NEVER:
            again: Any = lambda agent_id, _: SimpleNamespace(agent_id=agent_id, name=name, parent_id=agent.parent_id)
            agent.lineage = Lineage(policy, again)
        self.stand_in_line(agent)
        return self.lives[agent.id]

    def prepare(self, request: Any) -> Any:
        """Make the next life of an agent, as Starting does."""
        return SimpleNamespace(agent=self.new_agent(request.agent_id, request.name, request.parent_id))

    async def begin(self, life: Any, _: int | None) -> None:
        """Its back-off is over. There may be no way to record that."""
        if self.dice.random() < 0.05:
            raise RecorderUnavailable("planted")
        self.books.on_due(life.agent)
        self.stand_in_line(life.agent)

    def stand_in_line(self, agent: Agent) -> None:
        self.agents.add(agent)
        if self.slots.ask(agent.id, self.dice.choice((0, 0, 0, 5, -5))):
            agent.in_line = False
            self.bear(self.lives[agent.id])
        else:
            agent.in_line = agent.waited = True
            self.do(self.bear_in_turn(self.lives[agent.id]))

    async def bear_in_turn(self, life: Life) -> None:
        await self.slots.turn(life.agent.id)
        life.agent.in_line = False
        if not life.agent.gone.is_set():
            self.bear(life)

    def bear(self, life: Life) -> None:
        self.count("born")
        self.books.on_born(life.agent)
        if life.agent.lineage is not None:
            life.agent.lineage.started(self.loop.time())
        life.be_born()
        if not life.agent.gone.is_set():
            self.endings.watch_time(life.agent)

    def on_gone(self, agent: Agent) -> None:
        self.books.on_gone(agent)
        agent.close(self.loop)
        self.slots.leave(agent.id)
        del self.lives[agent.id]
        self.ends.on_gone(agent)
        for old in [one for one in self.agents.all() if one.gone.is_set()][:-ENDED_KEPT]:
            del self.agents._by_id[old.id]

    def sentry_died(self, life: Life) -> None:
        self.count("sentries lost")
        self.sentries.on_died(life.agent, wire.Died(7, 9, 0))

    # --- what may happen -------------------------------------------------------------------------------------------

    def do(self, work: Any) -> None:
        self.count("commands")
        task = self.loop.create_task(work)
        self.commands.add(task)
        task.add_done_callback(self.finish)

    def finish(self, task: asyncio.Task[Any]) -> None:
        self.commands.discard(task)
        error = task.exception()
        if isinstance(error, AgentosError):  # by name
            self.met[type(error).__name__] += 1
        elif error is not None:
            self.books.fail("commands end", f"a command ended with {error!r}", error)

    def step(self) -> None:
        """Throw the dice once."""
        dice = self.dice
        if len(self.lives) < 2 or (len(self.lives) < AGENTS_AT_ONCE and dice.random() < 0.02):
            self.start()
            return
        life = dice.choice(list(self.lives.values()))
        chance = dice.random()
        if chance < 0.80:
            operation = "write" if dice.random() < 0.2 else "read"
            life.act(operation, dice.choice(RESOURCES) if dice.random() < 0.99 else "data/killed")
        elif chance < 0.84:
            life.take(dice.choice((wire.Outcome(1, True, ""), wire.Answer(1, True, b"", ""), wire.Result(b"\xc0"),
                                   wire.Raised("E", "m", "t", None))))  # fmt: skip
        elif chance < 0.97:
            self.disturb(life)
        else:
            self.hinder(life)

    def disturb(self, life: Life) -> None:
        """A command of the host, or something that the agent or others do to it."""
        dice, agent = self.dice, life.agent
        match dice.randrange(10):
            case 0 | 1 | 2:
                signal = dice.choice((AgentSignal.SIGSTOP, AgentSignal.SIGCONT, AgentSignal.SIGUSR1))
                self.do(self.endings.send(agent, signal, None, "host"))
            case 3:
                self.do(self.endings.send(agent, dice.choice(list(AgentSignal)), None, "host"))
            case 4:
                self.do(self.stop(agent, dice.choice((None, 0.0, 1.0))))
            case 5 | 6 if life.began and life.exit is None:
                life.change(stopped=not life.stopped, mechanism="job control")
            case 7 if life.began and len(self.lives) < AGENTS_AT_ONCE:
                self.start(agent)
            case 8 if life.began and not agent.ended:
                children = [one.agent.id for one in self.lives.values() if one.agent.parent_id == agent.id]
                self.do(self.calls.run(Caller(f"agent {agent.id}", agent), "wait_all", {"ids": children}))
            case 9:
                self.do(self.calls.run(Caller("host"), "wait", {"id": agent.id, "timeout_s": dice.choice((0.1, 9.0))}))
            case _:
                self.met["nothing"] += 1

    async def stop(self, agent: Agent, grace_s: float | None) -> None:
        self.books.on_told_to_end(agent)
        await self.endings.stop(agent, grace_s, "host")

    def hinder(self, life: Life) -> None:
        """A fault of the world."""
        dice, now_s = self.dice, self.loop.time()
        self.count("faults")
        match dice.randrange(6):
            case 0:
                self.journal_fails_until_s = now_s + dice.choice((0.0, 0.01, 1.0))
            case 1:
                self.recorder_hangs_until_s = now_s + dice.choice((1.0, 7.0, 15.0))
            case 2:
                life.die()
            case 3 | 4:
                life.end(dice.choice((0, 0, 1)), None)
            case _:
                life.take(wire.Act(1, "read", "x" * 40_000, None, None, "/", {}, "sdk"))

    # --- time ------------------------------------------------------------------------------------------------------

    def live(self, steps: int) -> None:
        """Let `steps` events happen, then let everything end."""
        self.loop.call_soon(self.beat)
        self.loop.run_until_complete(self._live(steps))

    async def _live(self, steps: int) -> None:
        quiet_at = QUIET_EVERY
        while self.steps < steps:
            self.step()
            self.books.check(self)
            if self.dice.random() < 0.3:
                await asyncio.sleep(
                    self.dice.choice((0, 0, 0.001, 0.01, 0.1, 0.5 if self.dice.random() < 0.9 else 70.0))
                )
                self.books.check(self)
            if self.steps >= quiet_at:
                await self.be_quiet()
                quiet_at = self.steps + QUIET_EVERY
        while self.lives:
            for life in list(self.lives.values()):
                self.do(self.stop(life.agent, 0.0))
            await self.be_quiet()
        self.books.at_the_end(self)

    async def be_quiet(self) -> None:
        """Nothing new happens for so long that everything under way must be done."""
        for pause_s in (STOPS_LATE_S, STOPS_LATE_S, QUIET_S):  # a STOP may still be on its way, behind its record
            for life in list(self.lives.values()):
                self.do(self.endings.send(life.agent, AgentSignal.SIGCONT, None, "host"))
            await asyncio.sleep(pause_s)
        self.books.check_quiet(self)

    def close(self) -> None:
        self.loop.on_skip = lambda _: None  # what the books have to say was said
        for task in list(self.commands):
            task.remove_done_callback(self.finish)
            task.cancel()
        try:
            self.loop.run_until_complete(asyncio.sleep(0))
        finally:
            self.loop.close()


def report(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print the seed and the figures of a run, whether or not it fails."""
    with capsys.disabled():
        print(f"\n  {text}", end=" ")
