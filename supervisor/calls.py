"""What clients and agents may ask of the kernel: one method a call, one table, who may use it beside it.

Everything an agent asks acts on itself and its descendants only; what would widen its rights is refused and recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from agentos import errors, lifecycle
from agentos.errors import (
    AgentosError,
    AgentTimeoutError,
    BadRequest,
    NotPermitted,
    RateLimitedError,
    UnknownAgent,
)
from agentos.faults import SeveralFailed
from agentos.lifecycle import State
from agentos.recorder.event import parse_entry
from agentos.signals import AgentSignal, parse_signal
from agentos.supervisor import linux
from agentos.supervisor.agents import Agent
from agentos.supervisor.hearings import parse_signals, parse_within
from agentos.supervisor.lineage import last_life, latest
from agentos.supervisor.overreach import overreach
from agentos.supervisor.requests import NO_ARGS, Params, Request, check_params, parse_request
from agentos.supervisor.verification import parse_modules

if TYPE_CHECKING:
    from agentos.supervisor.kernel import Kernel

_WAITED: Final = {
    "stopped": lambda agent: agent.state is State.STOPPED,
    "running": lambda agent: agent.state is State.RUNNING,
    "exited": lambda agent: agent.gone.is_set(),
}

END_SEEN_S: Final = 5.0  # how long an end that Linux has confirmed may take to be known here
ID_MAX: Final = 100  # characters of what may be an id: a longer one is none, and is not repeated in full

Method = Callable[["Calls", "Caller", Params], Awaitable[Any]]


class Caller:
    """Who asks: the host program, a CLI verb, or an agent (which is then set). `descriptors` came with the call."""

    def __init__(self, who: str, agent: Agent | None = None, descriptors: list[int] | None = None) -> None:
        self.who = who
        self.agent = agent
        self.descriptors = descriptors or []
        self.peer: Any = None


class Calls:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._registered: dict[str, dict[str, Any]] = {}

    async def run(self, caller: Caller, method: str, params: Params) -> Any:
        """Carry out one call. Raises AgentosError; an unknown or refused method is one."""
        entry = METHODS.get(method)
        if entry is None:
            if caller.agent is not None:
                self._refuse(caller, method, "there is no such call")
            raise BadRequest(f"unknown call {method!r}{errors.nearest(method, METHODS)}")
        function, allowed = entry
        role = "agent" if caller.agent is not None else caller.who
        if role not in allowed:
            self._refuse(caller, method, "this call is not for agents" if caller.agent else f"not for a {role}")
        check_params(method, params)
        if caller.agent is not None and (why := overreach(caller.agent.id, method, params)):
            self._refuse(caller, method, why)
        return await function(self, caller, params)

    def _refuse(self, caller: Caller, method: str, why: str) -> None:
        if caller.agent is not None:
            caller.agent.violations += 1
            data = {"operation": "kernel", "resource": method, "effect": "deny", "reason": why, "layer": "kernel"}
            self._kernel.broker.note(caller.agent, "policy_violation", data, severity="warning", durable=True)
        raise NotPermitted(f"{method}: {why}")

    def _agent(self, caller: Caller, params: Params, method: str = "") -> Agent:
        agent_id = str(params.get("id") or params.get("agent_id") or "")[:ID_MAX]
        agent = self._kernel.agents.get(agent_id)
        if caller.agent is not None and (
            agent is None or not self._kernel.agents.is_descendant(agent, caller.agent.id)
        ):
            self._refuse(caller, method or "call", f"{agent_id!r} is not this agent or one of its descendants")
        if agent is None:
            everyone = self._kernel.agents.all()
            raise UnknownAgent(agent_id, [one.id for one in everyone], ids={one.name: one.id for one in everyone})
        return agent

    # --- starting --------------------------------------------------------------------------------------------------

    async def start(self, caller: Caller, params: Params) -> dict[str, Any]:
        """Start an agent for the host program."""
        registered = self._registered.get(params.get("registered") or "", {})
        agent = await self._start({**registered, **params}, None, caller.descriptors)
        notes = []
        if agent.level in ("hooks", "none"):
            notes.append(f"level {agent.level}: the record is not protected from the agent; see docs/limits.md")
        return {"id": agent.id, "pid": agent.pid, "level": agent.level, "notes": notes}

    async def _start(
        self, params: Params, parent: Agent | None, descriptors: list[int], *, bounded: bool = True
    ) -> Agent:
        kernel = self._kernel

        def again(agent_id: str, state: bytes | None = None) -> Request:
            return parse_request(
                params, parent, bounded=bounded, in_force=kernel.in_force, boot=kernel.boot, quota=kernel.quota,
                agent_id=agent_id, private=str(kernel.starting.private_path(agent_id)), state=state,
            )  # fmt: skip

        request = again(kernel.starting.new_id())
        self._count(request.name, params.get("rate_limit"))
        return await kernel.starting.start(request, descriptors[0] if descriptors else None, again)

    def _count(self, name: str, limit: int | None) -> None:
        try:
            self._kernel.slots.count_execution(name, limit)
        except RateLimitedError as error:
            data = {"name": name, "reason": error.reason, "limit": limit, "retry_after_s": error.retry_after_s}
            self._kernel.recording.try_append("execution_refused", data, severity="warning", agent_name=name)
            raise

    async def register(self, _: Caller, params: Params) -> None:
        """Keep what the host registered, so that agents can name it for their children."""
        self._registered[params["name"]] = {
            key: params.get(key)
            for key in ("name", "pickle", "permissions", "rate_limit", "priority", "missing", "restart")
        }

    async def spawn(self, caller: Caller, params: Params) -> str:
        """Start a registered agent as the caller's child (agents), or as `parent_id`'s (host)."""
        entry = self._child(caller, params)
        parent = caller.agent
        if parent is None and params.get("parent_id"):
            parent = self._agent(caller, {"id": params["parent_id"]})
        merged = {**entry, "args": params.get("args") or NO_ARGS, "kwargs": params.get("kwargs")}
        merged["restrictions"] = params.get("restrictions")
        merged["timeout_s"] = params.get("timeout_s") or self._kernel.boot["timeout_s"]
        if caller.agent is None:  # a child of an agent is held at its parent's level
            merged["require"] = params.get("require")
        bounded = bool(caller.agent or params.get("inherit_permissions", True))
        return (await self._start(merged, parent, [], bounded=bounded)).id

    def _child(self, caller: Caller, params: Params) -> dict[str, Any]:
        """Return what is registered as `name`. An agent may also name an import path: bounded by it, as any child."""
        name, target = str(params.get("name")), params.get("target")
        if name in self._registered:
            if missing := self._registered[name]["missing"]:
                raise errors.NotSerialisable(missing, f"agent function {name!r}")
            return self._registered[name]
        if caller.agent is None or not isinstance(target, str):
            raise errors.NotRegistered(name, self._registered)
        permissions = params.get("permissions")
        if not isinstance(permissions, list | None):
            raise BadRequest(f"spawn {name!r}: permissions={permissions!r} must be a list of operations")
        rate_limit, priority = params.get("rate_limit"), params.get("priority") or 0
        if rate_limit is not None and rate_limit < 1:
            raise BadRequest(f"spawn {name!r}: rate_limit={rate_limit!r} must be at least 1")
        return {
            "name": name, "target": target, "permissions": permissions, "rate_limit": rate_limit,
            "restart": params.get("restart"),
            "priority": min(priority, caller.agent.priority),  # nobody is put before others by an agent
        }  # fmt: skip

    # --- looking ---------------------------------------------------------------------------------------------------

    async def ps(self, _: Caller, __: Params) -> dict[str, Any]:
        run_id = self._kernel.boot["run_id"]
        return {"run": run_id, "agents": [agent.row(run_id) for agent in self._kernel.agents.all()]}

    async def status(self, caller: Caller, params: Params) -> dict[str, Any]:
        return self._agent(caller, params, "status").row(self._kernel.boot["run_id"])

    async def inspect(self, caller: Caller, params: Params) -> dict[str, Any]:
        return self._kernel.describe(self._agent(caller, params, "inspect"))

    async def follow(self, caller: Caller, params: Params) -> dict[str, Any]:
        """Send notices about one agent (or "*") to this client from now on."""
        caller.peer.follows.add(params.get("id") or "*")
        agent = self._kernel.agents.get(params.get("id") or "")
        return {"offset": agent.log_offset, "gone": agent.gone.is_set()} if agent else {}

    # --- acting ----------------------------------------------------------------------------------------------------

    async def signal(self, caller: Caller, params: Params) -> dict[str, Any]:
        agent = self._agent(caller, params, "send_signal")
        signal = parse_signal(params["signal"])
        scope = params.get("scope")
        if scope not in (None, "tree", "leader"):
            raise BadRequest(f"unknown scope {str(scope)[:ID_MAX]!r}; known: tree, leader")
        if signal in (AgentSignal.SIGTERM, AgentSignal.SIGKILL):  # who wants an end wants that of the agent's next life
            agent = latest(agent)
        within = parse_within(params.get("within")) if caller.who == "host" else ()
        done = await self._kernel.endings.send(agent, signal, scope, caller.who, within=within)
        killed = done.ok and signal is AgentSignal.SIGKILL
        if killed or (done.ok and _ends_it(agent, signal)):  # Linux says so; it is known here a moment later
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_until(agent, lambda agent: agent.ended and not killed), END_SEEN_S)
        state = "terminated" if killed else lifecycle.public_state(agent.state)
        return {"ok": done.ok, "processes": done.processes, "mechanism": done.mechanism, "detail": done.detail,
                "state": state}  # fmt: skip

    async def handlers(self, _: Caller, params: Params) -> None:
        """Have these signals, and no others, heard by the host program before they are delivered."""
        self._kernel.endings.hearings.hear(parse_signals(params["signals"]))

    async def modules(self, _: Caller, params: Params) -> None:
        """Have results verified by these modules of the host program, and no others, before they are released."""
        self._kernel.verification.use(parse_modules(params["modules"]))

    async def stop(self, caller: Caller, params: Params) -> dict[str, Any]:
        agent = self._agent(caller, params)
        await self._kernel.endings.stop(latest(agent), params.get("grace_s"), caller.who)
        agent = await last_life(agent)
        return {"ok": True, "exit_code": agent.exit_code, "exit_signal": agent.exit_signal,
                "detail": agent.how_it_ended}  # fmt: skip

    async def wait(self, caller: Caller, params: Params) -> dict[str, Any]:
        """Return once the agent reached `state` (exited, stopped, running) or ended. Raises AgentTimeoutError.

        It has ended when it is not restarted any more; until then its next lives are waited for as well.
        """
        agent = self._agent(caller, params)
        reached = _WAITED.get(params.get("state") or "exited")
        if reached is None:
            raise BadRequest(f"unknown state {params.get('state')!r}; known: {', '.join(_WAITED)}")
        limit_s = params.get("timeout_s")
        try:
            agent = await asyncio.wait_for(_any_life(agent, reached), limit_s)
        except TimeoutError:
            raise AgentTimeoutError(f"{agent.name} did not get there within {limit_s:g} s", agent_id=agent.id,
                                    timeout_s=limit_s or 0.0) from None  # fmt: skip
        return {"state": lifecycle.public_state(agent.state), "exit_code": agent.exit_code,
                "exit_signal": agent.exit_signal, "ended_by": agent.ended_by}  # fmt: skip

    async def result(self, caller: Caller, params: Params) -> bytes:
        """Wait for the end of a Python agent and return its packed result. Raises how else it ended."""
        return await self._kernel.verification.released(await last_life(self._agent(caller, params)))

    async def wait_all(self, caller: Caller, params: Params) -> list[bytes]:
        """Wait until all of `ids` ended; their packed results in order, else every failure at once."""
        agents = [self._agent(caller, {"id": one}, "wait_all") for one in params["ids"]]
        async with self._blocked(caller.agent):
            agents = [await last_life(agent) for agent in agents]
            released = self._kernel.verification.released
            results = await asyncio.gather(*(released(agent) for agent in agents), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, AgentosError):
                raise result
        failures = [result for result in results if isinstance(result, AgentosError)]
        if failures:
            raise SeveralFailed(failures)
        return [result for result in results if isinstance(result, bytes)]

    @contextlib.asynccontextmanager
    async def _blocked(self, agent: Agent | None) -> AsyncIterator[None]:
        """An agent waits for others, maybe in several calls at once: it shows, and its slot is lent meanwhile."""
        if agent is None:
            yield
            return
        agent.blocked += 1
        if agent.blocked == 1 and not agent.ended:
            agent.move(lifecycle.Blocked())
            self._kernel.slots.lend(agent.id)
        try:
            yield
        finally:
            agent.blocked -= 1
            if not agent.blocked:
                await self._kernel.slots.reclaim(agent.id)
            if not agent.blocked and not agent.ended:
                agent.move(lifecycle.Unblocked())

    async def log(self, _: Caller, params: Params) -> str:
        """Write one event of the host program's own; returns its id."""
        kernel = self._kernel
        entry = parse_entry(
            params.get("event_type"), params.get("agent_id"), params.get("data"), params.get("severity")
        )
        agent = kernel.agents.get(entry.agent_id)
        seq = kernel.recording.append(
            entry.event_type, entry.data, severity=entry.severity, agent_id=entry.agent_id,
            agent_name=agent.name if agent else "", execution_id=agent.execution_id if agent else "", durable=True,
        )  # fmt: skip
        await kernel.recording.durable(seq)
        return f"{kernel.boot['run_id']}-{seq}"

    async def save_state(self, caller: Caller, params: Params) -> None:
        assert caller.agent is not None
        if not isinstance(params.get("value"), bytes):
            raise BadRequest("save_state takes packed bytes")
        caller.agent.saved_state = params["value"]
        self._kernel.broker.note(caller.agent, "state_saved", {"bytes": len(params["value"])})

    async def add_rule(self, _: Caller, params: Params) -> None:
        """Every agent of this kernel obeys one more rule once this is answered."""
        await self._kernel.in_force.add_rule(params["rule"], params.get("before"), params.get("after"))

    async def take_rule_back(self, _: Caller, params: Params) -> None:
        """The last rule goes: another kernel of the same policy could not follow."""
        await self._kernel.in_force.take_rule_back(params.get("before"), params.get("after"))

    async def query(self, caller: Caller, params: Params) -> bytes | None:
        """Ask an agent's runtime: cleanup | save_state | get_state. Returns the packed state for the last."""
        agent = self._agent(caller, params, "query")
        state = await self._kernel.queries.ask(agent, params["what"], caller.who)
        return state if params["what"] == "get_state" else None

    async def detach(self, caller: Caller, _: Params) -> None:
        """The host may go; the kernel stays until its last agent ended."""
        self._kernel.attached = False
        self._kernel.callbacks.leave()
        caller.peer.is_host = False
        self._kernel.end_if_idle()

    async def shutdown(self, _: Caller, __: Params) -> None:
        await self._kernel.shut_down("shutdown")


