"""Rate limits: at most N allowed calls in any 60 s, exactly, per rule and agent name, children included (R8)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agentos.actions import Action
from agentos.errors import BadRequest
from agentos.policies import Decision, EffectivePolicy, Pattern, Policy, Quota, Rule
from agentos.policies.quota import LOGS_BEFORE_SWEEP, Charge

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)


def limited(limit: int = 2, **more: object) -> Policy:
    return Policy("p", rules=[Rule("allow", Pattern("read", "*"), rate_limit=limit, **more)])  # type: ignore[arg-type]


class Agent:
    """An agent under a policy, with a clock of its own."""

    def __init__(
        self, policy: Policy, name: str = "a", parent: Agent | None = None, quota: Quota | None = None
    ) -> None:
        above = parent.policy if parent else None
        self.policy = EffectivePolicy(policy, workspace="/w", name=name, parent=above, quota=quota)
        self.name = name

    def reads(self, now_s: float, resource: str = "x", **claims: object) -> Decision:
        action = Action(operation="read", resource=resource, claims=claims)
        return self.policy.decide(action, cwd="/w", context={}, name=self.name, now_s=now_s, at=NOW)


def test_a_limit_trips_with_the_time_to_wait_and_recovers_to_the_second() -> None:
    """R8, R8.5: exact to the call, and half-open: a call sixty seconds old no longer counts."""
    agent = Agent(limited(2))
    assert agent.reads(100.0).allowed
    assert agent.reads(130.0).allowed
    over = agent.reads(130.0)
    assert (over.effect, over.reason, over.rule, over.retry_after_s) == ("deny", "rate_limited", 0, 30.0)
    assert (over.durable, over.cacheable) == (True, False)
    assert agent.reads(159.9).retry_after_s == pytest.approx(0.1)
    assert agent.reads(160.0).allowed
    assert agent.reads(160.0).retry_after_s == 30.0


def test_no_window_of_sixty_seconds_ever_holds_more_than_the_limit() -> None:
    """A token bucket would let almost 2N through after idling, a window by the clock 2N at its edge."""
    agent = Agent(limited(5))
    allowed = [t for t in (i * 0.7 for i in range(1_000)) if agent.reads(t).allowed]
    for start in allowed:
        assert sum(start <= t < start + 60 for t in allowed) <= 5
    assert len(allowed) == 5 * 12  # 700 s: and no fewer, either


def test_denied_calls_do_not_count() -> None:
    """R8.3: whether the limit denied them, another rule, or the other name of the same action."""
    agent = Agent(limited(1))
    assert agent.reads(0).allowed
    for second in range(1, 60):
        assert agent.reads(second).retry_after_s == 60 - second
    assert agent.reads(60).allowed

    rules = [Rule("deny", Pattern("read", "secret")), Rule("allow", Pattern("read", "*"), rate_limit=1)]
    policy = EffectivePolicy(Policy("p", rules=rules), workspace="/w")
    link = Action(operation="read", resource="link", resolved="/w/secret", source="hook")
    assert policy.decide(link, cwd="/w", context={}, name="a", now_s=0, at=NOW).rule == 0
    plain = Action(operation="read", resource="x", source="hook")
    assert policy.decide(plain, cwd="/w", context={}, name="a", now_s=0, at=NOW).allowed


def test_one_action_under_two_names_is_one_call() -> None:
    policy = EffectivePolicy(limited(2), workspace="/w")
    link = Action(operation="read", resource="link", resolved="/w/file", source="hook")
    results = [policy.decide(link, cwd="/w", context={}, name="a", now_s=0, at=NOW).effect for _ in range(3)]
    assert results == ["allow", "allow", "deny"]


def test_a_tripped_limit_does_not_fall_through_to_later_rules() -> None:
    """R8.5"""
    policy = limited(1)
    policy.add_rule("allow", Pattern("read", "*"))
    agent = Agent(policy)
    assert agent.reads(0).allowed
    assert agent.reads(0).reason == "rate_limited"


def test_one_log_per_rule_for_all_its_resources_and_one_per_agent_name() -> None:
    """R8.4, R8.6; a name that is started again goes on with its log."""
    quota = Quota()
    one, other = Agent(limited(1), "one", quota=quota), Agent(limited(1), "other", quota=quota)
    assert one.reads(0, "x").allowed
    assert not one.reads(0, "y").allowed
    assert other.reads(0, "x").allowed
    assert not Agent(limited(1), "one", quota=quota).reads(0).allowed


def test_each_rule_has_its_own_log() -> None:
    rules = [Rule("allow", Pattern("read", name), rate_limit=1) for name in ("x", "y")]
    agent = Agent(Policy("p", rules=rules))
    assert [agent.reads(0, name).allowed for name in ("x", "y", "x", "y")] == [True, True, False, False]


def test_a_log_survives_a_reload_while_the_rule_is_the_same() -> None:
    """R8: the same by its name, else by its content."""
    quota = Quota()
    assert Agent(limited(1), quota=quota).reads(0).allowed
    same = Policy("p", version="2", rules=[Rule("deny", Pattern("read", "new")), *limited(1).rules])
    assert not Agent(same, quota=quota).reads(0).allowed
    named = [limited(n, name="reads") for n in (1, 2)]
    assert Agent(named[0], quota=quota).reads(0).allowed
    assert [Agent(named[1], quota=quota).reads(0).allowed for _ in range(2)] == [True, False]
    assert Agent(limited(2), quota=quota).reads(0).allowed  # another rule: it has a log of its own


def test_a_tripped_limit_sends_the_signal_of_its_rule() -> None:
    """R13"""
    agent = Agent(limited(1, on_violation="SIGSTOP"))
    assert agent.reads(0).on_violation is None
    assert agent.reads(0).on_violation == "SIGSTOP"


def test_an_ask_rule_may_be_limited_too() -> None:
    policy = Policy("p", rules=[Rule("ask", Pattern("read", "*"), rate_limit=1, ask_timeout_s=9)])
    agent = Agent(policy)
    assert agent.reads(0).effect == "ask"
    over = agent.reads(0)
    assert (over.effect, over.reason, over.ask_timeout_s) == ("deny", "rate_limited", None)


def test_the_limit_of_a_deny_rule_counts_nothing() -> None:
    agent = Agent(Policy("p", rules=[Rule("deny", Pattern("read", "*"), rate_limit=1)]))
    assert [agent.reads(0).reason for _ in range(3)] == ["denied_by_rule"] * 3


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    agent = Agent(limited(2))
    assert agent.reads(100).allowed
    assert agent.reads(50).allowed
    assert agent.reads(50).retry_after_s == 60.0
    assert not agent.reads(159).allowed
    assert agent.reads(160).allowed


def test_children_of_a_strict_parent_spend_its_budget() -> None:
    """R8.4: else an agent would spawn its way around the limit."""
    parent = Agent(limited(3), "parent")
    children = [Agent(limited(3), f"child{i}", parent) for i in range(2)]
    assert parent.reads(0).allowed
    assert children[0].reads(0).allowed
    assert children[1].reads(0).allowed
    over = children[0].reads(1)
    assert (over.reason, over.layer, over.retry_after_s) == ("rate_limited", "parent", 59.0)
    assert not parent.reads(1).allowed
    assert children[0].reads(60).allowed


def test_a_call_that_one_budget_refuses_spends_neither() -> None:
    parent = Agent(limited(1), "parent")
    child = Agent(limited(2), "child", parent)
    assert child.reads(0).allowed
    assert not child.reads(0).allowed  # the parent's
    assert child.policy.quota.wait_s(Charge(f"p\n{limited(2).rules[0].identity()}", "child", 2), 0) == 0.0


def test_a_child_that_its_parents_inheritance_sets_free_spends_only_its_own() -> None:
    for inheritance in ("none", "permissive"):
        policy = Policy("p", rules=[Rule("allow", Pattern("read", "*"), rate_limit=1)], inheritance=inheritance)
        parent = Agent(policy, "parent")
        child = Agent(limited(1), "child", parent)
        assert child.reads(0).allowed
        assert parent.reads(0).allowed


def test_decide_counts_with_the_time_it_is_given() -> None:
    policy = limited(1)
    later = NOW.replace(minute=1)
    assert policy.decide("read", "x", at=NOW).allowed
    assert policy.decide("read", "x", at=NOW).retry_after_s == 60.0
    assert policy.decide("read", "x", at=NOW, name="other").allowed
    assert policy.decide("read", "x", at=later).allowed


def test_where_nothing_is_enforced_a_limit_only_shows() -> None:
    """R12"""
    agent = Agent(Policy("p", rules=limited(1).rules, enforce=False))
    assert (agent.reads(0).effect, agent.reads(0).would_deny) == ("allow", True)
    assert agent.reads(0).reason == "rate_limited"


def test_names_that_fall_silent_do_not_fill_the_kernel() -> None:
    """Agents choose their names; a log in which nothing counts any more goes."""
    quota = Quota()
    for i in range(5 * LOGS_BEFORE_SWEEP):
        quota.spend([Charge("r", f"n{i}", 1)], float(i))
    assert len(quota._logs) <= 2 * LOGS_BEFORE_SWEEP
    last = 5 * LOGS_BEFORE_SWEEP - 1
    old_and_new = Charge("r", "steady", 2)
    quota.spend([old_and_new], last - 70.0)
    quota.spend([old_and_new], last - 1.0)
    quota.spend([old_and_new], last - 1.0)
    quota._sweep(float(last))
    assert quota.wait_s(old_and_new, float(last)) == 59.0
    assert all(quota.wait_s(Charge("r", f"n{last - i}", 1), float(last)) > 0 for i in range(60))


def test_a_name_can_be_forgotten() -> None:
    quota = Quota()
    agent = Agent(limited(1), quota=quota)
    assert agent.reads(0).allowed
    quota.forget("a")
    assert agent.reads(0).allowed


def test_a_child_works_where_its_parent_does() -> None:
    parent = Agent(limited(1))
    with pytest.raises(BadRequest, match="workspace of its parent"):
        EffectivePolicy(limited(1), workspace="/other", parent=parent.policy)
