"""Agents that behave badly on their pipe to the kernel, and the one beside them that does not.

They run in agent processes: plain functions of a module that imports little. Each uses the agent's own descriptors,
which are any agent's to use at level hooks.
"""

from __future__ import annotations

import _thread
import asyncio
import fcntl
import itertools
import mmap
import os
import signal
import struct
import subprocess
import threading
import time
from typing import Any

import msgpack

import agentos
from agentos import wire
from agentos.agent.process import current

NOTES = struct.Struct("=Qdd")  # actions, worst wait, sum of waits; in seconds
F_SETPIPE_SZ = 1031  # fcntl.h; CPython has it from 3.10 on some builds only
LIFE_S = 30.0  # nobody stays longer, whatever becomes of the test
HEADER = struct.Struct(">I")
_NUMBERS = itertools.count(2 * 10**9)  # of calls by hand: no id of the agent's own library


def bystander(path: str) -> int:
    """Act until the file is gone, with a little rest: others must have the processor, too."""
    with open(path, "r+b") as file:
        notes = mmap.mmap(file.fileno(), 2 * NOTES.size)
    actions, sum_s, worst_s = 0, 0.0, 0.0
    while os.path.exists(path):
        begin = time.perf_counter()
        agentos.act("read", "data/bystander")
        waited = time.perf_counter() - begin
        if NOTES.unpack_from(notes, NOTES.size)[0]:
            NOTES.pack_into(notes, NOTES.size, 0, 0.0, 0.0)
            worst_s = 0.0
        actions, sum_s, worst_s = actions + 1, sum_s + waited, max(worst_s, waited)
        NOTES.pack_into(notes, 0, actions, worst_s, sum_s)
        time.sleep(0.002)
    return actions


def up() -> int:
    process = current()
    assert process is not None
    return process.channel._up.descriptor


def down() -> int:
    process = current()
    assert process is not None
    return process.channel._down.descriptor


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(up(), view) :]


def linger() -> None:
    """Live on, as if nothing had happened."""
    time.sleep(LIFE_S)


def send(data: bytes) -> str:
    """Put `data` on the pipe and live on."""
    write(data)
    linger()
    return "survived"


def send_and_leave(data: bytes) -> None:
    write(data)
    os._exit(0)


def send_and_close(data: bytes) -> str:
    """End the stream early, and live on."""
    write(data)
    os.close(up())
    linger()
    return "survived"


def close_early() -> list[str]:
    """Close the pipe between frames, and see what is still possible."""
    os.close(up())
    said = []
    for _ in range(2):
        try:
            agentos.act("read", "data/x")
        except agentos.PolicyViolationError as refusal:
            said.append(refusal.reason)
    return said


def act(number: int, resource: str = "data/flood", operation: str = "read") -> bytes:
    return wire.encode(wire.Act(number, operation, resource, None, None, "/", {}, "sdk"))


# --- slow and large ------------------------------------------------------------------------------------------------


def never_finish(size: int, sent: int, ready: str) -> str:
    """Announce a frame, send most of it in pieces, and keep the last byte for ever."""
    told = os.open(ready, os.O_WRONLY | os.O_CREAT)  # an action: afterwards none can be asked for any more
    body = msgpack.packb([12, b""])[:2] + b"\xc6" + HEADER.pack(size - 7)
    write(HEADER.pack(size) + body)
    piece = bytes(32_768)
    for _ in range(0, sent, len(piece)):
        write(piece)
    os.write(told, b"sent")
    for _ in range(int(LIFE_S / 0.05)):
        write(b"\0")
        time.sleep(0.05)
    return "survived"


def large_result(size: int) -> bytes:
    return bytes(itertools.islice(itertools.cycle(range(251)), size))


def large_result_through_one_page(size: int) -> bytes:
    assert fcntl.fcntl(up(), F_SETPIPE_SZ, 4096) == 4096
    assert fcntl.fcntl(down(), F_SETPIPE_SZ, 4096) == 4096
    for number in range(50):
        agentos.act("read", f"data/{number}-{'x' * 2_000}")
    return large_result(size)


# --- floods --------------------------------------------------------------------------------------------------------


