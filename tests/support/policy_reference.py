"""The rules R1 to R13 written down once more, slowly and literally: what the compiled engine is compared with.

Shares nothing with agentos.policies but the values it is given (Policy, Rule, Pattern as data). Matches globs by
trying every way, walks every rule, keeps rate limits as plain lists of times. Names must be normalised.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

# --- R1: globs ---------------------------------------------------------------------------------------------------


def alternatives(pattern: str) -> list[str]:
    """R1.5: `{a,b}`, outermost first."""
    depth = 0
    start = -1
    commas: list[int] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 2
            continue
        if char == "{":
            depth += 1
            if depth == 1:
                start = at
        elif char == "," and depth == 1:
            commas.append(at)
        elif char == "}" and depth:
            depth -= 1
            if depth == 0:
                cuts = [start, *commas, at]
                choices = [pattern[a + 1 : b] for a, b in itertools.pairwise(cuts)]
                return [each for c in choices for each in alternatives(pattern[:start] + c + pattern[at + 1 :])]
        at += 1
    return [pattern]


def fits(pattern: str, text: str) -> bool:
    """One segment against one segment: R1.2, R1.4, R1.8."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(fits(pattern[1:], text[i:]) for i in range(len(text) + 1))
    if not text:
        return False
    if pattern[0] == "?":
        return fits(pattern[1:], text[1:])
    if pattern[0] == "\\":
        return pattern[1] == text[0] and fits(pattern[2:], text[1:])
    if pattern[0] == "[":
        end = pattern.index("]", 3 if pattern[1] in "!^" else 2)
        body = pattern[1:end]
        negated = body[0] in "!^"
        return in_class(body[negated:], text[0]) is not negated and fits(pattern[end + 1 :], text[1:])
    return pattern[0] == text[0] and fits(pattern[1:], text[1:])


def in_class(body: str, char: str) -> bool:
    if len(body) >= 3 and body[1] == "-":
        return body[0] <= char <= body[2] or in_class(body[3:], char)
    return bool(body) and (body[0] == char or in_class(body[1:], char))


def walk(pattern: Sequence[str], name: Sequence[str], *, url: bool) -> bool:
    """Segments against segments: R1.1, R1.3. A last, empty segment of a name is what a final slash leaves."""
    if not pattern:
        return not name
    first, rest = pattern[0], pattern[1:]
    if not rest and first in ("*", "**"):  # everything below
        below = "/".join(name)
        return bool(name) and (bool(below) or not url or first == "*")
    if first == "**":
        return walk(rest, name, url=url) or (bool(name) and (url or bool(name[0])) and walk(pattern, name[1:], url=url))
    if not name:
        return False
    if first == "*" and not url and not name[0]:
        return False
    return fits(first, name[0]) and walk(rest, name[1:], url=url)


def space(name: str) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        return "url"
    return "unix" if name.startswith("unix:") else "absolute" if name.startswith("/") else "relative"


def glob(pattern: str, name: str) -> bool:
    """A resource pattern against a normalised name."""
    return any(glob_one(each, name) for each in alternatives(pattern))


def glob_one(pattern: str, name: str) -> bool:
    if pattern in ("*", "**"):
        return True
    kind = space(name)
    if space(pattern) != kind:
        return False
    if kind == "url":
        return url_glob(pattern, name)
    if kind == "unix":
        if pattern.startswith("unix:@") or name.startswith("unix:@"):
            return walk(pattern.split("/"), name.split("/"), url=True)
        pattern, name = pattern.removeprefix("unix:"), name.removeprefix("unix:")
    wanted = [s for s in pattern.split("/") if s not in ("", ".")]
    given = [s for s in name.split("/") if s not in ("", ".")]
    if walk(wanted, given, url=False):
        return True
    return name.endswith("/") and walk(wanted, [*given, ""], url=False)  # D/ is what D/* matches


def url_glob(pattern: str, name: str) -> bool:
    scheme, host, port, path = cut(pattern)
    its_scheme, its_host, its_port, its_path = cut(name)
    if scheme.lower() != its_scheme or not host_fits(host, its_host):
        return False
    if port not in {"*", its_port}:
        return False
    return walk(path.split("/"), its_path.split("/"), url=True)


def cut(url: str) -> tuple[str, str, str, str]:
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    host, colon, port = authority.rpartition(":") if not authority.endswith("]") else ("", "", authority)
    return (scheme, host, port, path) if colon else (scheme, authority, "", path)


def host_fits(pattern: str, host: str) -> bool:
    """R3.11: a first label `*` is one label or more; the apex is not meant."""
    if pattern == "*":
        return True
    if host.startswith("[") or pattern.startswith("["):
        return pattern == host
    labels, its = pattern.lower().split("."), host.split(".")
    if labels[0] == "*":
        tail = labels[1:]
        return len(its) > len(tail) and all(map(fits, tail, its[-len(tail) :]))
    return len(labels) == len(its) and all(map(fits, labels, its))


