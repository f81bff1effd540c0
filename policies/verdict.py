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
DURABLE_OPERATIONS: Final = frozenset({"execute", "network"})  # docs/policies.md, "Durable"; with every denial
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
    limit_key: str = ""  # whose log a rate limit counts in; "" for no limit


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

    def refusal(self, operation: str) -> tuple[str, bool] | None:
        """Return why the ceilings of this link or of those above refuse the operation, and whether that is enforced.

        Ceilings (R9.4, R10) bind every descendant, whatever `inheritance` says: it is about rules.
        """
        base = base_operation(operation)
        if base in self.restrictions:
            return reasons.RESTRICTED, self.enforce
        if self.permissions is not None and not self.permissions & {"*", base, operation}:
            return reasons.NOT_PERMITTED, self.enforce
        return self.parent.refusal(operation) if self.parent is not None else None


@dataclass(frozen=True, slots=True)
class Part:
    """The steps of one name under one link; the last of them is unconditional."""

    steps: tuple[Step, ...]
    link: Link

    def static(self) -> bool:
        """Whether no moment can change which step is chosen, and choosing it counts nothing."""
        return self.steps[0].when is None and not self.steps[0].limit_key


Plan = tuple[Part, ...]  # of one name: the agent's own part first, then those of its ancestors that have a say


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
            known = ", ".join(RESTRICTIONS)
            raise BadRequest(f"unknown restriction {name!r}{nearest(name, RESTRICTIONS)}; known: {known}")
    return frozenset(RESTRICTIONS[name] for name in restrictions)


# --- planning ----------------------------------------------------------------------------------------------------


def plan(link: Link, subject: Subject) -> Plan:
    """Return everything `link` and its ancestors can say about the subject."""
    parts = [Part(_steps(link, subject), link)]
    own = parts[0].steps[0].decision
    ancestor = None if own.layer == "@private" else link.parent  # nobody else's rules are about the agent's own files
    while ancestor is not None:
        if ancestor.inheritance != "none":
            parts.append(Part(_steps(ancestor, subject), ancestor))
        ancestor = ancestor.parent
    return tuple(parts)


def _steps(link: Link, subject: Subject) -> tuple[Step, ...]:
    standing = _standing(link, subject)
    if standing is not None:
        return (standing,)
    refused = link.refusal(subject.operation)
    if refused is not None:
        reason, enforce = refused
        return (_step(link, subject, "deny", reason, "permissions", enforce=enforce),)
    steps: list[Step] = []
    for layer, compiled in (("@flags", link.extra), ("policy", link.rules)):
        for index, rule in compiled.hits(subject) if compiled is not None else ():
            step = _rule_step(link, subject, layer, index, rule)
            if step is not None:
                steps.append(step)
                if step.when is None:
                    return tuple(steps)
    return (*steps, _default(link, subject))


def _standing(link: Link, subject: Subject) -> Step | None:
    if link.standing is None:
        return None
    absolute = subject.name.removeprefix("unix:") if subject.name.startswith("unix:/") else subject.name
    if not absolute.startswith("/"):  # a file of the workspace, then; what is semantic has no file behind it
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
    enforce: bool | None = None,
) -> Step:
    enforce = link.enforce if enforce is None else enforce
    made = _decision(link, subject, effect, reason, layer, index, rule, pure=when is None)
    if effect != "allow" and not enforce:
        made = replace(made, effect="allow", would_deny=True, on_violation=None, cacheable=False, ask_timeout_s=None)
    limited = rule is not None and rule.rate_limit is not None and effect != "deny"
    return Step(made, rule, when, enforce, decides, f"{link.policy}\n{rule.identity()}" if limited and rule else "")


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
    """Return whether the record must be on stable storage before the answer leaves."""
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
    if not all(part.static() for parts in plans for part in parts):
        return None
    if len(plans) == 1 and len(plans[0]) == 1:  # the usual case: one name, no parent
        return plans[0][0].steps[0].decision
    return _worst([_choose(p, Facts(), "-") for p in plans]).decision


def decide(plans: Sequence[Plan], facts: Facts, name: str, quota: Quota, now_s: float) -> Decision:
    """Return the decision at this moment, and spend the rate limits of an action that may go ahead.

    Claims only tighten: the answer is the worse of the one without them and the one with them, limits included.
    """
    outcomes = [_choose(p, replace(facts, claims=_NOTHING), name) for p in plans]
    if facts.claims:
        outcomes += [_choose(p, facts, name) for p in plans]
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
        signal = step.rule.on_violation if step.rule else None  # R13: also when the limit trips
        refused = replace(step.decision, effect="deny", reason=reasons.RATE_LIMITED, retry_after_s=wait_s)
        return replace(refused, on_violation=signal, durable=True, cacheable=False, ask_timeout_s=None)
    return unenforced


def _choose(parts: Plan, facts: Facts, name: str) -> Outcome:
    """Fold the ancestors over the agent's own outcome: the inheritance of each governs what is below it (R9)."""
    outcome = _own(parts[0], facts, name)
    for part in parts[1:]:
        if part.link.inheritance == "permissive" and outcome.decides:
            continue
        # an ancestor without a name of its own shares one budget among all its children: tighter, never wider
        above = _own(part, facts, part.link.name or "-")
        above = _of_parent(above)
        outcome = above if part.link.inheritance == "permissive" else _both(outcome, above)
    return outcome


def _of_parent(outcome: Outcome) -> Outcome:
    """Return the outcome with `parent` as its layer, also where a limit of it trips."""
    made = replace(outcome.decision, layer="parent")
    return replace(
        outcome,
        decision=made,
        charges=tuple((charge, replace(step, decision=made)) for charge, step in outcome.charges),
    )


def _both(below: Outcome, above: Outcome) -> Outcome:
    """Return the more restrictive of two that must both allow; both are counted (R8.4), and that settles it."""
    decision = max(below.decision, above.decision, key=_rank)
    return Outcome(decision, decides=True, charges=below.charges + above.charges)


def _own(part: Part, facts: Facts, name: str) -> Outcome:
    for step in part.steps:
        rule = step.rule
        if step.when is None or rule is None or matches(step.when, rule.action, facts.context, facts.claims, facts.at):
            break
    charges: tuple[tuple[Charge, Step], ...] = ()
    if step.limit_key and step.rule is not None and step.rule.rate_limit is not None:
        charges = ((Charge(step.limit_key, name, step.rule.rate_limit), step),)
    return Outcome(step.decision, step.decides, charges)


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the most restrictive outcome, the first of equals: the name that was asked for comes first."""
    return max(outcomes, key=lambda outcome: _rank(outcome.decision))


def _rank(made: Decision) -> int:
    return 1 if made.would_deny else _RANK[made.effect]
