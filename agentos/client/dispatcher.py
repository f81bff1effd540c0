"""SignalDispatcher: signals from a host program to agents, and the handlers that hear them first.

A dispatcher belongs to one kernel at a time. In an agent it is there so that the same module works in both: it sends
what the agent may send, and registers nothing, because handlers live in the host program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from agentos import arguments
from agentos.agent.calls import AgentKernel, agent_kernel
from agentos.client.delivery import DeliveryQueue
from agentos.client.handlers import Handler, KernelSignals, within
from agentos.errors import BadRequest
from agentos.signals import AgentSignal, parse_signal

if TYPE_CHECKING:
    from agentos.client.kernelspace import KernelSpace

QUEUE_SIZE = 1000

F = TypeVar("F", bound=Callable[[str, AgentSignal], Any])


class SignalDispatcher:
    """Sends signals to agents and registers handlers for them. Works from any thread and event loop.

    Args:
        kernel: the KernelSpace whose agents it is for; None until `KernelSpace(signal_dispatcher=…)` takes it.
        queue_size: how many deliveries may be under way; one more is SignalQueueFull. SIGKILL and SIGSTOP never queue.
        async_delivery: False delivers one after the other, in the order of the calls; SIGKILL and SIGSTOP at once.

    Raises BadRequest for a wrong argument.

    """

    def __init__(
        self, kernel: KernelSpace | AgentKernel | None, queue_size: int = QUEUE_SIZE, async_delivery: bool = True
    ) -> None:
        arguments.whole_number("queue_size", queue_size, at_least=1)
        self._queue_size = queue_size
        self._async_delivery = bool(async_delivery)
        self._queue = DeliveryQueue(queue_size, in_order=not self._async_delivery)
        self._handlers: list[Handler] = []
        self._signals: KernelSignals | None = None
        if kernel is not None and not isinstance(kernel, AgentKernel):
            signals = getattr(kernel, "_signals", None)
            if not isinstance(signals, KernelSignals):
                raise BadRequest(f"kernel={arguments.shown(kernel)} must be a KernelSpace")
            self.bind(signals)

    def __reduce__(self) -> tuple[Any, ...]:
        """One that travels into an agent (as a global of its function) arrives as that agent's, without handlers."""
        return SignalDispatcher, (None, self._queue_size, self._async_delivery)

    def bind(self, signals: KernelSignals) -> None:
        """Belong to this kernel from here on, with every handler."""
        if self._signals is not None and self._signals is not signals:
            self._signals.part(self._handlers)
        self._signals = signals
        signals.join(self._handlers)

    async def send(self, agent_id: str, signal: AgentSignal) -> bool:
        """Deliver a POSIX signal; returns once Linux confirmed the effect.

        False when the agent had already ended, or a handler vetoed the signal. Cancelled, it does not take the signal
        back. Raises SignalQueueFull, UnknownAgent, UnknownSignal, BadRequest.
        """
        arguments.agent_id("send: agent_id", agent_id)
        number = parse_signal(signal)
        inside = agent_kernel()
        if inside is not None:
            return await inside.send_signal(agent_id, number)
        if self._signals is None:
            raise BadRequest("this dispatcher belongs to no kernel; pass it as KernelSpace(signal_dispatcher=…)")
        done = await self._deliver(self._signals, agent_id, number)
        return bool(done["ok"]) and done["detail"] != "already ended"

    async def _deliver(self, signals: KernelSignals, agent_id: str, signal: AgentSignal) -> Any:
        delivery = self._queue.enter(signal, inside=bool(within()))
        try:
            await delivery.turn()
            answer = await signals.submit(agent_id, signal)
        except BaseException:
            delivery.leave()
            raise
        answer.add_done_callback(lambda _: delivery.leave())  # not before, whoever still waits for it
        return await asyncio.shield(asyncio.wrap_future(answer))

    def register_handler(self, signal: AgentSignal) -> Callable[[F], F]:
        """Decorator: have `function(agent_id, signal)`, plain or async, hear a signal before it is delivered.

        Whoever sends it. False vetoes the delivery; any other value, an exception, or no answer within 5 s does not.
        Handlers of one signal run in the order of their registration, in the event loop that started the agent, else
        in a thread of ours. Returns the function unchanged. In an agent it registers nothing.

        Raises BadRequest for SIGKILL and SIGSTOP, which nobody can catch, and for what is no function.
        """
        number = parse_signal(signal)
        if not number.catchable:
            known = ", ".join(one.name for one in AgentSignal if one.catchable)
            raise BadRequest(f"{number.name} cannot be handled: it takes effect at once; handlers may hear {known}")

        def register(function: F) -> F:
            arguments.function("register_handler", function)
            if agent_kernel() is None:
                self._handlers.append(Handler(number, function))
                if self._signals is not None:
                    self._signals.tell()
            return function

        return register
