"""Starting an agent: check everything, put the intent on record, then ask the zygote for a sentry.

Nothing is forked before every check passed and the record is durable. A failure closes every descriptor it opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
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
    LevelUnavailable,
    ProgramNotFound,
    ProgramNotRunnable,
    ProtocolError,
)
from agentos.identity import new_id
from agentos.recorder.event import text
from agentos.recorder.redact import redact_argv
from agentos.supervisor.agent_pipes import AgentPipes
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings
from agentos.supervisor.recording import Recording
from agentos.supervisor.requests import Request
from agentos.supervisor.sentry_link import SentryLink
from agentos.supervisor.slots import Slots
from agentos.wire import ACTION_BYTES_MAX

START_LIMIT_S: Final = 20.0
LINE_BYTES_MAX: Final = 256 * 1024 * 1024  # of functions and arguments of those in line for a slot, together
_ALWAYS_PASSED: Final = ("PATH", "HOME", "LANG", "TZ", "TERM", "USER", "LOGNAME", "SHELL")

ForkSentry = Callable[[dict[str, Any], list[int]], Awaitable[int]]


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
        self._tasks: set[asyncio.Task[None]] = set()
        self.sentries = SentryLink(loop, broker, endings)
        self._closed = False
        self._line_bytes = 0

    async def start(self, request: Request, stdin: int | None) -> Agent:
        """Start an agent; returns once exec succeeded, or at once when it is in line for a slot.

        Raises CallerError or HostError, and nothing runs then.
        """
        self._check_open()
        _check_size(request)
        self._check_room(request)
        level = choose_level(request)
        agent_id = request.agent_id
        env = self._environment(request, agent_id)
        program = find_program(request.argv[0], env, request.cwd) if request.argv else ""
        agent = self._new_agent(request, agent_id, level, env)
        with contextlib.ExitStack() as held:
            kept = _keep(stdin, held)  # before anything is on record: there may be no descriptor left
            seq = self._recording.append(
                "agent_starting", self._intent(request, agent, program), agent_id=agent.id, agent_name=agent.name,
                execution_id=agent.execution_id, durable=True,
            )  # fmt: skip
            await self._recording.durable(seq)
            self._agents.add(agent)
            birth = self._born(agent, request, program, env, kept)
            if self._slots.ask(agent.id, request.priority):
                await birth
            else:
                self._broker.note(agent, "agent_waiting", {"for": "a free slot", "in_line": self._slots.in_line})
                agent.in_line = True
                self._line_bytes += _size_in_line(request)
                held.callback(self._leave_line, _size_in_line(request))
                task = self._loop.create_task(self._in_turn(agent, birth, held.pop_all()))
                self._tasks.add(task)  # the loop itself keeps only weak references
                task.add_done_callback(self._tasks.discard)
        return agent

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

    async def _born(self, agent: Agent, request: Request, program: str, env: dict[str, str], stdin: int | None) -> None:
        try:
            self._check_open()  # it may have been closed while we waited for the recorder
            self._make_private(agent)
            await self._launch(agent, request, program, env, stdin)
        except (AgentosError, OSError) as error:
            if agent.spawn_error is None:
                agent.start_error = str(error)
                self._broker.note(agent, "agent_start_failed", {"error": str(error)}, severity="warning")
            self._endings.finish(agent)
            raise

    def _check_room(self, request: Request) -> None:
        """Raise HostError when one more would be too many, or what those in line hold too much."""
        self._agents.check_room(request.parent.id if request.parent else None)
        if self._line_bytes + _size_in_line(request) > LINE_BYTES_MAX:
            raise HostError(f"the agents in line hold {self._line_bytes} bytes of functions and arguments already")

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
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
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
        }

    async def _launch(
        self, agent: Agent, request: Request, program: str, env: dict[str, str], stdin: int | None
    ) -> None:
        words = self._first_words(agent, request) if request.kind == "python" else b""
        unread = partial(self._unread, agent)
        with AgentPipes(self._loop, agent, python=request.kind == "python", on_unread=unread) as pipes:
            params = {
                "id": agent.id, "argv": [os.fsencode(word) for word in request.argv], "program": os.fsencode(program),
                "env": {os.fsencode(name): os.fsencode(value) for name, value in env.items()},
                "cwd": os.fsencode(request.cwd),
                "logs": self._boot["logs"],
                "start_paused": request.start_paused, "name": request.name,
            }  # fmt: skip
            agent.sentry_pid = await self._fork_sentry(params, pipes.theirs(stdin))
        assert agent.from_sentry is not None
        self.sentries.watch(agent, agent.from_sentry)
        if agent.up is not None:
            self._broker.watch_agent(agent, agent.up)
            assert agent.calls is not None
            agent.calls.write(words)
        await self._confirm(agent)
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
            await self._endings.kill(agent, "kernel")
            raise HostError(f"{agent.name} did not start within {START_LIMIT_S:g} s") from None
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


def _size_in_line(request: Request) -> int:
    return sum(map(len, (request.pickle or b"", request.args, request.kwargs, request.state or b"")))


def _check_size(request: Request) -> None:
    """The command goes on record whole, or it is not started. Raises ProgramNotRunnable."""
    size = sum(len(word) + 1 for word in request.argv)
    if size > ACTION_BYTES_MAX:
        why = f"its argv has {size} characters, the limit is {ACTION_BYTES_MAX}; pass them in a file"
        raise ProgramNotRunnable(request.argv[0][:200], why)


def choose_level(request: Request) -> str:
    """Return the level of the run. Raises LevelUnavailable when it would be lower than required."""
    if request.kind == "python":
        best, required = "hooks", request.require or "hooks"
        why = "this version mediates Python agents by audit hooks"
    else:
        best, required = "none", request.require or "hooks"
        why = "this version does not mediate executables yet; pass --require none to run it supervised but unmediated"
    order = ("none", "hooks", "syscalls", "full")
    if required not in order:
        raise BadRequest(f"unknown level {required!r}; known: {', '.join(order)}")
    if order.index(required) > order.index(best):
        raise LevelUnavailable(required, best, why)
    return "none" if required == "none" else best


def find_program(program: str, env: Mapping[str, str], cwd: str) -> str:
    """Return the absolute path that exec would run. Raises ProgramNotFound or ProgramNotRunnable."""
    if "/" in program:
        path = os.path.join(cwd, program)
        if not os.path.exists(path):
            raise ProgramNotFound(program, f"{path} does not exist")
        if os.path.isdir(path) or not os.access(path, os.X_OK):
            raise ProgramNotRunnable(program, f"{path} is not an executable file")
        return path
    found = shutil.which(program, path=env.get("PATH", os.defpath))
    if found is None:
        raise ProgramNotFound(program)
    return os.path.join(cwd, found)


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
    why = f"{os.strerror(failed.errno)} ({failed.what})"
    if failed.what == "fork":
        return HostError(f"cannot start {agent.name}: {why}; see the limits in `agentos doctor`")
    return ProgramNotRunnable(agent.command[0], why)
