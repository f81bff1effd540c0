"""A policy that gains rules while others act by it: what is shared, what is counted on, and who must agree."""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from datetime import UTC, datetime

import pytest

from agentos.actions import Action
from agentos.errors import BadRequest, HostError, PolicyLoadError
from agentos.policies import Decision, EffectivePolicy, Pattern, Policy, Quota, Rule

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def rule(action: str, resource: str, **fields: object) -> Rule:
    return Rule(action, Pattern("read", resource), **fields)  # type: ignore[arg-type]


def act(agent: EffectivePolicy, resource: str, name: str = "a", now_s: float = 0.0) -> Decision:
    return agent.decide(
        Action(operation="read", resource=resource), cwd="/", context={}, name=name, now_s=now_s, at=NOON
    )


class Kernel:
    """A follower with a policy of its own, which it may refuse to change."""

    def __init__(self, policy: Policy, refuses: bool = False) -> None:
        self.ended = False
        self.rules = list(policy.rules)
        self.hash = policy.hash
        self.asked = 0
        self._refuses = refuses

    def rule_added(self, rule: Rule, before: str, after: str) -> None:
        self.asked += 1
        if self._refuses:
            raise HostError("no recorder")
        assert self.hash == before
        self.rules.append(rule)
        self.hash = after

    def rule_taken_back(self, before: str, after: str) -> None:
        if self.hash == after:
            self.rules.pop()
            self.hash = before


# --- compiled and hashed -----------------------------------------------------------------------------------------


def test_what_was_compiled_is_shared_and_the_blocks_stay_few() -> None:
    policy = Policy("p", rules=[rule("allow", f"d{number}/*") for number in range(3_000)])
    first = policy.compiled()
    for number in range(2_500):
        policy.add_rule(rule("deny", f"d{number}/x"))
        policy.compiled()
    blocks = policy.compiled()._blocks
    assert blocks[0] is first._blocks[0]  # three thousand rules are filed once, not 2,500 times
    assert len(blocks) < 20
    assert [block.first for block in blocks] == [sum(len(b.rules) for b in blocks[:n]) for n in range(len(blocks))]
    assert tuple(one for block in blocks for one in block.rules) == policy.rules
    assert policy.decide("read", "d7/x").rule == 7
    assert first.rules == policy.rules[:3_000]  # whoever decides by the old ones is not disturbed


def test_the_number_of_the_rule_that_decides_is_its_place_in_the_whole_policy() -> None:
    policy = Policy("p", rules=[rule("allow", "a"), rule("allow", "b")])
    policy.compiled()
    policy.add_rule(rule("allow", "c"))
    assert [policy.decide("read", name).rule for name in "abcd"] == [0, 1, 2, None]


def test_the_hash_goes_on_where_it_ended_and_is_that_of_the_whole_text() -> None:
    policy = Policy('"rules":[]', description='a "rules":[] b', rules=[])
    for number in range(5):
        form = [1, policy.as_dict(), [], None]
        whole = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert policy.hash == hashlib.sha256(whole.encode()).hexdigest()
        assert policy.restricted(["no_read"]).hash != policy.hash
        policy.add_rule(rule("allow", f"é{number}"))


def test_a_rule_travels_as_its_mapping() -> None:
    pattern = Pattern(
        ["execute", "write/delete"], ["git push", "x"], exclude="y", conditions={"time_window": {
            "start": "09:00", "end": "17:00"}, "user_role": ["admin", "op"], "max_cost": 1.5},
    )  # fmt: skip
    whole = Rule("ask", pattern, reason="r", name="n", description="d", rate_limit=3, audit="durable", ask_timeout_s=5)
    for one in (whole, rule("deny", "a", on_violation="SIGKILL")):
        assert Rule.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_a_mapping_that_is_no_rule_is_refused_by_name() -> None:
    good = rule("allow", "a").as_dict()
    for bad, said in (
        ({**good, "resuorce": "b"}, "unknown key 'resuorce' (did you mean 'resource'?)"),
        ({**good, "action": "alow"}, "unknown action 'alow' (did you mean 'allow'?)"),
        ({"action": "allow", "operation": "read"}, "a rule needs resource"),
        ({**good, "rate_limit": "3"}, "rate_limit is a number of calls a minute"),
        ({**good, 7: 1}, "unknown key 7"),
    ):
        with pytest.raises(PolicyLoadError) as caught:
            Rule.from_dict(bad)  # type: ignore[arg-type]
        assert said in str(caught.value)


