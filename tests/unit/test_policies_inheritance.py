"""What binds a child: inheritance (R9), permissions and restrictions (R9.4, R10); and claims, that only tighten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from agentos.actions import Action
from agentos.errors import BadRequest
from agentos.policies import Decision, EffectivePolicy, Pattern, Policy, Rule, standing

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def policy(*rules: str, inheritance: str = "strict", default: str = "deny", name: str = "p") -> Policy:
    """`policy("allow read a/*")`"""
    split = [rule.split(maxsplit=2) for rule in rules]
    built = [Rule(action, Pattern(operation, resource)) for action, operation, resource in split]
    return Policy(name, rules=built, default_action=default, inheritance=inheritance)


def under(child: Policy, *parents: Policy) -> Policy:
    """The child bounded by its parents, the nearest first."""
    for parent in parents:
        child = child.bounded_by(parent)
    return child


# --- R9 ----------------------------------------------------------------------------------------------------------

CHILD = policy("allow read a", "deny read b", "allow read d", name="child")
PARENT_RULES = ("deny read a", "allow read b", "allow read c", "allow read d")


@pytest.mark.parametrize(
    ("inheritance", "allowed"),
    [
        ("strict", {"d"}),  # both must allow
        ("permissive", {"a", "c", "d"}),  # a matching rule of the child decides, else the parent
        ("none", {"a", "d"}),  # the child alone
    ],
)
def test_the_parents_inheritance_says_how_two_policies_combine(inheritance: str, allowed: set[str]) -> None:
    bound = under(CHILD, policy(*PARENT_RULES, inheritance=inheritance))
    assert {name for name in "abcde" if bound.decide("read", name).allowed} == allowed


def test_the_childs_own_inheritance_is_not_asked() -> None:
    """R9: else a child would opt out."""
    free = policy("allow read *", inheritance="none", name="child")
    assert not under(free, policy("deny read a")).decide("read", "a").allowed


def test_a_default_of_the_child_does_not_decide_under_a_permissive_parent() -> None:
    child = policy("deny read b", default="allow")
    bound = under(child, policy("allow read b", inheritance="permissive"))
    assert [bound.decide("read", name).reason for name in ("a", "b")] == ["default_deny", "denied_by_rule"]


def test_the_decision_says_who_decided() -> None:
    parent = policy("allow read b", inheritance="strict", name="parent")
    bound = under(CHILD, parent)
    own, above = bound.decide("read", "b"), bound.decide("read", "a")
    assert (own.layer, own.rule, own.policy_hash) == ("policy", 1, bound.hash)
    assert (above.layer, above.rule, above.policy_hash) == ("parent", None, parent.hash)


@pytest.mark.parametrize(
    ("nearest", "farthest", "allowed"),
    [
        ("strict", "strict", set()),
        ("strict", "none", {"a"}),
        ("none", "strict", {"b"}),  # who lets its children go is bound from above itself, and they with it
        ("permissive", "strict", {"b"}),
        ("none", "none", {"a", "b", "c"}),
        ("strict", "permissive", {"a"}),
        ("permissive", "permissive", {"a", "b", "c"}),
    ],
)
def test_chains(nearest: str, farthest: str, allowed: set[str]) -> None:
    """Each ancestor's inheritance governs what is below it: the child allows a, b, c; its parent a; the one above b."""
    child = policy("allow read {a,b,c}")
    parent = policy("allow read a", "deny read {b,c}", inheritance=nearest)
    grand = policy("allow read b", "deny read {a,c}", inheritance=farthest)
    bound = under(child, parent, grand)
    assert {name for name in "abc" if bound.decide("read", name).allowed} == allowed
    nested = child.bounded_by(parent.bounded_by(grand))
    assert {name for name in "abc" if nested.decide("read", name).allowed} == allowed


def test_ask_lies_between_allow_and_deny() -> None:
    rules = {"allow": "allow read x", "ask": "ask read x", "deny": "deny read x"}
    strictest = {
        (c, p): under(policy(rules[c]), policy(rules[p])).decide("read", "x").effect for c in rules for p in rules
    }
    order = ["allow", "ask", "deny"]
    assert strictest == {(c, p): max(c, p, key=order.index) for c in rules for p in rules}


def test_a_bounded_policy_is_a_copy() -> None:
    child, parent = policy("allow read *"), policy("allow read a")
    bound = under(child, parent)
    before = bound.hash
    parent.add_rule("allow", Pattern("read", "b"))
    child.add_rule("deny", Pattern("read", "a"))
    assert bound.hash == before
    assert bound.decide("read", "a").allowed
    assert not bound.decide("read", "b").allowed
    assert child.parent is None
    assert under(child, parent).hash not in {child.hash, parent.hash, before}


