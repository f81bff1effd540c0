"""What becomes known of an agent that has ended: its result, or the error that says how else it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentos import errors
from agentos.errors import AgentFailed, AgentTimeoutError
from agentos.signals import describe_exit, signal_name
from agentos.supervisor.agents import Agent

PARENT_ENDED: Final = "parent ended"


def outcome(agent: Agent) -> bytes:
    """Return the packed result of an ended agent, which counts as collected then, or raise what became of it."""
    over = f"; not restarted any more: {agent.failed}" if agent.failed else ""
    if agent.timed_out:
        text = f"{agent.name} ran longer than {agent.timeout_s:g} s{over}"
        raise AgentTimeoutError(text, agent_id=agent.id, timeout_s=agent.timeout_s or 0.0)
    if agent.raised is not None and agent.raised.violation is not None:
        raise violation(agent.raised.violation)
    if agent.raised is not None:
        raised = agent.raised
        raise AgentFailed(f"{agent.name} raised {raised.type}: {raised.message}{over}", agent_id=agent.id,
                          remote_type=raised.type, remote_traceback=raised.traceback)  # fmt: skip
    if agent.result is not None and agent.exit_code == 0:
        agent.collected = True
        return agent.result
    if agent.ended_by == "policy":
        last = f"{agent.name} was ended by its policy"
        sent = signal_name(agent.exit_signal) if agent.exit_signal else None
        raise errors.PolicyViolationError("execute", agent.name, reason=last, on_violation=sent)
    if agent.spawn_error is not None or agent.start_error:
        raise AgentFailed(f"{agent.name} could not be started: {agent.why_not_started}{over}", agent_id=agent.id)
    if agent.exit_code is None and agent.exit_signal is None:
        raise AgentFailed(f"{agent.name} was ended before it had started", agent_id=agent.id)
    how = describe_exit(agent.exit_code, agent.exit_signal)
    if agent.ended_by == "protocol":
        how += "; it sent what is no frame, see the protocol_error in `agentos audit`"
    elif agent.ended_by == PARENT_ENDED:
        how += "; its parent had ended"
    elif agent.result_dropped:
        how += "; its result was dropped, too much waited to be collected"
    raise AgentFailed(f"{agent.name} ended without a result: {how}{over}", agent_id=agent.id, exit_code=agent.exit_code,
                      signal=agent.exit_signal)  # fmt: skip


def violation(fields: Mapping[str, Any]) -> errors.PolicyViolationError:
    """Return the error for what the agent says it was refused; only known fields, as plain text."""
    return errors.PolicyViolationError(
        str(fields.get("operation", "?")), str(fields.get("resource", "?")), reason=str(fields.get("reason", "?")),
        rule=fields.get("rule") if isinstance(fields.get("rule"), int) else None,
        rule_name=str(fields["rule_name"]) if fields.get("rule_name") else None,
        event_id=str(fields["event_id"]) if fields.get("event_id") else None,
        on_violation=str(fields["on_violation"]) if fields.get("on_violation") else None,
    )  # fmt: skip