# --- an agent under it -------------------------------------------------------------------------------------------


def test_rate_windows_survive_rules_that_come_and_go() -> None:
    quota = Quota()
    policy = Policy("p", rules=[rule("deny", "no"), rule("allow", "a/*", rate_limit=2)])
    parent = EffectivePolicy(policy, workspace="/w", name="parent", quota=quota)
    child = EffectivePolicy(policy, workspace="/w", name="child", parent=parent)
    assert [act(child, "a/x", "child").effect for _ in range(2)] == ["allow", "allow"]
    policy.add_rule(rule("allow", "b/*", rate_limit=1))
    for one in (parent, child):
        one.adopt(policy)
    assert act(child, "a/y", "child", 1.0).reason == "rate_limited"
    assert act(parent, "a/y", "parent", 1.0).reason == "rate_limited"  # its child spent that, too
    assert act(child, "b/y", "child", 1.0).effect == "allow"
    shorter = policy.without_last_rule()
    parent.adopt(shorter)
    child.adopt(shorter)
    assert act(child, "b/y", "child", 1.0).effect == "deny"
    assert act(child, "a/y", "child", 59.9).reason == "rate_limited"
    assert act(child, "a/y", "child", 60.0).effect == "allow"


def test_nothing_that_was_worked_out_before_is_remembered() -> None:
    policy = Policy("p", default_action="allow")
    agent = EffectivePolicy(policy, workspace="/w", permissions=["read"], extra_rules=[rule("deny", "flag")])
    before = policy.hash
    assert (act(agent, "a").effect, act(agent, "a").policy_hash) == ("allow", before)
    policy.add_rule(rule("deny", "a"))
    assert act(agent, "a").effect == "allow"  # not before it adopts
    agent.adopt(policy)
    assert (act(agent, "a").effect, act(agent, "a").rule, act(agent, "a").policy_hash) == ("deny", 0, policy.hash)
    assert policy.hash != before
    assert act(agent, "flag").layer == "@flags"  # what the agent itself was started with stays
    denied = agent.decide(Action(operation="write", resource="b"), cwd="/", context={}, name="a", now_s=0.0, at=NOON)
    assert denied.reason == "not_permitted"


# --- who follows -------------------------------------------------------------------------------------------------


def test_every_kernel_follows_in_order_and_one_that_ended_is_left_alone() -> None:
    policy = Policy("p")
    early, late, gone = Kernel(policy), Kernel(policy), Kernel(policy)
    for kernel in (early, gone):
        policy.followers.add(kernel)
    policy.add_rule(rule("allow", "a"))
    late.rules, late.hash = list(policy.rules), policy.hash
    policy.followers.add(late)
    gone.ended = True
    policy.add_rule(rule("deny", "b"))
    assert (early.rules, early.hash) == (late.rules, late.hash) == (list(policy.rules), policy.hash)
    assert gone.asked == 1


def test_when_one_kernel_refuses_the_rule_is_in_force_nowhere() -> None:
    policy = Policy("p", rules=[rule("allow", "a")])
    before = policy.hash
    willing, unwilling, last = Kernel(policy), Kernel(policy, refuses=True), Kernel(policy)
    for kernel in (willing, unwilling, last):
        policy.followers.add(kernel)
    with pytest.raises(HostError, match="no recorder"):
        policy.add_rule(rule("allow", "b"))
    assert {kernel.hash for kernel in (willing, unwilling, last)} == {before, policy.hash} == {before}
    assert policy.decide("read", "b").effect == "deny"
    assert (willing.asked, last.asked) == (1, 0)


