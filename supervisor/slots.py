"""Slots as the kernel's loop hands them out: Admission decides who, here they are woken.

Also counts how often each registered agent was executed in the last minute. Owns no process and ends none.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agentos.errors import RateLimitedError
from agentos.policies import Quota
from agentos.policies.quota import Charge
from agentos.supervisor.admission import Admission

_EXECUTIONS: Final = "executions"  # the key of the count; rules have keys of their own in Quotas of their own


class Slots:
    """One per kernel; every method takes the id of an agent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slots_max: int) -> None:
        self._loop = loop
        self._admission = Admission(slots_max)
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._executions = Quota()

    @property
    def in_line(self) -> int:
        return self._admission.in_line

    def ask(self, agent_id: str, priority: int = 0) -> bool:
        """Return whether the agent may start now; else it is in line, and `turn` returns when it may."""
        self._wake(self._admission.ask(agent_id, priority), but=agent_id)
        if not self._admission.is_waiting(agent_id):
            return True
        self._waiting[agent_id] = self._loop.create_future()
        return False

    async def turn(self, agent_id: str) -> None:
        """Return when the agent may start, or when it left the line: whoever waits asks which."""
        if agent_id in self._waiting:
            await asyncio.shield(self._waiting[agent_id])  # one of several that wait must not take it from the others

    def leave(self, agent_id: str) -> None:
        """The agent has ended, or shall not start any more."""
        self._release(agent_id)
        self._wake(self._admission.leave(agent_id))

    def lend(self, agent_id: str) -> None:
        """The agent waits for its children: somebody else may run meanwhile."""
        self._wake(self._admission.lend(agent_id))
        if not self._admission.is_waiting(agent_id):
            self._release(agent_id)  # a call of it that waited for the slot need not wait any more

    async def reclaim(self, agent_id: str) -> None:
        """The agent has what it waited for; return when it has its slot back, or has ended."""
        self._wake(self._admission.reclaim(agent_id), but=agent_id)
        if self._admission.is_waiting(agent_id):
            self._waiting.setdefault(agent_id, self._loop.create_future())
            await self.turn(agent_id)

    def count_execution(self, name: str, limit: int | None) -> None:
        """Count one execution of a registered agent. Raises RateLimitedError when its limit is reached (R8)."""
        if limit is None:
            return
        charge = Charge(_EXECUTIONS, name, limit)
        now_s = self._loop.time()
        wait_s = self._executions.wait_s(charge, now_s)
        if wait_s > 0:
            raise RateLimitedError(
                "execute", name, retry_after_s=wait_s, reason="rate_limited", rule_name=f"register(rate_limit={limit})"
            )
        self._executions.spend([charge], now_s)

    def _wake(self, admitted: list[str], but: str = "") -> None:
        for agent_id in admitted:
            if agent_id != but:
                self._release(agent_id)

    def _release(self, agent_id: str) -> None:
        waiting = self._waiting.pop(agent_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
