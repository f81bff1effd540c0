"""AgentStatus: what `get_agent_status` answers, in the host program and in an agent alike. A value; asks nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """A snapshot of one agent. `state` is what Linux says: running | stopped | terminated | waiting."""

    id: str
    name: str
    state: str
    started_at: datetime
    actions_count: int
    violations_count: int


def status_of(row: Mapping[str, Any]) -> AgentStatus:
    """Return the status in a row of the kernel's `status` call."""
    started = datetime.fromisoformat(row["started_at"])
    return AgentStatus(row["id"], row["name"], row["state"], started, row["actions_count"], row["violations_count"])
