"""AgentHandle: one agent, by its id, as `get_agent` returns it in the host program and in an agent alike.

Holds no state of the agent and no connection: each method asks the kernel through the client that made the handle, and
works wherever that works, in any thread and in any event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentos.errors import ProtocolError, StateUnavailable
from agentos.signals import AgentSignal
from agentos.status import AgentStatus
from agentos.values import unpack_value


class Client(Protocol):
    """What a handle needs of a kernel client."""

    def get_agent_status(self, agent_id: str) -> AgentStatus: ...

    async def send_signal(self, agent_id: str, signal: AgentSignal) -> bool: ...

    async def wait_all(self, ids: Sequence[str]) -> list[Any]: ...

    async def _query(self, agent_id: str, what: str) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class AgentHandle:
    """One agent. A value that may be kept: what it names is looked up at each use, also after the agent has ended.

    An agent that is started again is another one, with an id of its own; `wait` alone follows it to its last life.

    `cleanup`, `save_state` and `get_state` are answered by a thread of the agent beside its function, which goes on
    meanwhile. They raise StateUnavailable, which says why, when there is no answer within 2 s: the agent is a program,
    is stopped, has ended or not started, or lets no other thread run. What is asked, and how it ended, is on record.
    """

    id: str
    name: str
    _client: Client = field(repr=False, compare=False)

    def status(self) -> AgentStatus:
        """Return a snapshot. Synchronous. Raises UnknownAgent once the kernel has forgotten the agent."""
        return self._client.get_agent_status(self.id)

    async def send_signal(self, signal: AgentSignal) -> bool:
        """Deliver a POSIX signal; returns once Linux confirmed the effect. False when the agent had already ended."""
        return await self._client.send_signal(self.id, signal)

    async def wait(self) -> Any:
        """Wait for the end and return the result. Raises what the agent failed with, as `execute` does."""
        try:
            return (await self._client.wait_all([self.id]))[0]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def cleanup(self) -> None:
        """Run what the agent registered with `on_cleanup`, last in, first out, each function once in its life.

        Returns when they have ended. Raises StateUnavailable for one that failed (the others ran), and when they take
        longer than 2 s; they go on then.
        """
        await self._ask("cleanup")

    async def save_state(self) -> None:
        """Have the kernel hold what the agent saved last, or None: `get_state` returns it after the end, too.

        What `agentos.saved_state()` returns in the next life of an agent that is restarted. Raises StateUnavailable.
        """
        await self._ask("save_state")

    async def get_state(self) -> Any:
        """Return what the agent gave to `agentos.save_state` last, None when it saved nothing.

        Of an agent that has ended: what it had saved. Raises StateUnavailable, for an ended agent that saved nothing
        and for an answer that is no value, too.
        """
        packed = await self._ask("get_state")
        try:
            return unpack_value(packed or b"")
        except ProtocolError as error:
            raise StateUnavailable(f"get_state of {self.name} ({self.id}): its answer is {error}") from error

    async def _ask(self, what: str) -> bytes | None:
        """Look the question up in the client each time: a handle that travels into an agent gets that agent's."""
        return await self._client._query(self.id, what)  # noqa: SLF001 - a handle is the clients' own
