"""The compiled engine against the rules written down literally (tests/support/policy_reference.py), on random policies.

A failing example names a seed and a size; `World(seed)` builds the same world again.
"""

from __future__ import annotations

from typing import Any

import policy_reference as reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy_worlds import LITERALS, SEGMENTS, WILD, World

from agentos.actions import Action
from agentos.policies import Decision, EffectivePolicy, Pattern, Policy, Rule, normalise
from agentos.policies.quota import Quota

SEEDS = st.integers(0, 2**32)
SIZES = st.sampled_from([1, 3, 10, 30, 100, 300])
REQUESTS = 24


def act(agent: EffectivePolicy, moment: dict[str, Any], now_s: float, who: str = "agent") -> Decision:
    asked, *resolved = moment["names"]
    action = Action(
        operation=moment["operation"], resource=asked, resolved=resolved[0] if resolved else None,
        argv=moment["argv"], claims=moment["claims"],
    )  # fmt: skip
    return agent.decide(action, cwd="/", context=moment["context"], name=who, now_s=now_s, at=moment["at"])


def again(world: World, moments: list[dict[str, Any]]) -> dict[str, Any]:
    """One of the actions, at another moment: what was asked is the same, all else is not."""
    moment = world.pick(*moments)
    return {**world.moment(), "operation": moment["operation"], "names": moment["names"], "argv": moment["argv"]}


class Family:
    """An agent under a few ancestors, once as the engine sees it and once as the reference does."""

    def __init__(self, world: World, size: int) -> None:
        self.agent: EffectivePolicy | None = None
        self.bound: reference.Bound | None = None
        ancestors = world.pick(0, 0, 1, 2)
        for generation in range(ancestors + 1):
            last = generation == ancestors
            policy = world.policy(size if last else min(size, 10), name=f"p{generation}")
            permissions = world.permissions()
            taken = [world.pick("no_write", "no_network")] if world.maybe(0.15) else []
            name = "agent" if last else f"ancestor{generation}"
            self.agent = EffectivePolicy(
                policy, workspace="/w", permissions=permissions, restrictions=taken, parent=self.agent, name=name
            )
            self.bound = reference.Bound(
                policy,
                None if permissions is None else frozenset(permissions),
                frozenset(each.removeprefix("no_") for each in taken),
                self.bound,
                name,
            )


@settings(deadline=None, max_examples=150)
@given(SEEDS, SIZES)
@example(1, 300)
def test_the_engine_decides_what_the_rules_say(seed: int, size: int) -> None:
    world = World(seed)
    family = Family(world, size)
    assert family.agent is not None
    assert family.bound is not None
    literal = reference.Reference()
    now_s = 0.0
    seen = [world.moment() for _ in range(REQUESTS // 2)]
    for _ in range(REQUESTS):
        now_s += world.pick(0.0, 0.5, 1.0, 20.0, 60.0)
        moment = again(world, seen)
        made = act(family.agent, moment, now_s)
        told = reference.Moment(
            moment["operation"], moment["argv"], moment["context"], moment["claims"], moment["at"], now_s, "agent"
        )
        wanted = literal.decide(family.bound, moment["names"], told)
        assert (made.effect, made.reason, made.would_deny) == (wanted.effect, wanted.reason, wanted.would_deny), moment
        assert made.reason == "rate_limited" or made.rule == wanted.rule, moment


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES)
def test_a_cached_decision_is_the_decision(seed: int, size: int) -> None:
    """The same requests again and again, to one agent with its cache and to one without."""
    world = World(seed)
    policy, permissions = world.policy(size), world.permissions()
    warm, cold = (EffectivePolicy(policy, workspace="/w", permissions=permissions, quota=Quota()) for _ in range(2))
    cold._cached = cold._prepare
    moments = [world.moment() for _ in range(8)]
    for step in range(3 * len(moments)):
        moment = again(world, moments)
        fresh = EffectivePolicy(policy, workspace="/w", permissions=permissions, quota=cold.quota)
        assert fresh._prepare(moment["operation"], *names_of(moment), None, moment["argv"]) == cold._prepare(
            moment["operation"], *names_of(moment), None, moment["argv"]
        )
        assert act(warm, moment, float(step)) == act(cold, moment, float(step))


def names_of(moment: dict[str, Any]) -> tuple[str, str | None]:
    asked, *resolved = moment["names"]
    return asked, resolved[0] if resolved else None


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES)
def test_cacheable_means_the_same_answer_at_every_moment(seed: int, size: int) -> None:
    """The sentry answers repeats of a cacheable decision itself: nothing about the moment may matter."""
    world = World(seed)
    agent = Family(world, size).agent
    assert agent is not None
    for _ in range(REQUESTS):
        moment = world.moment()
        made = act(agent, moment, 0.0)
        if made.cacheable:
            other = {
                **world.moment(),
                "operation": moment["operation"],
                "names": moment["names"],
                "argv": moment["argv"],
            }
            assert act(agent, other, 1e6) == made


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES)
def test_claims_only_tighten(seed: int, size: int) -> None:
    """Whatever an agent says about itself: the answer is never wider than the one to silence, limits included."""
    world = World(seed)
    policy, permissions = world.policy(size), world.permissions()
    silent, talking = (
        EffectivePolicy(policy, workspace="/w", permissions=permissions, quota=Quota()) for _ in range(2)
    )
    rank = {"allow": 0, "ask": 1, "deny": 2}
    for step in range(REQUESTS):
        moment = {**world.moment(), "claims": world.context()}
        silent.quota._logs = {key: log.copy() for key, log in talking.quota._logs.items()}
        without, with_claims = act(silent, {**moment, "claims": {}}, float(step)), act(talking, moment, float(step))
        assert rank[with_claims.effect] >= rank[without.effect], moment


# --- small worlds, which shrink well -----------------------------------------------------------------------------

PATTERN_PATHS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "/", "./", "https://h/", "unix:/"]),
    st.lists(st.sampled_from([*SEGMENTS, *WILD, "**"]), min_size=1, max_size=5).map("/".join),
    st.sampled_from(["", "", "/", "/*", "/**"]),
)
NAMES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "/", "https://h/", "unix:/"]),
    st.lists(st.sampled_from([n for n in LITERALS if "[" not in n]), min_size=1, max_size=5).map("/".join),
    st.sampled_from(["", "", "/"]),
).map(normalise)


@settings(deadline=None, max_examples=800)
@given(PATTERN_PATHS, NAMES)
def test_one_pattern_against_one_name(pattern: str, name: str) -> None:
    policy = Policy("t", rules=[Rule("allow", Pattern("read", pattern.replace("\\[1]", "")))])
    assert policy.decide("read", name).allowed is reference.glob(pattern.replace("\\[1]", ""), name)


@settings(deadline=None, max_examples=150)
@given(st.lists(PATTERN_PATHS, min_size=17, max_size=40), NAMES)
def test_many_patterns_of_one_rule_are_any_of_them(patterns: list[str], name: str) -> None:
    """Enough of them that they are filed into trees of expressions."""
    usable = [pattern.replace("\\[1]", "") for pattern in patterns]
    policy = Policy("t", rules=[Rule("allow", Pattern("read", usable))])
    assert policy.decide("read", name).allowed is any(reference.glob(pattern, name) for pattern in usable)
