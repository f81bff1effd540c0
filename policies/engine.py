"""Compiled rules: which of them speak about an action, in near-constant time for 10 to 10,000 rules.

Each alternative of a pattern is filed under its rarest whole literal segment; a request looks up its own few
segments and tries what is filed there. Sound because wildcards stop at `/` (R1.2), so that a literal segment of
a pattern is a whole segment of every match. What has no literal segment, and every large bucket, goes into a tree
of RE2 alternations. Immutable: a new list of rules is a new `Compiled`, so no cache is ever stale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import re2

from agentos.actions import base_operation
from agentos.policies.glob import compile_regex, whole_match
from agentos.policies.normalise import is_url
from agentos.policies.rule import Matcher, Rule
from agentos.policies.segment import GlobError

BUCKET_MAX: Final = 16  # up to here trying one after the other beats a tree
FAN_OUT: Final = 16
TREE_MEMORY_BYTES: Final = 64 << 20  # an upper bound for ten thousand alternatives; RE2 takes what it needs
SEGMENTS_FEW: Final = 8  # up to here a set of them costs more than looking one up twice


@dataclass(frozen=True, slots=True)
class Subject:
    """One name of one action. `names[0]` is the name itself, others are trusted aliases (of programs only)."""

    operation: str
    names: tuple[str, ...]
    argv: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Entry:
    """One alternative of the rule at index `rule`."""

    rule: int
    matcher: Matcher


class Node:
    """A set of entries with one expression for all of them: no match here, no match below."""

    __slots__ = ("children", "entries", "may_match")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries: Sequence[Entry] = entries if len(entries) <= FAN_OUT else ()
        self.children: tuple[Node, ...] = ()
        if len(entries) > FAN_OUT:
            size = max(FAN_OUT, -(-len(entries) // FAN_OUT))
            self.children = tuple(Node(entries[at : at + size]) for at in range(0, len(entries), size))
        expression = _alternation(entries)
        self.may_match: Callable[[str], bool] | None = None if expression is None else whole_match(expression)

    def rules(self, name: str) -> Iterator[int]:
        if self.may_match is not None and not self._possible(self.may_match, name):
            return
        for entry in self.entries:
            if entry.matcher.glob.matches(name):
                yield entry.rule
        for child in self.children:
            yield from child.rules(name)

    @staticmethod
    def _possible(may_match: Callable[[str], bool], name: str) -> bool:
        """Whether some alternative may match; a person's `x$` matches a directory without its final slash."""
        return may_match(name) or (name[-1:] == "/" and may_match(name[:-1]))


def _alternation(entries: Sequence[Entry]) -> re2._Regexp | None:
    """Return one expression for all entries; None where it would be too large, and the children are asked instead."""
    sources = {f"(?:{entry.matcher.glob.regex})" for entry in entries}
    try:
        return compile_regex(f"(?:{'|'.join(sorted(sources))})/?", TREE_MEMORY_BYTES)
    except GlobError:
        return None


class Bucket:
    """The entries filed under one segment."""

    __slots__ = ("_tree", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._tree: Node | None = None

    def rules(self, name: str) -> Iterable[int]:
        """Yield the rules with an alternative that matches `name`; arguments are not looked at."""
        if len(self.entries) <= BUCKET_MAX:
            return [entry.rule for entry in self.entries if entry.matcher.glob.matches(name)]
        if self._tree is None:
            self._tree = Node(self.entries)
        return self._tree.rules(name)


class Index:
    """The rules that can speak about one operation."""

    __slots__ = ("anything", "buckets")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.anything = Bucket()
        often = Counter(token for entry in entries for token in set(entry.matcher.glob.tokens))
        for entry in entries:
            tokens = entry.matcher.glob.tokens
            if tokens:
                self.buckets.setdefault(min(tokens, key=lambda t: (often[t], t)), Bucket()).entries.append(entry)
            else:
                self.anything.entries.append(entry)

    def rules(self, names: Iterable[str]) -> list[int]:
        """Return the indices of the rules whose resource matches one of `names`, ascending."""
        found: set[int] = set()
        for name in names:
            if self.anything.entries:
                found.update(self.anything.rules(name))
            for token in _tokens(name):
                bucket = self.buckets.get(token)
                if bucket is not None:
                    found.update(bucket.rules(name))
        return sorted(found)


def _tokens(name: str) -> Iterable[str]:
    """Return what a name can be filed under: its segments, and for URLs `*.` with each parent of the host."""
    segments = name.split("/")
    if not is_url(name):
        return segments if len(segments) <= SEGMENTS_FEW else set(segments)  # `a/a/a/…` asks its one bucket once
    host = segments[2]
    at = host.find(".")
    while at >= 0:
        segments.append("*" + host[at:])
        at = host.find(".", at + 1)
    return set(segments)


class Compiled:
    """An immutable list of rules, ready to be asked."""

    __slots__ = ("_indices", "rules")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._indices: dict[str, Index] = {}

    def hits(self, subject: Subject) -> list[tuple[int, Rule]]:
        """Return the rules that match the subject, conditions left aside, in order, up to the first without any."""
        base = base_operation(subject.operation)
        index = self._indices.get(base)
        if index is None:
            index = self._indices[base] = Index(list(self._entries(base)))
        found: list[tuple[int, Rule]] = []
        for number in index.rules(subject.names):
            rule = self.rules[number]
            if covers(rule, subject):
                found.append((number, rule))
                if rule.pattern.when is None:
                    break
        return found

    def _entries(self, base: str) -> Iterator[Entry]:
        for number, rule in enumerate(self.rules):
            if any(base_operation(operation) in (base, "*") for operation in rule.pattern.operations):
                matchers = rule.pattern.programs if base == "execute" else rule.pattern.names
                yield from (Entry(number, matcher) for matcher in matchers[0])


def covers(rule: Rule, subject: Subject) -> bool:
    """Return whether the rule's pattern, excludes included, covers the subject; conditions are not looked at.

    Unknown arguments count against the action, as unknown context does (R7.2). An alias helps a rule to match;
    for an allow rule, an exclude of any of the names takes the match away.
    """
    if not any(_operation_matches(wanted, subject.operation) for wanted in rule.pattern.operations):
        return False
    execute = base_operation(subject.operation) == "execute"
    included, excluded = rule.pattern.programs if execute else rule.pattern.names
    strict = rule.action != "allow"
    within = [n for n in subject.names if any(m.covers(n, subject.argv, if_unknown=strict) for m in included)]
    if not within or not excluded:
        return bool(within)
    out = {n for n in subject.names if any(m.covers(n, subject.argv, if_unknown=not strict) for m in excluded)}
    return not out.issuperset(within) if strict else not out


def _operation_matches(wanted: str, operation: str) -> bool:
    return wanted in ("*", operation) or operation.startswith(wanted + "/")