def act_without_reading(count: int, stuck_s: float) -> dict[str, Any]:
    """Send actions and read no verdict until nothing has moved for `stuck_s`; then read them all."""
    sent = itertools.count()
    progress = [0]

    def flood() -> None:
        for number in range(1, count + 1):
            write(act(number))
            progress[0] = next(sent) + 1

    sender = threading.Thread(target=flood, daemon=True)
    sender.start()
    before, since = -1, time.monotonic()
    while time.monotonic() - since < stuck_s:
        if progress[0] != before:
            before, since = progress[0], time.monotonic()
        time.sleep(0.02)
    stuck_at = before
    ids = read_verdicts(count)
    sender.join(LIFE_S)
    return {"stuck_at": stuck_at, "in_order": ids == list(range(1, count + 1))}


def read_verdicts(count: int) -> list[int]:
    decoder, ids = wire.Decoder(wire.TO_AGENT_VERDICTS), []
    os.set_blocking(down(), True)
    while len(ids) < count:
        ids += [verdict.id for verdict in decoder.feed(os.read(down(), 65_536))]
    return ids


def act_while_reading(count: int, operation: str) -> int:
    """Send as fast as the pipe takes it, with a second thread that reads; returns how many verdicts came."""
    sender = threading.Thread(
        target=lambda: [write(act(number, f"data/{number}", operation)) for number in range(1, count + 1)], daemon=True
    )
    sender.start()
    ids = read_verdicts(count)
    sender.join(LIFE_S)
    return len(set(ids))


