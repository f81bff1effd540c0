"""What might make the kernel slow or large. The limits are generous: the faults that they are about cost minutes."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from agentos.actions import Action
from agentos.errors import PolicyLoadError
from agentos.policies import (
    EffectivePolicy,
    InvalidResource,
    Pattern,
    Policy,
    Rule,
    effective,
    file_resource,
    normalise,
)

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
LIMIT_S = 2.0  # of what takes milliseconds


def seconds(policy: Policy, operation: str, *names: str) -> float:
    start = time.perf_counter()
    for name in names:
        policy.decide(operation, name)
    return time.perf_counter() - start


def deny(*patterns: str, match_type: str = "glob") -> Policy:
    return Policy("p", rules=[Rule("deny", Pattern("read", pattern, match_type)) for pattern in patterns])


LONG = ["a/" * 16_000 + "b", "a" * 32_000, "a/b/" * 8_000 + "c", "ab" * 16_000, "é" * 16_000]


@pytest.mark.parametrize(
    "pattern", ["**/a/" * 40 + "b", "*a" * 100, "a*" * 100 + "b", "**/a*b/**/c", "{a,b}" * 9, "[ab]" * 200]
)
def test_a_glob_takes_time_in_proportion_to_the_name(pattern: str) -> None:
    """R4: a backtracking translation of `**` took eight seconds on forty segments."""
    assert seconds(deny(pattern), "read", *LONG) < LIMIT_S


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)+b", "(.*)*x", "(a*)*(a*)*(a*)*b"])
def test_so_does_a_regular_expression(pattern: str) -> None:
    assert seconds(deny(pattern, match_type="regex"), "read", *LONG) < LIMIT_S


def test_a_name_of_many_segments_asks_each_rule_once() -> None:
    """`a/a/a/…` would otherwise try the rules filed under `a` sixteen thousand times, on 32 KB each."""
    policy = deny(*(f"a/**/*{i}" for i in range(16)))
    assert seconds(policy, "read", "a/" * 16_000 + "b") < LIMIT_S
    hosts = Policy("p", rules=[Rule("deny", Pattern("network", f"https://*.x/**/*{i}")) for i in range(16)])
    assert seconds(hosts, "network", "https://" + "x." * 100 + "x/" + "x/" * 15_000) < LIMIT_S


def test_a_name_that_touches_every_rule() -> None:
    policy = deny(*(f"s{i}/**/*.{i}" for i in range(3_000)))
    policy.decide("read", "warm")
    assert seconds(policy, "read", "/".join(f"s{i}" for i in range(3_000))) < LIMIT_S


@pytest.mark.parametrize(
    "name",
    ["https://" + "\u00fc" * 30_000, "https://" + "xn--a." * 5_000, "https://h/" + "%41" * 10_000,
     "https://h" + "/.." * 10_000,
     "https://" + "a." * 15_000, "https://h/" + "é" * 20_000, "/.." * 10_000, "//" * 16_000, "./" * 16_000,
     "https://[" + ":" * 30_000],
)  # fmt: skip
def test_names_are_read_in_linear_time(name: str) -> None:
    start = time.perf_counter()
    try:
        normalise(name)
        file_resource(name, cwd="/w", workspace="/w")
    except InvalidResource:
        pass
    assert time.perf_counter() - start < LIMIT_S


@pytest.mark.parametrize(
    "pattern", ["{a,b}" * 800, "{" * 2_000 + "a" + "}" * 2_000, "{a}" * 1_300, "{" * 4_000, "{a,{b,{c," * 400]
)
def test_braces_are_a_list_and_no_bomb(pattern: str) -> None:
    start = time.perf_counter()
    try:
        Pattern("read", pattern)
    except PolicyLoadError as error:
        assert len(str(error)) < 1_000
    assert time.perf_counter() - start < LIMIT_S


def test_every_pattern_that_loads_can_be_asked() -> None:
    """RE2 compiles at first need: what it would refuse then must not get so far."""
    for pattern in ("?" * 4_096, "[!é-ﬀ]" * 680, "*a" * 2_048, "**/" * 1_365 + "x", "[^a]" * 1_024):
        assert deny(pattern).decide("read", "x").effect == "deny"


def test_an_agents_names_do_not_fill_the_kernel() -> None:
    """The cache of one agent is bounded in entries, and names are the agent's to choose, so in size too."""
    who = EffectivePolicy(Policy("p"), workspace="/w")

    def ask(operation: str, resource: str, **fields: str) -> None:
        who.decide(
            Action(operation=operation, resource=resource, **fields), cwd="/w", context={}, name="a", now_s=0, at=NOW
        )

    for i in range(2 * effective.CACHE_ENTRIES):
        ask("read", f"x{i}")
    assert who._cached.cache_info().currsize == effective.CACHE_ENTRIES  # type: ignore[attr-defined]
    before = who._cached.cache_info().misses  # type: ignore[attr-defined]
    ask("read", "y" * (effective.CACHED_NAME_CHARACTERS_MAX + 1))
    ask("read", "y", resolved="/" + "y" * effective.CACHED_NAME_CHARACTERS_MAX)
    assert who._cached.cache_info().misses == before  # type: ignore[attr-defined]
    assert who.decide(
        Action(operation="read/" + "x" * 30_000, resource="y"), cwd="/w", context={}, name="a", now_s=0, at=NOW
    ).reason == "invalid_operation"  # fmt: skip
    assert who._cached.cache_info().misses == before  # type: ignore[attr-defined]
