"""Patterns and rules: frozen values, as strict when written in Python as when loaded from a file (R14).

A Pattern carries its matchers, built once at construction; a policy that gains a rule re-files them, no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from agentos.actions import OPERATIONS, base_operation
from agentos.errors import nearest
from agentos.policies import conditions as conditions_of
from agentos.policies.conditions import Conditions
from agentos.policies.faults import FieldError, Path, one_of, text, texts
from agentos.policies.glob import Glob, argument_globs, globs, program_globs, regex_glob
from agentos.policies.segment import GlobError

ACTIONS: Final = ("allow", "deny", "ask")
MATCH_TYPES: Final = ("glob", "regex")
PATTERN_KEYS: Final = ("operation", "resource", "match_type", "conditions", "exclude")
RULE_KEYS: Final = (  # of a rule as it is written down
    "action", *PATTERN_KEYS, "reason", "name", "description", "on_violation", "rate_limit", "audit", "ask_timeout",
)  # fmt: skip
AUDIT_CLASSES: Final = ("normal", "durable")
SIGNALS: Final = ("SIGKILL", "SIGSTOP", "SIGCONT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
SHOWN_CHARACTERS_MAX: Final = 200  # of a pattern, in an error
RATE_LIMIT_MAX: Final = 1_000_000  # calls a minute; the log keeps a stamp for each
PATTERN_CHARACTERS_MAX: Final = 4_096  # no path is longer; beyond it RE2 might refuse what was accepted at load
ASK_TIMEOUT_S_MAX: Final = 30 * 24 * 3600.0  # nobody answers after a month
_OPERATION: Final = re.compile(r"[a-z]{1,16}(?:/[A-Za-z0-9_]{1,32}){0,3}")

Texts = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Matcher:
    """One alternative of a resource: the name's glob and, for programs, the globs of its first arguments."""

    glob: Glob
    arguments: tuple[tuple[Glob, ...], ...] = ()

    def covers(self, name: str, argv: tuple[str, ...] | None, *, if_unknown: bool) -> bool:
        """Return whether name and arguments match; `if_unknown` is the answer when arguments matter and are unknown."""
        if not self.glob.matches(name):
            return False
        if not self.arguments:
            return True
        if argv is None:
            return if_unknown
        given = argv[1 : len(self.arguments) + 1]
        if len(given) < len(self.arguments):
            return False
        return all(any(g.matches(a) for g in wanted) for wanted, a in zip(self.arguments, given, strict=True))


