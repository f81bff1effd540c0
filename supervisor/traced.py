"""The broker of a kernel with debug=True: it does what the broker does, and says so. Without debug there is none.

Every action takes the long way here, past the places where a line is due.
"""

from __future__ import annotations

from typing import Any, Final

from agentos import wire
from agentos.actions import Action
from agentos.policies import Decision
from agentos.recorder.redact import redact_text
from agentos.supervisor.agents import Agent
from agentos.supervisor.broker import Broker
from agentos.supervisor.repeating import Repeating
from agentos.supervisor.trace import Trace, shown

ASKED_MAX: Final = 65_536  # actions whose verdicts are not out: more than all agents may have together, usually
_NS_PER_MS: Final = 1e6


class _LongWay(Repeating):
    """There is no short way."""

    def again(self, agent: Agent, data: bytes) -> bool:
        return False

    def first(self, agent: Agent, act: wire.Act, action: Action, decision: Decision) -> bool:
        return False


class TracedBroker(Broker):
    """A Broker that tells `trace` of frames, decisions and signals."""

    def __init__(self, trace: Trace, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._trace = trace
        self._repeating = _LongWay(self._recording, self._on_fault)
        self._asked: dict[tuple[str, int], tuple[str, int]] = {}  # by agent and action: operation, and when

    def _take(self, agent: Agent, frame: Any) -> None:
        self._trace.of(agent, f"← {header(frame)}, {agent.intake.frame_bytes if agent.intake else 0} bytes")
        super()._take(agent, frame)

    def on_sentry_frame(self, agent: Agent, frame: Any) -> None:
        self._trace.of(agent, f"← sentry: {header(frame)}, {len(wire.encode(frame))} bytes")
        super().on_sentry_frame(agent, frame)

    def _on_act(self, agent: Agent, act: wire.Act) -> None:
        if len(self._asked) >= ASKED_MAX:
            self._asked.clear()
        self._asked[agent.id, act.id] = (act.operation, self._clock.monotonic_ns())
        super()._on_act(agent, act)

    def _respond(self, agent: Agent, verdict: wire.Verdict) -> None:
        now_ns = self._clock.monotonic_ns()
        operation, since_ns = self._asked.pop((agent.id, verdict.id), ("?", now_ns))
        self._trace.of(agent, decision_line(operation, verdict, (now_ns - since_ns) / _NS_PER_MS))
        super()._respond(agent, verdict)

    def note(self, agent: Agent, event_type: str, data: dict[str, Any], **fields: Any) -> None:
        if event_type == "signal_sent":
            self._trace.of(agent, f"{data['signal']} to its {data['scope']}, from {shown(str(data['sender']))}")
        elif event_type == "signal_confirmed":
            took = f"reached {data['processes']} processes" if data["ok"] else "was not confirmed"
            self._trace.of(agent, f"{data['signal']} {took}")
        elif event_type == "signal_vetoed":
            self._trace.of(agent, f"{data['signal']} was vetoed by {shown(data['handler'])}")
        super().note(agent, event_type, data, **fields)


def header(frame: Any) -> str:
    """Return type and id of a frame; of a call the method, too. Nothing else that it holds."""
    number = getattr(frame, "id", None)
    method = f" {shown(frame.method)}" if isinstance(frame, wire.Call) else ""
    return f"{type(frame).__name__}{method}" + (f" {number}" if isinstance(number, int) else "")


def decision_line(operation: str, verdict: wire.Verdict, took_ms: float) -> str:
    """Return what was decided about what, by which rule, and how long the agent waited for it."""
    name = f" {shown(verdict.rule_name)!r}" if verdict.rule_name else ""
    rule = f"rule {verdict.rule}{name}" if verdict.rule is not None else shown(verdict.reason)
    resource = shown(redact_text(verdict.resource))  # such as a password in a URL
    return f"{verdict.effect} {shown(operation)} {resource}: {rule}, {took_ms:.2f} ms"
