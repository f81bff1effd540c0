"""A policy that grew while it was in use is the policy that was made with all its rules at once."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_worlds import World

from agentos.actions import Action
from agentos.policies import Decision, EffectivePolicy, Policy, Quota

REQUESTS = 12


class Family:
    """An agent and its parent, under one policy."""

    def __init__(self, policy: Policy) -> None:
        self.quota = Quota()
        self.above = EffectivePolicy(policy, workspace="/w", name="above", quota=self.quota)
        self.below = EffectivePolicy(policy, workspace="/w", name="below", permissions=["*"], parent=self.above)

    def adopt(self, policy: Policy) -> None:
        self.above.adopt(policy)
        self.below.adopt(policy)

    def decide(self, moment: dict[str, Any]) -> Decision:
        asked, *resolved = moment["names"]
        action = Action(
            operation=moment["operation"], resource=asked, resolved=resolved[0] if resolved else None,
            argv=moment["argv"], claims=moment["claims"],
        )  # fmt: skip
        return self.below.decide(action, cwd="/", context=moment["context"], name="below", now_s=1.0, at=moment["at"])


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 10, 30, 100]), st.integers(0, 100))
def test_it_decides_and_is_named_as_if_it_had_always_had_all_its_rules(seed: int, size: int, percent: int) -> None:
    world = World(seed)
    whole = world.policy(size)
    policy = Policy(
        whole.name, rules=whole.rules[: size * percent // 100], default_action=whole.default_action,
        inheritance=whole.inheritance, enforce=whole.enforce,
    )  # fmt: skip
    grown = Family(policy)
    for rule in whole.rules[len(policy.rules) :]:
        grown.decide(world.moment())  # what was worked out under fewer rules must not be remembered
        policy.add_rule(rule)
        grown.adopt(policy)
    assert (policy.rules, policy.hash) == (whole.rules, whole.hash)
    fresh = Family(whole)
    fresh.quota._logs = {key: log.copy() for key, log in grown.quota._logs.items()}
    for _ in range(REQUESTS):
        moment = world.moment()
        assert grown.decide(moment) == fresh.decide(moment), moment
