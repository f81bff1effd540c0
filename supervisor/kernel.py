"""The kernel process: one uvloop loop that holds everything together, and the end of it.

Wires broker, starting, endings, recording and control to the zygote, the recorder and the clients. It goes when its
host is gone (attached), when its last agent ended (detached), or at `shutdown`; its runtime directory goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import itertools
import json
import os
import random
import signal
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import uvloop

from agentos import wire
from agentos.clock import SystemClock, rfc3339
from agentos.errors import AgentosError, HostError, ProtocolError
from agentos.faults import to_fault
from agentos.policies import Quota
from agentos.recorder.journal import JournalWriter
from agentos.signals import AgentSignal
from agentos.supervisor import linux
from agentos.supervisor.agents import CALL_BYTES_MAX, CALLS_MAX, Agent, Agents
from agentos.supervisor.broker import METHOD_MAX, TEXT_MAX, Broker
from agentos.supervisor.callbacks import Callbacks
from agentos.supervisor.calls import ONLY_WAITING, Caller, Calls
from agentos.supervisor.control import Control, Peer
from agentos.supervisor.endings import Endings
from agentos.supervisor.heartbeat import Heartbeat
from agentos.supervisor.lives import Lives
from agentos.supervisor.outbox import Outbox
from agentos.supervisor.policy_in_force import PolicyInForce
from agentos.supervisor.policy_source import load_policy
from agentos.supervisor.queries import Queries
from agentos.supervisor.recorder_link import RecorderLink
from agentos.supervisor.recording import Recording
from agentos.supervisor.scratch import remove_tree
from agentos.supervisor.slots import Slots
from agentos.supervisor.starting import Starting, raise_descriptor_limit
from agentos.supervisor.tasks import Tasks
from agentos.supervisor.trace import Trace
from agentos.supervisor.traced import TracedBroker, header
from agentos.supervisor.verification import Verification
from agentos.supervisor.zygote_link import ZygoteLink

LOCK_TRIES: Final = 100
LOCK_PAUSE_S: Final = 0.01
NOTICE_BYTES_MAX: Final = 256 * 1024  # a follower that reads slower loses doorbells, which are only hints


def main(boot: dict[str, Any], host_fd: int, zygote_fd: int) -> NoReturn:
    """Run as the kernel process. Never returns."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_run(loop, boot, host_fd, zygote_fd))
    os._exit(0)


async def _run(loop: asyncio.AbstractEventLoop, boot: dict[str, Any], host_fd: int, zygote_fd: int) -> None:
    sock = socket.socket(fileno=host_fd)
    try:
        kernel = Kernel(loop, boot, socket.socket(fileno=zygote_fd))
        await kernel.open()
    except (AgentosError, OSError) as error:  # the host waits for Hello: tell it why there will be none
        named = error if isinstance(error, AgentosError) else HostError(f"the kernel cannot start: {error}")
        sock.sendall(wire.encode(to_fault(0, named)))
        return
    kernel.callbacks.adopt(kernel.control.adopt_host(sock.detach()).outbox)
    await kernel.finished.wait()


