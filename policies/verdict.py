"""From rules to a decision: the layers before a policy, its rules, its default, and the parent's bound (R5 to R13).

A plan is what can be said of an action before its moment is known: per name, the rules that match, in order,
down to the first that needs no moment. Choosing from a plan looks at context, claims and time; only then are rate
limits spent, all or none. Both names of an action must pass; deny beats ask beats allow (R2.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Protocol

from agentos.actions import OPERATIONS, base_operation
from agentos.errors import BadRequest, nearest
from agentos.policies import decision as reasons
from agentos.policies.conditions import Conditions, matches
from agentos.policies.decision import Decision, Effect
from agentos.policies.engine import Compiled, Subject
from agentos.policies.quota import Charge, Quota
from agentos.policies.rule import Rule

RESTRICTIONS: Final = {f"no_{operation}": operation for operation in OPERATIONS}
DURABLE_OPERATIONS: Final = frozenset({"execute", "network"})  # DESIGN 5; with every denial
DURABLE_SUBOPERATIONS: Final = frozenset({"write/delete", "write/unlink", "write/rmdir"})
_RANK: Final[Mapping[str, int]] = {"deny": 3, "ask": 2, "allow": 0}
_NOTHING: Final[Mapping[str, Any]] = {}


class StandingRules(Protocol):
    """The rule sets that stand before every policy."""

    def verdict(self, operation: str, absolute: str, *, runtime: bool) -> tuple[str, Effect] | None:
        """Return (layer, effect) where one of them speaks about a file, by its absolute name."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is only known at the moment of the action."""

    context: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    claims: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing a plan may end with. `rule` is None where no rule decides; `when` is None where nothing is open."""

    decision: Decision
    rule: Rule | None = None
    when: Conditions | None = None
    enforce: bool = True
    decides: bool = True  # False for a default: under permissive inheritance the parent is asked instead


@dataclass(frozen=True, slots=True)
class Link:
    """One policy as it binds one agent; `parent` leads to what binds that agent from above (R9)."""

    policy: str  # its name, for the identity of its rate limits
    hash: str
    rules: Compiled
    default_action: str
    inheritance: str
    enforce: bool = True
    runtime: bool = True
    extra: Compiled | None = None
    permissions: frozenset[str] | None = None
    restrictions: frozenset[str] = frozenset()  # operations taken away
    standing: StandingRules | None = None
    workspace: str | None = None
    name: str | None = None
    parent: Link | None = None

    def refusal(self, operation: str) -> str | None:
        """Return why this link's ceilings, or those above it, refuse the operation; None when they do not (R10)."""
        base = base_operation(operation)
        if base in self.restrictions:
            return reasons.RESTRICTED
        if self.permissions is not None and not self.permissions & {"*", base, operation}:
            return reasons.NOT_PERMITTED
        return self.parent.refusal(operation) if self.parent is not None else None


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one name under one link, the last of them unconditional, and the plan of the parent."""

    steps: tuple[Step, ...]
    link: Link
    parent: Plan | None

    def static(self) -> bool:
        """Whether no moment can change the outcome."""
        first = self.steps[0]
        own = first.when is None and (first.rule is None or first.rule.rate_limit is None)
        return own and (self.parent is None or self.parent.static())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was chosen for one name, and the calls that it would count."""

    decision: Decision
    decides: bool
    charges: tuple[tuple[Charge, Step], ...] = ()


def ceiling(permissions: Iterable[str] | None) -> frozenset[str] | None:
    """Return permissions as a ceiling. Raises BadRequest for an operation nobody knows (R10)."""
    if permissions is None:
        return None
    if isinstance(permissions, str):
        raise BadRequest(f"permissions is a list of operations; write [{permissions!r}]")
    for operation in permissions:
        if base_operation(operation) not in (*OPERATIONS, "*"):
            raise BadRequest(f"unknown permission {operation!r}{nearest(operation, OPERATIONS)}")
    return frozenset(permissions)


def taken_away(restrictions: Iterable[str]) -> frozenset[str]:
    """Return the operations that restrictions such as `no_network` remove. Raises BadRequest (R9.4)."""
    for name in restrictions:
        if name not in RESTRICTIONS:
            raise BadRequest(f"unknown restriction {name!r}{nearest(name, RESTRICTIONS)}; known: {', '.join(RESTRICTIONS)}")
    return frozenset(RESTRICTIONS[name] for name in restrictions)


