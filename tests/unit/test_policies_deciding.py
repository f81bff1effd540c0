"""From rules to a decision: the specification's examples, R5 first match, R6 exclude, R7 conditions, R13 signals."""

from __future__ import annotations

import dataclasses
import inspect
import signal
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from agentos import AgentSignal
from agentos.errors import BadRequest, PolicyLoadError
from agentos.policies import Decision, Pattern, Policy, Rule
from agentos.policies.decision import RESERVED_REASONS

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def at(clock: str, zone: timezone = UTC) -> datetime:
    hour, minute, second = (*map(int, clock.split(":")), 0)[:3]
    return NOON.replace(hour=hour, minute=minute, second=second, tzinfo=zone)


def one(action: str, /, default: str = "deny", **conditions: Any) -> Policy:
    """A policy of one rule about reading x."""
    return Policy("t", rules=[Rule(action, Pattern("read", "x", conditions=conditions))], default_action=default)


# --- the specification, as it stands there -----------------------------------------------------------------------


# fmt: off
def healthcare() -> Policy:
    policy = Policy(name="healthcare_policy", default_action="deny")

    # Allow read operations on non-sensitive data
    policy.add_rule(
        action="allow",
        pattern=Pattern(
            operation="read",
            resource="data/*",
            exclude=["data/phi/*", "data/pii/*"]
        ),
        reason="Allow reading non-sensitive data"
    )

    # Deny all write operations to PHI
    policy.add_rule(
        action="deny",
        pattern=Pattern(
            operation="write",
            resource="data/phi/*"
        ),
        reason="PHI write requires explicit approval",
        on_violation="SIGKILL"  # Immediate termination
    )

    # Allow network calls to approved endpoints only
    policy.add_rule(
        action="allow",
        pattern=Pattern(
            operation="network",
            resource="https://api.approved-service.com/*"
        ),
        rate_limit=100  # Max 100 calls per minute
    )
    return policy
# fmt: on


@pytest.mark.parametrize(
    ("operation", "resource", "effect", "rule", "reason", "on_violation"),
    [
        ("read", "data/x.csv", "allow", 0, "Allow reading non-sensitive data", None),
        ("read", "data/deep/er/x.csv", "allow", 0, "Allow reading non-sensitive data", None),
        ("read", "data/phi/patient_001.json", "deny", None, "default_deny", None),
        ("read", "data/pii/a/b", "deny", None, "default_deny", None),
        ("read", "data/x/../phi/y", "deny", None, "default_deny", None),
        ("write", "data/phi/patient_001.json", "deny", 1, "PHI write requires explicit approval", "SIGKILL"),
        ("write", "data/x.csv", "deny", None, "default_deny", None),
        ("network", "https://api.approved-service.com/v1/x?key=1", "allow", 2, "allowed_by_rule", None),
        ("network", "https://api.approved-service.com.evil.com/", "deny", None, "default_deny", None),
        ("network", "http://api.approved-service.com/", "deny", None, "default_deny", None),
        ("execute", "data/x.csv", "deny", None, "default_deny", None),
    ],
)
def test_the_healthcare_policy(
    operation: str, resource: str, effect: str, rule: int | None, reason: str, on_violation: str | None
) -> None:
    made = healthcare().decide(operation, resource)
    assert (made.effect, made.rule, made.reason, made.on_violation) == (effect, rule, reason, on_violation)
    assert made.allowed is (effect == "allow")


def test_the_healthcare_policy_allows_a_hundred_calls_a_minute() -> None:
    policy = healthcare()
    url = "https://api.approved-service.com/x"
    assert all(policy.decide("network", url, at=NOON + timedelta(seconds=i / 10)).allowed for i in range(100))
    made = policy.decide("network", url, at=NOON + timedelta(seconds=10))
    assert (made.effect, made.reason, made.rule) == ("deny", "rate_limited", 2)


