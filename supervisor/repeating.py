"""The short way of an action that was allowed before: decided as ever; its record and its verdict come from moulds.

The order is that of the long way: decide, record, answer. Where anything is not as it was, nothing is done and the long
way does it all, or meets the same difficulty and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agentos import wire
from agentos.actions import Action
from agentos.errors import RecorderUnavailable
from agentos.mould import HOLE
from agentos.policies import Decision
from agentos.supervisor import decide
from agentos.supervisor.agents import Agent
from agentos.supervisor.recording import Recording
from agentos.supervisor.repeats import Repeat, verdict_mould

_ACTS: Final = frozenset({wire.Act})


class Repeating:
    """One per kernel."""

    def __init__(self, recording: Recording, on_fault: Callable[[Agent, wire.Act, Exception], None]) -> None:
        self._recording = recording
        self._on_fault = on_fault  # says so, and refuses the action

    def again(self, agent: Agent, data: bytes) -> bool:
        """Do what follows from an action whose bytes are those of an allowed one; False when `data` is not that."""
        act_id, rest = wire.split_act(data)
        repeat = agent.repeats.find(rest)
        agent.repeats.missed = rest  # if it is: the long way decodes and decides this very action next
        try:
            if repeat is None or agent.policy.settled(repeat.action, cwd=repeat.cwd) is not repeat.decision:
                return False
        except Exception:  # the long way meets it again, and says so
            return False
        try:
            if not self._perform(agent, act_id, repeat):
                return False
        except Exception as error:  # not for the long way: the record may hold the action already
            self._on_fault(agent, wire.decode_whole(data, _ACTS), error)
        agent.actions += 1
        return True

    def first(self, agent: Agent, act: wire.Act, action: Action, decision: Decision) -> bool:
        """Do what follows from this decision, and be ready for the next time; False when there is no short way."""
        repeat = self._prepare(agent, act, action, decision)
        return repeat is not None and self._perform(agent, act.id, repeat)

    def _perform(self, agent: Agent, act_id: int, repeat: Repeat) -> bool:
        try:
            seq = agent.last_seq = self._recording.append_cast(repeat.record, act_id)
        except RecorderUnavailable:
            return False
        if agent.verdicts is not None:
            agent.verdicts.write(repeat.verdict.cast(act_id, seq))
        return True

    def _prepare(self, agent: Agent, act: wire.Act, action: Action, decision: Decision) -> Repeat | None:
        """Return what this action and all like it need, if they are allowed at once and no moment can change that."""
        if not decision.cacheable or act.id < 0:
            return None
        record, respond = decide.react(act, decision, agent.level, agent.context)
        assert isinstance(record, decide.Record)
        assert isinstance(respond, decide.Respond)
        record.data["action_id"] = HOLE
        who = agent.id, agent.name, agent.execution_id
        event = self._recording.mould(record.event_type, record.severity, who, record.data)
        frame = verdict_mould(respond.verdict)
        if event is None or frame is None:
            return None
        repeat = Repeat(action, act.cwd or agent.cwd, decision, event, frame)
        agent.repeats.keep(repeat)
        return repeat