# --- planning ----------------------------------------------------------------------------------------------------


def plan(link: Link, subject: Subject) -> Plan:
    """Return everything `link` and its ancestors can say about the subject."""
    above = None
    if link.parent is not None and link.parent.inheritance != "none":
        above = plan(link.parent, subject)
    return Plan(tuple(_steps(link, subject)), link, above)


def _steps(link: Link, subject: Subject) -> Iterable[Step]:
    standing = _standing(link, subject)
    if standing is not None:
        return (standing,)
    refused = link.refusal(subject.operation)
    if refused is not None:
        return (_step(link, subject, "deny", refused, "permissions"),)
    steps: list[Step] = []
    for layer, compiled in (("@flags", link.extra), ("policy", link.rules)):
        for index in compiled.hits(subject) if compiled is not None else ():
            step = _rule_step(link, subject, layer, index, compiled.rules[index]) if compiled is not None else None
            if step is not None:
                steps.append(step)
                if step.when is None:
                    return steps
    steps.append(_default(link, subject))
    return steps


def _standing(link: Link, subject: Subject) -> Step | None:
    if link.standing is None:
        return None
    absolute = subject.name.removeprefix("unix:") if subject.name.startswith("unix:/") else subject.name
    if not absolute.startswith("/"):
        if link.workspace is None or "://" in absolute or base_operation(subject.operation) == "network":
            return None
        absolute = link.workspace if absolute == "." else f"{link.workspace.rstrip('/')}/{absolute.removeprefix('./')}"
    found = link.standing.verdict(subject.operation, absolute, runtime=link.runtime)
    if found is None:
        return None
    layer, effect = found
    reason = reasons.PROTECTED if effect == "deny" else reasons.STANDING_ALLOW
    return Step(_decision(link, subject, effect, reason, layer))  # enforced by every policy, `audit` included


def _rule_step(link: Link, subject: Subject, layer: str, index: int, rule: Rule) -> Step | None:
    """Return the step of a matching rule; None when its `granted` condition settles that it does not apply."""
    when = rule.pattern.when
    if when is not None and when.granted is not None:
        granted = bool((link.permissions or frozenset()) & {"*", base_operation(subject.operation), subject.operation})
        if when.granted is not granted:
            return None
    if when is not None and when.static:
        when = None
    effect: Effect = rule.action  # type: ignore[assignment]  # one of ACTIONS, checked at construction
    reason = rule.reason or {
        "allow": reasons.ALLOWED_BY_RULE, "deny": reasons.DENIED_BY_RULE, "ask": reasons.ASKED_BY_RULE,
    }[effect]  # fmt: skip
    return _step(link, subject, effect, reason, layer, index=index, rule=rule, when=when)


def _default(link: Link, subject: Subject) -> Step:
    if link.default_action == "allow":
        return _step(link, subject, "allow", reasons.DEFAULT_ALLOW, "policy", decides=False)
    return _step(link, subject, "deny", reasons.DEFAULT_DENY, "policy", decides=False)


def _step(
    link: Link,
    subject: Subject,
    effect: Effect,
    reason: str,
    layer: str,
    *,
    index: int | None = None,
    rule: Rule | None = None,
    when: Conditions | None = None,
    decides: bool = True,
) -> Step:
    made = _decision(link, subject, effect, reason, layer, index, rule, pure=when is None)
    if effect != "allow" and not link.enforce:
        made = replace(made, effect="allow", would_deny=True, on_violation=None, cacheable=False, ask_timeout_s=None)
    return Step(made, rule, when, link.enforce, decides)


def _decision(
    link: Link,
    subject: Subject,
    effect: Effect,
    reason: str,
    layer: str,
    index: int | None = None,
    rule: Rule | None = None,
    pure: bool = True,
) -> Decision:
    durable = is_durable(effect, subject.operation, rule)
    limited = rule is not None and rule.rate_limit is not None
    return Decision(
        effect=effect,
        rule=index,
        rule_name=rule.name if rule else None,
        reason=reason,
        on_violation=rule.on_violation if rule is not None and effect == "deny" else None,
        operation=subject.operation,
        resource=subject.name,
        policy_hash=link.hash,
        layer=layer,
        durable=durable,
        cacheable=pure and effect == "allow" and not durable and not limited,
        ask_timeout_s=rule.ask_timeout_s if rule is not None and effect == "ask" else None,
    )