def program(pattern: str, name: str, argv: Sequence[str] | None) -> bool | None:
    """R11: a program and its words; None when words matter and are unknown."""
    words = pattern.split(" ")
    if not any(program_name(each, name) for each in alternatives(words[0])):
        return False
    if len(words) == 1:
        return True
    if argv is None:
        return None
    given = list(argv[1 : len(words)])
    return len(given) == len(words) - 1 and all(map(word, words[1:], given))


def program_name(pattern: str, name: str) -> bool:
    if "/" in pattern or pattern in ("*", "**"):
        return glob_one(pattern, name)
    if name.startswith("/"):  # a bare name is the basename of a program outside the workspace
        return fits(pattern, name.rpartition("/")[2])
    return "/" not in name and fits(pattern, name)


def word(pattern: str, given: str) -> bool:
    return any(
        each in ("*", "**") or walk(each.split("/"), given.split("/"), url=True) for each in alternatives(pattern)
    )


# --- patterns and conditions -------------------------------------------------------------------------------------


def several(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


@dataclass
class Moment:
    """Everything about one action but its names."""

    operation: str
    argv: Sequence[str] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)
    at: datetime | None = None
    now_s: float = 0.0
    name: str = "-"


def one_matches(rule: Any, resource: str, name: str, moment: Moment) -> bool | None:
    if rule.pattern.match_type == "regex":
        names = {name, name.removesuffix("/")} if space(name) != "url" else {name}
        return any(re.fullmatch(resource, each, re.ASCII) for each in names)
    if moment.operation.partition("/")[0] == "execute":
        return program(resource, name, moment.argv)
    return glob(resource, name)


def pattern_matches(rule: Any, name: str, moment: Moment) -> bool:
    """R2, R6, R11; what is unknown counts against the action (R7.2)."""
    wanted = several(rule.pattern.operation)
    if not any(w in ("*", moment.operation) or moment.operation.startswith(w + "/") for w in wanted):
        return False
    strict = rule.action != "allow"

    def some(resources: Any, unknown: bool) -> bool:
        answers = [one_matches(rule, resource, name, moment) for resource in several(resources)]
        return any(unknown if answer is None else answer for answer in answers)

    return some(rule.pattern.resource, strict) and not some(rule.pattern.exclude, not strict)


def condition_holds(key: str, wanted: Any, context: Mapping[str, Any], at: datetime | None) -> bool | None:
    """R7.1 to R7.6; None is unknown."""
    if key == "time_window":
        return in_window(wanted, at)
    if key == "max_cost":
        cost = context.get("cost")
        return cost <= wanted if is_cost(cost) else None
    given = context.get(key)
    options = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    alike = [w for w in options if family(w) == family(given)]
    if family(given) is None or not alike:
        return None
    return given in alike


