"""A decision is a value: what the policy said about one action, and everything a record of it must say.

Owns the value and the reserved reasons. Every error is a denial with one of these reasons (R2, R3, R8.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Effect = Literal["allow", "deny", "ask"]

# Reserved reasons: machine-made, never written by the author of a policy.
DEFAULT_DENY: Final = "default_deny"
DEFAULT_ALLOW: Final = "default_allow"
ALLOWED_BY_RULE: Final = "allowed_by_rule"  # the rule gives no reason of its own
DENIED_BY_RULE: Final = "denied_by_rule"
ASKED_BY_RULE: Final = "asked_by_rule"
RATE_LIMITED: Final = "rate_limited"
INVALID_RESOURCE: Final = "invalid_resource"
INVALID_OPERATION: Final = "invalid_operation"
NOT_PERMITTED: Final = "not_permitted"  # outside the `permissions` ceiling
RESTRICTED: Final = "restricted"  # an operation that `additional_restrictions` took away
PROTECTED: Final = "protected"  # agentos' own files and keys
STANDING_ALLOW: Final = "standing_allow"
RESERVED_REASONS: Final = frozenset({
    DEFAULT_DENY, DEFAULT_ALLOW, ALLOWED_BY_RULE, DENIED_BY_RULE, ASKED_BY_RULE, RATE_LIMITED, INVALID_RESOURCE,
    INVALID_OPERATION, NOT_PERMITTED, RESTRICTED, PROTECTED, STANDING_ALLOW,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one action.

    `rule` is the 0-based index within the rules of `layer`, None when no rule decided. `resource` is the
    normalised name that decided: the asked-for one, or the resolved one where only that was refused.
    `cacheable`: the same (operation, object) gets the same answer until the policy changes. `durable`: the
    record must be on stable storage before the answer leaves. `would_deny`: allowed only because
    the policy does not enforce.
    """

    effect: Effect
    rule: int | None
    rule_name: str | None
    reason: str
    on_violation: str | None
    operation: str
    resource: str
    policy_hash: str
    layer: str = "policy"
    retry_after_s: float | None = None
    durable: bool = False
    cacheable: bool = False
    would_deny: bool = False
    ask_timeout_s: float | None = None

    @property
    def allowed(self) -> bool:
        """Whether the action may go ahead now: neither refused nor waiting for a person."""
        return self.effect == "allow"