def _ends_it(agent: Agent, signal: AgentSignal) -> bool:
    """Whether Linux says that a signal which was delivered has ended the agent's first process, or is about to."""
    if agent.ended or signal in (AgentSignal.SIGSTOP, AgentSignal.SIGCONT) or agent.state is State.STOPPED:
        return False  # what is stopped takes no signal before it is continued
    found = linux.read_stat(str(agent.pid))
    return found is None or found.state in "ZX" or linux.dies_of(agent.pid, signal.value)


async def _any_life(agent: Agent, reached: Callable[[Agent], bool]) -> Agent:
    """Wait until the agent or a life after it is there, or no more lives follow; return which one it is about."""
    while True:
        await _until(agent, reached)
        if not agent.gone.is_set():
            return agent
        if agent.successor is None:
            return await last_life(agent)
        agent = agent.successor


async def _until(agent: Agent, reached: Callable[[Agent], bool]) -> None:
    changed = asyncio.Event()
    agent.changed.append(changed.set)
    try:
        while not reached(agent) and not agent.gone.is_set():
            changed.clear()
            await changed.wait()
    finally:
        agent.changed.remove(changed.set)


ONLY_WAITING: Final = frozenset({"wait", "result", "wait_all"})  # they do nothing, and may end with who asked
_ANYONE: Final = frozenset({"host", "cli"})
_HOST: Final = frozenset({"host"})
_ALSO_AGENTS: Final = frozenset({"host", "cli", "agent"})

