"""The words for what an agent does: operations, actions, where an action came from.

Owns names and one frozen value; decides nothing. Sub-operations such as `network/connect` belong to the
operation before the slash (R11).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

Operation = Literal["read", "write", "execute", "network"]
OPERATIONS: Final[tuple[str, ...]] = ("read", "write", "execute", "network")
LEVELS: Final[tuple[str, ...]] = ("none", "hooks", "syscalls", "full")  # weakest first

RESOURCE_BYTES_MAX: Final = 32_768  # eight times PATH_MAX: room for an argv or a URL, no room for a bomb


def base_operation(operation: str) -> str:
    """Return the operation of the closed set that `operation` belongs to: `network/connect` → `network`."""
    return operation.partition("/")[0]


class Action(NamedTuple):
    """One thing an agent is about to do, as it reached the kernel. A NamedTuple: one is made for every action.

    `resource` is the name that was asked for; `resolved` the name of the object behind it where the
    interceptor could tell (both must pass, R2.4). `claims` come from the agent and may only tighten.
    """

    operation: str
    resource: str
    resolved: str | None = None
    argv: tuple[str, ...] | None = None
    claims: Mapping[str, Any] = MappingProxyType({})
    source: Literal["sdk", "hook", "kernel"] = "sdk"
