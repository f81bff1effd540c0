"""What follows when nothing of an agent lives any more: its children are ended, and it may get another life.

The rules of restarting stand in agentos.supervisor.restarts; here they are asked and carried out. A life that waits
for its back-off is an agent like one in line for a slot: it is shown, has a name, and can be told not to start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from agentos.clock import Clock
from agentos.errors import AgentosError, StillAlive
from agentos.supervisor import restarts
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings
from agentos.supervisor.lineage import Lineage
from agentos.supervisor.outcome import PARENT_ENDED
from agentos.supervisor.restarts import Ending
from agentos.supervisor.starting import Prepared, Starting
from agentos.supervisor.tasks import Tasks

_ENFORCED: Final = frozenset({"policy", "protocol"})


class Lives:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        agents: Agents,
        clock: Clock,
        broker: Broker,
        endings: Endings,
        starting: Starting,
        dice: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._agents = agents
        self._clock = clock
        self._broker = broker
        self._endings = endings
        self._starting = starting
        self._dice = dice
        self._tasks = Tasks(loop)

    def on_gone(self, agent: Agent) -> None:
        """Nothing of the agent lives any more. What comes of it is decided when this returns."""
        if not self._starting.closed:  # else everybody is being ended
            for child in self._agents.children(agent):
                child.commanded = True  # now: what has exited already may be gone before it can be asked to end
                self._tasks.start(self._end_child(child))
        if agent.lineage is not None:
            self._follow(agent, agent.lineage)

    async def _end_child(self, child: Agent) -> None:
        with contextlib.suppress(StillAlive):  # it is on record, and `ps` shows it
            await self._endings.stop(child, None, "kernel", why=PARENT_ENDED)

    # --- another life ----------------------------------------------------------------------------------------------

    def _follow(self, agent: Agent, lineage: Lineage) -> None:
        stopped_s = agent.clock.stood_s(self._loop.time()) if agent.clock is not None else 0.0
        ending = self._ending(agent)
        what = restarts.decide(lineage.policy, lineage.history, self._loop.time(), ending, stopped_s, self._dice)
        if isinstance(what, restarts.Restart):
            try:
                self._restart(agent, lineage, what)
            except AgentosError as error:  # such as a working directory that is not there any more
                what = restarts.GiveUp(f"it cannot be started again: {error}")
        if isinstance(what, restarts.GiveUp):
            agent.failed = what.why
            data = {"why": what.why, "policy": str(lineage.policy), "restarts": agent.restarts}
            self._broker.note(agent, "agent_failed", data, severity="error", durable=True)
        if agent.successor is None:
            lineage.kept.close()

    def _ending(self, agent: Agent) -> Ending:
        if self._starting.closed or agent.commanded:
            return Ending.COMMANDED
        if agent.ended_by in _ENFORCED:
            return Ending.ENFORCED
        if not agent.came_to_be and not agent.restarts and not agent.waited:
            return Ending.COMMANDED  # whoever asked for it is told right now why it could not be started
        succeeded = agent.exit_code == 0 and not agent.timed_out and agent.raised is None
        return Ending.SUCCESS if succeeded else Ending.FAILURE

    def _restart(self, agent: Agent, lineage: Lineage, what: restarts.Restart) -> None:
        """Make the next life, which waits until it is due. Raises AgentosError when it cannot even be made."""
        request = lineage.again(self._starting.new_id(), agent.saved_state)
        life = self._starting.prepare(request)
        lineage.history = what.history
        following = life.agent
        following.lineage, following.restarts = lineage, what.attempt
        following.previous_id, following.predecessor = agent.id, agent
        following.execution_id = agent.execution_id
        following.in_line = following.waited = True
        following.restart_at_ns = self._clock.wall_ns() + int(what.delay_s * 1e9)
        self._agents.add(following)
        agent.successor = following
        agent.result = agent.saved_state = None  # the next life has the state, and the result is nobody's
        self._broker.note(agent, "agent_restarting", {
            "why": agent.how_it_ended, "attempt": what.attempt, "delay_s": round(what.delay_s, 3),
            "policy": str(lineage.policy), "old_id": agent.id, "new_id": following.id,
        })  # fmt: skip
        self._tasks.start(self._when_due(life, lineage, what.not_before_s))

    async def _when_due(self, life: Prepared, lineage: Lineage, not_before_s: float) -> None:
        agent = life.agent
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(agent.gone.wait(), not_before_s - self._loop.time())
        if agent.gone.is_set():
            return
        agent.restart_at_ns = 0
        try:
            await self._starting.begin(life, lineage.stdin)
        except (AgentosError, OSError) as error:  # before it was born: for want of a record, or of a descriptor
            if not agent.gone.is_set():
                agent.start_error, agent.predecessor = str(error), None
                self._endings.finish(agent)
