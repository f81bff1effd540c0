"""The rules of a policy as they are between two changes: compiled once, hashed once, immutable.

The next edition is made from the one before: it shares what was compiled, and goes on where the hash ended, so that a
rule added to ten thousand costs what that rule costs. Whoever holds an edition is not disturbed by a later one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

from agentos.policies.engine import Compiled
from agentos.policies.rule import Rule

_RULES: Final = '"rules":[]'  # cannot stand within a text: there, its quotes would be escaped


class Edition:
    """An immutable list of rules. What it computes lazily is the same whoever computes it, so threads may race."""

    __slots__ = ("_compiled", "_hashed", "rules")

    def __init__(
        self, rules: Iterable[Rule] = (), compiled: Compiled | None = None, hashed: tuple[str, Any] | None = None
    ) -> None:
        self.rules = tuple(rules)
        self._compiled = compiled
        self._hashed = hashed  # the text before the rules, and sha256 up to their end

    def followed_by(self, rule: Rule) -> Edition:
        """Return these rules and one more."""
        hashed = self._hashed
        if hashed is not None:
            hashed = (hashed[0], hashed[1].copy())
            hashed[1].update((("," if self.rules else "") + _canonical(rule.as_dict())).encode())
        compiled = self._compiled
        return Edition((*self.rules, rule), compiled and compiled.followed_by(rule), hashed)

    def compiled(self) -> Compiled:
        if self._compiled is None:
            self._compiled = Compiled(self.rules)
        return self._compiled

    def hash(self, form: Any) -> str:
        """Return the sha256, in hex, of the canonical JSON of `form` with these rules in its one empty `rules`."""
        before, _, behind = _canonical(form).partition(_RULES)
        if self._hashed is None or self._hashed[0] != before:
            rules = ",".join(_canonical(rule.as_dict()) for rule in self.rules)
            self._hashed = (before, hashlib.sha256(f'{before}"rules":[{rules}'.encode()))
        whole = self._hashed[1].copy()
        whole.update(f"]{behind}".encode())
        return str(whole.hexdigest())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
