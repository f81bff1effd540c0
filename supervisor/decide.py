"""What follows from a decision: the commands the broker carries out, in order. Pure.

`Record` always comes first: what was not recorded did not happen. A denial is answered only after its record is
durable; an allowed action that changes the world outside the agent too (docs/policies.md, "Durable").
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from agentos import wire
from agentos.policies import Decision

RECORDER_UNAVAILABLE: Final = "recorder_unavailable"
KERNEL_FAULT: Final = "kernel_fault"  # deciding failed, which allows nothing

_SEVERITY: Final = {"allow": "info", "ask": "info", "deny": "warning"}
_MACHINERY: Final = "@runtime"  # what any program reads to run at all: on record, but no part of the story


class Record(NamedTuple):
    event_type: str
    severity: str
    data: dict[str, Any]
    durable: bool


class Respond(NamedTuple):
    """Answer the agent. `verdict.seq` is filled in with the sequence number of the record before it."""

    verdict: wire.Verdict


class Send(NamedTuple):
    """Deliver the deciding rule's on_violation signal; never before its record."""

    signal: str


Command = Record | Respond | Send


def react(act: wire.Act, decision: Decision, level: str, context: dict[str, Any]) -> tuple[Command, ...]:
    """Return the commands for one decided action: Record, then Respond, then the rule's signal if it has one."""
    denied = decision.effect != "allow"
    data: dict[str, Any] = {
        "operation": act.operation,
        "resource": decision.resource,
        "effect": decision.effect,
        "rule": decision.rule,
        "rule_name": decision.rule_name,
        "reason": decision.reason,
        "layer": decision.layer,
        "policy_hash": decision.policy_hash,
        "level": level,
        "mechanism": act.source,
        "action_id": act.id,
    }
    _add_where_present(data, act, decision, context)
    event_type = "policy_violation" if denied or decision.would_deny else "action_allowed"
    severity = "warning" if decision.would_deny else _SEVERITY[decision.effect]
    if severity == "info" and decision.layer == _MACHINERY:
        severity = "debug"
    record = Record(event_type, severity, data, durable=decision.durable or denied)
    respond = Respond(_verdict(act, decision))
    if denied and decision.on_violation:
        return record, respond, Send(decision.on_violation)
    return record, respond


def _add_where_present(data: dict[str, Any], act: wire.Act, decision: Decision, context: dict[str, Any]) -> None:
    if act.resource != decision.resource:
        data["raw"] = act.resource
    if act.resolved is not None and act.resolved != act.resource:
        data["resolved"] = act.resolved
    if act.argv is not None:
        data["argv"] = act.argv
    if act.claims:
        data["claims"] = act.claims
    if context:
        data["context"] = context
    if decision.would_deny:
        data["enforced"] = False


def _verdict(act: wire.Act, decision: Decision) -> wire.Verdict:
    return wire.Verdict(
        act.id,
        "allow" if decision.effect == "allow" else "deny",
        decision.reason,
        decision.rule,
        decision.rule_name,
        decision.on_violation,
        decision.resource,
        0,
        decision.cacheable,
        decision.retry_after_s,
    )


def refuse(act: wire.Act, reason: str) -> wire.Verdict:
    """Return the denial for an action that could not even be decided or recorded."""
    return wire.Verdict(act.id, "deny", reason, None, None, None, act.resource, 0, False, None)
