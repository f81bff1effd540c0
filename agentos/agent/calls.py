"""The kernel client of an agent: what `KernelSpace()` is in an agent process. Its calls go over the agent's own pipe.

Decides nothing. The kernel lets a caller act on itself and its descendants only, makes every child the caller's,
bounded by the caller's policy, and refuses and records the rest. No code leaves an agent: a child is named, by the
name under which its function was registered in the host program or in a module of this agent.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, Self

from agentos import arguments
from agentos.agent.process import AgentProcess, current
from agentos.agent.runtime import Done
from agentos.client.handle import AgentHandle
from agentos.errors import BadRequest, KernelUnavailable, NotPermitted, ProtocolError
from agentos.signals import AgentSignal, parse_signal
from agentos.status import AgentStatus, status_of
from agentos.values import pack_arguments, unpack_value

CALL_LIMIT_S: Final = 30.0  # for the one synchronous call: the kernel answers in microseconds or is gone


class AgentKernel:
    """KernelSpace as an agent may use it. Async calls never hold the event loop; each is on record.

    Raises, whatever the call: NotPermitted for agents that are not the caller or a descendant, KernelUnavailable when
    the kernel is gone or in a process that the agent forked.
    """

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self._names: dict[str, set[str]] = {}  # by the place of a function: what it was registered as, anywhere
        self._own: dict[str, dict[str, Any]] = {}  # by name: what this process registered itself

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, ([(place, name) for place, names in self._names.items() for name in names],)

    def learn(self, registered: Iterable[tuple[str, str]]) -> None:
        """Take in the (place, name) of functions that the host program registered."""
        for place, name in registered:
            self._names.setdefault(place, set()).add(name)

    # --- registration ----------------------------------------------------------------------------------------------

    def register(
        self,
        name: str | Callable[..., Any] | None = None,
        permissions: list[str] | None = None,
        rate_limit: int | None = None,
        priority: int = 0,
        *,
        restart: str = "never",
    ) -> Any:
        """Decorator, bare or called, so that a module works in host and agent alike. Returns the function unchanged.

        What it gives is what `spawn` may start as a child. Where the host program registered that name, its words hold.
        Otherwise these do: permissions only narrow what this agent may do, the priority is at most this agent's own.
        Raises BadRequest for a wrong argument.
        """
        if name is not None and not isinstance(name, str):
            return self._register(name, None, permissions, rate_limit, priority, restart)
        return lambda function: self._register(function, name, permissions, rate_limit, priority, restart)

    def _register(
        self,
        function: Callable[..., Any],
        name: str | None,
        permissions: list[str] | None,
        rate_limit: int | None,
        priority: int,
        restart: str,
    ) -> Any:
        arguments.function("register", function)
        known = name or name_of(function)
        self._own[known] = {
            "target": _target_of(function), **arguments.registration(known, permissions, rate_limit, priority, restart),
        }  # fmt: skip
        self.learn([(place_of(function), known)])
        return function

    def _find(self, agent: Callable[..., Any] | str) -> str:
        """Return the name to spawn. The kernel knows whether there is such an agent; here only the name is sought."""
        if isinstance(agent, str):
            return agent
        arguments.function("the agent", agent)
        names = sorted(self._names.get(place_of(agent), {name_of(agent)}))
        if len(names) > 1:
            raise BadRequest(
                f"{place_of(agent)} is registered as {', '.join(names)}; spawn it by name, such as {names[0]!r}"
            )
        return names[0]

    # --- running agents --------------------------------------------------------------------------------------------

    async def spawn(
        self,
        agent: Callable[..., Any] | str,
        *args: Any,
        parent_id: str | None = None,
        inherit_permissions: bool = True,
        additional_restrictions: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Start a registered agent as a child of this one and return its id at once; `wait_all` collects the result.

        Raises NotRegistered, NotSerialisable, BadRequest. The child may do what this agent may and it itself may: any
        other `parent_id` than this agent's own, and inherit_permissions=False, are NotPermitted.
        """
        options: dict[str, Any] = {"restrictions": arguments.restrictions(additional_restrictions)}
        if parent_id is not None:
            options["parent_id"] = arguments.agent_id("spawn: parent_id", parent_id)
        if not inherit_permissions:
            options["inherit_permissions"] = False
        return await self._spawn(agent, args, kwargs, **options)

    async def _spawn(self, agent: Callable[..., Any] | str, args: Any, kwargs: Any, **options: Any) -> str:
        name = self._find(agent)
        params = {"name": name, **self._own.get(name, {}), **pack_arguments(name, args, kwargs), **options}
        child_id: str = await self._call("spawn", params, late=self._ask_to_end)
        return child_id

    def _ask_to_end(self, child_id: str) -> None:
        """Send SIGTERM to a child that nobody waits for any more; do not wait for it."""
        with contextlib.suppress(KernelUnavailable):
            self._submit("send_signal", {"id": child_id, "signal": AgentSignal.SIGTERM.value}, lambda *_: None)

    async def execute(
        self,
        agent: Callable[..., Any] | str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109 - the public signature; the kernel enforces it
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Spawn a child and return its result; raises what it failed with. Cancelled, it asks the child to end.

        Without `timeout` the child may take as long as this agent. It has this agent's context, which rules rely on;
        giving it another is NotPermitted.
        """
        options: dict[str, Any] = {}
        if timeout is not None:
            options["timeout_s"] = arguments.seconds("execute: timeout", timeout)
        if context:
            options["context"] = arguments.facts("execute: context", context)
        child_id = await self._spawn(agent, args, kwargs, **options)
        try:
            return (await self.wait_all([child_id]))[0]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        except asyncio.CancelledError:
            self._ask_to_end(child_id)
            raise

    async def wait_all(self, ids: Sequence[str]) -> list[Any]:
        """Wait until all ended; results in the order of `ids`. Raises ExceptionGroup with every failure."""
        wanted = arguments.agent_ids(ids)
        if self._process.id in wanted:
            raise BadRequest("wait_all: an agent cannot wait for its own end")
        return [unpack_value(packed) for packed in await self._call("wait_all", {"ids": wanted})]

    # --- signals and status ----------------------------------------------------------------------------------------

    async def send_signal(self, agent_id: str, signal: AgentSignal) -> bool:
        """Deliver a POSIX signal; returns once Linux confirmed the effect. False when the agent had already ended."""
        arguments.agent_id("send_signal: agent_id", agent_id)
        done = await self._call("send_signal", {"id": agent_id, "signal": parse_signal(signal).value})
        return bool(done["ok"]) and done["detail"] != "already ended"

    @property
    def signal_dispatcher(self) -> Any:
        """A dispatcher that sends as this agent may; handlers are registered in the host program alone."""
        from agentos.client.dispatcher import SignalDispatcher  # noqa: PLC0415 - which imports this module

        return SignalDispatcher(self)

    def get_agent_status(self, agent_id: str) -> AgentStatus:
        """Return a snapshot. Synchronous."""
        arguments.agent_id("get_agent_status: agent_id", agent_id)
        return status_of(self._call_now("status", {"id": agent_id}))

    def get_agent(self, agent_id: str) -> AgentHandle:
        """Return a handle on this agent or a descendant: its status, state and clean-up. Synchronous."""
        arguments.agent_id("get_agent: agent_id", agent_id)
        return AgentHandle(agent_id, self.get_agent_status(agent_id).name, self)

    @property
    def current_agent_id(self) -> str:
        """The id of this agent."""
        return self._process.id

    def is_stopped(self) -> bool:
        """Whether this agent is stopped: False, always, because a process that SIGSTOP froze cannot ask."""
        return False

    async def wait_for_continue(self) -> None:
        """Return at once: whoever can call this has been continued."""

    # --- not for agents --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End nothing: the kernel is not this agent's to end."""

    async def shutdown(self) -> None:
        """Raise NotPermitted: the kernel refuses it, and records that it was asked."""
        await self._call("shutdown", {})

    def add_module(self, *_: object, **__: object) -> NoReturn:
        """Raise NotPermitted, as `shutdown` does."""
        self._ask_in_vain("add_module", "modules live in the host program; add them to its KernelSpace")

    @property
    def policy(self) -> NoReturn:
        """Raise NotPermitted, as `shutdown` does: an agent cannot add rules to what binds it."""
        self._ask_in_vain("policy", "an agent cannot see or change its rules; its host program can")

    def _ask_in_vain(self, method: str, why: str) -> NoReturn:
        """Ask, so that it is on record that this agent tried; what the kernel says, the words for a person are ours."""
        with contextlib.suppress(NotPermitted):
            self._call_now(method, {})
        raise NotPermitted(f"{method}: {why}")

    async def _query(self, agent_id: str, what: str) -> bytes | None:
        packed: bytes | None = await self._call("query", {"id": agent_id, "what": what})
        return packed

    # --- the pipe --------------------------------------------------------------------------------------------------

    async def _call(self, method: str, params: dict[str, Any], late: Callable[[Any], None] = lambda _: None) -> Any:
        """Return the answer. If the awaiting task is cancelled meanwhile, `late` gets the value when it comes."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:
            if not future.done():
                future.set_exception(error) if error is not None else future.set_result(value)
            elif error is None:  # cancelled
                late(value)

        def done(value: Any, error: Exception | None) -> None:
            try:
                loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:  # the loop is closed, so it was cancelled; this thread must not wait for a pipe
                _thread.start_new_thread(settle, (value, error))

        self._submit(method, params, done)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                late(future.result())
            raise

    def _call_now(self, method: str, params: dict[str, Any]) -> Any:
        """Wait for the answer; in a signal handler too, hence without a lock that what it interrupted may hold."""
        answers: list[tuple[Any, Exception | None]] = []
        arrived = _thread.allocate_lock()
        arrived.acquire()

        def done(value: Any, error: Exception | None) -> None:
            answers.append((value, error))
            arrived.release()

        self._submit(method, params, done)
        if not arrived.acquire(timeout=CALL_LIMIT_S):
            raise KernelUnavailable(f"{method}: the kernel did not answer within {CALL_LIMIT_S:g} s")
        value, error = answers[0]
        if error is not None:
            raise error
        return value

    def _submit(self, method: str, params: dict[str, Any], done: Done) -> None:
        if self._process.runtime is None:
            raise KernelUnavailable(f"{method}: this agent has not started yet")
        try:
            self._process.runtime.call(method, params, done)
        except ProtocolError as error:
            raise BadRequest(f"{method}: {error}") from error


def agent_kernel() -> AgentKernel | None:
    """Return the kernel client of the agent that this process is, None in a host program."""
    process = current()
    return None if process is None else _kernel_of(process)


@functools.cache
def _kernel_of(process: AgentProcess) -> AgentKernel:
    return AgentKernel(process)


def arrive(registered: Iterable[tuple[str, str]]) -> AgentKernel:
    """What a pickled KernelSpace becomes: the client of the agent that it arrived in. Raises BadRequest elsewhere."""
    kernel = agent_kernel()
    if kernel is None:
        raise BadRequest("a KernelSpace stays in the program that made it, and reaches its agents; nothing else has it")
    kernel.learn(registered)
    return kernel


def place_of(function: Any) -> str:
    """Return `module:qualname`: what a function is known by on both sides, where it is not the same object."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None)}:{named.__qualname__}"


def name_of(function: Any) -> str:
    """Return the name that a function is registered under when no other is given."""
    return str(getattr(function, "__name__", type(function).__name__))


def _target_of(function: Any) -> str | None:
    """Return the import path by which a new process finds `function`; None for what only this process has."""
    module_name, _, path = place_of(function).partition(":")
    module = sys.modules.get(module_name)
    if module is None or "<" in path or not hasattr(function, "__qualname__"):
        return None
    file = str(getattr(module, "__file__", None) or "")
    is_a_file = file.endswith(".py") and not getattr(module, "__package__", None)
    return f"{file if is_a_file else module_name}:{path}"
