"""Signals are heard by the host program before they are delivered, where it has handlers for them.

Owns which signals those are, the order in which signals to one agent leave, and what a handler's word means: a veto
keeps the signal from the agent, and anything else, no answer included, lets it pass. Signals to one agent leave in the
order in which they came, so one whose handler runs holds up those behind it. KILL and STOP are never heard and never
wait; a CONT that a STOP overtook here is spent, as Linux discards one (signal(7)).

A handler may send signals itself. They are ahead of what waits for that handler, they are not heard again by a handler
of the same agent and signal, and below HEARINGS_DEEP_MAX handlers that sent one another's signals by none at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from agentos.errors import BadRequest
from agentos.signals import AgentSignal, parse_signal
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.callbacks import Ask, nobody

HANDLER_LIMIT_S: Final = 5.0  # for all handlers of one signal together: then it is delivered
HEARINGS_DEEP_MAX: Final = 8  # handlers that send each other's signals: more is a circle
LINE_MAX: Final = 32  # lives and agents above one another that the host is told of, to find the loop of one
OVERTAKEN: Final = "a STOP that was commanded after it has taken effect"

Within = Sequence[tuple[str, int]]
Note = Callable[..., Any]


class Hearings:
    def __init__(self, loop: asyncio.AbstractEventLoop, agents: Agents) -> None:
        self._loop = loop
        self._agents = agents
        self._heard: frozenset[AgentSignal] = frozenset()
        self._last: dict[str, asyncio.Future[None]] = {}  # by agent: done when the signal that came last has left
        self.ask: Ask = nobody
        self.note: Note = lambda *_, **__: None

    def hear(self, signals: frozenset[AgentSignal]) -> None:
        """Take in for which signals the host program has handlers now."""
        self._heard = signals

    def concerns(self, agent: Agent, signal: AgentSignal) -> bool:
        """Whether a signal has to wait here, for its handler or behind another that does."""
        return signal.catchable and not agent.ended and (signal in self._heard or agent.id in self._last)

    async def before(self, agent: Agent, signal: AgentSignal, data: dict[str, Any], within: Within = ()) -> str:
        """Return why `signal` may not be delivered, "" when it may: then at once, or others are overtaken.

        `within`: the agents and signals whose handlers sent it.
        """
        stops = agent.stops
        if within:
            refusal = await self._judge(agent, signal, data, within)
        else:
            async with self._turn(agent.id):
                refusal = await self._judge(agent, signal, data, within)
        if not refusal and signal is AgentSignal.SIGCONT and agent.stops != stops:
            return OVERTAKEN
        return refusal

    async def _judge(self, agent: Agent, signal: AgentSignal, data: dict[str, Any], within: Within) -> str:
        heard_already = (agent.id, signal.value) in within or len(within) >= HEARINGS_DEEP_MAX
        if signal not in self._heard or heard_already or agent.ended:
            return ""
        params = {
            "agent_id": agent.id, "signal": signal.value, "line": self.line(agent),
            "within": [list(each) for each in within],
        }  # fmt: skip
        told = await self.ask("signal", params, HANDLER_LIMIT_S)
        said = told.value if isinstance(told.value, dict) else {}
        failures = [{"reason": told.failure, "error": told.text}] if told.failure else said.get("failures") or []
        for failure in failures:
            self.note(agent, "signal_handler_failed", {**data, **failure}, severity="warning")
        if said.get("veto") is not True:
            return ""
        handler = str(said.get("handler"))
        self.note(agent, "signal_vetoed", {**data, "handler": handler}, severity="warning", durable=True)
        return f"vetoed by the handler {handler} of the host program"

    def line(self, agent: Agent) -> list[str]:
        """Return the id of the agent, of its lives before and of those above it."""
        line = [agent.id]
        seen: Agent | None = agent
        while seen is not None and len(line) < LINE_MAX:
            before = seen.previous_id or seen.parent_id
            if before is None:
                break
            line.append(before)
            seen = self._agents.get(before)
        return line

    @contextlib.asynccontextmanager
    async def _turn(self, agent_id: str) -> AsyncIterator[None]:
        """Enter when every signal to the agent that came before has left, or was vetoed."""
        before, mine = self._last.get(agent_id), self._loop.create_future()
        self._last[agent_id] = mine
        try:
            if before is not None:
                await asyncio.shield(before)
            yield
        finally:
            if before is None or before.done():
                self._leave(agent_id, mine)
            else:  # cancelled while it waited: those behind it wait on
                before.add_done_callback(lambda _: self._leave(agent_id, mine))

    def _leave(self, agent_id: str, mine: asyncio.Future[None]) -> None:
        mine.set_result(None)
        if self._last.get(agent_id) is mine:
            del self._last[agent_id]


def parse_signals(words: Sequence[Any]) -> frozenset[AgentSignal]:
    """Return the signals that the host program has handlers for. Raises BadRequest, UnknownSignal."""
    signals = frozenset(parse_signal(word) for word in words)
    if not all(signal.catchable for signal in signals):
        raise BadRequest("handlers: KILL and STOP have none, they are delivered at once")
    return signals


def parse_within(words: Any) -> Within:
    """Return what a host program says of the handlers that sent a signal. Raises BadRequest."""
    pairs = words or []
    if not all(isinstance(pair, list) and [type(part) for part in pair] == [str, int] for pair in pairs):
        raise BadRequest("signal: within must be a list of pairs of an agent's id and a signal's number")
    return [(agent_id, number) for agent_id, number in pairs]
