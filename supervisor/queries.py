"""What the kernel asks of an agent's runtime: its state, or to clean up. Down the calls pipe, and up comes the answer.

Owns who can be asked, and how long an answer is waited for; the broker hands the answers in. One counts for the
question of its id, of that very agent, once: any other is a protocol fault. What an answer holds is not looked at.
"""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import Any, Final

from agentos import wire
from agentos.errors import BadRequest, StateUnavailable, nearest
from agentos.lifecycle import State
from agentos.signals import describe_exit
from agentos.supervisor.agents import Agent
from agentos.supervisor.broker import Broker
from agentos.supervisor.lineage import latest

ASKED: Final = ("cleanup", "save_state", "get_state")
ANSWER_LIMIT_S: Final = 2.0  # a runtime that can answer does so in a millisecond; only a clean-up may take longer
OPEN_MAX: Final = 64  # questions of one agent without an answer, given up or not: each is a thread of its own there
DETAIL_CHARS_MAX: Final = 300  # of an agent's own words


class Queries:
    """One per kernel; the ids of its questions are unique in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, broker: Broker) -> None:
        self._loop = loop
        self._broker = broker
        self._ids = itertools.count(1)

    async def ask(self, agent: Agent, what: str, sender: str) -> bytes:
        """Have the agent answer `what`; returns its packed state. On record before and after.

        An agent that ended after it had saved a state still has one to get: that one. Raises BadRequest for another
        word than ASKED, StateUnavailable when there is no answer; it says why.
        """
        if what not in ASKED:
            known = ", ".join(ASKED)
            raise BadRequest(f"an agent cannot be asked {what!r}{nearest(what, ASKED)}; known: {known}")
        data = {"what": what, "sender": sender}
        self._broker.note(agent, "agent_asked", data)
        try:
            state = await self._state(agent, what)
        except StateUnavailable as error:
            self._broker.note(agent, "agent_answered", {**data, "ok": False, "detail": str(error)}, severity="warning")
            raise
        self._broker.note(agent, "agent_answered", {**data, "ok": True, "bytes": len(state)})
        return state

    async def _state(self, agent: Agent, what: str) -> bytes:
        saved = agent.saved_state
        why = _why_not_asked(agent)
        if not why:
            answer = await self._answer(agent, what)
            if answer is not None and answer.ok:
                if what == "save_state":
                    self._save(agent, answer.value, before=saved)
                return answer.value
            why = _why_unanswered(agent, what, answer)
        if what == "get_state" and agent.ended:
            if agent.saved_state is not None:
                return agent.saved_state
            why += "" if agent.successor else "; no state of it is kept"
        raise StateUnavailable(f"{what} of {agent.name} ({agent.id}): {why}")

    def _save(self, agent: Agent, state: bytes, before: bytes | None) -> None:
        """Keep what it answered; but what it saved by itself meanwhile is as new or newer."""
        if agent.saved_state is before:
            agent.saved_state = state
            self._broker.note(agent, "state_saved", {"bytes": len(state)})

    async def _answer(self, agent: Agent, what: str) -> wire.Answer | None:
        """Ask, and return the answer; None when it does not come in time, or the agent stops or ends before.

        A question that was given up stays open until its answer comes: a late one is no fault.
        """
        assert agent.calls is not None
        query = wire.Query(next(self._ids), what)
        answer: asyncio.Future[wire.Answer] = self._loop.create_future()
        agent.queries[query.id] = answer
        look = partial(_give_up, agent, answer)
        agent.changed.append(look)
        try:
            agent.calls.write(wire.encode(query))
            look()
            await asyncio.wait((answer,), timeout=ANSWER_LIMIT_S)
            return answer.result() if answer.done() and not answer.cancelled() else None
        finally:
            answer.cancel()
            agent.changed.remove(look)


def _give_up(agent: Agent, answer: asyncio.Future[Any]) -> None:
    if _why_silent(agent):
        answer.cancel()


def _why_not_asked(agent: Agent) -> str:
    """Return what keeps the agent from being asked, "" when nothing does."""
    if agent.kind != "python":
        return "it is a program, and has neither state nor clean-up functions here; send it a signal"
    if not agent.ended and (agent.in_line or not agent.pid):  # nothing may reach it before its Start does
        if agent.restart_at_ns:
            return "it waits to be started again"
        return "it waits for a free slot" if agent.in_line else "it is being started; ask again in a moment"
    if not agent.ended and len(agent.queries) >= OPEN_MAX:
        return f"it has not answered {OPEN_MAX} questions before this one"
    return _why_silent(agent)


def _why_silent(agent: Agent) -> str:
    """Return why an agent that was started can answer nothing now, "" when it can."""
    if agent.ended:
        how = describe_exit(agent.exit_code, agent.exit_signal) if agent.exit_on_record else "before it had started"
        return f"it has ended ({how})" + (f" and lives on as {latest(agent).id}" if agent.successor else "")
    if agent.state is State.STOPPED:
        return "it is stopped, and can answer only once it is continued; send it SIGCONT"
    if agent.calls is None or agent.calls.closed:
        return "it has closed its pipe to the kernel"
    return ""


def _why_unanswered(agent: Agent, what: str, answer: wire.Answer | None) -> str:
    if answer is not None:
        return f"it answered: {answer.error[:DETAIL_CHARS_MAX]}"
    why = _why_silent(agent) or f"no answer within {ANSWER_LIMIT_S:g} s"
    if what != "cleanup":
        return why
    return f"{why}; the clean-up is not confirmed" + ("" if agent.ended else ", what began of it goes on")
