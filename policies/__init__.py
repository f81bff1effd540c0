"""Policies: what an agent may do, decided before it is done.

Pure: no clock, no I/O but the reading of policy files; times are arguments, every answer is a `Decision` value.
The room is imported as `agentos.policies`, through a link; a top-level `policies` would shadow other people's.
"""

from __future__ import annotations

if not __name__.startswith("agentos."):
    raise ImportError(f"import this package as agentos.policies, not as {__name__}")

from agentos.policies.decision import Decision
from agentos.policies.effective import EffectivePolicy, Standing, standing
from agentos.policies.model import BUILTINS, Pattern, Policy, Rule
from agentos.policies.normalise import InvalidResource, file_resource, normalise
from agentos.policies.quota import Quota

__all__ = [
    "BUILTINS",
    "Decision",
    "EffectivePolicy",
    "InvalidResource",
    "Pattern",
    "Policy",
    "Quota",
    "Rule",
    "Standing",
    "file_resource",
    "normalise",
    "standing",
]
