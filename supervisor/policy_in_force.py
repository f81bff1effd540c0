"""The policy that a kernel decides by now, everybody whom it binds, and how a rule is added to it.

A change is on record, durably, before it counts. Then it counts for all agents at once: one step of the loop gives the
new policy to each, parents first, those in line for a slot with them. What was decided is not decided again, and what
rate limits have counted stays counted. One rule for ten thousand others stops the loop for about 1 ms, and giving it
to a thousand agents for 8 ms, so that no thread is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from agentos.errors import BadRequest, RecorderUnavailable
from agentos.policies import EffectivePolicy, Policy, Rule
from agentos.supervisor.recording import Recording


class PolicyInForce:
    """One per kernel. A change names the hash that it starts from and the one that it leads to: none is lost unseen."""

    def __init__(self, policy: Policy, recording: Recording) -> None:
        self.policy = policy
        self._recording = recording
        self._bound: WeakSet[EffectivePolicy] = WeakSet()
        self._changing = asyncio.Lock()  # one at a time: each waits for the recorder

    def bind(self, effective: EffectivePolicy) -> EffectivePolicy:
        """Have this one follow every change, as long as somebody holds it. It was made of `policy` as it is now."""
        self._bound.add(effective)
        return effective

    async def add_rule(self, fields: Mapping[str, Any], before: str | None, after: str | None) -> None:
        """Put one more rule in force. Raises PolicyLoadError, BadRequest, RecorderUnavailable; nothing changed then."""
        rule = Rule.from_dict(fields)
        async with self._changing:
            if self.policy.hash == after:  # this kernel started with the rule
                return
            self._check("add_rule", before)
            grown = self.policy.with_rules([rule])
            if grown.hash != after:
                raise BadRequest(f"add_rule: with this rule the policy has the hash {grown.hash}, not {after}")
            grown.compiled().prepare()
            await self._change("rule_added", rule, len(self.policy.rules), grown)

    async def take_rule_back(self, before: str | None, after: str | None) -> None:
        """Undo the `add_rule` that led from `before` to `after`, if it came through. Raises as that does."""
        async with self._changing:
            if self.policy.hash == before:
                return
            self._check("take_rule_back", after)
            shorter = self.policy.without_last_rule()
            shorter.compiled().prepare()
            await self._change("rule_taken_back", self.policy.rules[-1], len(shorter.rules), shorter)

    def _check(self, method: str, expected: str | None) -> None:
        if self.policy.hash != expected:
            raise BadRequest(f"{method}: the policy in force has the hash {self.policy.hash}, not {expected}")

    async def _change(self, change: str, rule: Rule, index: int, to: Policy) -> None:
        data = {
            "change": change, "policy": to.name, "index": index, "rule": rule.as_dict(),
            "old_hash": self.policy.hash, "new_hash": to.hash,
        }  # fmt: skip
        seq = self._recording.append("policy_changed", data, durable=True)
        try:
            await self._recording.durable(seq)
        except RecorderUnavailable:
            undone = {**data, "change": "not_in_force", "old_hash": to.hash, "new_hash": self.policy.hash}
            self._recording.try_append("policy_changed", undone, severity="warning")
            raise
        self._put_in_force(to)

    def _put_in_force(self, policy: Policy) -> None:
        self.policy = policy
        for effective in list(self._bound):
            line: list[EffectivePolicy] = []
            one: EffectivePolicy | None = effective
            while one is not None and one.policy is not policy:
                line.append(one)
                one = one.parent
            for ancestor in reversed(line):  # first: a child is bound by what its parent is
                ancestor.adopt(policy)