def send_outcomes(count: int) -> str:
    """Tell of actions that never were."""
    frames = b"".join(wire.encode(wire.Outcome(10**9 + number, True, "never was")) for number in range(100))
    for _ in range(count // 100):
        write(frames)
    agentos.act("read", "data/after")
    return "done"


def calls(method: str, params: dict[str, Any], count: int) -> None:
    """Make kernel calls and wait for none of them; the answers are nobody's."""
    for number in range(count):
        write(wire.encode(wire.Call(10**9 + number, method, params)))


def call_and_never_read(size: int, count: int) -> str:
    """Ask for a large result again and again from a child, while the thread that would read the answers is stopped."""
    process = current()
    assert process is not None
    kernel = agentos.KernelSpace()
    kernel.register(large_result)
    child_id = asyncio.run(kernel.spawn(large_result, size))
    asyncio.run(kernel.wait_all([child_id]))
    agent = os.getpid()
    if os.fork() == 0:
        os.kill(agent, signal.SIGSTOP)
        calls("wait_all", {"ids": [child_id]}, count)
    linger()
    return "survived"


def wait_for_itself(count: int) -> str:
    """Ask `count` times for what can never be answered."""
    process = current()
    assert process is not None
    calls("wait_all", {"ids": [process.id]}, count)
    agentos.act("read", "data/still-answered")
    linger()
    return "survived"


# --- lies ----------------------------------------------------------------------------------------------------------


def answer_what_nobody_asked(numbers: list[int]) -> None:
    """Forge the answers to whatever the kernel may be waiting for."""
    write(b"".join(wire.encode(wire.Answer(number, True, b"", "")) for number in numbers))
    time.sleep(LIFE_S)


def speak_for(other: str) -> list[str]:
    """Name another agent in every kernel call there is; returns what its own client said of those it has."""
    for method, params in [
        ("stop", {"id": other}),
        ("signal", {"id": other, "signal": 9}),
        ("inspect", {"id": other}),
        ("wait", {"id": other}),
        ("result", {"id": other}),
        ("register", {"name": "x"}),
        ("detach", {}),
        ("log", {"event_type": "x"}),
        ("start", {"argv": ["/bin/true"]}),
        ("query", {"id": other, "what": "cleanup"}),
    ]:
        calls(method, params, 1)
    kernel = agentos.KernelSpace()
    said = []
    for call in (
        lambda: asyncio.run(kernel.send_signal(other, agentos.AgentSignal.SIGKILL)),
        lambda: asyncio.run(kernel.wait_all([other])),
        lambda: asyncio.run(kernel.shutdown()),
        lambda: kernel.get_agent_status(other),
    ):
        try:
            call()
            said.append("done")
        except Exception as error:
            said.append(type(error).__name__)
    return said


def ask(method: str, params: dict[str, Any]) -> str:
    """Write one call on the pipe by hand; returns what came of it: the name of the error, or what was answered."""
    process = current()
    assert process is not None
    assert process.runtime is not None
    number, found = next(_NUMBERS), []
    arrived = _thread.allocate_lock()
    arrived.acquire()

    def done(value: Any, error: Exception | None) -> None:
        found.append(f"done: {value!r}" if error is None else type(error).__name__)
        arrived.release()

    process.runtime._waiting[number] = done
    write(wire.encode(wire.Call(number, method, params)))
    assert arrived.acquire(timeout=LIFE_S), f"{method} was never answered"
    return str(found[0])


def ask_all(asked: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Write many calls by hand, one after the other."""
    return [ask(method, params) for method, params in asked]


def ask_for_a_child(params: dict[str, Any]) -> str:
    """Spawn a child by hand, and stay as long as it does; returns its id."""
    child = ask("spawn", params).split("'")[1]
    asyncio.run(agentos.KernelSpace().wait_all([child]))
    return child


def ask_as_a_child(asked: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Have a child of this agent ask, about this agent: "PARENT" in what it asks stands for it."""
    process = current()
    assert process is not None
    mine = [(method, _with_parent(params, process.id)) for method, params in asked]
    kernel = agentos.KernelSpace()
    kernel.register(ask_all)
    return asyncio.run(kernel.execute(ask_all, mine))  # type: ignore[no-any-return]


def _with_parent(params: dict[str, Any], parent_id: str) -> dict[str, Any]:
    words = {"PARENT": parent_id}
    return {
        key: [words.get(one, one) for one in value] if isinstance(value, list) else words.get(value, value)
        for key, value in params.items()
    }


def probe() -> list[str]:
    """Return which of the four operations this agent is allowed."""
    allowed = []
    for operation, resource in (
        ("read", "data/x"), ("write", "data/x"), ("execute", "tools/x"), ("network", "https://example.org/x"),
    ):  # fmt: skip
        try:
            agentos.act(operation, resource)
            allowed.append(operation)
        except agentos.PolicyViolationError:
            pass
    return allowed


def ask_politely(stranger: str) -> dict[str, str]:
    """Try through the agent's own kernel client whatever would give it more than it has; what was said of each."""
    kernel: Any = agentos.KernelSpace()
    kernel.register(permissions=["read", "write", "execute", "network"])(probe)
    signal_ = agentos.AgentSignal.SIGKILL
    attempts: dict[str, Any] = {
        "a foreign parent": lambda: asyncio.run(kernel.spawn(probe, parent_id=stranger)),
        "no inheritance": lambda: asyncio.run(kernel.spawn(probe, inherit_permissions=False)),
        "another context": lambda: asyncio.run(kernel.execute(probe, context={"user_role": "admin"})),
        "send_signal": lambda: asyncio.run(kernel.send_signal(stranger, signal_)),
        "signal_dispatcher": lambda: asyncio.run(kernel.signal_dispatcher.send(stranger, signal_)),
        "get_agent_status": lambda: kernel.get_agent_status(stranger),
        "get_agent": lambda: kernel.get_agent(stranger),
        "wait_all": lambda: asyncio.run(kernel.wait_all([stranger])),
        "add_module": lambda: kernel.add_module(object()),
        "policy": lambda: kernel.policy.add_rule(action="allow", pattern="*"),
        "shutdown": lambda: asyncio.run(kernel.shutdown()),
    }
    return {name: _said(attempt) for name, attempt in attempts.items()}


def _said(attempt: Any) -> str:
    try:
        return f"done: {attempt()!r}"
    except agentos.AgentosError as error:
        return type(error).__name__


def register_wider() -> list[str]:
    """Start a child whose function says that it may do everything; returns what it may."""
    kernel = agentos.KernelSpace()
    kernel.register(permissions=["read", "write", "execute", "network"])(probe)
    return asyncio.run(kernel.execute(probe))  # type: ignore[no-any-return]


def fork_and_act(count: int) -> dict[str, int]:
    """Parent and child act at the same time; returns how the child ended and how often the parent was answered."""
    child = os.fork()
    if child == 0:
        for number in range(count):
            agentos.act("read", f"data/child-{number}")
        os._exit(7)
    for number in range(count):
        agentos.act("read", f"data/parent-{number}")
    return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "actions": count}


def send_from_a_forked_child(data: bytes) -> str:
    """Let a child, in a session of its own, break the stream of its parent."""
    if os.fork() == 0:
        os.setsid()
        write(data)
        linger()
        os._exit(0)
    linger()
    return "survived"


def descriptors() -> dict[str, list[str]]:
    """Return what this agent's descriptors are, and those of a program that it starts without closing any."""
    code = "import os; print([n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)])"
    told = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", code], close_fds=False, capture_output=True, check=True
    )
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    kinds = [os.readlink(link).partition(":")[0] for link in links if os.path.islink(link)]
    return {"own": sorted(kinds), "program": sorted(eval(told.stdout))}


def act_often(count: int) -> int:
    for number in range(count):
        agentos.act("read", f"data/{number}")
    return count
