"""Whether those who watch are awake: a stopped or hung sentry is ended with its tree, our own processes are woken.

An agent without a wall has our uid and may send SIGSTOP to any of us. A stopped sentry guards nothing, so it is
killed, and its agent with it. Guard, zygote and recorder get SIGCONT: while they are stopped nothing is adopted or
made durable. Counted in beats of this very process: a kernel that was itself stopped blames nobody for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final

from agentos import wire
from agentos.supervisor import linux
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker

BEAT_S: Final = 1.0
STOPPED_BEATS: Final = 2  # an agent of the same uid may SIGSTOP its sentry; a stopped sentry answers nothing
HUNG_BEATS: Final = 15  # not stopped, only slow: a loaded machine must not cost agents their lives


class Heartbeat:
    """`ours` names the processes of this run that must be awake, and their pids, at any moment."""

    def __init__(
        self,
        agents: Agents,
        broker: Broker,
        *,
        ours: Callable[[], Mapping[str, int]],
        record: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._agents = agents
        self._broker = broker
        self._ours = ours
        self._record = record
        self._ids = itertools.count(1)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._look()

    def _look(self) -> None:
        """Look at everybody once. Whom no descriptor is left to look at is looked at in the next beat."""
        for name, pid in self._ours().items():
            with contextlib.suppress(OSError):
                self._wake(name, pid)
        for agent in self._agents.living():
            if agent.to_sentry is not None and agent.sentry_pid:
                with contextlib.suppress(OSError):
                    self._beat(agent)

    def _beat(self, agent: Agent) -> None:
        assert agent.to_sentry is not None
        agent.silent_beats += 1
        agent.to_sentry.write(wire.encode(wire.Ping(next(self._ids))))
        if not agent.sentry_ticks and (found := linux.read_stat(str(agent.sentry_pid))) is not None:
            agent.sentry_ticks = found.start_ticks
        if agent.silent_beats > STOPPED_BEATS:
            self._end_silent(agent)

    def _end_silent(self, agent: Agent) -> None:
        found = linux.read_stat(str(agent.sentry_pid))
        if found is None or (found.ppid, found.start_ticks) != (os.getppid(), agent.sentry_ticks):
            return  # it is gone, and the zygote says so next
        stopped = found.state in "Tt"
        if stopped or agent.silent_beats > HUNG_BEATS:
            data = {"silent_beats": agent.silent_beats, "stopped": stopped}
            self._broker.note(agent, "sentry_hung", data, severity="error")
            _signal(found, signal.SIGKILL)

    def _wake(self, name: str, pid: int) -> None:
        found = linux.read_stat(str(pid)) if pid else None
        if found is not None and found.state in "Tt" and found.name.startswith("agentos-"):
            self._record("process_woken", {"process": name, "pid": pid})
            _signal(found, signal.SIGCONT)


def _signal(seen: linux.ProcStat, number: signal.Signals) -> None:
    """Signal the process that was seen, and no other that may have its pid by now."""
    try:
        descriptor = os.pidfd_open(seen.pid)
    except ProcessLookupError:
        return
    try:
        again = linux.read_stat(str(seen.pid))
        if again is not None and again.start_ticks == seen.start_ticks:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)