def test_a_decision_of_a_chain_may_be_cached_only_if_all_of_it_may() -> None:
    limit = Policy("p", rules=[Rule("allow", Pattern("read", "*"), rate_limit=9)])
    assert under(policy("allow read x"), policy("allow read x")).decide("read", "x").cacheable
    assert not under(policy("allow read x"), limit).decide("read", "x").cacheable


# --- R9.4, R10: ceilings -----------------------------------------------------------------------------------------


def test_permissions_are_a_ceiling_and_none_sets_none() -> None:
    """R10"""
    everything = policy("allow * *")
    operations = ("read", "write", "execute", "network")

    def allowed(permissions: Iterable[str] | None) -> list[str]:
        return [op for op in operations if everything.decide(op, "x", permissions=permissions).allowed]  # type: ignore[arg-type]

    assert allowed(None) == list(operations)
    assert allowed([]) == []
    assert allowed(["read", "network"]) == ["read", "network"]
    assert allowed(["*"]) == list(operations)
    made = everything.decide("write", "x", permissions=["read"])
    assert (made.reason, made.layer, made.rule) == ("not_permitted", "permissions", None)


def test_permissions_grant_nothing_by_themselves() -> None:
    assert policy("allow read a").decide("write", "a", permissions=["read", "write"]).reason == "default_deny"


def test_a_permission_may_be_a_sub_operation() -> None:
    everything = policy("allow * *")
    assert everything.decide("network/connect", "x", permissions=["network"]).allowed
    assert everything.decide("network/connect", "x", permissions=["network/connect"]).allowed
    assert not everything.decide("network", "x", permissions=["network/connect"]).allowed


def test_granted_rules_follow_the_permissions() -> None:
    rules = [
        Rule("allow", Pattern("*", "*", conditions={"granted": True})),
        Rule("deny", Pattern("*", "x", conditions={"granted": False}), reason="ungranted"),
    ]
    asked = Policy("p", rules=rules, default_action="allow")
    assert asked.decide("read", "x", permissions=["read"]).rule == 0
    assert asked.decide("read", "x").reason == "ungranted"
    assert asked.decide("read", "y").reason == "default_allow"
    assert asked.decide("read", "x", permissions=["*"]).rule == 0
    assert asked.decide("read", "x", permissions=["read"]).cacheable  # settled once the permissions are known


def test_restrictions_take_operations_away() -> None:
    """R9.4"""
    bound = policy("allow * *").restricted(["no_network"])
    made = bound.decide("network/connect", "https://h/")
    assert (made.effect, made.reason, made.layer) == ("deny", "restricted", "permissions")
    assert bound.decide("read", "x").allowed
    twice = bound.restricted(["no_write"])
    assert [twice.decide(op, "x").allowed for op in ("read", "write", "network")] == [True, False, False]
    with pytest.raises(BadRequest, match=r"unknown restriction 'no_netwrok' \(did you mean 'no_network'\?\)"):
        bound.restricted(["no_netwrok"])


@pytest.mark.parametrize("inheritance", ["strict", "permissive", "none"])
def test_ceilings_bind_every_descendant(inheritance: str) -> None:
    """`inheritance` is about rules; what was taken from an agent is taken from all that it starts."""
    free = policy("allow * *", inheritance=inheritance)
    parent = EffectivePolicy(free, workspace="/w", permissions=["read", "network"], restrictions=["no_network"])
    child = EffectivePolicy(free, workspace="/w", parent=parent)
    grandchild = EffectivePolicy(free, workspace="/w", parent=child, permissions=["*"])
    for agent in (parent, child, grandchild):
        assert [act(agent, op, "x").reason for op in ("read", "write", "network")] == [
            "allowed_by_rule",
            "not_permitted",
            "restricted",
        ]


# --- agents ------------------------------------------------------------------------------------------------------


def act(
    agent: EffectivePolicy,
    operation: str,
    resource: str,
    *,
    context: Mapping[str, Any] | None = None,
    now_s: float = 0,
    **fields: Any,
) -> Decision:
    action = Action(operation=operation, resource=resource, **fields)
    return agent.decide(action, cwd="/w", context=context or {}, name="a", now_s=now_s, at=NOW)


def test_what_the_command_line_says_comes_before_the_policy() -> None:
    extra = [Rule("deny", Pattern("read", "a")), Rule("allow", Pattern("read", "b"))]
    agent = EffectivePolicy(policy("allow read a"), workspace="/w", extra_rules=extra)
    assert (act(agent, "read", "a").effect, act(agent, "read", "a").layer) == ("deny", "@flags")
    assert act(agent, "read", "b").allowed
    assert not act(EffectivePolicy(policy("allow read *"), workspace="/w", parent=agent), "read", "a").allowed


def test_a_bounded_policy_keeps_its_bounds_under_a_parent_agent() -> None:
    parent = EffectivePolicy(policy("allow read {a,b}"), workspace="/w")
    bound = under(policy("allow read *"), policy("allow read {b,c}"))
    child = EffectivePolicy(bound, workspace="/w", parent=parent)
    assert [act(child, "read", name).allowed for name in "abc"] == [False, True, False]


