"""Policies: an ordered list of rules with a default, and the calls that tests, tools and users make.

A Policy grows by `add_rule`, and whoever acts by it follows; what it is compiled to is immutable.
`Policy.decide` is the pure engine: no workspace, no standing rule sets (effective.py adds those), and it reads no
clock: `at` is the time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from agentos.actions import base_operation
from agentos.errors import BadRequest
from agentos.policies import decision as reasons
from agentos.policies import verdict
from agentos.policies.decision import Decision
from agentos.policies.edition import Edition
from agentos.policies.engine import Compiled, Subject
from agentos.policies.faults import FieldError, one_of, text
from agentos.policies.followers import Followers
from agentos.policies.normalise import InvalidResource, normalise, normalise_network, printable_name
from agentos.policies.quota import Quota
from agentos.policies.rule import Pattern, Rule, is_operation
from agentos.policies.verdict import Facts, Link

__all__ = ["BUILTINS", "Pattern", "Policy", "Rule"]

BUILTINS: Final = ("strict", "permissive", "audit", "workspace", "custom")
DEFAULT_ACTIONS: Final = ("allow", "deny")
INHERITANCES: Final = ("strict", "permissive", "none")
_CANONICAL_FORM: Final = 1  # part of every hash: a change of the form must change the hashes


class Policy:
    """Rules in order, first match wins, else the default (R5).

    `inheritance` says how this policy binds the children of an agent under it: strict = both must allow,
    permissive = a matching rule of the child decides, none = the child's policy alone (R9). `runtime=False`
    drops the @runtime set; `enforce=False` decides, records and allows (only invalid names and agentos' own
    files stay refused). Raises PolicyLoadError for anything wrong or unknown.
    """

    def __init__(
        self,
        name: str,
        version: str = "1.0.0",
        rules: Iterable[Rule] | None = None,
        default_action: str = "deny",
        inheritance: str = "strict",
        *,
        description: str | None = None,
        runtime: bool = True,
        enforce: bool = True,
    ) -> None:
        self.name = text(name, ("name",), "name")
        self.version = text(version, ("version",), "version")
        self.description = None if description is None else text(description, ("description",), "description")
        self.default_action = one_of(default_action, DEFAULT_ACTIONS, ("default_action",), "default_action")
        self.inheritance = one_of(inheritance, INHERITANCES, ("inheritance",), "inheritance")
        self.runtime = _flag(runtime, "runtime")
        self.enforce = _flag(enforce, "enforce")
        self.parent: Policy | None = None
        self.restrictions: tuple[str, ...] = ()
        self._edition = Edition(_rules(rules or ()))
        self._hashed: tuple[Edition | None, str] = (None, "")
        self._trial = Quota()  # what `decide` counts; a kernel counts in a Quota of its own
        self.followers = Followers()

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to change a field: hashes in the record, and what runs under the policy, would no longer be true."""
        if not name.startswith("_") and name in vars(self):
            raise AttributeError(f"the {name} of a policy is fixed; build another Policy")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Policy({self.name!r}, version={self.version!r}, rules={len(self.rules)}, hash={self.hash[:12]})"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in order; `add_rule` appends."""
        return self._edition.rules

    def add_rule(
        self,
        action: str | Rule,
        pattern: Pattern | None = None,
        reason: str | None = None,
        on_violation: Any = None,
        rate_limit: int | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        audit: str = "normal",
        ask_timeout_s: float | None = None,
    ) -> None:
        """Append a rule, given by its parts or ready-made; every decision after the return of this call uses it.

        That holds for the agents of every running kernel that was given this policy. Their rate limits go on counting.
        Raises PolicyLoadError for a wrong rule; RecorderUnavailable, KernelUnavailable or BadRequest when one of these
        kernels could not follow. Then the rule is in force nowhere. Thread-safe.
        """
        if isinstance(action, Rule):
            self._grow(action)
            return
        if pattern is None:
            raise FieldError("add_rule needs a pattern", ("pattern",))
        self._grow(
            Rule(
                action,
                pattern,
                reason=reason,
                name=name,
                description=description,
                on_violation=on_violation,
                rate_limit=rate_limit,
                audit=audit,
                ask_timeout_s=ask_timeout_s,
            )
        )

    def _grow(self, rule: Rule) -> None:
        """Append, then tell: a kernel that starts meanwhile has the rule already, one that runs is told of it."""
        with self.followers.change():
            before = self._edition
            self._edition = before.followed_by(rule)
            if not self.followers:
                return
            hashes = (self._hash_of(before), self.hash)
            try:
                self.followers.tell(rule, *hashes)
            except BaseException as error:
                self._edition = before  # first: a kernel that starts from now on has no such rule
                self.followers.take_back(*hashes, error)
                raise

    # --- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_yaml(cls, text_or_path: str | os.PathLike[str]) -> Policy:
        """Load a policy from YAML text, or from a file: a path object, or one line that ends in .yaml or .yml.

        Raises PolicyLoadError with file, line and column for anything wrong, unknown or doubled (R14).
        """
        from agentos.policies import loader  # noqa: PLC0415 - the loader builds policies

        return loader.load(text_or_path)

    def to_yaml(self) -> str:
        """Return the policy as YAML that `from_yaml` reads back with the same hash."""
        from agentos.policies import loader  # noqa: PLC0415 - as in from_yaml

        return loader.dump(self)

    @classmethod
    def builtin(cls, name: str) -> Policy:
        """Return a fresh copy of a built-in: strict, permissive, audit, workspace, custom. Raises PolicyLoadError."""
        from agentos.policies import loader  # noqa: PLC0415 - as in from_yaml

        return loader.load_builtin(one_of(name, BUILTINS, ("policy",), "built-in policy"))

    def as_dict(self) -> dict[str, Any]:
        """Return the policy as its YAML mapping: plain values, absent where absent or default."""
        return self._fields([rule.as_dict() for rule in self.rules])

    def _fields(self, rules: list[dict[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "default_action": self.default_action,
            "inheritance": self.inheritance,
            "runtime": None if self.runtime else False,
            "enforce": None if self.enforce else False,
            "rules": rules,
        }
        return {key: value for key, value in fields.items() if value is not None}

    @property
    def hash(self) -> str:
        """The sha256, in hex, of the canonical form: what every decision and every record names."""
        edition, (known, hashed) = self._edition, self._hashed
        if known is not edition:
            hashed = self._hash_of(edition)
            self._hashed = (edition, hashed)
        return hashed

    def _hash_of(self, edition: Edition) -> str:
        form = [_CANONICAL_FORM, self._fields([]), sorted(self.restrictions), self.parent and self.parent.hash]
        return edition.hash(form)

    # --- inheritance ---------------------------------------------------------------------------------------------

    def bounded_by(self, parent: Policy) -> Policy:
        """Return a copy for a child of an agent under `parent`, combined as the parent's `inheritance` says (R9)."""
        bound = self._copy()
        above = parent._copy() if self.parent is None else self.parent.bounded_by(parent)
        vars(bound)["parent"] = above
        return bound

    def restricted(self, restrictions: Sequence[str]) -> Policy:
        """Return a copy without some operations, e.g. `["no_network"]`. Raises BadRequest for an unknown name."""
        verdict.taken_away(restrictions)
        bound = self._copy()
        vars(bound)["restrictions"] = tuple(dict.fromkeys((*self.restrictions, *restrictions)))
        return bound

    def with_rules(self, rules: Iterable[Rule]) -> Policy:
        """Return a copy with `rules` appended; this policy, and what runs under it, do not change."""
        bound = self._copy()
        for rule in rules:
            bound.add_rule(rule)
        return bound

    def without_last_rule(self) -> Policy:
        """Return a copy without the rule that was added last."""
        return self._copy(Edition(self.rules[:-1]))

    def _copy(self, edition: Edition | None = None) -> Policy:
        other = Policy.__new__(Policy)
        vars(other).update(vars(self))
        # who acts by this one does not act by the copy, and the copy may be given other bounds, hence another hash
        edition = edition or self._edition
        vars(other).update(_edition=edition, _hashed=(None, ""), _trial=Quota(), followers=Followers())
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What travels: the rules. Neither who follows nor what was compiled and counted here."""
        return vars(self) | {"_edition": self.rules, "_hashed": (None, ""), "_trial": None, "followers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _edition=Edition(state["_edition"]), _trial=Quota(), followers=Followers())

    # --- deciding ------------------------------------------------------------------------------------------------

    def compiled(self) -> Compiled:
        """Return the immutable compiled rules as they are now."""
        return self._edition.compiled()

    def link(self, permissions: Iterable[str] | None = None) -> Link:
        """Return this policy, and those that bound it, as the evaluator takes them."""
        return Link(
            policy=self.name,
            hash=self.hash,
            rules=self._edition.compiled(),
            default_action=self.default_action,
            inheritance=self.inheritance,
            enforce=self.enforce,
            runtime=self.runtime,
            permissions=verdict.ceiling(permissions),
            restrictions=verdict.taken_away(self.restrictions),
            parent=None if self.parent is None else self.parent.link(permissions),
        )

    def decide(
        self,
        operation: str,
        resource: str,
        *,
        context: Mapping[str, Any] | None = None,
        at: datetime | None = None,
        name: str = "-",
        permissions: Sequence[str] | None = None,
        argv: Sequence[str] | None = None,
    ) -> Decision:
        """Return what this policy says about one action of the agent `name`, counting its rate limits.

        `at` is an aware datetime; without it time windows are unknown and rate limits see no time pass.
        `argv` of an `execute` begins with the program as called; without it, argument patterns are unknown (R7.2).
        Raises BadRequest for a naive `at` or an unknown permission; a bad resource or operation is a denial.
        """
        if at is not None and at.utcoffset() is None:
            raise BadRequest("at must be an aware datetime, such as datetime.now(timezone.utc)")
        link = self.link(permissions)
        subject = _subject(link, operation, resource, argv)
        if isinstance(subject, Decision):
            return subject
        plans = (verdict.plan(link, subject),)
        settled = verdict.settle(plans)
        if settled is not None:
            return settled
        now_s = 0.0 if at is None else at.timestamp()
        return verdict.decide(plans, Facts(context or {}, at=at), name, self._trial, now_s)


def _subject(link: Link, operation: str, resource: str, argv: Sequence[str] | None) -> Subject | Decision:
    if not is_operation(operation):
        return verdict.invalid(link, operation, resource, reasons.INVALID_OPERATION)
    try:
        network = base_operation(operation) == "network"
        words = None if argv is None else tuple(map(printable_name, argv))
        return Subject(operation, (normalise_network(resource) if network else normalise(resource),), words)
    except InvalidResource:
        return verdict.invalid(link, operation, resource, reasons.INVALID_RESOURCE)


def _rules(given: Iterable[Rule]) -> Iterator[Rule]:
    for index, rule in enumerate(given):
        if not isinstance(rule, Rule):
            raise FieldError(f"a rule must be a Rule, not {type(rule).__name__}", ("rules", index))
        yield rule


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{name} is true or false, not {value!r}", (name,))
    return value