def is_cost(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def family(value: Any) -> str | None:
    return {bool: "truth", int: "number", float: "number", str: "text"}.get(type(value))


def in_window(window: Mapping[str, str], at: datetime | None) -> bool | None:
    if at is None:
        return None
    clock = at.astimezone(ZoneInfo(window["timezone"]) if "timezone" in window else UTC).time()
    start = time.fromisoformat(window["start"])
    end = None if window["end"] == "24:00" else time.fromisoformat(window["end"])
    if end is None:
        return clock >= start
    return start <= clock < end if start < end else clock >= start or clock < end


def conditions_hold(
    conditions: Mapping[str, Any], context: Mapping[str, Any], at: datetime | None, granted: bool
) -> bool | None:
    answers: list[bool | None] = []
    for key, wanted in conditions.items():
        if key == "granted":
            answers.append(granted is wanted)
        elif key == "context":
            answers += [condition_holds(k, w, context, at) for k, w in wanted.items()]
        else:
            answers.append(condition_holds(key, wanted, context, at))
    return False if False in answers else None if None in answers else True


def applies(rule: Any, name: str, moment: Moment, permissions: frozenset[str] | None, *, with_claims: bool) -> bool:
    if not pattern_matches(rule, name, moment):
        return False
    conditions = rule.pattern.conditions or {}
    base = moment.operation.partition("/")[0]
    granted = bool((permissions or frozenset()) & {"*", base, moment.operation})
    known = conditions_hold(conditions, moment.context, moment.at, granted)
    if rule.action != "allow":
        if known is not False:
            return True
        if (
            rule.action == "ask"
            or not with_claims
            or not moment.claims
            or conditions.get("granted", granted) is not granted
        ):
            return False
        return conditions_hold(conditions, {**moment.context, **moment.claims}, moment.at, granted) is not False
    context = dict(moment.context)
    if with_claims and "cost" in moment.claims and "cost" in context:
        both = [context["cost"], moment.claims["cost"]]
        context["cost"] = max(both) if all(map(is_cost, both)) else None
    return conditions_hold(conditions, context, moment.at, granted) is True


# --- policies, chains, limits ------------------------------------------------------------------------------------


@dataclass
class Bound:
    """One policy as it binds one agent, and what binds it from above."""

    policy: Any
    permissions: frozenset[str] | None = None
    restrictions: frozenset[str] = frozenset()  # operations taken away
    parent: Bound | None = None
    name: str | None = None


@dataclass
class Answer:
    effect: str
    reason: str
    rule: int | None = None
    decides: bool = True
    would_deny: bool = False
    spends: list[tuple[Any, ...]] = field(default_factory=list)  # (key of the log, limit, enforced)

    @property
    def rank(self) -> int:
        return 1 if self.would_deny else {"allow": 0, "ask": 2, "deny": 3}[self.effect]


def ceiling(bound: Bound | None, operation: str) -> tuple[str, bool] | None:
    """R9.4, R10: of the agent and of everyone above it."""
    if bound is None:
        return None
    base = operation.partition("/")[0]
    if base in bound.restrictions:
        return "restricted", bound.policy.enforce
    if bound.permissions is not None and not bound.permissions & {"*", base, operation}:
        return "not_permitted", bound.policy.enforce
    return ceiling(bound.parent, operation)


def own(bound: Bound, name: str, moment: Moment, who: str, *, with_claims: bool) -> Answer:
    """R5, R10, R12: one policy about one name."""
    refused = ceiling(bound, moment.operation)
    if refused is not None:
        return softened(Answer("deny", refused[0]), enforce=refused[1])
    for index, rule in enumerate(bound.policy.rules):
        if applies(rule, name, moment, bound.permissions, with_claims=with_claims):
            said = {"allow": "allowed_by_rule", "deny": "denied_by_rule", "ask": "asked_by_rule"}[rule.action]
            answer = Answer(rule.action, rule.reason or said, index)
            if rule.rate_limit is not None and rule.action != "deny":
                answer.spends = [
                    ((bound.policy.name, repr(rule.as_dict()), who), rule.rate_limit, bound.policy.enforce)
                ]
            return softened(answer, enforce=bound.policy.enforce)
    default = bound.policy.default_action
    return softened(Answer(default, f"default_{default}", decides=False), enforce=bound.policy.enforce)


def softened(answer: Answer, *, enforce: bool) -> Answer:
    if not enforce and answer.effect != "allow":
        answer.effect, answer.would_deny = "allow", True
    return answer


def chained(bound: Bound, name: str, moment: Moment, *, with_claims: bool) -> Answer:
    """R9: the inheritance of each ancestor is about everything below it."""
    answer = own(bound, name, moment, moment.name, with_claims=with_claims)
    above = bound.parent
    while above is not None:
        if above.policy.inheritance != "none" and not (above.policy.inheritance == "permissive" and answer.decides):
            its = own(above, name, moment, above.name or "-", with_claims=with_claims)
            if above.policy.inheritance == "permissive":
                answer = its
            else:
                stricter = its if its.rank > answer.rank else answer
                answer = Answer(
                    stricter.effect, stricter.reason, stricter.rule,
                    would_deny=stricter.would_deny, spends=answer.spends + its.spends,
                )  # fmt: skip
        above = above.parent
    return answer


class Reference:
    """Decides, and remembers every call that was allowed (R8)."""

    def __init__(self) -> None:
        self.log: dict[Any, list[float]] = {}

    def decide(self, bound: Bound, names: Sequence[str], moment: Moment) -> Answer:
        answers = [chained(bound, name, moment, with_claims=False) for name in names]
        if moment.claims:
            answers += [chained(bound, name, moment, with_claims=True) for name in names]
        worst = answers[0]
        for answer in answers:
            if answer.rank > worst.rank:
                worst = answer
        if worst.effect == "deny":
            return worst
        spends = list(dict.fromkeys(spend for answer in answers for spend in answer.spends))
        full = [(key, enforced) for key, limit, enforced in spends if not self.room(key, limit, moment.now_s)]
        if any(enforced for _, enforced in full):
            return Answer("deny", "rate_limited")
        for key, _, _ in spends:
            if key not in dict(full):
                self.log.setdefault(key, []).append(moment.now_s)
        if full:
            return Answer(worst.effect, "rate_limited", would_deny=True)
        return worst

    def room(self, key: Any, limit: int, now_s: float) -> bool:
        return sum(now_s - 60 < stamp for stamp in self.log.get(key, ())) < limit