def test_restrictions_of_the_policy_and_of_the_agent_add_up() -> None:
    bound = policy("allow * *").restricted(["no_network"])
    agent = EffectivePolicy(bound, workspace="/w", restrictions=["no_write"])
    assert [act(agent, op, "x").allowed for op in ("read", "write", "network", "execute")] == [True, False, False, True]


def test_the_standing_sets_of_an_agent_hold_under_every_bound_of_its_policy() -> None:
    sets = standing(secret_self_paths=["/var/state"], command_paths=["/opt/tool"])
    agent = EffectivePolicy(under(policy("allow read a"), policy("allow read a")), workspace="/w", standing=sets)
    assert act(agent, "read", "/usr/lib/x.so").allowed
    assert act(agent, "execute", "/opt/tool").allowed
    assert act(agent, "read", "a").allowed
    assert act(agent, "read", "/var/state/x").reason == "protected"


def test_the_private_directory_of_a_child_is_its_own_whatever_its_parent_may() -> None:
    """It lies in a directory that is closed to every other agent."""

    def agent(private: str, parent: EffectivePolicy | None = None, **more: Any) -> EffectivePolicy:
        sets = standing(secret_self_paths=["/run/agentos"], private_paths=[private])
        return EffectivePolicy(Policy("p"), workspace="/w", standing=sets, parent=parent, **more)

    parent = agent("/run/agentos/tmp/1")
    child = agent("/run/agentos/tmp/2", parent, permissions=[])
    for operation in ("read", "write", "write/delete"):
        assert act(child, operation, "/run/agentos/tmp/2/x").layer == "@private"
        assert act(child, operation, "/run/agentos/tmp/2/x").allowed
        assert not act(child, operation, "/run/agentos/tmp/1/x").allowed
        assert not act(parent, operation, "/run/agentos/tmp/2/x").allowed
    assert act(child, "read", "/run/agentos/tmp/2/link", resolved="/run/agentos/key").reason == "protected"
    assert not act(child, "execute", "/run/agentos/tmp/2/x").allowed


# --- claims ------------------------------------------------------------------------------------------------------


def claimed(rules: list[Rule], claims: Mapping[str, Any], default: str = "deny", **context: Any) -> Decision:
    agent = EffectivePolicy(Policy("p", rules=rules, default_action=default), workspace=None)
    return act(agent, "execute", "tools/x", claims=claims, context=context)


def rule(action: str, **conditions: Any) -> Rule:
    return Rule(action, Pattern("execute", "tools/*", conditions=conditions))


def test_a_claim_never_satisfies_an_allow_or_an_ask_rule() -> None:
    assert not claimed([rule("allow", user_role="admin")], {"user_role": "admin"}).allowed
    assert not claimed([rule("allow", user_role="admin")], {"user_role": "admin"}, user_role="guest").allowed
    assert not claimed([rule("allow", max_cost=5)], {"cost": 1}).allowed
    for default in ("deny", "allow"):
        made = claimed([rule("ask", user_role="admin")], {"user_role": "admin"}, default, user_role="guest")
        assert made.effect == default


def test_a_claim_may_make_a_deny_rule_match_and_never_unmatch() -> None:
    deny = [rule("deny", user_role="guest")]
    assert claimed(deny, {}, "allow", user_role="admin").allowed
    assert not claimed(deny, {"user_role": "guest"}, "allow", user_role="admin").allowed
    assert not claimed(deny, {"user_role": "admin"}, "allow", user_role="guest").allowed
    assert not claimed(deny, {"user_role": "admin"}, "allow").allowed


def test_a_claim_may_raise_the_cost_and_never_lower_it() -> None:
    allow = [rule("allow", max_cost=10)]
    assert claimed(allow, {"cost": 9}, cost=1).allowed
    assert not claimed(allow, {"cost": 11}, cost=1).allowed
    assert not claimed(allow, {"cost": 1}, cost=11).allowed
    for nonsense in (float("nan"), -1, "1", True, None, [1]):
        assert not claimed(allow, {"cost": nonsense}, cost=1).allowed


def test_a_claim_does_not_lead_around_a_stricter_rule() -> None:
    """A dear call falls through to the next rule; that must not be a way to a wider answer."""
    rules = [
        Rule("allow", Pattern("execute", "tools/*", conditions={"max_cost": 10}), rate_limit=1),
        Rule("ask", Pattern("execute", "tools/*")),
    ]
    agent = EffectivePolicy(Policy("p", rules=rules), workspace=None)
    results = [act(agent, "execute", "tools/x", claims=c, context={"cost": 1}) for c in ({}, {}, {"cost": 99})]
    assert [made.reason for made in results] == ["allowed_by_rule", "rate_limited", "rate_limited"]
    assert act(agent, "execute", "tools/x", claims={"cost": 99}, context={"cost": 1}, now_s=60).effect == "ask"