def test_a_kernel_that_began_to_follow_during_a_change_that_failed_takes_it_back_as_well() -> None:
    policy = Policy("p")

    class Slow(Kernel):
        def rule_added(self, rule: Rule, before: str, after: str) -> None:
            meanwhile.rules, meanwhile.hash = list(policy.rules), policy.hash
            policy.followers.add(meanwhile)
            raise HostError("it hangs")

    meanwhile = Kernel(policy)
    policy.followers.add(Slow(policy))
    with pytest.raises(HostError, match="it hangs"):
        policy.add_rule(rule("allow", "a"))
    assert meanwhile.rules == []
    assert meanwhile.hash == policy.hash


def test_a_kernel_that_begins_while_a_change_is_taken_back_never_has_the_rule() -> None:
    policy = Policy("p")

    class Late(Kernel):
        def rule_taken_back(self, before: str, after: str) -> None:
            policy.followers.add(starting)  # too late to be told to go back
            starting.rules = list(policy.rules)

    starting = Kernel(policy)
    policy.followers.add(Late(policy, refuses=True))
    with pytest.raises(HostError, match="no recorder"):
        policy.add_rule(rule("allow", "a"))
    assert starting.rules == []


def test_who_cannot_be_told_back_is_named() -> None:
    policy = Policy("p")

    class Stuck(Kernel):
        def rule_taken_back(self, before: str, after: str) -> None:
            raise HostError("the kernel of run 7 hangs")

    policy.followers.add(Stuck(policy))
    policy.followers.add(Kernel(policy, refuses=True))
    with pytest.raises(HostError) as caught:
        policy.add_rule(rule("allow", "a"))
    assert caught.value.__notes__ == ["a kernel may still act by the rule: the kernel of run 7 hangs"]


def test_a_wrong_rule_is_refused_before_anybody_is_told() -> None:
    policy = Policy("p")
    kernel = Kernel(policy)
    policy.followers.add(kernel)
    before = policy.hash
    with pytest.raises(PolicyLoadError, match="did you mean 'allow'"):
        policy.add_rule("allwo", Pattern("read", "a"))
    with pytest.raises(PolicyLoadError, match="did you mean 'read'"):
        policy.add_rule("allow", Pattern("reed", "a"))
    with pytest.raises(PolicyLoadError, match="needs a pattern"):
        policy.add_rule("allow")
    assert (kernel.asked, policy.rules, policy.hash) == (0, (), before)


def test_threads_add_rules_one_after_the_other() -> None:
    policy = Policy("p")
    kernel = Kernel(policy)  # asserts that each change starts from where the one before ended
    policy.followers.add(kernel)
    failed: list[BaseException] = []

    def add(number: int) -> None:
        try:
            for each in range(20):
                policy.add_rule(rule("allow", f"{number}/{each}"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert len(policy.rules) == 80
    assert (kernel.rules, kernel.hash) == (list(policy.rules), policy.hash)


def test_a_change_inside_a_change_is_refused_instead_of_waiting_for_ever() -> None:
    """As from a signal handler: it interrupts the very thread that holds the right to change."""
    policy = Policy("p")

    class Interrupted(Kernel):
        def rule_added(self, rule: Rule, before: str, after: str) -> None:
            policy.add_rule("deny", Pattern("read", "b"))

    policy.followers.add(Interrupted(policy))
    with pytest.raises(BadRequest, match="outside the signal handler"):
        policy.add_rule(rule("allow", "a"))
    assert policy.rules == ()


def test_copies_have_no_followers_and_a_policy_still_travels() -> None:
    policy = Policy("p", rules=[rule("allow", "a", rate_limit=1)])
    kernel = Kernel(policy)
    policy.followers.add(kernel)
    assert policy.decide("read", "a").effect == "allow"
    copy = pickle.loads(pickle.dumps(policy))
    for other in (copy, policy.with_rules([]), policy.restricted(["no_write"]), policy.bounded_by(policy)):
        other.add_rule(rule("allow", "b"))
    assert kernel.asked == 0
    assert len(policy.rules) == 1
    assert copy.decide("read", "a").effect == "allow"  # it counts for itself
    assert copy.hash == policy.with_rules([rule("allow", "b")]).hash
