"""KernelSpace: the host program's kernel client. Starts a kernel at the first call that needs one.

Works under asyncio and uvloop, from threads, in several `asyncio.run` one after the other, and in plain synchronous
code (`get_agent_status`): all it awaits comes from the thread of its Connection.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Self, TypeVar, overload

from agentos import arguments, errors, wire
from agentos.agent.calls import agent_kernel, arrive
from agentos.client import running, settings
from agentos.client.connection import Connection
from agentos.client.dispatcher import SignalDispatcher
from agentos.client.handle import AgentHandle
from agentos.client.handlers import KernelSignals
from agentos.client.launch import SLOTS, start_kernel
from agentos.client.modules import Modules, ResultVerifier
from agentos.client.policy_in_use import PolicyInUse
from agentos.client.registry import Registration, Registry
from agentos.policies import Policy
from agentos.recorder.flight import FlightRecorder
from agentos.signals import AgentSignal
from agentos.status import AgentStatus, status_of
from agentos.values import pack_arguments, unpack_value

F = TypeVar("F", bound=Callable[..., Any])

_current_agent: ContextVar[str | None] = ContextVar("agentos_current_agent", default=None)


class KernelSpace:
    """Registration, execution, policy and signals for agents as real processes.

    Nothing is started before the first call that needs a kernel. In an agent process `KernelSpace()` is the kernel
    client of that agent instead.

    Args:
        policy: a built-in name (strict, permissive, audit, workspace; custom, which `kernel.policy.add_rule` fills),
            the path of a YAML file, or a Policy.
        flight_recorder: where this kernel's record goes; None is one SQLite file per run under the state directory.
        signal_dispatcher: whose handlers and queue serve this kernel; None makes one.
        max_concurrent_agents: agents running at the same time; more wait.
        timeout: seconds of running time an execution may take, unless `execute(timeout=…)` says otherwise.
        debug: have the kernel say on stderr, in a line each, what comes in (headers, never what they carry), what it
            decides, how agents change state and what signals it sends; and its own errors.
        require: the weakest level at which agents may run: none | hooks | syscalls | full.
        workspace: the directory that relative file rules speak of; default the current one at the first call.
        preload: names of modules that agents are born with, found where this program imports from. They are imported
            once, in the process that all agents are forked from, as trusted code: no policy decides what happens then.
            Not for modules that start threads or processes when they are imported.

    Raises BadRequest for a wrong argument; at the first call: PolicyLoadError, HostError, KernelUnavailable, and
    BadRequest for a module of `preload` that cannot be had.

    """

    def __new__(cls, *_: Any, **__: Any) -> Any:
        inside = agent_kernel()
        return super().__new__(cls) if inside is None else inside

    def __init__(
        self,
        policy: str | os.PathLike[str] | Policy = "strict",
        flight_recorder: FlightRecorder | None = None,
        signal_dispatcher: SignalDispatcher | None = None,
        max_concurrent_agents: int = SLOTS,
        timeout: float = 300.0,
        debug: bool = False,
        *,
        require: str | None = None,
        workspace: str | os.PathLike[str] | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self._policy = PolicyInUse(settings.policy(policy))
        self._flight_recorder = settings.flight_recorder(flight_recorder)
        self._dispatcher = settings.signal_dispatcher(signal_dispatcher) or SignalDispatcher(None)
        self._max_concurrent_agents = arguments.whole_number("max_concurrent_agents", max_concurrent_agents, at_least=1)
        self._timeout_s = arguments.seconds("timeout", timeout)
        self._debug = bool(debug)
        self._require = settings.level(require)
        self._workspace = settings.directory("workspace", workspace)
        self._preload = settings.modules(preload)
        self._registry = Registry()
        self._latest_agent: str | None = None
        self._connection: Connection | None = None
        self._starting = threading.Lock()
        self._signals = KernelSignals(self._knowing)
        self._dispatcher.bind(self._signals)
        self._modules = Modules()

    # What help(), a prompt and a notebook show: __new__, which any arguments must pass in an agent, says nothing.
    __signature__ = inspect.Signature(list(inspect.signature(__init__).parameters.values())[1:])

    def __reduce__(self) -> tuple[Any, ...]:
        """A kernel that travels into an agent (as a global of its function) arrives as that agent's kernel client."""
        return arrive, (self._registry.places(),)

    # --- registration ----------------------------------------------------------------------------------------------

    @overload
    def register(self, name: F, /) -> F: ...
    @overload
    def register(
        self,
        name: str | None = None,
        permissions: list[str] | None = None,
        rate_limit: int | None = None,
        priority: int = 0,
        *,
        restart: str = "never",
    ) -> Callable[[F], F]: ...
    def register(
        self,
        name: str | Callable[..., Any] | None = None,
        permissions: list[str] | None = None,
        rate_limit: int | None = None,
        priority: int = 0,
        *,
        restart: str = "never",
    ) -> Any:
        """Decorator, bare or called: make a function (plain or async) an agent. Returns the function unchanged.

        `restart` says what becomes of an agent that ended by itself: never, on-failure, on-failure:N (at most N times)
        or always. `execute` and `wait_all` then wait for its last life; ADR 0009 has the rules.

        Raises DuplicateAgent for a name that is taken, BadRequest for a wrong argument. A function that is typed again,
        at a prompt or in a notebook, takes the place of what it was.
        """
        if name is not None and not isinstance(name, str):
            return self._registry.add(name, None, permissions, rate_limit, priority, restart)
        return lambda function: self._registry.add(function, name, permissions, rate_limit, priority, restart)

    @property
    def policy(self) -> Policy:
        """The policy of this kernel: the one that was given, or what the built-in name or the file held at first use.

        `add_rule` on it binds running agents, too. Raises PolicyLoadError for a name or a file that holds none.
        """
        return self._policy.policy

    # --- running agents --------------------------------------------------------------------------------------------

    async def execute(
        self,
        agent: Callable[..., Any] | str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109 - the public signature; the kernel enforces it
        context: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a registered agent as a process and return its result.

        Raises PolicyViolationError when a refused action ended it, AgentTimeoutError, AgentFailed (with the remote
        traceback), NotSerialisable and BadRequest (before anything starts), NotRegistered. If the awaiting task is
        cancelled, the agent is stopped.
        """
        limit_s = self._timeout_s if timeout is None else arguments.seconds("execute: timeout", timeout)
        context = arguments.facts("execute: context", context)
        entry = self._registry.find(agent)
        packed = pack_arguments(entry.name, args, kwargs)
        connection = await self._ready(entry)
        params = {"registered": entry.name, "require": self._require, "timeout_s": limit_s, "context": context}
        agent_id: str = (await connection.begin("start", {**params, **packed}))["id"]
        self._latest_agent = agent_id
        token = _current_agent.set(agent_id)
        try:
            return unpack_value(await asyncio.wrap_future(connection.submit("result", {"id": agent_id})))
        except asyncio.CancelledError:
            connection.stop_soon(agent_id)
            raise
        finally:
            _current_agent.reset(token)

    async def spawn(
        self,
        agent: Callable[..., Any] | str,
        *args: Any,
        parent_id: str | None = None,
        inherit_permissions: bool = True,
        additional_restrictions: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Start a registered agent and return its id at once; `wait_all` collects the result.

        With `parent_id` the child is bounded by the parent's effective policy unless inherit_permissions is False.
        """
        if parent_id is not None:
            arguments.agent_id("spawn: parent_id", parent_id)
        restrictions = arguments.restrictions(additional_restrictions)
        entry = self._registry.find(agent)
        packed = pack_arguments(entry.name, args, kwargs)
        connection = await self._ready(entry)
        agent_id: str = await connection.begin("spawn", {
            "name": entry.name, "parent_id": parent_id, "inherit_permissions": inherit_permissions,
            "restrictions": restrictions, "require": self._require, **packed,
        })  # fmt: skip
        self._latest_agent = agent_id
        return agent_id

    async def _ready(self, wanted: Registration) -> Connection:
        connection = await self._connected()
        await self._registry.tell(connection, wanted)
        return connection

    async def wait_all(self, ids: Sequence[str]) -> list[Any]:
        """Wait until all ended; results in the order of `ids`. Raises ExceptionGroup with every failure."""
        wanted = arguments.agent_ids(ids)
        return [unpack_value(packed) for packed in await self._call("wait_all", {"ids": wanted})]

    # --- signals and status ----------------------------------------------------------------------------------------

    async def send_signal(self, agent_id: str, signal: AgentSignal) -> bool:
        """Deliver a POSIX signal; returns once Linux confirmed the effect.

        False when the agent had already ended, or a handler vetoed the signal. Raises as SignalDispatcher.send.
        """
        arguments.agent_id("send_signal: agent_id", agent_id)
        return await self._dispatcher.send(agent_id, signal)

    @property
    def signal_dispatcher(self) -> SignalDispatcher:
        """The dispatcher that `send_signal` goes through: the one given to the constructor, else one of its own."""
        return self._dispatcher

    def get_agent_status(self, agent_id: str) -> AgentStatus:
        """Return a snapshot. Synchronous. Raises UnknownAgent."""
        arguments.agent_id("get_agent_status: agent_id", agent_id)
        connection = self._connection
        if connection is None:  # nothing was ever started: no kernel is needed to know that
            raise errors.UnknownAgent(agent_id)
        if connection.lost:  # only then: a signal handler that asks must not wait for the lock of whom it interrupted
            connection = self._connect()
        return status_of(connection.ask("status", {"id": agent_id}))

    def get_agent(self, agent_id: str) -> AgentHandle:
        """Return a handle on an agent: its status, signals, state and clean-up. Synchronous. Raises UnknownAgent."""
        arguments.agent_id("get_agent: agent_id", agent_id)
        return AgentHandle(agent_id, self.get_agent_status(agent_id).name, self)

    @property
    def current_agent_id(self) -> str | None:
        """The agent this task executes, else the one started most recently, else None."""
        return _current_agent.get() or self._latest_agent

    def is_stopped(self) -> bool:
        """Whether the current agent is stopped, as Linux says. In an agent: False, as it could not ask otherwise."""
        agent_id = self.current_agent_id
        return agent_id is not None and self.get_agent_status(agent_id).state == "stopped"

    async def wait_for_continue(self) -> None:
        """Wait until the current agent is not stopped any more. In an agent: returns at once."""
        if self.is_stopped():
            await self._call("wait", {"id": self.current_agent_id, "state": "running"})

    def add_module(self, module: ResultVerifier) -> None:
        """Have `module.verify_result(agent_id, name, result)` see every result of an agent before anybody is given it.

        Modules are asked in the order in which they were added. Where one does not agree, raises, takes longer than
        its `timeout` (30 s), or is gone with the host program, the result is withheld: who waits for it gets
        ResultWithheld.
        Raises BadRequest for what has no such method or was added already, and for a module beyond the hundredth;
        KernelUnavailable when the kernel does not answer.
        """
        self._modules.add(module)

    # --- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._connect)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def shutdown(self) -> None:
        """End all agents and the kernel; returns when nothing of the run lives. A later call starts a new kernel.

        Ends within seconds, unless Linux cannot end a process. Raises StillAlive naming what lives after every limit
        of the kernel has passed (minutes); then the kernel is not forgotten, and `shutdown` may be called again.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await asyncio.to_thread(connection.shut_down)
            except (errors.StillAlive, errors.KernelUnavailable):
                self._connection = self._connection or connection
                raise
            self._registry.forget_told()
            if self._flight_recorder is not None:
                await asyncio.to_thread(self._flight_recorder.settle)

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        return await asyncio.wrap_future((await self._connected()).submit(method, params))

    async def _query(self, agent_id: str, what: str) -> bytes | None:
        connection = await self._knowing(agent_id)
        packed: bytes | None = await asyncio.wrap_future(connection.submit("query", {"id": agent_id, "what": what}))
        return packed

    async def _knowing(self, agent_id: str) -> Connection:
        """Return who may know this agent: no kernel is started only to say that it does not. Raises UnknownAgent."""
        if self._connection is None:
            raise errors.UnknownAgent(agent_id)
        return await self._connected()

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is None or connection.lost:
            connection = await asyncio.to_thread(self._connect)
        return connection

    def _connect(self) -> Connection:
        with self._starting:
            if self._connection is None or self._connection.lost:
                self._registry.forget_told()
                connection = self._launch()
                self._signals.tell(connection)  # before any call: no signal passes unheard, and no result unseen
                self._modules.tell(connection)
                self._connection = connection
            return self._connection

    def _launch(self) -> Connection:
        with self._policy.starting() as kernel:
            start = partial(
                start_kernel, **kernel.words, workspace=self._workspace, debug=self._debug, preload=self._preload,
                slots=self._max_concurrent_agents, timeout_s=self._timeout_s,
            )  # fmt: skip
            if self._flight_recorder is None:
                kernel.connection = Connection(start(), self._on_callback)
            else:
                with self._flight_recorder.handing_over() as place:
                    kernel.connection = Connection(start(**place), self._on_callback)
                    self._flight_recorder.attach(kernel.connection)
            return kernel.connection

    def _on_callback(self, connection: Connection, frame: wire.Callback) -> None:
        """Have run what the kernel asks for. In the thread that reads: it hands over and goes on."""
        makers = {"signal": self._signals.work, "verify": self._modules.work}
        home, limit_s = connection.homes.find(frame.params["line"]), float(frame.params["limit_s"])
        running.run(makers[frame.name](frame.params), home, limit_s, partial(connection.give_back, frame))