def test_the_constructor_of_the_specification() -> None:
    given = inspect.signature(Policy.__init__).parameters
    wanted = {
        "name": inspect.Parameter.empty,
        "version": "1.0.0",
        "rules": None,
        "default_action": "deny",
        "inheritance": "strict",
    }
    assert {name: p.default for name, p in list(given.items())[1:6]} == wanted
    assert list(given)[1:6] == list(wanted)
    given = inspect.signature(Pattern).parameters
    assert [(n, p.default) for n, p in given.items()][2:] == [
        ("match_type", "glob"),
        ("conditions", None),
        ("exclude", None),
    ]
    for wrong in ({"default_action": "alow"}, {"inheritance": "stict"}, {"name": ""}, {"version": 1}, {"rules": ["x"]}):
        with pytest.raises(PolicyLoadError):
            Policy(**{"name": "t", **wrong})  # type: ignore[arg-type]


PATTERN_EXAMPLES = [
    # Simple glob pattern
    (Pattern(operation="read", resource="files/*.txt"), ["files/a.txt"], ["files/a/b.txt", "files/a.md"]),
    # Regex pattern
    (Pattern(operation="write", resource=r"db/users/\d+", match_type="regex"), ["db/users/42"], ["db/users/1/secret"]),
    # Exclude specific resources
    (
        Pattern(operation="*", resource="api/*", exclude=["api/admin/*", "api/internal/*"]),
        ["api/x", "api/x/y", "api/admin"],
        ["api/admin/x", "api/internal/a/b", "apis"],
    ),
]


@pytest.mark.parametrize(("pattern", "yes", "no"), PATTERN_EXAMPLES)
def test_the_patterns_of_the_specification(pattern: Pattern, yes: list[str], no: list[str]) -> None:
    policy = Policy("t", rules=[Rule("allow", pattern)])
    operation = "read" if pattern.operation == "*" else str(pattern.operation)
    assert [policy.decide(operation, name).allowed for name in yes] == [True] * len(yes)
    assert [policy.decide(operation, name).allowed for name in no] == [False] * len(no)


def test_the_structured_pattern_of_the_specification() -> None:
    pattern = Pattern(
        operation="execute",
        resource="tools/*",
        conditions={
            "user_role": ["admin", "operator"],
            "time_window": {"start": "09:00", "end": "17:00"},
            "max_cost": 100.0
        }
    )  # fmt: skip
    policy = Policy("t", rules=[Rule("allow", pattern)])

    def allowed(clock: str = "12:00", **context: object) -> bool:
        return policy.decide("execute", "tools/x", context=context, at=at(clock)).allowed

    assert allowed(user_role="admin", cost=100.0)
    assert allowed(user_role="operator", cost=0)
    assert not allowed(user_role="guest", cost=1)
    assert not allowed(user_role="admin", cost=100.1)
    assert not allowed("08:59", user_role="admin", cost=1)
    assert not allowed("17:00", user_role="admin", cost=1)
    assert not allowed(user_role="admin")  # R7.2: no cost is known
    assert not allowed(cost=1)


# --- decisions are values ----------------------------------------------------------------------------------------


def test_the_signature_of_decide() -> None:
    parameters = inspect.signature(Policy.decide).parameters
    assert list(parameters)[:8] == ["self", "operation", "resource", "context", "at", "name", "permissions", "argv"]
    assert {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "context": None, "at": None, "name": "-", "permissions": None, "argv": None,
    }  # fmt: skip


def test_a_decision_is_a_frozen_value_that_says_everything_a_record_needs() -> None:
    policy = Policy("t", rules=[Rule("deny", Pattern("write", "a"), name="no a", on_violation="SIGTERM")])
    made = policy.decide("write/delete", "./a")
    assert made == Decision(
        effect="deny", rule=0, rule_name="no a", reason="denied_by_rule", on_violation="SIGTERM",
        operation="write/delete", resource="a", policy_hash=policy.hash, layer="policy", durable=True,
    )  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.effect = "allow"  # type: ignore[misc]
    assert policy.decide("write/delete", "a") == made


def test_a_denial_is_a_value_and_not_an_exception() -> None:
    assert Policy("t").decide("read", "x").effect == "deny"