METHODS: Final[dict[str, tuple[Method, frozenset[str]]]] = {
    "start": (Calls.start, _HOST),
    "register": (Calls.register, _HOST),
    "add_rule": (Calls.add_rule, _HOST),
    "take_rule_back": (Calls.take_rule_back, _HOST),
    "detach": (Calls.detach, _HOST),
    "shutdown": (Calls.shutdown, _HOST),
    "result": (Calls.result, _HOST),
    "log": (Calls.log, _HOST),
    "handlers": (Calls.handlers, _HOST),
    "modules": (Calls.modules, _HOST),
    "ps": (Calls.ps, _ANYONE),
    "inspect": (Calls.inspect, _ANYONE),
    "follow": (Calls.follow, _ANYONE),
    "stop": (Calls.stop, _ANYONE),
    "wait": (Calls.wait, _ANYONE),
    "signal": (Calls.signal, _ANYONE),
    "send_signal": (Calls.signal, _ALSO_AGENTS),
    "status": (Calls.status, _ALSO_AGENTS),
    "query": (Calls.query, _ALSO_AGENTS),
    "spawn": (Calls.spawn, frozenset({"host", "agent"})),
    "wait_all": (Calls.wait_all, frozenset({"host", "agent"})),
    "save_state": (Calls.save_state, frozenset({"agent"})),
}
