"""Starting an agent: check everything, put the intent on record, then ask the zygote for a sentry.

Nothing is forked before every check passed and the record is durable. A failure closes every descriptor it opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from agentos import wire
from agentos.clock import Clock
from agentos.errors import (
    AgentosError,
    BadRequest,
    HostError,
    KernelUnavailable,
    ProgramNotRunnable,
    ProtocolError,
)
from agentos.identity import new_id
from agentos.recorder.event import text
from agentos.recorder.redact import redact_argv
from agentos.restart_policy import When
from agentos.supervisor.agent_pipes import AgentPipes
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings
from agentos.supervisor.lineage import Again, Lineage
from agentos.supervisor.preconditions import check_size, choose_level, find_program, size_in_line
from agentos.supervisor.recording import Recording
from agentos.supervisor.requests import Request
from agentos.supervisor.sentry_link import SentryLink
from agentos.supervisor.slots import Slots
from agentos.supervisor.tasks import Tasks

START_LIMIT_S: Final = 20.0
LINE_BYTES_MAX: Final = 256 * 1024 * 1024  # of functions and arguments of those in line for a slot, together
_ALWAYS_PASSED: Final = ("PATH", "HOME", "LANG", "TZ", "TERM", "USER", "LOGNAME", "SHELL")

ForkSentry = Callable[[dict[str, Any], list[int]], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A life of which everything is known and nothing has happened yet."""

    agent: Agent
    request: Request
    program: str
    env: dict[str, str]
    orphan: bool  # its parent, which the host program named, had ended before