def test_reserved_reasons_are_what_a_machine_says() -> None:
    policy = Policy(
        "t",
        rules=[
            Rule("allow", Pattern("read", "a")),
            Rule("deny", Pattern("read", "b")),
            Rule("ask", Pattern("read", "c")),
        ],
    )
    said = {policy.decide("read", name).reason for name in ("a", "b", "c", "d", "..")} | {
        policy.decide("fly", "a").reason
    }
    assert said == {
        "allowed_by_rule",
        "denied_by_rule",
        "asked_by_rule",
        "default_deny",
        "invalid_resource",
        "invalid_operation",
    }
    assert said < RESERVED_REASONS


def test_what_is_known_to_be_durable_and_what_may_be_cached() -> None:
    """Denials, execute, network, deletes and `audit: durable` wait for the disk; pure allowances may be cached."""
    policy = Policy(
        "t",
        rules=[
            Rule("allow", Pattern("read", "pure")),
            Rule("allow", Pattern("read", "durable"), audit="durable"),
            Rule("allow", Pattern("read", "limited"), rate_limit=5),
            Rule("allow", Pattern("read", "conditional", conditions={"user_id": "u"})),
            Rule("ask", Pattern("read", "asked")),
            Rule("allow", Pattern(["write", "execute", "network"], "*")),
        ],
    )
    told = {
        name: (made.durable, made.cacheable)
        for name in ("pure", "durable", "limited", "conditional", "asked", "denied")
        for made in [policy.decide("read", name, context={"user_id": "u"})]
    }
    assert told == {
        "pure": (False, True), "durable": (True, False), "limited": (False, False),
        "conditional": (False, False), "asked": (False, False), "denied": (True, False),
    }  # fmt: skip
    durable = [
        op
        for op in ("write", "write/rename", "write/delete", "write/unlink", "write/rmdir", "execute", "network/connect")
        if policy.decide(op, "x").durable
    ]
    assert durable == ["write/delete", "write/unlink", "write/rmdir", "execute", "network/connect"]


