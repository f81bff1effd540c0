"""Host programs as people write them: scripts run by themselves, under any loop, in threads, ending in any way.

Each is a process of its own; its functions are those of `__main__`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import carriers, directories, wait_until

LIMIT_S = 100


class Program:
    """A script in a file, with directories and a cookie of its own; everything it starts carries the cookie."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.cookie = f"agentos-test-{uuid.uuid4().hex}"
        (base / "work").mkdir()

    def start(self, text: str) -> subprocess.Popen[str]:
        script = self.base / "script.py"
        script.write_text(text)
        with directories(self.base) as environment:
            environment["TERM"] = self.cookie  # one of the variables that agents get
            return subprocess.Popen(
                [sys.executable, str(script)], cwd=self.base / "work", env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip

    def run(self, text: str, code: int = 0) -> str:
        """Run the script to its end and return what it printed; nothing that it started lives then."""
        process = self.start(text)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, err
        assert carriers(self.cookie) == []
        assert [*(self.base / "run" / "runs").iterdir()] == []
        return out


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    one = Program(tmp_path)
    yield one
    for pid in carriers(one.cookie):
        os.kill(pid, signal.SIGKILL)


# --- the specification's examples ------------------------------------------------------------------------------------


def test_register_and_execute(program: Program) -> None:
    """The examples of register() and execute(), with the helper that they call."""
    assert program.run(
        """
import asyncio
from agent_os import KernelSpace

async def transform(data):
    return {key: str(value).upper() for key, value in data.items()}

kernel = KernelSpace(policy="strict")

@kernel.register(
    name="data_processor",
    permissions=["read", "write"],
    rate_limit=60
)
async def data_processor(input_data: dict) -> dict:
    \"\"\"Process data with read/write permissions.\"\"\"
    # Kernel enforces: only read/write actions allowed
    # Network calls would be blocked
    result = await transform(input_data)
    return {"status": "success", "data": result}

@kernel.register
async def analyzer(data: str) -> dict:
    return {"analyzed": True, "length": len(data)}

# Execute with context
result = asyncio.run(
    kernel.execute(
        analyzer,
        "sample data",
        context={"user_id": "user_123", "session_id": "sess_456"}
    )
)
print(result)  # {"analyzed": True, "length": 11}
print(asyncio.run(kernel.execute(data_processor, {"a": "b"})))
"""
    ).splitlines() == ["{'analyzed': True, 'length': 11}", "{'status': 'success', 'data': {'a': 'B'}}"]


def test_spawn(program: Program) -> None:
    """The example of spawn(): the coordinator is registered before the worker it speaks of."""
    assert (
        program.run(
            """
import asyncio
from agent_os import KernelSpace

kernel = KernelSpace(policy="strict")

@kernel.register
async def coordinator(tasks: list[str]) -> list[dict]:
    \"\"\"Spawn child agents for parallel processing.\"\"\"
    child_ids = []

    for task in tasks:
        child_id = await kernel.spawn(
            worker_agent,
            task,
            parent_id=kernel.current_agent_id,
            additional_restrictions=["no_network"]
        )
        child_ids.append(child_id)

    # Wait for all children to complete
    results = await kernel.wait_all(child_ids)
    return results

@kernel.register
async def worker_agent(task: str) -> dict:
    \"\"\"Process individual task.\"\"\"
    return {"task": task, "status": "complete"}

print(asyncio.run(kernel.execute(coordinator, ["a", "b"])))
"""
        )
        == "[{'task': 'a', 'status': 'complete'}, {'task': 'b', 'status': 'complete'}]\n"
    )


def test_signal_based_agent_control(program: Program) -> None:
    """The example of the signals, with a faster clock."""
    assert program.run(
        """
from agent_os import KernelSpace, AgentSignal
import asyncio

kernel = KernelSpace(policy="strict")

async def process_iteration(i):
    pass

@kernel.register
async def long_running_agent(iterations: int):
    \"\"\"Agent that can be paused and resumed.\"\"\"
    for i in range(iterations):
        # Check for pause signal
        if kernel.is_stopped():
            await kernel.wait_for_continue()

        await process_iteration(i)
        await asyncio.sleep(0.01)

    return {"completed": iterations}

async def main():
    # Start agent
    task = asyncio.create_task(
        kernel.execute(long_running_agent, 100)
    )

    # Pause after it began
    while not kernel.current_agent_id:
        await asyncio.sleep(0.05)
    await kernel.send_signal(kernel.current_agent_id, AgentSignal.SIGSTOP)
    print("Agent paused", kernel.get_agent_status(kernel.current_agent_id).state)

    # Resume later
    await asyncio.sleep(1.5)
    print(task.done())
    await kernel.send_signal(kernel.current_agent_id, AgentSignal.SIGCONT)
    print("Agent resumed")

    result = await task
    print(result)

asyncio.run(main())
"""
    ).splitlines() == ["Agent paused stopped", "False", "Agent resumed", "{'completed': 100}"]


# --- loops, threads, forks -------------------------------------------------------------------------------------------

DOUBLE = """
import asyncio, os, sys, threading, time
from agentos import AgentosError, KernelSpace

kernel = KernelSpace(policy="strict")

@kernel.register
def double(number):
    return number * 2

@kernel.register
def forever(path):
    open(path, "w").close()
    time.sleep(60)

async def both(number):
    return await asyncio.gather(kernel.execute(double, number), kernel.execute(double, number + 1))
"""


def test_one_kernel_serves_loop_after_loop_of_either_make_and_threads(program: Program) -> None:
    assert program.run(
        DOUBLE
        + """
import uvloop
results = [asyncio.run(both(1)), uvloop.run(both(3)), asyncio.run(both(5))]

def work(number):
    for _ in range(3):
        results.append((asyncio.run if number % 2 else uvloop.run)(both(number)))

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(results[:3], sorted(results[3:]))
asyncio.run(kernel.shutdown())
print(asyncio.run(kernel.execute(double, 21)))  # a new kernel
asyncio.run(kernel.shutdown())
"""
    ).splitlines() == [
        f"{[[2, 4], [6, 8], [10, 12]]} {sorted([[n * 2, n * 2 + 2] for n in range(4) for _ in range(3)])}", "42",
    ]  # fmt: skip


def test_two_kernels_and_threads_that_call_at_the_same_moment(program: Program) -> None:
    """The first calls race for the start of the kernel: there is one."""
    assert (
        program.run(
            DOUBLE
            + """
other = KernelSpace(policy="permissive")
other.register(name="triple")(lambda number: number * 3)
start, results = threading.Barrier(6), []

def work(number):
    start.wait()
    space, agent = (kernel, double) if number % 2 else (other, "triple")
    results.append(asyncio.run(space.execute(agent, number)))

threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(results), len(os.listdir(os.environ["AGENTOS_RUNTIME_DIR"] + "/runs")))
"""
        )
        == f"{sorted([0, 2, 6, 6, 10, 12])} 2\n"
    )


def test_handlers_of_signals_call_wait_and_raise_in_the_middle_of_large_calls(program: Program) -> None:
    out = program.run(
        """
import asyncio, signal, time
from agent_os import KernelSpace

kernel = KernelSpace(policy="strict")
TEXT = b"x" * 4_000_000
told = []

@kernel.register
def length(data):
    return len(data)

async def begin(data):
    return await kernel.spawn(length, data)

def ask(*_):
    told.append(kernel.get_agent_status(first).state)

def ask_and_raise(*_):
    ask()
    raise KeyError("a handler that raises")

first = asyncio.run(begin(b""))
connection = kernel._connection
for handler in (ask, ask_and_raise):
    signal.signal(signal.SIGALRM, handler)
    for number in range(20):
        before = len(told)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (number % 5 + 1))
            for _ in range(3):
                connection.submit("register", {"name": "x", "pickle": TEXT})
            while len(told) == before:
                time.sleep(0.001)
        except KeyError:
            pass
        connection.submit("status", {"id": first}).result(30)
def ask_again(*_):
    ask()
    signal.setitimer(signal.ITIMER_REAL, 0.0003)

asked = len(told)
signal.signal(signal.SIGALRM, ask_again)
ask_again()
for _ in range(2000):
    kernel.get_agent_status(first)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(asked, set(told) <= {"running", "terminated"}, asyncio.run(kernel.execute(length, TEXT)))
asyncio.run(kernel.shutdown())
"""
    )
    assert out == "40 True 4000000\n"


def test_a_kernel_that_does_not_read_stops_no_event_loop(program: Program) -> None:
    out = program.run(
        """
import asyncio, os, signal
from agent_os import KernelSpace

kernel = KernelSpace(policy="strict")

@kernel.register
def length(data):
    return len(data)

async def main():
    await kernel.execute(length, b"")
    kernel_pid = (await kernel._call("inspect", {"id": kernel.current_agent_id}))["kernel_pid"]
    os.kill(kernel_pid, signal.SIGSTOP)
    calls = [asyncio.ensure_future(kernel.execute(length, b"x" * 4_000_000)) for _ in range(3)]
    for _ in range(20):
        await asyncio.sleep(0.01)
    os.kill(kernel_pid, signal.SIGCONT)  # never reached by who waits for the kernel to read
    print(await asyncio.gather(*calls))
    await kernel.shutdown()

asyncio.run(main())
"""
    )
    assert out == "[4000000, 4000000, 4000000]\n"


def test_a_fork_of_the_host_cannot_use_its_kernel_and_cannot_end_it(program: Program) -> None:
    assert program.run(
        DOUBLE
        + """
asyncio.run(both(1))
pid = os.fork()
if pid == 0:
    for call in (
        lambda: asyncio.run(kernel.execute(double, 1)),
        lambda: kernel.get_agent_status(kernel.current_agent_id),
        lambda: asyncio.run(kernel.shutdown()),
        lambda: asyncio.run(kernel.shutdown()),
    ):
        try:
            call()
        except AgentosError as error:
            print(type(error).__name__, error, flush=True)
    sys.exit(0)  # with everything that atexit holds
os.waitpid(pid, 0)
time.sleep(0.3)  # if the child had ended the kernel, a new one would answer now
print(asyncio.run(kernel.execute(double, 2)), len(os.listdir(os.environ["AGENTOS_STATE_DIR"] + "/runs")))
"""
    ).splitlines() == [
        *["KernelUnavailable this KernelSpace belongs to the process that made it, not to a fork of it"] * 4,
        "4 1",
    ]


# --- the end ---------------------------------------------------------------------------------------------------------

ENDINGS = {
    "falls off its end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise SystemError", 1),
    "os._exit": ("os._exit(4)", 4),
    "SIGTERM": ("os.kill(os.getpid(), 15)", -15),
    "SIGKILL": ("os.kill(os.getpid(), 9)", -9),
    "a thread that goes on": ("threading.Thread(target=time.sleep, args=(1,)).start()", 0),
}


