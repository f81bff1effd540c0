"""The lives of one agent that may be restarted: what all of them share, and which of them counts.

Each life is a process run with an id of its own; name, policy and execution are the same. Starts and ends nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentos.restart_policy import RestartPolicy
from agentos.supervisor.restarts import History

if TYPE_CHECKING:
    from agentos.supervisor.agents import Agent
    from agentos.supervisor.requests import Request

Again = Callable[[str, "bytes | None"], "Request"]


@dataclass(slots=True, eq=False)
class Lineage:
    """What the next life is made of. `kept` gives back what is held for it, once there will be none."""

    policy: RestartPolicy
    again: Again  # the same request once more, under a new id, with what the last life saved
    history: History = field(default_factory=History)
    stdin: int | None = None
    kept: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def started(self, now_s: float) -> None:
        self.history = self.history.started(now_s)


def latest(agent: Agent) -> Agent:
    """Return the life that is the newest; `agent` itself where it was not restarted."""
    while agent.successor is not None:
        agent = agent.successor
    return agent


async def last_life(agent: Agent) -> Agent:
    """Wait until no life follows any more, and return the last one that came to be: how it ended is how it all ended.

    One that was told to end before it began is none: nobody would learn what the one before it had failed with.
    """
    await agent.gone.wait()
    while agent.successor is not None:
        agent = agent.successor
        await agent.gone.wait()
    return agent.predecessor if agent.withdrawn and agent.predecessor is not None else agent