def is_durable(effect: Effect, operation: str, rule: Rule | None) -> bool:
    """Return whether the record must be on stable storage before the answer leaves (DESIGN 5)."""
    return (
        effect == "deny"
        or base_operation(operation) in DURABLE_OPERATIONS
        or operation in DURABLE_SUBOPERATIONS
        or (rule is not None and rule.audit == "durable")
    )


def invalid(link: Link, operation: str, resource: str, reason: str) -> Decision:
    """Return the denial of a name or an operation that cannot be read: in force under every policy (R12)."""
    return Decision("deny", None, None, reason, None, operation, resource, link.hash, layer="invalid", durable=True)


# --- choosing ----------------------------------------------------------------------------------------------------


def settle(plans: Sequence[Plan]) -> Decision | None:
    """Return the decision where no moment can change it, else None."""
    if not all(p.static() for p in plans):
        return None
    return _worst([_choose(p, Facts(), "-") for p in plans]).decision


def decide(plans: Sequence[Plan], facts: Facts, name: str, quota: Quota, now_s: float) -> Decision:
    """Return the decision at this moment, and spend the rate limits of an action that may go ahead."""
    outcomes = [_choose(p, facts, name) for p in plans]
    worst = _worst(outcomes)
    made = worst.decision
    if made.effect != "deny":
        charges = {charge: step for outcome in outcomes for charge, step in outcome.charges}
        over = _limited(charges, made, quota, now_s)
        if over is not None and over.effect == "deny":
            return over
        quota.spend([c for c in charges if quota.wait_s(c, now_s) == 0.0], now_s)
        made = over or made
    return replace(made, cacheable=False) if made.cacheable else made


def _limited(charges: Mapping[Charge, Step], made: Decision, quota: Quota, now_s: float) -> Decision | None:
    """Return the denial of the first exhausted limit (R8.5), an allowance marked `would_deny` when not enforced."""
    unenforced = None
    for charge, step in charges.items():
        wait_s = quota.wait_s(charge, now_s)
        if wait_s <= 0.0:
            continue
        if not step.enforce:
            unenforced = replace(made, would_deny=True, reason=reasons.RATE_LIMITED, cacheable=False)
            continue
        return replace(
            step.decision, effect="deny", reason=reasons.RATE_LIMITED, retry_after_s=wait_s, durable=True, cacheable=False,
            on_violation=step.rule.on_violation if step.rule else None, ask_timeout_s=None,
        )  # fmt: skip
    return unenforced


def _choose(plan: Plan, facts: Facts, name: str) -> Outcome:
    own = _own(plan, facts, name)
    if plan.parent is None:
        return own
    if plan.parent.link.inheritance == "permissive" and own.decides:
        return own
    # a parent without a name of its own shares one budget among all its children: tighter, never wider
    above = _choose(plan.parent, facts, plan.parent.link.name or "-")
    if plan.parent.link.inheritance == "permissive":
        return above
    charges = own.charges + above.charges
    if _rank(above.decision) > _rank(own.decision):
        return Outcome(replace(above.decision, layer="parent"), above.decides, charges)
    return Outcome(own.decision, own.decides, charges)


def _own(plan: Plan, facts: Facts, name: str) -> Outcome:
    for step in plan.steps:
        rule = step.rule
        if step.when is not None and rule is not None:
            if not matches(step.when, rule.action, facts.context, facts.claims, facts.at):
                continue
        if rule is None or rule.rate_limit is None or rule.action == "deny":
            return Outcome(step.decision, step.decides)
        charge = Charge(f"{plan.link.policy}\n{rule.identity()}", name, rule.rate_limit)
        return Outcome(step.decision, step.decides, ((charge, step),))
    raise AssertionError("a plan ends with an unconditional step")


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the most restrictive outcome, the first of equals: the name that was asked for comes first."""
    return max(outcomes, key=lambda outcome: _rank(outcome.decision))


def _rank(made: Decision) -> int:
    return 1 if made.would_deny else _RANK[made.effect]