def test_the_time_must_know_its_zone_and_permissions_must_be_known() -> None:
    policy = Policy("t")
    with pytest.raises(BadRequest, match="aware"):
        policy.decide("read", "x", at=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(BadRequest, match=r"unknown permission 'raed' \(did you mean 'read'\?\)"):
        policy.decide("read", "x", permissions=["raed"])
    with pytest.raises(BadRequest, match="write \\['read'\\]"):
        policy.decide("read", "x", permissions="read")


def test_a_policy_cannot_change_under_the_hash_that_the_record_names() -> None:
    policy = Policy("t")
    for field, value in {"default_action": "allow", "enforce": False, "parent": policy, "name": "u"}.items():
        with pytest.raises(AttributeError, match=f"the {field} of a policy is fixed"):
            setattr(policy, field, value)
    before = policy.hash
    policy.add_rule("allow", Pattern("read", "x"))
    assert policy.hash != before
    assert policy.decide("read", "x").policy_hash == policy.hash
    pattern = Pattern("read", "x", conditions={"user_role": ["a"]})
    with pytest.raises(TypeError):
        pattern.conditions["user_role"] = ["b"]  # type: ignore[index]


# --- R5, R6 ------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides() -> None:
    allow_first = Policy("t", rules=[Rule("allow", Pattern("read", "a/*")), Rule("deny", Pattern("read", "a/secret"))])
    deny_first = Policy("t", rules=list(reversed(allow_first.rules)))
    assert allow_first.decide("read", "a/secret").rule == 0
    assert allow_first.decide("read", "a/secret").allowed
    assert deny_first.decide("read", "a/secret").effect == "deny"
    assert deny_first.decide("read", "a/b").rule == 1


def test_nothing_matches_then_the_default_decides_and_names_no_rule() -> None:
    deny, allow = Policy("t").decide("read", "x"), Policy("t", default_action="allow").decide("read", "x")
    assert (deny.effect, deny.reason, deny.rule, deny.rule_name) == ("deny", "default_deny", None, None)
    assert (allow.effect, allow.reason, allow.rule) == ("allow", "default_allow", None)


def test_an_exclude_takes_from_the_rule_and_is_no_denial() -> None:
    """R6: evaluation goes on with the later rules."""
    rules = [Rule("allow", Pattern("read", "a/*", exclude="a/b/*")), Rule("allow", Pattern("read", "a/b/c"))]
    policy = Policy("t", rules=rules)
    assert policy.decide("read", "a/b/c").rule == 1
    assert policy.decide("read", "a/b/d").reason == "default_deny"
    denying = Policy("t", rules=[Rule("deny", Pattern("read", "a/*", exclude=["a/b", "a/c"]))], default_action="allow")
    assert [denying.decide("read", name).effect for name in ("a/b", "a/c", "a/d")] == ["allow", "allow", "deny"]


def test_a_rule_may_be_about_several_operations_and_resources() -> None:
    policy = Policy("t", rules=[Rule("allow", Pattern(["read", "write/delete"], ["a", "b/*"]))])
    allowed = {
        (op, name)
        for op in ("read", "write", "write/delete")
        for name in ("a", "b/x", "c")
        if policy.decide(op, name).allowed
    }
    assert allowed == {("read", "a"), ("read", "b/x"), ("write/delete", "a"), ("write/delete", "b/x")}


# --- R7: conditions ----------------------------------------------------------------------------------------------


def test_all_conditions_must_hold() -> None:
    """R7.1"""
    policy = one("allow", user_role="admin", user_id=["u1", "u2"], session_id="s", context={"ticket": 7, "dry": True})
    whole = {"user_role": "admin", "user_id": "u2", "session_id": "s", "ticket": 7, "dry": True}
    assert policy.decide("read", "x", context=whole).allowed
    for key in whole:
        assert not policy.decide("read", "x", context={**whole, key: "other"}).allowed, key
        assert not policy.decide("read", "x", context={k: v for k, v in whole.items() if k != key}).allowed, key


UNKNOWN: list[dict[str, Any]] = [
    {}, {"user_role": None}, {"user_role": ["admin"]}, {"user_role": 1}, {"user_role": True}, {"user_role": b"admin"},
    {"role": "admin"},
]  # fmt: skip


@pytest.mark.parametrize("context", UNKNOWN)
def test_what_is_missing_or_ill_typed_never_helps_an_action(context: dict[str, Any]) -> None:
    """R7.2: an allow rule does not match, a deny rule does; to skip a deny rule on an error fails open."""
    assert not one("allow", user_role="admin").decide("read", "x", context=context).allowed
    assert not one("deny", "allow", user_role="admin").decide("read", "x", context=context).allowed
    assert one("ask", "allow", user_role="admin").decide("read", "x", context=context).effect == "ask"


def test_a_deny_rule_whose_condition_is_known_to_fail_does_not_match() -> None:
    assert one("deny", "allow", user_role="guest").decide("read", "x", context={"user_role": "admin"}).allowed
    mixed = one("deny", "allow", user_role="guest", user_id="u")
    assert mixed.decide("read", "x", context={"user_role": "admin"}).allowed  # one known failure settles it
    assert not mixed.decide("read", "x", context={"user_role": "guest"}).allowed


def test_true_is_not_one_and_a_number_is_no_text() -> None:
    policy = one("allow", context={"n": 1})
    assert policy.decide("read", "x", context={"n": 1.0}).allowed
    for other in (True, "1", None):
        assert not policy.decide("read", "x", context={"n": other}).allowed


@pytest.mark.parametrize("cost", [float("nan"), -1, -0.1, True, "5", None, [5], 10**400])
def test_a_cost_is_a_number_from_zero_up(cost: object) -> None:
    """R7.3"""
    assert not one("allow", max_cost=10).decide("read", "x", context={"cost": cost}).allowed
    if cost != 10**400:  # that is a cost, only a dear one
        assert not one("deny", "allow", max_cost=10).decide("read", "x", context={"cost": cost}).allowed


def test_a_cost_may_reach_its_maximum() -> None:
    policy = one("allow", max_cost=10)
    assert [policy.decide("read", "x", context={"cost": c}).allowed for c in (0, 9.99, 10, 10.01, float("inf"))] == [
        True, True, True, False, False,
    ]  # fmt: skip


def window(start: str, end: str, zone: str | None = None) -> Policy:
    return one("allow", time_window={"start": start, "end": end, **({"timezone": zone} if zone else {})})


@pytest.mark.parametrize(
    ("start", "end", "inside", "outside"),
    [
        ("09:00", "17:00", ["09:00", "16:59:59"], ["08:59:59", "17:00", "00:00"]),  # R7.4: half-open
        ("22:00", "06:00", ["22:00", "23:59:59", "00:00", "05:59"], ["06:00", "21:59", "12:00"]),  # R7.6: over midnight
        ("09:00:30", "09:00:31", ["09:00:30"], ["09:00:29", "09:00:31"]),
        ("18:00", "24:00", ["18:00", "23:59:59"], ["00:00", "17:59"]),
        ("00:00", "24:00", ["00:00", "12:00", "23:59:59"], []),
    ],
)
def test_a_time_window_begins_at_its_start_and_is_over_at_its_end(
    start: str, end: str, inside: list[str], outside: list[str]
) -> None:
    policy = window(start, end)
    assert all(policy.decide("read", "x", at=at(clock)).allowed for clock in inside)
    assert not any(policy.decide("read", "x", at=at(clock)).allowed for clock in outside)


def test_windows_are_utc_unless_they_name_a_zone_and_zones_know_summer() -> None:
    """R7.5"""
    utc, berlin = window("09:00", "17:00"), window("09:00", "17:00", "Europe/Berlin")
    east = timezone(timedelta(hours=5))
    assert utc.decide("read", "x", at=at("14:00", east)).allowed  # 09:00 UTC
    assert not utc.decide("read", "x", at=at("13:59", east)).allowed
    winter, summer = datetime(2026, 1, 15, 7, 30, tzinfo=UTC), datetime(2026, 7, 15, 7, 30, tzinfo=UTC)
    assert not berlin.decide("read", "x", at=winter).allowed  # 08:30 there
    assert berlin.decide("read", "x", at=summer).allowed  # 09:30 there


def test_without_a_time_a_window_is_unknown() -> None:
    assert not window("00:00", "24:00").decide("read", "x").allowed
    assert not one("deny", "allow", time_window={"start": "09:00", "end": "10:00"}).decide("read", "x").allowed
    assert (
        not window("00:00", "23:00", "America/New_York")
        .decide("read", "x", at=datetime.min.replace(tzinfo=UTC))
        .allowed
    )


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ({"user_rol": "x"}, r"unknown condition 'user_rol' \(did you mean 'user_role'\?\)"),  # R7.1
        ({"max_cost": "5"}, "max_cost must be a number"),
        ({"max_cost": float("nan")}, "max_cost must be a number"),
        ({"max_cost": -1}, "max_cost must be a number"),
        ({"max_cost": True}, "max_cost must be a number"),
        ({"user_role": []}, "never match"),
        ({"user_role": None}, "must be text, a number"),
        ({"context": {"x": [1, float("nan")]}}, "NaN can never match"),
        ({"user_role": {"a": 1}}, "must be text, a number"),
        ({"context": "x"}, "context must be a mapping"),
        ({"context": {"": "x"}}, "a context key is empty"),
        ({"granted": "yes"}, "granted is true or false"),
        ({"time_window": "09:00-17:00"}, "time_window must be a mapping"),
        ({"time_window": {"start": "09:00"}}, "needs end"),
        ({"time_window": {"start": "09:00", "end": "17:00", "tz": "UTC"}}, "unknown key 'tz'"),
        ({"time_window": {"start": "09:00", "end": "09:00"}}, "always, or never"),  # R7.6
        ({"time_window": {"start": 1020, "end": "09:00"}}, "1020 is not a time of day"),
        ({"time_window": {"start": "9:00", "end": "17:00"}}, "'9:00' is not a time of day"),
        ({"time_window": {"start": "24:00", "end": "17:00"}}, "not a time of day"),
        ({"time_window": {"start": "09:00", "end": "17:60"}}, "not a time of day"),
        ({"time_window": {"start": "09:00", "end": "17:00", "timezone": "Mars/Base"}}, "unknown time zone 'Mars/Base'"),
        ({"time_window": {"start": "09:00", "end": "17:00", "timezone": "../../etc/passwd"}}, "unknown time zone"),
        ([("a", 1)], "conditions must be a mapping"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(conditions: Any, says: str) -> None:
    with pytest.raises(PolicyLoadError, match=says):
        Pattern("read", "x", conditions=conditions)


# --- ask, signals ------------------------------------------------------------------------------------------------


def test_an_ask_rule_waits_for_a_person() -> None:
    policy = Policy("t", rules=[Rule("ask", Pattern("write", "x"), ask_timeout_s=30, reason="Really?")])
    made = policy.decide("write", "x")
    assert (made.effect, made.allowed, made.ask_timeout_s, made.reason) == ("ask", False, 30, "Really?")


@pytest.mark.parametrize("given", ["SIGKILL", AgentSignal.SIGKILL, signal.SIGKILL])
def test_a_signal_belongs_to_the_deny_rule_that_decides(given: object) -> None:
    """R13"""
    rules = [
        Rule("allow", Pattern("read", "a"), on_violation="SIGTERM"),
        Rule("deny", Pattern("read", "b"), on_violation=given),  # type: ignore[arg-type]
    ]
    policy = Policy("t", rules=rules)
    assert policy.decide("read", "b").on_violation == "SIGKILL"
    assert policy.decide("read", "a").on_violation is None
    assert policy.decide("read", "c").on_violation is None  # the default has none
    assert policy.decide("read", "..").on_violation is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"action": "alow"}, r"unknown action 'alow' \(did you mean 'allow'\?\); known: allow, deny, ask"),
        ({"on_violation": "SIGKIL"}, r"unknown signal 'SIGKIL' \(did you mean 'SIGKILL'\?\)"),
        ({"on_violation": "SIGHUP"}, "unknown signal 'SIGHUP'"),
        ({"on_violation": 9}, "unknown signal 9"),
        ({"rate_limit": 0}, "rate_limit is a number of calls a minute"),
        ({"rate_limit": 1.5}, "rate_limit is a number"),
        ({"rate_limit": True}, "rate_limit is a number"),
        ({"rate_limit": "5"}, "rate_limit is a number"),
        ({"rate_limit": 1_000_001}, "rate_limit is a number"),
        ({"reason": ""}, "reason is empty"),
        ({"name": 5}, "name must be text"),
        ({"audit": "sometimes"}, "unknown audit class 'sometimes'"),
        ({"ask_timeout_s": 5}, "belongs to an ask rule"),
        ({"action": "ask", "ask_timeout_s": 0}, "seconds above 0"),
        ({"action": "ask", "ask_timeout_s": float("nan")}, "seconds above 0"),
        ({"action": "ask", "ask_timeout_s": True}, "seconds above 0"),
        ({"pattern": "x"}, "pattern must be a Pattern, not str"),
    ],
)
def test_a_rule_is_as_strict_in_python_as_in_a_file(fields: dict[str, Any], says: str) -> None:
    """R14"""
    with pytest.raises(PolicyLoadError, match=says):
        Rule(**{"action": "allow", "pattern": Pattern("read", "x"), **fields})


def test_add_rule_takes_parts_or_a_rule_and_nothing_else() -> None:
    policy = Policy("t")
    policy.add_rule(Rule("allow", Pattern("read", "x")))
    policy.add_rule("ask", Pattern("read", "y"), name="n", audit="durable", ask_timeout_s=3)
    assert policy.rules[1] == Rule("ask", Pattern("read", "y"), name="n", audit="durable", ask_timeout_s=3)
    with pytest.raises(PolicyLoadError, match="needs a pattern"):
        policy.add_rule("allow")
    assert len(policy.with_rules([Rule("deny", Pattern("read", "z"))]).rules) == 3
    assert len(policy.rules) == 2
