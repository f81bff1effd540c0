"""Signal handlers of a host program: which there are, and what they say when the kernel asks.

Owns the handlers that the dispatchers of one kernel registered, in the order of their registration, and tells each
kernel process which signals they are for. What a veto means is the kernel's to decide.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentos.agent.calls import place_of
from agentos.client import running
from agentos.errors import KernelUnavailable
from agentos.signals import AgentSignal

if TYPE_CHECKING:
    from agentos.client.connection import Connection

HANDLER_NAME_MAX: Final = 200
FAILURES_MAX: Final = 20  # told of one signal: each is an event of the record

Function = Callable[[str, AgentSignal], Any]

# The agents and signals whose handlers run in this context: what they send, the kernel delivers ahead of what waits
# for them, and a handler never hears a signal that it caused itself.
_within: ContextVar[tuple[tuple[str, int], ...]] = ContextVar("agentos_within_handlers", default=())
_orders: Final = itertools.count()  # of registration, over all dispatchers of this program


def within() -> tuple[tuple[str, int], ...]:
    """Return the agents and signals whose handlers the caller runs in; () outside of any."""
    return _within.get()


@dataclass(frozen=True, slots=True)
class Handler:
    signal: AgentSignal
    function: Function
    order: int = field(default_factory=lambda: next(_orders))


class KernelSignals:
    """The signals of one KernelSpace, across the kernel processes that it starts one after the other."""

    def __init__(self, knowing: Callable[[str], Awaitable[Connection]]) -> None:
        self._knowing = knowing
        self._lock = threading.RLock()
        self._by_dispatcher: list[list[Handler]] = []  # each dispatcher adds to its own
        self._connection: Connection | None = None
        self._told: list[int] = []  # what that connection was told

    def join(self, handlers: list[Handler]) -> None:
        """Hear with the handlers of one more dispatcher, those that it adds later included."""
        with self._lock:
            if not any(known is handlers for known in self._by_dispatcher):
                self._by_dispatcher.append(handlers)
        self.tell()

    def part(self, handlers: list[Handler]) -> None:
        with self._lock:
            self._by_dispatcher = [known for known in self._by_dispatcher if known is not handlers]
        self.tell()

    def tell(self, connection: Connection | None = None) -> None:
        """Tell the kernel process for which signals there are handlers, where that is news; a new one is handed in."""
        with self._lock:
            if connection is not None and connection is not self._connection:
                self._connection, self._told = connection, []
            signals = sorted({handler.signal.value for known in self._by_dispatcher for handler in known})
            if self._connection is None or signals == self._told:
                return
            with contextlib.suppress(KernelUnavailable):  # the next one is told when it starts
                self._connection.submit("handlers", {"signals": signals})
            self._told = signals

    async def submit(self, agent_id: str, signal: AgentSignal) -> Future[Any]:
        """Command one delivery; the future holds what came of it. Raises UnknownAgent when nothing runs."""
        params: dict[str, Any] = {"id": agent_id, "signal": signal.value}
        if within():
            params["within"] = [list(each) for each in within()]
        return (await self._knowing(agent_id)).submit("signal", params)

    def work(self, params: dict[str, Any]) -> running.Work:
        """Return what asks the handlers of one signal, in order, until one of them vetoes it."""
        agent_id, signal = str(params["agent_id"]), AgentSignal(params["signal"])
        inside = (*((str(one), int(number)) for one, number in params["within"]), (agent_id, signal.value))
        with self._lock:
            handlers = [handler for known in self._by_dispatcher for handler in known if handler.signal is signal]
        handlers.sort(key=lambda handler: handler.order)
        return lambda apart: _ask_all(handlers, agent_id, signal, inside, apart=apart)


async def _ask_all(
    handlers: list[Handler], agent_id: str, signal: AgentSignal, inside: tuple[tuple[str, int], ...], *, apart: bool
) -> dict[str, Any]:
    _within.set(inside)
    failures: list[dict[str, str]] = []
    for handler in handlers:
        name = place_of(handler.function)[:HANDLER_NAME_MAX]
        said, error = await running.attempt(handler.function, agent_id, signal, apart=apart)
        if error:
            failures.append({"reason": "raised", "error": error, "handler": name})
        if said is False:
            return {"veto": True, "handler": name, "failures": failures[:FAILURES_MAX]}
    return {"veto": False, "failures": failures[:FAILURES_MAX]}
