"""Compiled rules: which of them speak about an action, in near-constant time for 10 to 10,000 rules.

Each alternative of a pattern is filed under its rarest whole literal segment; a request looks up its own few
segments and tries what is filed there. Sound because wildcards stop at `/` (R1.2), so that a literal segment of
a pattern is a whole segment of every match. What has no literal segment, and every large bucket, is asked all at once
through a set of RE2 expressions. Immutable: a new list of rules is a new `Compiled`, so no cache is ever stale; one
that goes on where another ends shares its blocks, so that a rule can be added to ten thousand without filing them anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agentos.actions import OPERATIONS, base_operation
from agentos.policies.expressions import Match, together
from agentos.policies.normalise import is_url
from agentos.policies.rule import Matcher, Rule
from agentos.policies.segment import GlobError

EFFORT_MAX: Final = 16  # up to here trying one after the other beats asking all at once
EXPRESSION_EFFORT: Final = 6  # of a regular expression, in comparisons of a prefix
JOINED_MAX: Final = 1_024  # rules of a block that grows: filing so many takes 10 ms, while everybody waits
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


class Crowd:
    """Entries that are asked all at once. Too many for one set of expressions: two crowds of half as many."""

    __slots__ = ("_entries", "_halves", "_match")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._halves: tuple[Crowd, ...] = ()
        self._match: Match | None = None
        try:
            self._match = together([entry.matcher.glob.regex for entry in entries])
        except GlobError:
            if len(entries) > 1:
                middle = len(entries) // 2
                self._halves = (Crowd(entries[:middle]), Crowd(entries[middle:]))

    def rules(self, name: str) -> Iterator[int]:
        """Yield the rules with an entry that matches `name`."""
        for half in self._halves:
            yield from half.rules(name)
        for entry in () if self._halves else self._possible(name):
            if entry.matcher.glob.matches(name):
                yield entry.rule

    def _possible(self, name: str) -> Sequence[Entry]:
        if self._match is None:
            return self._entries
        found = set(self._match(name) or ())
        if name[-1:] == "/":  # a person's `x$` matches a directory without its final slash
            found.update(self._match(name[:-1]) or ())
        return [self._entries[index] for index in found]


class Bucket:
    """The entries filed under one segment."""

    __slots__ = ("_crowd", "_effort", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._effort = 0  # of trying one after the other
        self._crowd: Crowd | None = None

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._effort += EXPRESSION_EFFORT if entry.matcher.glob.kind in ("regex", "person") else 1

    def rules(self, name: str) -> Iterable[int]:
        """Yield the rules with an alternative that matches `name`; arguments are not looked at."""
        if self._effort <= EFFORT_MAX:
            return [entry.rule for entry in self.entries if entry.matcher.glob.matches(name)]
        if self._crowd is None:
            self._crowd = Crowd(self.entries)
        return self._crowd.rules(name)


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
                self.buckets.setdefault(min(tokens, key=lambda t: (often[t], t)), Bucket()).add(entry)
            else:
                self.anything.add(entry)

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

    __slots__ = ("_blocks", "rules")

    def __init__(self, rules: Sequence[Rule], blocks: tuple[Block, ...] = ()) -> None:
        self.rules = tuple(rules)
        self._blocks = blocks or (Block(self.rules, 0),)

    def followed_by(self, rule: Rule) -> Compiled:
        """Return these rules and one more. Blocks of like size become one, so there are few, and most are shared."""
        blocks = list(self._blocks)
        last: tuple[Rule, ...] = (rule,)
        while blocks and len(blocks[-1].rules) <= len(last) and len(last) + len(blocks[-1].rules) <= JOINED_MAX:
            last = blocks.pop().rules + last
        rules = (*self.rules, rule)
        return Compiled(rules, (*blocks, Block(last, len(rules) - len(last))))

    def prepare(self) -> None:
        """Build every index now: with ten thousand rules the first action would wait for it, and everybody else."""
        for block in self._blocks:
            for operation in OPERATIONS:
                block.index(operation)

    def hits(self, subject: Subject) -> list[tuple[int, Rule]]:
        """Return the rules that match the subject, conditions left aside, in order, up to the first without any."""
        found: list[tuple[int, Rule]] = []
        for block in self._blocks:
            found += block.hits(subject)
            if found and found[-1][1].pattern.when is None:
                break
        return found


class Block:
    """A run of the rules of a policy, the first of which has the number `first`, and their indices."""

    __slots__ = ("_indices", "first", "rules")

    def __init__(self, rules: tuple[Rule, ...], first: int) -> None:
        self.rules = rules
        self.first = first
        self._indices: dict[str, Index] = {}

    def index(self, base: str) -> Index:
        index = self._indices.get(base)
        if index is None:
            index = self._indices[base] = Index(list(self._entries(base)))
        return index

    def hits(self, subject: Subject) -> list[tuple[int, Rule]]:
        """Return as `Compiled.hits` does, of these rules alone."""
        base = base_operation(subject.operation)
        index = self.index(base)
        found: list[tuple[int, Rule]] = []
        for number in index.rules(subject.names):
            rule = self.rules[number]
            if _about(rule, subject.operation) and covers(rule, subject, base == "execute"):
                found.append((self.first + number, rule))
                if rule.pattern.when is None:
                    break
        return found

    def _entries(self, base: str) -> Iterator[Entry]:
        for number, rule in enumerate(self.rules):
            if any(base_operation(operation) in (base, "*") for operation in rule.pattern.operations):
                matchers = rule.pattern.programs if base == "execute" else rule.pattern.names
                yield from (Entry(number, matcher) for matcher in matchers[0])


def _about(rule: Rule, operation: str) -> bool:
    wanted = rule.pattern.operations
    return operation in wanted or "*" in wanted or any(operation.startswith(each + "/") for each in wanted)


def covers(rule: Rule, subject: Subject, execute: bool) -> bool:
    """Return whether a rule that the index has found covers the subject, excludes included; no conditions yet.

    Of a name that is not a program's the index has matched all there is. Unknown arguments count against the
    action, as unknown context does (R7.2). An alias helps a rule to match; for an allow rule, an exclude of any of
    the names takes the match away.
    """
    if not execute:
        return not any(matcher.glob.matches(subject.name) for matcher in rule.pattern.names[1])
    included, excluded = rule.pattern.programs
    strict = rule.action != "allow"
    within = [n for n in subject.names if any(m.covers(n, subject.argv, if_unknown=strict) for m in included)]
    if not within or not excluded:
        return bool(within)
    out = {n for n in subject.names if any(m.covers(n, subject.argv, if_unknown=not strict) for m in excluded)}
    return not out.issuperset(within) if strict else not out
