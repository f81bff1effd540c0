"""Signals to agents, and how agents end: stop, time-out, a dead sentry. Everything confirmed, nothing assumed.

A signal is delivered by the sentry and is done when the sentry says that Linux says so. Commands to one agent take
effect in the order in which they came, those that the host program hears first included. Clocks that watch an agent
stand still while it is *held*: stopped, by a STOP that was commanded. An agent that stops itself, while what it started
runs on, gains no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal as posix
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Final

from agentos import lifecycle, wire
from agentos.clock import Clock, RunningTime
from agentos.errors import StillAlive
from agentos.lifecycle import State
from agentos.signals import AgentSignal, default_scope
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.hearings import Hearings, Within
from agentos.supervisor.lineage import latest
from agentos.supervisor.tasks import Tasks

# Of the signals of rules: whoever ends after one of these does so by itself.
_NEVER_ENDS: Final = frozenset({AgentSignal.SIGSTOP, AgentSignal.SIGCONT})
_ENDED: Final = "ended"  # what is said of a delivery whose agent ended before it was confirmed
_MEANT_TO_END: Final = frozenset({AgentSignal.SIGKILL, AgentSignal.SIGSTOP, AgentSignal.SIGTERM})  # nothing runs: done
_COMMANDS_THE_END: Final = frozenset({AgentSignal.SIGTERM, AgentSignal.SIGKILL})
_RESOLUTION_S: Final = 1e-6  # no loop can wait for less: it would ask again in the same moment
CONFIRM_LIMIT_S: Final = 70.0  # the sentry's own limits are below this


class Endings:
    def __init__(self, loop: asyncio.AbstractEventLoop, agents: Agents, clock: Clock) -> None:
        self._loop = loop
        self._agents = agents
        self._clock = clock
        self._ids = itertools.count(1)
        self.hearings = Hearings(loop, agents)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks = Tasks(loop)
        self.broker: Broker  # set by the kernel, which makes both
        self.on_gone: Callable[[Agent], None] = lambda _: None

    # --- signals ---------------------------------------------------------------------------------------------------

    async def send(
        self,
        agent: Agent,
        signal: AgentSignal,
        scope: str | None,
        sender: str,
        *,
        within: Within = (),
        heard: bool = True,
    ) -> wire.Delivered:
        """Deliver `signal` and return what was confirmed. Recorded before and after; an ended agent is not an error.

        The host program's handlers run first, if it is to be `heard`, and may veto it; `within` are those that sent it.
        Who is told to end by somebody is not restarted, whether it obeys now or later.
        """
        where = scope or default_scope(signal)
        data = {"signal": signal.name, "scope": where, "sender": sender}
        if heard and self.hearings.concerns(agent, signal):
            refusal = await self.hearings.before(agent, signal, data, within)
            if refusal:
                return wire.Delivered(0, False, 0, "none", refusal)
            if signal in _COMMANDS_THE_END:
                agent = latest(agent)  # it may have ended while they were asked, and wait to be restarted
        agent.commanded = agent.commanded or (signal in _COMMANDS_THE_END and sender != "kernel")
        self.broker.note(agent, "signal_sent", data, durable=True)
        done = await self._deliver(agent, signal, where)
        self.broker.note(agent, "signal_confirmed", {**data, "ok": done.ok, "processes": done.processes})
        return done

    def send_soon(self, agent: Agent, signal: AgentSignal, scope: str) -> None:
        """Deliver without waiting: for on_violation and protocol faults, which are on record already."""
        if self.hearings.concerns(agent, signal):
            self._tasks.start(self._send_heard(agent, signal, scope))
        else:
            self._send_now(agent, signal, scope)

    async def _send_heard(self, agent: Agent, signal: AgentSignal, scope: str) -> None:
        data = {"signal": signal.name, "scope": scope, "sender": "kernel"}
        if not await self.hearings.before(agent, signal, data):
            self._send_now(agent, signal, scope)

    def _send_now(self, agent: Agent, signal: AgentSignal, scope: str) -> None:
        if signal not in _NEVER_ENDS and not agent.ended:  # what was vetoed has ended nothing
            agent.ended_by = agent.ended_by or "policy"
        self.broker.note(agent, "signal_sent", {"signal": signal.name, "scope": scope, "sender": "kernel"})
        self._hold(agent, signal)
        self._tell(agent, wire.Deliver(next(self._ids), signal.value, scope))

    async def _deliver(self, agent: Agent, signal: AgentSignal, scope: str) -> wire.Delivered:
        request = wire.Deliver(next(self._ids), signal.value, scope)
        if agent.in_line and not agent.ended:
            return self._withdraw(agent, signal, request.id)
        if agent.ended or agent.to_sentry is None:
            return await self._already_ended(agent, signal, request.id)
        future: asyncio.Future[wire.Delivered] = self._loop.create_future()
        agent.deliveries[request.id] = future
        self._hold(agent, signal)
        self._tell(agent, request)
        try:
            done = await asyncio.wait_for(future, CONFIRM_LIMIT_S)
            return done if done.detail != _ENDED or signal in _MEANT_TO_END else done._replace(ok=False)
        except TimeoutError:
            return wire.Delivered(request.id, False, 0, "none", f"not confirmed within {CONFIRM_LIMIT_S:g} s")
        finally:
            agent.deliveries.pop(request.id, None)

    def _withdraw(self, agent: Agent, signal: AgentSignal, number: int) -> wire.Delivered:
        """There is no process yet: what would end it by default keeps it from being started, the rest finds nobody."""
        if signal in (AgentSignal.SIGSTOP, AgentSignal.SIGCONT):
            what = "to be restarted" if agent.restart_at_ns else "for a free slot"
            return wire.Delivered(number, False, 0, "none", f"it has not started: it waits {what}")
        agent.ended_by, agent.commanded = agent.ended_by or "stop", True
        self.finish(agent)
        return wire.Delivered(number, True, 0, "none", "it had not started, and will not")

    async def _already_ended(self, agent: Agent, signal: AgentSignal, number: int) -> wire.Delivered:
        """Nothing to deliver to. What a KILL or STOP promises holds only once the rest of the tree is gone, too."""
        if signal in (AgentSignal.SIGKILL, AgentSignal.SIGSTOP):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(agent.gone.wait(), CONFIRM_LIMIT_S)
        return wire.Delivered(number, agent.gone.is_set(), 0, "none", "already ended")

    def _hold(self, agent: Agent, signal: AgentSignal) -> None:
        if signal in (AgentSignal.SIGSTOP, AgentSignal.SIGCONT):
            agent.held = signal is AgentSignal.SIGSTOP
            agent.stops += agent.held
            for notify in list(agent.changed):  # the clocks
                notify()

    def _tell(self, agent: Agent, frame: Any) -> None:
        if agent.to_sentry is not None:
            agent.to_sentry.write(wire.encode(frame))

    # --- stop ------------------------------------------------------------------------------------------------------

    async def stop(self, agent: Agent, grace_s: float | None, sender: str, *, why: str = "stop") -> None:
        """TERM, CONT, grace, KILL; returns when nothing of the tree lives, and nothing follows. Raises StillAlive."""
        agent.commanded = True
        if not agent.ended:
            agent.ended_by = agent.ended_by or why
            await self.send(agent, AgentSignal.SIGTERM, "leader", sender)
            # a stopped process takes no TERM before, and no grace ends: no handler is asked
            await self.send(agent, AgentSignal.SIGCONT, "tree", sender, heard=False)
            with contextlib.suppress(TimeoutError):
                await self._within_running_time(agent, agent.grace_s if grace_s is None else grace_s)
        await self.kill(agent, sender)

    async def kill(self, agent: Agent, sender: str) -> None:
        """KILL the tree and wait until nothing of it lives. Raises StillAlive."""
        if not agent.ended:
            await self.send(agent, AgentSignal.SIGKILL, "tree", sender)
        try:
            await asyncio.wait_for(agent.gone.wait(), CONFIRM_LIMIT_S)
        except TimeoutError:
            raise StillAlive(f"{agent.name} still lives (pid {agent.pid}); see `agentos inspect {agent.id}`") from None

    async def _within_running_time(self, agent: Agent, limit_s: float) -> None:
        """Wait for the end, at most `limit_s` of running time. Raises TimeoutError."""
        clock, changed = RunningTime(limit_s), asyncio.Event()
        agent.changed.append(changed.set)
        try:
            while not agent.gone.is_set():
                changed.clear()
                now, held = self._loop.time(), _is_held(agent)
                (clock.pause if held else clock.resume)(now)
                left = clock.left_s(now)
                if left <= _RESOLUTION_S:
                    raise TimeoutError
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), None if held else left)
        finally:
            agent.changed.remove(changed.set)

    # --- time-out --------------------------------------------------------------------------------------------------

    def watch_time(self, agent: Agent) -> None:
        """Start the clock of an agent, which its time-out goes by if it has one, and keep it true across stops."""
        agent.clock = RunningTime(inf if agent.timeout_s is None else agent.timeout_s)
        agent.changed.append(partial(self._set_timer, agent))
        self._set_timer(agent)

    def _set_timer(self, agent: Agent) -> None:
        timer = self._timers.pop(agent.id, None)
        if timer is not None:
            timer.cancel()
        if agent.clock is None or agent.ended:
            return
        now = self._loop.time()
        if _is_held(agent):
            agent.clock.pause(now)
            return
        agent.clock.resume(now)
        if agent.timeout_s is None:
            return
        delay_s = max(0.0, agent.clock.left_s(now))
        self._timers[agent.id] = self._loop.call_later(delay_s, self._time_is_over, agent)

    def _time_is_over(self, agent: Agent) -> None:
        if not agent.ended and not agent.timed_out:
            agent.timed_out, agent.ended_by = True, "timeout"
            self._tasks.start(self._end_after_timeout(agent))

    async def _end_after_timeout(self, agent: Agent) -> None:
        self.broker.note(agent, "agent_timeout", {"timeout_s": agent.timeout_s}, severity="warning")
        await self.send(agent, AgentSignal.SIGALRM, "leader", "kernel")
        with contextlib.suppress(TimeoutError):
            await self._within_running_time(agent, agent.grace_s)
        with contextlib.suppress(StillAlive):
            await self.kill(agent, "kernel")

    # --- the end ---------------------------------------------------------------------------------------------------

    def on_tree_gone(self, agent: Agent, frame: wire.TreeGone) -> None:
        if frame.leftover:
            data = {"processes": frame.leftover}
            self.broker.note(agent, "leftovers_killed", data, severity="warning")
        self.finish(agent)

    def on_sentry_died(self, agent: Agent, frame: wire.Died) -> None:
        """The zygote reaped a sentry, and has ended what it left. After TreeGone that is the normal course."""
        if agent.gone.is_set():
            return
        agent.lost = not agent.ended
        data = {"sentry_pid": frame.pid, "status": frame.status, "orphans": frame.orphans}
        self.broker.note(agent, "sentry_lost", data, severity="error", durable=True)
        if agent.lost:
            agent.exit_signal, agent.ended_by = posix.SIGKILL, agent.ended_by or "sentry lost"
        self.finish(agent)

    def finish(self, agent: Agent) -> None:
        """Nothing of the agent lives any more, or nothing was started: close its books."""
        if agent.gone.is_set():
            return
        agent.ended_ns = self._clock.wall_ns()
        agent.gone.set()  # before the move: whoever that wakes finds it so
        agent.move(lifecycle.Gone())
        agent.first_seen.set()
        for future in agent.deliveries.values():
            if not future.done():
                future.set_result(wire.Delivered(0, True, 0, "none", _ENDED))
        for query in agent.queries.values():
            query.cancel()
        agent.deliveries.clear()
        agent.queries.clear()
        self._agents.forget_results()
        self.on_gone(agent)


def _is_held(agent: Agent) -> bool:
    return agent.held and agent.state is State.STOPPED