class Kernel:
    def __init__(self, loop: asyncio.AbstractEventLoop, boot: dict[str, Any], zygote: socket.socket) -> None:
        self.loop = loop
        self.boot = boot
        self.attached = True  # until `detach`: a host that dies before it has nobody who knows of the run
        self.finished = asyncio.Event()
        self.agents = Agents()
        self._clock = SystemClock()
        self._ids = itertools.count(1)
        self._spawn_task = Tasks(loop).start
        self._shutting_down = False
        raise_descriptor_limit()
        os.umask(0o077)
        _make_directories(boot)
        self._lock = _take_lock(boot["runtime"])
        self._janitor = ThreadPoolExecutor(1, "janitor")
        self._janitor.submit(int)  # started now: when an agent ends there may be no room for another thread
        journal = JournalWriter(Path(boot["state"]) / "journal", run_id=boot["run_id"])
        self.recording = Recording(loop, journal, self._clock)
        loop.set_exception_handler(self._on_fault)
        self.zygote = ZygoteLink(loop, zygote, on_died=self._on_died)
        self.in_force = PolicyInForce(load_policy(boot), self.recording)
        self._recorder = RecorderLink(loop, boot, self.recording, self.zygote)
        self.endings = Endings(loop, self.agents, self._clock)
        self.endings.on_gone = self._on_gone
        self.callbacks = Callbacks(loop)
        self.calls = Calls(self)
        self.trace = Trace(self._clock) if boot["debug"] else None
        self.agents.traced = None if self.trace is None else self.trace.moved
        self.broker = (Broker if self.trace is None else partial(TracedBroker, self.trace))(
            loop, self.recording, self._clock,
            deliver=self._deliver_soon, on_call=self._on_agent_call, notify=self._notify,
        )  # fmt: skip
        self.endings.broker = self.broker
        self.queries = Queries(loop, self.broker)
        self.verification = Verification(loop, self.endings.hearings.line)
        for asking in (self.endings.hearings, self.verification):
            asking.ask, asking.note = self.callbacks.ask, self.broker.note
        self.quota = Quota()
        self.slots = Slots(loop, boot["slots"])
        self.starting = Starting(
            loop, boot, self.agents, self.recording, self._clock, self.broker, self.endings, self.zygote.fork_sentry,
            self.slots,
        )  # fmt: skip
        self.lives = Lives(
            loop, self.agents, self._clock, self.broker, self.endings, self.starting, random.SystemRandom().random
        )
        self.control = Control(
            loop,
            on_call=self._on_call,
            on_returned=self._on_returned,
            on_host_gone=self._on_host_gone,
            agent_of=lambda pid: agent.id if (agent := self.agents.by_sentry(pid)) else "",
            on_refused=self._on_refused,
            on_nonsense=lambda data: self._warn("protocol_error", data),
        )

    # --- start and end ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Bring up recorder and control socket; the first event is on record when this returns."""
        boot, policy = self.boot, self.in_force.policy
        try:
            await self._recorder.open()
        except HostError:  # nothing was started and nothing recorded: leave nothing behind
            self._remove(boot["runtime"], boot["state"])
            raise
        first = self.recording.append("kernel_started", {
            "run": boot["run_id"], "policy": policy.name, "policy_hash": policy.hash,
            "workspace": boot["workspace"], "attached": boot["attached"], "kernel_pid": os.getpid(),
        })  # fmt: skip
        await self.recording.durable(first)
        self.control.listen(boot["runtime"])
        meta = {
            "run": boot["run_id"], "kernel_pid": os.getpid(), "zygote_pid": os.getppid(), "uid": os.getuid(),
            "started_at": rfc3339(self._clock.wall_ns()), "workspace": boot["workspace"], "policy": policy.name,
        }  # fmt: skip
        for directory in (boot["runtime"], boot["state"]):
            _write_whole(os.path.join(directory, "meta.json"), json.dumps(meta))
        self._watch_host()
        policy.compiled().prepare()
        gc.collect()
        gc.freeze()  # a search through ten thousand rules for garbage stops every agent for 40 ms
        self._spawn_task(Heartbeat(self.agents, self.broker, ours=self._ours, record=self._warn).run())

    def _watch_host(self) -> None:
        """Hear of the host's end from Linux as well: a child that it forked may hold our socket open."""
        try:
            descriptor = os.pidfd_open(self.boot["host_pid"])
        except ProcessLookupError:
            self._on_host_gone()
            return

        def ended() -> None:
            self.loop.remove_reader(descriptor)
            os.close(descriptor)
            self._on_host_gone()

        self.loop.add_reader(descriptor, ended)

    async def shut_down(self, why: str) -> None:
        """End every agent, put that on record, and finish. Idempotent."""
        if self._shutting_down:
            return
        self._shutting_down = True
        self.starting.close()
        await asyncio.gather(
            *(self.endings.kill(agent, "kernel") for agent in self.agents.living()), return_exceptions=True
        )
        self.recording.try_append("kernel_stopped", {"why": why}, durable=True)
        with contextlib.suppress(AgentosError):
            await self.recording.durable(self.recording.last_seq)
        self.recording.close()
        complete = await self._recorder.stop()
        self.loop.call_later(0.01, self._leave, complete)  # after the answer to `shutdown` left

    def _leave(self, complete: bool) -> None:
        self.control.close()
        if self.trace is not None:
            self.trace.close()
        if complete or self.boot["storage"] != "memory":  # its journal lies there: the host reads the rest from it
            self._remove(self.boot["runtime"])
        self._remove(self.boot["tmp"])
        self.finished.set()

    def _remove(self, *directories: str) -> None:
        for directory in directories:
            remove_tree(directory)

    def end_if_idle(self) -> None:
        if not self.attached and not self.agents.living():
            self._spawn_task(self.shut_down("last agent ended"))

    def _on_host_gone(self) -> None:
        """Attached: nobody is left to answer for the agents. They end now. Detached, only a kernel without any does."""
        self.callbacks.leave()
        if self.attached or not self.agents.living():
            self._spawn_task(self.shut_down("host program gone"))

    def _on_died(self, frame: wire.Died) -> None:
        if self._recorder.on_died(frame):
            return
        agent = self.agents.by_sentry(frame.pid)
        if agent is not None:
            self.starting.sentries.on_died(agent, frame)

    def _ours(self) -> dict[str, int]:
        return {"guard": self.boot["guard_pid"], "zygote": os.getppid(), "recorder": self._recorder.pid}

    def _on_refused(self, data: dict[str, Any]) -> None:
        agent = self.agents.get(data.get("agent_id", ""))
        if agent is None:
            self._warn("control_refused", data)
            return
        agent.violations += data.get("repeats", 1)
        self.broker.note(agent, "control_refused", data, severity="warning", durable=True)

    def _warn(self, event_type: str, data: dict[str, Any]) -> None:
        self.recording.try_append(event_type, data, severity="warning")

    def _on_fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something of ours failed in a callback. Whoever waits for its answer gets none, which allows nothing."""
        error = context.get("exception")
        data = {"message": str(context.get("message")), "error": repr(error)}
        self.recording.try_append("kernel_fault", data, severity="critical")
        if error is not None:
            self._show(error)

    def _show(self, error: BaseException) -> None:
        """With debug=True, say where something of ours failed."""
        if self.trace is not None:
            self.trace.line("kernel", "".join(traceback.format_exception(error)))

    def _on_gone(self, agent: Agent) -> None:
        agent.close(self.loop)
        self.slots.leave(agent.id)
        self.lives.on_gone(agent)
        self._janitor.submit(remove_tree, os.path.join(self.boot["tmp"], agent.id))
        self._notify(agent, "agent", {})
        self.end_if_idle()

    # --- frames to and from clients --------------------------------------------------------------------------------

    def _on_call(self, peer: Peer, call: wire.Call, descriptors: list[int]) -> None:
        caller = Caller("host" if peer.is_host else "cli", descriptors=descriptors)
        if self.trace is not None:
            self.trace.line(caller.who, f"← {header(call)}")
        caller.peer = peer
        task = self._spawn_task(self._answer(caller, call, peer.outbox))
        if call.method in ONLY_WAITING:
            peer.waiting.add(task)
            task.add_done_callback(peer.waiting.discard)

    def _on_returned(self, frame: wire.Returned) -> None:
        if self.trace is not None:
            self.trace.line("host", f"← {header(frame)}")
        self.callbacks.on_returned(frame)

    def _on_agent_call(self, agent: Agent, call: wire.Call) -> None:
        if agent.calls is None:
            return
        size = agent.intake.frame_bytes if agent.intake is not None else 0
        if agent.calls_waiting >= CALLS_MAX or agent.calls_bytes + size > CALL_BYTES_MAX:
            text = f"{call.method}: {agent.calls_waiting} calls of this agent wait for their answers already"
            agent.calls.write(wire.encode(to_fault(call.id, HostError(text))))
            return
        self._spawn_task(self._answer_agent(agent, size, call, agent.calls))

    async def _answer_agent(self, agent: Agent, size: int, call: wire.Call, outbox: Outbox) -> None:
        agent.calls_waiting += 1
        agent.calls_bytes += size
        try:
            await self._answer(Caller(f"agent {agent.id}", agent), call, outbox)
        finally:
            agent.calls_waiting -= 1
            agent.calls_bytes -= size

    async def _answer(self, caller: Caller, call: wire.Call, outbox: Outbox) -> None:
        try:
            if caller.agent is not None:
                self.broker.note(caller.agent, "kernel_call", {"method": call.method})
            value = await self.calls.run(caller, call.method, call.params)
            await outbox.turn(_size(value))
            outbox.write(wire.encode(wire.Reply(call.id, value)))
        except AgentosError as error:
            _send_fault(call, error, outbox)
        except Exception as error:
            self._show(error)
            method, what = call.method[:METHOD_MAX], repr(error)[:TEXT_MAX]
            self.recording.try_append("kernel_fault", {"call": method, "error": what}, severity="critical")
            _send_fault(call, AgentosError(f"internal error in {method}: {what}"), outbox)
        finally:
            for descriptor in caller.descriptors:
                os.close(descriptor)

    def _deliver_soon(self, agent: Agent, sig: AgentSignal, scope: str) -> None:
        self.endings.send_soon(agent, sig, scope)

    def _notify(self, agent: Agent, topic: str, data: dict[str, Any]) -> None:
        """Tell followers. A slow one loses hints, never holds anything up; state and log are read from their source."""
        if topic == "agent":
            data = agent.row(self.boot["run_id"]) | {"gone": agent.gone.is_set()}
        if topic == "denied" and "seq" in data:
            data = {**data, "event_id": f"{self.boot['run_id']}-{data['seq']}"}
        for peer in self.control.peers():
            wanted = "*" in peer.follows or agent.id in peer.follows
            if wanted and (topic == "agent" or peer.pending_bytes < NOTICE_BYTES_MAX):
                with contextlib.suppress(ProtocolError):
                    peer.send(wire.Notice(topic, {**data, "id": agent.id}))

    def describe(self, agent: Agent) -> dict[str, Any]:
        """Return everything `inspect` shows: what is true of this agent and of its kernel now."""
        found = linux.read_stat(str(agent.pid)) if agent.pid and not agent.gone.is_set() else None
        return agent.row(self.boot["run_id"]) | {
            "kernel_pid": os.getpid(), "kernel_descriptors": len(os.listdir("/proc/self/fd")),
            "zygote_pid": os.getppid(), "recorder_pid": self._recorder.pid,
            "guard_pid": self.boot["guard_pid"], "workspace": self.boot["workspace"], "cwd": agent.cwd,
            "environment": agent.environment_names, "linux_state": found.state if found else None,
            "walls": ["audit hooks"] if agent.level == "hooks" else [], "timeout_s": agent.timeout_s,
            "grace_s": agent.grace_s, "calls_waiting": agent.calls_waiting,
            "log": {"directory": self.boot["logs"], "offset": agent.log_offset, "dropped_bytes": agent.log_dropped},
            "last_event": f"{self.boot['run_id']}-{agent.last_seq}",
            "recorder": {"storage": self.boot["storage"], "last_seq": self.recording.last_seq,
            "durable_seq": self.recording.durable_seq, "lost": self.recording.lost},
        }  # fmt: skip


def _size(value: Any) -> int:
    """Return the bytes of what may be large in an answer: a result or a state, or several."""
    values = value if isinstance(value, list) else (value,)
    return sum(len(one) for one in values if isinstance(one, bytes))


def _send_fault(call: wire.Call, error: AgentosError, outbox: Outbox) -> None:
    """Say what a call failed with, or at least that it failed: without an answer the caller waits for ever."""
    try:
        outbox.write(wire.encode(to_fault(call.id, error)))
    except ProtocolError as unsendable:
        text = f"{call.method[:METHOD_MAX]} failed with {type(error).__name__}, which cannot be sent: {unsendable}"
        outbox.write(wire.encode(wire.Fault(call.id, AgentosError.__name__, text, {})))


def _make_directories(boot: dict[str, Any]) -> None:
    for path in (boot["runtime"], boot["state"], boot["logs"], boot["tmp"], os.path.join(boot["state"], "journal")):
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)


def _write_whole(path: str, text: str) -> None:
    """Write a file that nobody ever sees half-written."""
    Path(f"{path}.new").write_text(text)
    os.replace(f"{path}.new", path)


def _take_lock(runtime: str) -> int:
    """Hold the run's lock for life: its flock is how others know that we live. Raises HostError."""
    descriptor = os.open(os.path.join(runtime, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    for _ in range(LOCK_TRIES):  # whoever looks whether a run lives holds its lock for a moment
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        time.sleep(LOCK_PAUSE_S)
    os.close(descriptor)
    raise HostError(f"{runtime} belongs to another kernel that is alive")