class Starting:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        boot: Mapping[str, Any],
        agents: Agents,
        recording: Recording,
        clock: Clock,
        broker: Broker,
        endings: Endings,
        fork_sentry: ForkSentry,
        slots: Slots,
    ) -> None:
        self._loop = loop
        self._boot = boot
        self._agents = agents
        self._recording = recording
        self._clock = clock
        self._broker = broker
        self._endings = endings
        self._fork_sentry = fork_sentry
        self._slots = slots
        self._tasks = Tasks(loop)
        self.sentries = SentryLink(loop, broker, endings)
        self.closed = False
        self._line_bytes = 0

    async def start(self, request: Request, stdin: int | None, again: Again) -> Agent:
        """Start an agent; returns once exec succeeded, or at once when it is in line for a slot.

        `again` makes the request once more, for an agent that is restarted. Raises CallerError or HostError, and
        nothing runs then.
        """
        life = self.prepare(request)
        if request.restart.when is not When.NEVER:
            life.agent.lineage = self._lineage(request, stdin, again)
        try:
            await self.begin(life, stdin)
        except (AgentosError, OSError):
            if life.agent.lineage is not None:
                life.agent.lineage.kept.close()
            raise
        return life.agent

    def prepare(self, request: Request) -> Prepared:
        """Check all that can be known before anything starts. Raises CallerError or HostError."""
        self._check_open()
        check_size(request)
        self._check_room(request)
        level = choose_level(request)
        env = self._environment(request, request.agent_id)
        program = find_program(request.argv[0], env, request.cwd) if request.argv else ""
        orphan = request.parent is not None and request.parent.gone.is_set()
        return Prepared(self._new_agent(request, request.agent_id, level, env), request, program, env, orphan)

    async def begin(self, life: Prepared, stdin: int | None) -> None:
        """Bring it to life, or into the line for a slot; one that ended while it waited for the record stays dead."""
        agent, request = life.agent, life.request
        with contextlib.ExitStack() as held:
            kept = _keep(stdin, held)  # before anything is on record: there may be no descriptor left
            seq = self._recording.append(
                "agent_starting", self._intent(request, agent, life.program), agent_id=agent.id, agent_name=agent.name,
                execution_id=agent.execution_id, durable=True,
            )  # fmt: skip
            await self._recording.durable(seq)
            if agent.gone.is_set():
                return
            self._agents.add(agent)
            birth = self._born(life, kept)
            if self._slots.ask(agent.id, request.priority):
                agent.in_line = False
                await birth
            else:
                self._broker.note(agent, "agent_waiting", {"for": "a free slot", "in_line": self._slots.in_line})
                agent.in_line = agent.waited = True
                if agent.lineage is None:  # whose next life is kept all its life long
                    self._keep_request(request, held)
                self._tasks.start(self._in_turn(agent, birth, held.pop_all()))

    def _lineage(self, request: Request, stdin: int | None, again: Again) -> Lineage:
        """Return what its next life needs, held until there is none. Raises HostError."""
        lineage = Lineage(request.restart, again)
        lineage.stdin = _keep(stdin, lineage.kept)
        self._keep_request(request, lineage.kept)
        return lineage

    def _keep_request(self, request: Request, held: contextlib.ExitStack) -> None:
        size = size_in_line(request)
        self._line_bytes += size
        held.callback(self._leave_line, size)

    async def _in_turn(self, agent: Agent, birth: Coroutine[Any, Any, None], held: contextlib.ExitStack) -> None:
        """Bring the agent to life when it is its turn. What goes wrong then is how the agent ended."""
        with held:
            await self._slots.turn(agent.id)
            agent.in_line = False
            if agent.gone.is_set():
                birth.close()
            else:
                with contextlib.suppress(AgentosError, OSError):
                    await birth

    async def _born(self, life: Prepared, stdin: int | None) -> None:
        agent, parent = life.agent, life.request.parent
        try:
            self._check_open()  # it may have been closed while we waited for the recorder
            if parent is not None and parent.gone.is_set() and not life.orphan:  # its children were ended before
                raise HostError(f"{parent.name}, the parent of {agent.name}, has ended")
            self._make_private(agent)
            if agent.lineage is not None:
                agent.lineage.started(self._loop.time())
                agent.predecessor = None  # else a chain of all lives would be kept
            await self._launch(life, stdin)
        except (AgentosError, OSError) as error:
            if agent.spawn_error is None:
                agent.start_error = str(error)
                self._broker.note(agent, "agent_start_failed", {"error": str(error)}, severity="warning")
            self._endings.finish(agent)
            raise

    def _check_room(self, request: Request) -> None:
        """Raise HostError when one more would be too many, or what those hold that start later too much."""
        self._agents.check_room(request.parent.id if request.parent else None)
        if self._line_bytes + size_in_line(request) > LINE_BYTES_MAX:
            what = f"the agents in line, and those that may be restarted, hold {self._line_bytes} bytes"
            raise HostError(f"{what} of functions and arguments already; wait for some of them to end")

    def _leave_line(self, size: int) -> None:
        self._line_bytes -= size

    def _make_private(self, agent: Agent) -> None:
        path = self.private_path(agent.id)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"no temporary directory for {agent.name}: {path}: {error.strerror}") from error

    def close(self) -> None:
        """Start nothing from now on."""
        self.closed = True

    def _check_open(self) -> None:
        if self.closed:
            raise KernelUnavailable("this kernel is ending; it starts no agent any more")

    def _new_agent(self, request: Request, agent_id: str, level: str, env: dict[str, str]) -> Agent:
        parent = request.parent
        return Agent(
            id=agent_id,
            name=request.name,
            execution_id=parent.execution_id if parent else agent_id,
            kind=request.kind,
            command=[text(word) for word in redact_argv(request.argv)] or [request.target or request.name],
            level=level,
            cwd=request.cwd,
            policy=request.policy,
            policy_name=request.policy_name,
            context=request.context,
            grace_s=request.grace_s,
            timeout_s=request.timeout_s,
            parent_id=parent.id if parent else None,
            priority=request.priority,
            environment_names=sorted(map(text, env)),
            started_ns=self._clock.wall_ns(),
            held=request.start_paused,
            saved_state=request.state,  # lost by no life that saves nothing
        )

    def _intent(self, request: Request, agent: Agent, program: str) -> dict[str, Any]:
        return {
            "name": agent.name,
            "kind": agent.kind,
            "command": agent.command,
            "program": program or None,
            "cwd": agent.cwd,
            "level": agent.level,
            "policy": agent.policy_name,
            "policy_hash": agent.policy.hash,
            **request.bounds,
            "parent_id": agent.parent_id,
            "context": agent.context,
            "environment_names": agent.environment_names,
            "environment_all": request.env_all,
            "timeout_s": agent.timeout_s,
            **({"restart": str(request.restart), "previous_id": agent.previous_id} if agent.lineage else {}),
        }

    async def _launch(self, life: Prepared, stdin: int | None) -> None:
        agent, request = life.agent, life.request
        words = self._first_words(agent, request) if request.kind == "python" else b""
        unread = partial(self._unread, agent)
        with AgentPipes(self._loop, agent, python=request.kind == "python", on_unread=unread) as pipes:
            params = {
                "id": agent.id,
                "argv": [os.fsencode(word) for word in request.argv],
                "program": os.fsencode(life.program),
                "env": {os.fsencode(name): os.fsencode(value) for name, value in life.env.items()},
                "cwd": os.fsencode(request.cwd),
                "logs": self._boot["logs"],
                "start_paused": request.start_paused, "name": request.name,
            }  # fmt: skip
            agent.sentry_pid = await self._fork_sentry(params, pipes.theirs(stdin))
        assert agent.from_sentry is not None
        self.sentries.watch(agent, agent.from_sentry)
        if agent.up is not None:
            self._broker.watch_agent(agent, agent.up)
        await self._confirm(agent)
        if agent.calls is not None:  # only now: nothing that it does is on record before its start
            agent.calls.write(words)
        self._endings.watch_time(agent)

    def _unread(self, agent: Agent, why: str) -> None:
        """What it asked for and does not read must not fill our memory. A pipe that it closed is its own loss."""
        if agent.calls is not None and agent.calls.overflowed:
            self._broker.protocol_fault(agent, ProtocolError(f"it {why} on its calls pipe"))

    def _first_words(self, agent: Agent, request: Request) -> bytes:
        """Return what a Python agent is told first. Raises BadRequest: it is too large to be told at all.

        The state of its previous life has a frame of its own: what could be saved fits, whatever its function takes.
        """
        start = wire.Start(
            agent.id, agent.name, self._boot["run_id"], request.target, request.pickle, request.args, request.kwargs,
            self._boot["sys_path"], agent.level,
        )  # fmt: skip
        try:
            hello = wire.encode(wire.Hello(wire.VERSION, "kernel", os.getpid()))
            saved = b"" if request.state is None else wire.encode(wire.Saved(request.state))
            return hello + saved + wire.encode(start)
        except ProtocolError as error:
            raise BadRequest(f"{agent.name}: its function and arguments do not fit: {error}; pass a path") from error

    async def _confirm(self, agent: Agent) -> None:
        """Wait for exec. Raises what hindered it."""
        try:
            await asyncio.wait_for(agent.first_seen.wait(), START_LIMIT_S)
        except TimeoutError:
            agent.start_error = f"{agent.name} did not start within {START_LIMIT_S:g} s"
            await self._endings.kill(agent, "kernel")
            raise HostError(agent.start_error) from None
        if agent.spawn_error is not None or not agent.pid:
            await agent.gone.wait()
            raise _why_not(agent)
        self._broker.note(agent, "agent_started", {"pid": agent.pid, "sentry_pid": agent.sentry_pid})

    # --- environment -----------------------------------------------------------------------------------------------

    def _environment(self, request: Request, agent_id: str) -> dict[str, str]:
        """PATH, HOME, LANG, LC_*, TZ, TERM, USER; what was asked for; ours last, so that nobody can forge it."""
        base: dict[str, str] = self._boot["env"]
        env = dict(base) if request.env_all else {
            key: value for key, value in base.items() if key in _ALWAYS_PASSED or key.startswith("LC_")
        }  # fmt: skip
        env.update({name: base[name] for name in request.env_passed if name in base})
        env.update(request.env)
        env["AGENTOS_AGENT_ID"] = agent_id
        env["AGENTOS_RUN"] = self._boot["run_id"]
        env["TMPDIR"] = str(self.private_path(agent_id))
        return env

    def new_id(self) -> str:
        return new_id(self._clock.wall_ns())

    def private_path(self, agent_id: str) -> Path:
        """Return the agent's own directory, made 0700 before it starts and removed when its tree is gone."""
        return Path(self._boot["tmp"]) / agent_id


def _keep(stdin: int | None, held: contextlib.ExitStack) -> int | None:
    """Return a descriptor of our own for `stdin`: the caller's is closed once it has its answer. Raises HostError."""
    if stdin is None:
        return None
    try:
        kept = os.dup(stdin)
    except OSError as error:
        raise HostError(f"no descriptor for stdin: {error.strerror}; see the limits in `agentos doctor`") from error
    held.callback(os.close, kept)
    return kept


def raise_descriptor_limit() -> None:
    """Raise the kernel's own soft limit to the hard one: 1,000 agents need some 7,000 descriptors.

    Agents are not forked from here: they get the limits, and the umask, that the host program had.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _why_not(agent: Agent) -> AgentosError:
    """Return the error for an agent that never ran."""
    failed = agent.spawn_error
    if failed is None:
        return HostError(
            f"the sentry of {agent.name} ended before it had started anything; `agentos doctor` may tell why"
        )
    if failed.what == "fork":
        return HostError(f"cannot start {agent.name}: {agent.why_not_started}; see the limits in `agentos doctor`")
    return ProgramNotRunnable(agent.command[0], agent.why_not_started)