Matchers = tuple[Matcher, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which actions a rule is about.

    `operation`: read, write, execute, network, a sub-operation such as `write/delete`, `*`, or a list.
    `resource` and `exclude`: a pattern or a list of them; for execute, the words after the first are patterns
    of the program's arguments. Raises PolicyLoadError when anything is wrong or unknown.
    """

    operation: Texts
    resource: Texts
    match_type: str = "glob"
    conditions: Mapping[str, Any] | None = None
    exclude: Texts | None = None
    operations: tuple[str, ...] = field(init=False, repr=False, compare=False)
    resources: tuple[str, ...] = field(init=False, repr=False, compare=False)
    when: Conditions | None = field(init=False, repr=False, compare=False)
    names: tuple[Matchers, Matchers] = field(init=False, repr=False, compare=False)  # matchers, excludes
    programs: tuple[Matchers, Matchers] = field(init=False, repr=False, compare=False)  # the same for execute

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen for everybody else
        operations = _operations(self.operation)
        resources = texts(self.resource, ("resource",), "resource")
        excludes = () if self.exclude is None else texts(self.exclude, ("exclude",), "exclude")
        one_of(self.match_type, MATCH_TYPES, ("match_type",), "match_type")
        put(self, "operations", operations)
        put(self, "operation", operations[0] if len(operations) == 1 else operations)
        put(self, "resources", resources)
        put(self, "resource", resources[0] if len(resources) == 1 else resources)
        put(self, "exclude", excludes or None)
        put(self, "conditions", conditions_of.freeze(self.conditions))
        put(self, "when", conditions_of.parse(self.conditions))
        self._match(resources, excludes)

    def _match(self, resources: tuple[str, ...], excludes: tuple[str, ...]) -> None:
        """Build the matchers that the operations need: an `execute` pattern has words, any other has not."""
        bases = {base_operation(operation) for operation in self.operations}

        def both(needed: bool, execute: bool) -> tuple[Matchers, Matchers]:
            if not needed:
                return ((), ())
            return (
                _matchers(resources, self.match_type, "resource", execute=execute),
                _matchers(excludes, self.match_type, "exclude", execute=execute),
            )

        object.__setattr__(self, "names", both(bool(bases - {"execute"}), execute=False))
        object.__setattr__(self, "programs", both(bool(bases & {"execute", "*"}), execute=True))

    def __hash__(self) -> int:
        return hash((self.operations, self.resources, self.match_type, self.exclude))


def is_operation(operation: str) -> bool:
    """Return whether an action's operation is of the closed set: `read`, or a sub-operation `write/delete` (R11)."""
    return _OPERATION.fullmatch(operation) is not None and base_operation(operation) in OPERATIONS


def _operations(value: object) -> tuple[str, ...]:
    found = texts(value, ("operation",), "operation")
    for index, operation in enumerate(found):
        path: Path = ("operation",) if isinstance(value, str) else ("operation", index)
        one_of(base_operation(operation), (*OPERATIONS, "*"), path, "operation")
        if operation != "*" and not is_operation(operation):
            raise FieldError(f"{operation!r} is not a sub-operation; write it as 'network/connect'", path)
    return found


def _matchers(resources: tuple[str, ...], match_type: str, name: str, *, execute: bool) -> Matchers:
    found: list[Matcher] = []
    for index, resource in enumerate(resources):
        try:
            found.extend(_alternatives(resource, match_type, execute=execute))
        except GlobError as error:
            path: Path = (name,) if len(resources) == 1 else (name, index)
            shown = resource if len(resource) <= SHOWN_CHARACTERS_MAX else resource[:SHOWN_CHARACTERS_MAX] + "…"
            raise FieldError(f"{name} {shown!r}: {error}", path) from error
    return tuple(found)


def _alternatives(resource: str, match_type: str, *, execute: bool) -> list[Matcher]:
    if len(resource) > PATTERN_CHARACTERS_MAX:
        raise GlobError(f"longer than {PATTERN_CHARACTERS_MAX} characters")
    if match_type == "regex":
        return [Matcher(regex_glob(resource))]
    if not execute:
        return [Matcher(glob) for glob in globs(resource)]
    program, *words = _words(resource)
    arguments = tuple(argument_globs(word) for word in words)
    return [Matcher(glob, arguments) for glob in program_globs(program)]


def _words(resource: str) -> list[str]:
    r"""Split on spaces; `\ ` is a space within a word, and `{a b}` does not exist."""
    words, word, at = [], "", 0
    while at < len(resource):
        if resource[at] == "\\":
            word += resource[at : at + 2]
            at += 1
        elif resource[at] == " ":
            words.append(word)
            word = ""
        else:
            word += resource[at]
        at += 1
    return [w for w in (*words, word) if w]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what happens to the actions that `pattern` describes. First match wins (R5).

    `on_violation` is a signal's name (an AgentSignal member will do), sent when this rule denies or its limit
    trips (R13). `rate_limit`: at most so many allowed calls in any 60 s, per agent (R8). `audit="durable"`: on
    stable storage before the answer. `ask_timeout_s`: how long an `ask` waits. Raises PolicyLoadError.
    """

    action: str
    pattern: Pattern
    reason: str | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    description: str | None = field(default=None, kw_only=True)
    on_violation: str | None = field(default=None, kw_only=True)
    rate_limit: int | None = field(default=None, kw_only=True)
    audit: str = field(default="normal", kw_only=True)
    ask_timeout_s: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        one_of(self.action, ACTIONS, ("action",), "action")
        if not isinstance(self.pattern, Pattern):
            raise FieldError(f"pattern must be a Pattern, not {type(self.pattern).__name__}", ("pattern",))
        for name in ("reason", "name", "description"):
            if getattr(self, name) is not None:
                text(getattr(self, name), (name,), name)
        one_of(self.audit, AUDIT_CLASSES, ("audit",), "audit class")
        object.__setattr__(self, "on_violation", _signal(self.on_violation))
        _check_rate(self.rate_limit)
        _check_timeout(self.ask_timeout_s, self.action)

    def as_dict(self) -> dict[str, Any]:
        """Return the rule as its YAML mapping: plain values, absent where absent or default."""
        pattern = self.pattern
        fields = {
            "name": self.name,
            "description": self.description,
            "action": self.action,
            "operation": _plain(pattern.operation),
            "resource": _plain(pattern.resource),
            "match_type": None if pattern.match_type == "glob" else pattern.match_type,
            "exclude": _plain(pattern.exclude),
            "conditions": _plain(pattern.conditions),
            "reason": self.reason,
            "on_violation": self.on_violation,
            "rate_limit": self.rate_limit,
            "audit": None if self.audit == "normal" else self.audit,
            "ask_timeout": self.ask_timeout_s,
        }
        return {key: value for key, value in fields.items() if value is not None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Rule:
        """Return the rule that `as_dict` wrote. Raises PolicyLoadError, also for a key that no rule has."""
        values = dict(fields)
        for key in values:
            if key not in RULE_KEYS:
                raise FieldError(f"unknown key {key!r}{nearest(str(key), RULE_KEYS)}", (str(key),))
        for key in ("action", "operation", "resource"):
            if key not in values:
                raise FieldError(f"a rule needs {key}", ("rules",))
        pattern = Pattern(**{key: values.pop(key) for key in PATTERN_KEYS if key in values})
        if "ask_timeout" in values:
            values["ask_timeout_s"] = values.pop("ask_timeout")
        return cls(values.pop("action"), pattern, **values)

    def identity(self) -> str:
        """Return what the rule is to a rate limit across reloads: its name, else its content."""
        return self.name or json.dumps(self.as_dict(), sort_keys=True)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _signal(value: object) -> str | None:
    if value is None:
        return None
    name = value.name if isinstance(value, Enum) else value
    if name not in SIGNALS:
        raise FieldError(
            f"unknown signal {name!r}{nearest(str(name).upper(), SIGNALS)}; known: {', '.join(SIGNALS)}",
            ("on_violation",),
        )
    return str(name)


def _check_rate(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= RATE_LIMIT_MAX:
        raise FieldError(
            f"rate_limit is a number of calls a minute, 1 to {RATE_LIMIT_MAX}, not {value!r}", ("rate_limit",)
        )


def _check_timeout(value: object, action: str) -> None:
    if value is None:
        return
    if action != "ask":
        raise FieldError(f"ask_timeout belongs to an ask rule, not to {action}", ("ask_timeout",))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= ASK_TIMEOUT_S_MAX:
        raise FieldError(f"ask_timeout is a number of seconds above 0, not {value!r}", ("ask_timeout",))