@pytest.mark.parametrize(("ending", "code"), ENDINGS.values(), ids=ENDINGS)
def test_however_a_program_ends_without_shutdown_its_agents_end(program: Program, ending: str, code: int) -> None:
    process = program.start(
        DOUBLE.replace('policy="strict"', 'policy="permissive"')
        + """
async def main():
    for number in range(3):
        await kernel.spawn(forever, f"{os.getcwd()}/started-{number}")
    while len(os.listdir()) < 3:
        await asyncio.sleep(0.01)
    print("started", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""
        + ending
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n", process.communicate(timeout=LIMIT_S)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, err
    wait_until(lambda: not carriers(program.cookie), 30, "the agents to end")
    wait_until(lambda: not [*(program.base / "run" / "runs").iterdir()], 30, "the run to be gone")
    assert out == ""
    assert "Traceback" not in err or code == 1


def test_control_c_ends_the_program_and_its_agents(program: Program) -> None:
    process = program.start(
        DOUBLE.replace('policy="strict"', 'policy="permissive"')
        + """
async def main():
    task = asyncio.create_task(kernel.execute(forever, "started"))
    while not os.path.exists("started"):
        await asyncio.sleep(0.01)
    print("started", flush=True)
    await task

asyncio.run(main())
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    assert len(carriers(program.cookie)) > 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    wait_until(lambda: not carriers(program.cookie), 30, "the agents to end")


def test_a_kernelspace_that_was_never_used_starts_and_leaves_nothing(program: Program) -> None:
    process = program.start(DOUBLE + "kernel.is_stopped(); print(double(2))")
    assert process.communicate(timeout=LIMIT_S)[0] == "4\n"
    assert not (program.base / "run").exists()
    assert not (program.base / "state").exists()
