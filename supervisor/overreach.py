"""What an agent may not ask for in a call that is for agents, too: what would give a child more than its parent has.

Pure: says why not, or nothing. Who refuses, and puts it on record, is `calls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_SHOWN_CHARS_MAX: Final = 100  # of a word that the agent chose
# All that an agent may say of a child. The rest of what starts an agent is the host program's to choose.
_OF_A_CHILD: Final = frozenset({
    "name", "target", "permissions", "rate_limit", "priority", "args", "kwargs", "restrictions", "timeout_s",
    "restart", "parent_id", "inherit_permissions", "context",
})  # fmt: skip


def overreach(agent_id: str, method: str, params: Mapping[str, Any]) -> str:
    """Return why this call of the agent would widen its rights, "" when it would not."""
    if method == "save_state":
        named = params.get("id") or params.get("agent_id") or agent_id
        return "" if named == agent_id else f"{str(named)[:_SHOWN_CHARS_MAX]!r} is not this agent; its state is its own"
    return _of_spawn(agent_id, params) if method == "spawn" else ""


def _of_spawn(agent_id: str, params: Mapping[str, Any]) -> str:
    parent_id = params.get("parent_id")
    if parent_id not in (None, agent_id):
        return f"parent_id={str(parent_id)[:_SHOWN_CHARS_MAX]!r} is not this agent; its children are its own"
    if not params.get("inherit_permissions", True):
        return "inherit_permissions=False is for the host program; the child of an agent may never do more than it may"
    if params.get("context"):
        return "the context of a child is its parent's; an agent cannot give another"
    strange = sorted(str(name)[:_SHOWN_CHARS_MAX] for name in params if name not in _OF_A_CHILD)
    return f"{strange[0]!r} is not an agent's to choose for its child" if strange else ""
