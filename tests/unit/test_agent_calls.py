"""The kernel client of an agent and the thread behind it: what is asked of the kernel, what comes of its answers, and
what the kernel may ask. The kernel is scripted; that the real one refuses what it must is tests/process' part."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from agent_world import Agent, agent, allow_all
from wrong_arguments import WRONG_CALLS, WRONG_REGISTRATIONS

import agentos
from agentos import AgentFailed, AgentSignal, KernelSpace, errors, wire
from agentos.agent.calls import AgentKernel, place_of
from agentos.errors import AgentTimeoutError, NotRegistered
from agentos.faults import SeveralFailed, to_fault
from agentos.values import pack_value, unpack_value

ROW = {
    "id": "child-1", "name": "worker", "state": "running", "started_at": "2026-01-02T03:04:05Z",
    "actions_count": 3, "violations_count": 1,
}  # fmt: skip


def answers(call: wire.Call) -> Any:
    """A kernel that does everything: what it would answer to each call."""
    values: dict[str, Any] = {
        "spawn": "child-1",
        "wait_all": [pack_value(f"result of {each}", "") for each in call.params.get("ids", ())],
        "send_signal": {"ok": True, "detail": ""},
        "status": ROW,
        "save_state": None,
    }
    if call.method not in values:
        return to_fault(call.id, errors.NotPermitted(f"{call.method}: this call is not for agents"))
    return wire.Reply(call.id, values[call.method])


def calls_of(one: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call.method, call.params) for call in one.of(wire.Call)]


# --- which agent is meant --------------------------------------------------------------------------------------------


def make_kernel() -> tuple[KernelSpace, Callable[..., Any], Callable[..., Any]]:
    kernel = KernelSpace(policy="strict")

    @kernel.register
    async def worker(task: str) -> str:
        return task

    @kernel.register(name="under another name", permissions=["read"])
    def other() -> None: ...

    return kernel, worker, other


def test_a_kernel_that_travels_becomes_the_client_and_knows_functions_by_name() -> None:
    kernel, worker, other = make_kernel()

    async def function() -> list[Any]:
        ids = [
            await kernel.spawn(worker, "a", parent_id=kernel.current_agent_id, additional_restrictions=["no_network"]),
            await kernel.spawn(other),
            await kernel.spawn("under another name"),
        ]
        return [type(kernel).__name__, await worker("plain call"), kernel.current_agent_id, ids]

    with agent(function, on_call=answers) as one:
        assert one.result() == ["AgentKernel", "plain call", "agent-1", ["child-1"] * 3]
        spawned = [params for method, params in calls_of(one)]
    assert [params["name"] for params in spawned] == ["worker", "under another name", "under another name"]
    assert [params["restrictions"] for params in spawned] == [["no_network"], [], []]
    assert [unpack_value(params["args"]) for params in spawned] == [["a"], [], []]


def test_functions_of_one_place_are_told_apart_by_name_only() -> None:
    kernel = KernelSpace()

    def make(word: str) -> Callable[[], str]:
        return lambda: word

    workers = [kernel.register(name=f"worker {word}")(make(word)) for word in ("a", "b")]

    async def function() -> str:
        try:
            await kernel.spawn(workers[1])
        except errors.BadRequest as error:
            await kernel.spawn("worker b")
            return str(error)
        return "one of them"

    with agent(function, on_call=answers) as one:
        assert "registered as worker a, worker b; spawn it by name, such as 'worker a'" in one.result()
        assert [params["name"] for _, params in calls_of(one)] == ["worker b"]


MODULE = """
from agentos import KernelSpace
kernel = KernelSpace(policy="strict")

@kernel.register
async def coordinator(tasks):
    ids = [await kernel.spawn(worker, task) for task in tasks]
    ids.append(await kernel.spawn(narrow, "x"))
    return [await kernel.wait_all(ids), await worker("called")]

@kernel.register(name="the worker")
async def worker(task):
    return task

@kernel.register(permissions=["read"], rate_limit=5, priority=2)
def narrow(task):
    return task

class Group:
    @kernel.register
    @staticmethod
    def method(): ...
"""


def test_a_file_that_registers_can_be_an_agent_and_its_functions_are_named_by_import_path(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(MODULE)
    with agent(f"{tmp_path}/app.py:coordinator", ["a"], on_call=answers) as one:
        assert one.result() == [["result of child-1"] * 2, "called"]
        first, second, _ = [params for _, params in calls_of(one)]
    assert (first["name"], first["target"], first["permissions"]) == ("the worker", f"{tmp_path}/app.py:worker", None)
    assert (second["name"], second["target"], second["permissions"]) == (
        "narrow",
        f"{tmp_path}/app.py:narrow",
        ["read"],
    )


def test_a_module_of_a_package_is_named_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "app.py").write_text(MODULE)
    with agent("pack.app:coordinator", [], sys_path=[*sys.path, str(tmp_path)], on_call=answers) as one:
        one.result()
        assert one.of(wire.Call)[0].params["target"] == "pack.app:narrow"


def test_what_only_this_process_has_is_named_without_a_path() -> None:
    async def function() -> None:
        kernel = KernelSpace()

        @kernel.register
        def local() -> None: ...

        await kernel.spawn(local)

    refuse = lambda call: to_fault(call.id, NotRegistered("local"))
    with agent(function, on_call=refuse) as one:
        raised = one.raised()
        assert one.of(wire.Call)[0].params["target"] is None
    assert raised.type == "NotRegistered"


def test_every_kernelspace_of_an_agent_is_the_same_client_and_needs_no_environment() -> None:
    def function() -> list[bool]:
        os.environ.clear()
        first, second = KernelSpace(policy="strikt", timeout=-1), agentos.KernelSpace()
        copy = pickle.loads(pickle.dumps(first))
        return [first is second, copy is first, isinstance(first, AgentKernel)]

    with agent(function) as one:
        assert one.result() == [True, True, True]


def test_a_kernelspace_travels_nowhere_but_into_an_agent() -> None:
    kernel, _, _ = make_kernel()
    with pytest.raises(errors.BadRequest, match="stays in the program that made it"):
        pickle.loads(cloudpickle.dumps(kernel))


def test_places() -> None:
    assert place_of(make_kernel) == f"{__name__}:make_kernel"
    assert place_of(time.sleep) == "time:sleep"
    assert place_of(KernelSpace().register) == "agentos.client.kernelspace:KernelSpace.register"
    assert place_of(make_kernel()[1]) == f"{__name__}:make_kernel.<locals>.worker"


# --- what comes of it ------------------------------------------------------------------------------------------------


def test_results_failures_and_every_failure_at_once() -> None:
    failures = [
        AgentFailed("a raised", agent_id="1", remote_type="KeyError", remote_traceback="the trace"),
        AgentTimeoutError("b was slow", agent_id="2", timeout_s=1.5),
    ]

    async def function() -> list[Any]:
        kernel = KernelSpace()
        try:
            await kernel.wait_all(["1", "2"])
        except ExceptionGroup as group:
            first, second = group.exceptions
            assert isinstance(first, AgentFailed)
            assert isinstance(second, AgentTimeoutError)
            return [str(group), first.remote_type, first.remote_traceback, second.timeout_s, str(second)]
        return ["no failure"]

    with agent(function, on_call=lambda call: to_fault(call.id, SeveralFailed(failures))) as one:
        assert one.result() == ["2 of the agents failed (2 sub-exceptions)", "KeyError", "the trace", 1.5, "b was slow"]


def test_execute_is_spawn_and_wait_and_raises_the_one_failure_itself() -> None:
    async def function() -> list[Any]:
        kernel = KernelSpace()
        results = [await kernel.execute("worker", 1, key=2, timeout=5)]
        try:
            await kernel.execute("worker", timeout=5)
        except AgentFailed as error:
            results.append(str(error))
        try:
            await kernel.execute("worker", context={"user_role": "admin"})
        except errors.NotPermitted as error:
            results.append(str(error))
        return results

    def kernel(call: wire.Call, one: Agent) -> Any:
        if call.params.get("context"):
            return to_fault(call.id, errors.NotPermitted("spawn: the context of a child is its parent's"))
        if call.method == "wait_all" and len(one.of(wire.Call)) > 2:
            return to_fault(call.id, SeveralFailed([AgentFailed("it failed", agent_id="child-1")]))
        return answers(call)

    with agent(function, on_call=kernel) as one:
        result, failure, refused = one.result()
        spawned = one.of(wire.Call)[0].params
        assert len(one.of(wire.Call)) == 5
    assert (result, failure) == ("result of child-1", "it failed")
    assert refused == "spawn: the context of a child is its parent's"
    assert (unpack_value(spawned["args"]), unpack_value(spawned["kwargs"])) == ([1], {"key": 2})
    assert spawned["timeout_s"] == 5


def test_a_cancelled_execute_asks_its_child_to_end() -> None:
    async def function() -> str:
        kernel = KernelSpace()
        try:
            await asyncio.wait_for(kernel.execute("worker"), 0.1)
        except TimeoutError:
            return kernel.get_agent_status("child-1").name
        return "in time"

    with agent(function, on_call=lambda call: None if call.method == "wait_all" else answers(call)) as one:
        assert one.result() == "worker"
        assert calls_of(one)[2] == ("send_signal", {"id": "child-1", "signal": 15})


@pytest.mark.parametrize("loop_lives", [True, False])
def test_a_child_whose_start_nobody_waits_for_any_more_is_asked_to_end(loop_lives: bool) -> None:
    def function(loop_lives: bool) -> None:
        kernel = KernelSpace()

        async def give_up() -> None:
            try:
                await asyncio.wait_for(kernel.spawn("worker"), 0.1)
            except TimeoutError:
                if loop_lives:
                    agentos.act("read", "gave up")
                    await asyncio.sleep(0.3)

        asyncio.run(give_up())
        if not loop_lives:
            agentos.act("read", "gave up")
        time.sleep(0.3)

    spawned: list[wire.Call] = []

    def kernel(call: wire.Call) -> Any:
        if call.method == "spawn":
            spawned.append(call)
            return None
        return answers(call)

    def judge(act: wire.Act, one: Agent) -> Any:
        one.tell(answers(spawned[0]))
        return allow_all(act)

    with agent(function, loop_lives, on_call=kernel, judge=judge) as one:
        one.result()
        assert calls_of(one)[1:] == [("send_signal", {"id": "child-1", "signal": 15})]


def test_signals_and_status() -> None:
    async def function() -> list[Any]:
        kernel = KernelSpace()
        status = kernel.get_agent_status("child-1")
        done = [await kernel.send_signal("child-1", AgentSignal.SIGSTOP), await kernel.send_signal("gone", "TERM")]  # type: ignore[arg-type]
        try:
            await kernel.send_signal("child-1", "TREM")  # type: ignore[arg-type]
        except errors.UnknownSignal as error:
            done.append(str(error))  # type: ignore[arg-type]
        return [type(status).__name__, status.id, status.name, status.state, status.started_at, *done]

    def kernel(call: wire.Call) -> Any:
        if call.params["id"] == "gone":
            return wire.Reply(call.id, {"ok": True, "detail": "already ended"})
        return answers(call)

    with agent(function, on_call=kernel) as one:
        *status, first, second, unknown = one.result()
        assert [params.get("signal") for _, params in calls_of(one)] == [None, 19, 15]
    assert status == ["AgentStatus", "child-1", "worker", "running", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)]
    assert (first, second) == (True, False)
    assert "unknown signal 'TREM'" in unknown


def test_an_agent_is_never_stopped_when_it_can_ask() -> None:
    async def function() -> list[Any]:
        kernel = KernelSpace()
        return [kernel.is_stopped(), await kernel.wait_for_continue()]

    with agent(function) as one:
        assert one.result() == [False, None]
        assert calls_of(one) == []


def test_what_is_not_for_agents_is_refused_in_plain_words() -> None:
    async def function() -> list[str]:
        refused = []
        async with KernelSpace() as kernel:  # its end is not the kernel's
            for attempt in (lambda: kernel.add_module(object()), lambda: kernel.policy):
                try:
                    attempt()
                except errors.NotPermitted as error:
                    refused.append(str(error))
            try:
                await kernel.shutdown()
            except errors.NotPermitted as error:
                refused.append(str(error))
            try:
                await kernel.wait_all(["child-1", kernel.current_agent_id])
            except errors.BadRequest as error:
                refused.append(str(error))
        return refused

    with agent(function, on_call=answers) as one:
        module, policy, shutdown, wait = one.result()
        asked = [("add_module", {}), ("policy", {}), ("shutdown", {})]
        assert calls_of(one) == asked  # the kernel is asked, and keeps on record that it was
    assert module.startswith("add_module: modules live in the host program")
    assert policy.startswith("policy: an agent cannot see or change its rules")
    assert shutdown == "shutdown: this call is not for agents"
    assert wait == "wait_all: an agent cannot wait for its own end"


def test_what_is_asked_beside_the_arguments_is_the_kernels_to_refuse() -> None:
    async def function() -> None:
        kernel = KernelSpace()
        await kernel.spawn("worker", parent_id="stranger", inherit_permissions=False)
        await kernel.spawn("worker")

    with agent(function, on_call=answers) as one:
        one.result()
        first, second = (params for _, params in calls_of(one))
    assert (first["parent_id"], first["inherit_permissions"]) == ("stranger", False)
    assert not {"parent_id", "inherit_permissions", "context", "timeout_s"} & set(second)


def test_all_that_register_takes_travels_with_the_spawn() -> None:
    async def function() -> None:
        kernel = KernelSpace()

        @kernel.register(permissions=["read"], rate_limit=5, priority=2)
        def local() -> None: ...

        await kernel.spawn(local)

    with agent(function, on_call=answers) as one:
        one.result()
        ((_, params),) = calls_of(one)
    assert (params["permissions"], params["rate_limit"], params["priority"]) == (["read"], 5, 2)


def test_wrong_arguments_are_named_as_in_the_host_program() -> None:
    """By the very same words; nothing is asked of the kernel."""

    async def function() -> list[str]:
        kernel: Any = KernelSpace()
        said = []
        for name, args, options, _ in WRONG_CALLS:
            try:
                await getattr(kernel, name)(*args, **options)
            except errors.BadRequest as error:
                said.append(str(error))
        for options, _ in WRONG_REGISTRATIONS:
            try:
                kernel.register(name="a", **options)(function)
            except errors.BadRequest as error:
                said.append(str(error))
        for wrong in (lambda: kernel.get_agent_status(5), lambda: kernel.register()(5)):
            try:
                wrong()
            except errors.BadRequest as error:
                said.append(str(error))
        return said

    with agent(function, on_call=answers) as one:
        said = one.result()
        assert calls_of(one) == []
    patterns = [pattern for *_, pattern in (*WRONG_CALLS, *WRONG_REGISTRATIONS)]
    patterns += [r"get_agent_status: agent_id=5 must be the id of an agent", r"register: 5 is not a function"]
    assert len(said) == len(patterns)
    assert [text for text, pattern in zip(said, patterns, strict=True) if not re.search(pattern, text)] == []


@pytest.mark.parametrize("value", [threading.Lock(), {"deep": [object()]}], ids=["lock", "object"])
def test_arguments_that_cannot_cross_are_named_and_nothing_is_asked(value: Any) -> None:
    kind = "lock" if isinstance(value, type(threading.Lock())) else "object"

    async def function() -> list[str]:
        kernel, made, said = KernelSpace(), {"lock": threading.Lock(), "object": [object()]}[kind], []
        for args, kwargs in (((1, made), {}), ((), {"key": made})):
            try:
                await kernel.spawn("worker", *args, **kwargs)
            except errors.NotSerialisable as error:
                said.append(error.where)
        try:
            await kernel.spawn("worker", "x" * 17_000_000)
        except errors.BadRequest as error:
            said.append(str(error)[:18])
        return said

    with agent(function, on_call=answers) as one:
        assert one.result() == ["argument 2 of worker", "argument 'key' of worker", "spawn: Call has 17"]
        assert calls_of(one) == []


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_waiting_holds_neither_the_loop_nor_other_calls() -> None:
    async def function() -> list[Any]:
        kernel, ticks = KernelSpace(), 0
        waiting = asyncio.create_task(kernel.wait_all(["slow"]))
        quick = await asyncio.gather(*(kernel.wait_all([f"quick {number}"]) for number in range(20)))
        for _ in range(20):
            await asyncio.sleep(0.01)
            ticks += 1
        agentos.act("read", "now")
        assert not waiting.done()
        agentos.act("read", "release")
        return [ticks, [each for (each,) in quick], await waiting]

    slow: list[wire.Call] = []

    def kernel(call: wire.Call) -> Any:
        if call.params["ids"] == ["slow"]:
            slow.append(call)
            return None
        return answers(call)

    def judge(act: wire.Act, one: Agent) -> Any:
        if act.resource == "release":
            one.tell(answers(slow[0]))
        return allow_all(act)

    with agent(function, on_call=kernel, judge=judge) as one:
        assert one.result() == [20, [f"result of quick {number}" for number in range(20)], ["result of slow"]]


def test_calls_work_under_uvloop_from_threads_and_in_one_run_after_the_other() -> None:
    def function() -> list[Any]:
        import uvloop

        kernel = KernelSpace()
        results = [asyncio.run(kernel.wait_all(["one"])), asyncio.run(kernel.wait_all(["two"]))]
        results.append(uvloop.run(kernel.wait_all(["three"])))
        thread = threading.Thread(target=lambda: results.append(asyncio.run(kernel.wait_all(["four"]))))
        thread.start()
        thread.join()
        return results

    with agent(function, on_call=answers) as one:
        assert one.result() == [[f"result of {word}"] for word in ("one", "two", "three", "four")]


@pytest.mark.parametrize("runner", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
def test_a_signal_ends_an_agent_that_waits(tmp_path: Path, number: int, runner: str) -> None:
    def function(out: str, runner: str) -> None:
        import uvloop

        agentos.on_cleanup(lambda: Path(out).write_text("cleaned up"))
        wait = KernelSpace().wait_all(["never"])
        if runner == "asyncio":
            asyncio.run(wait)
        else:
            uvloop.run(wait)

    with agent(function, str(tmp_path / "out"), runner, on_call=lambda _: None) as one:
        one.until(wire.Call)
        time.sleep(0.1)
        os.kill(one.pid, number)
        assert one.wait() == -number
    assert (tmp_path / "out").read_text() == "cleaned up"


def test_a_handler_may_call_while_a_call_is_being_made() -> None:
    """Alarms at random moments of the main thread's calls; a lock between call and runtime would stay taken."""

    def function() -> int:
        kernel, asked = KernelSpace(), 0

        def handler(*_: Any) -> None:
            nonlocal asked
            kernel.get_agent_status("child-1")
            asked += 1

        signal.signal(signal.SIGALRM, handler)
        for number in range(600):
            signal.setitimer(signal.ITIMER_REAL, (number % 60 + 1) / 1_000_000)
            kernel.get_agent_status("child-1")
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        return asked

    with agent(function, on_call=answers) as one:
        assert one.result() > 100


# --- the end of the kernel, and forks --------------------------------------------------------------------------------


def test_when_the_kernel_goes_every_call_ends_and_the_next_says_so() -> None:
    async def function() -> None:
        kernel, said = KernelSpace(), []
        waiting = [asyncio.create_task(kernel.wait_all([str(number)])) for number in range(3)]
        for each in (*waiting, kernel.wait_all(["later"])):
            try:
                await each
            except errors.KernelUnavailable as error:
                said.append(str(error))
        agentos.act("read", " | ".join(said))

    def kernel(call: wire.Call, one: Agent) -> None:
        if call.params["ids"] == ["2"]:
            one.close_calls()

    with agent(function, on_call=kernel) as one:
        one.until(wire.Act)
        assert one.asked == [" | ".join(["the kernel is gone"] * 4)]


@pytest.mark.parametrize("frame", [b"garbage!", wire.encode(wire.Hello(1, "kernel", 1)), wire.encode(wire.Ping(1))])
def test_what_is_no_answer_ends_all_calls(frame: bytes) -> None:
    async def function() -> str:
        try:
            await KernelSpace().wait_all(["x"])
        except errors.KernelUnavailable as error:
            return str(error)
        return "answered"

    def kernel(call: wire.Call, one: Agent) -> None:
        os.write(one.calls, frame)

    with agent(function, on_call=kernel) as one:
        assert one.result() == "the kernel is gone"


def test_answers_to_nobody_are_dropped() -> None:
    async def function() -> list[Any]:
        return await KernelSpace().wait_all(["x"])  # type: ignore[no-any-return]

    def kernel(call: wire.Call, one: Agent) -> Any:
        one.tell(wire.Reply(call.id + 100, "stranger"))
        one.tell(wire.Fault(call.id - 100, "AgentFailed", "stranger", {}))
        one.tell(answers(call))
        return wire.Reply(call.id, "twice")

    with agent(function, on_call=kernel) as one:
        assert one.result() == ["result of x"]


def test_a_forked_process_cannot_call_and_says_why() -> None:
    def function() -> list[Any]:
        kernel = KernelSpace()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                kernel.get_agent_status("x")
            except errors.KernelUnavailable as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        return [os.read(read, 1000).decode(), kernel.get_agent_status("x").name]

    with agent(function, on_call=answers) as one:
        refused, name = one.result()
    assert "made by the agent's first process, not by its forks" in refused
    assert name == "worker"


def test_a_closed_pipe_of_answers_steals_nothing_from_what_took_its_number() -> None:
    def function() -> list[Any]:
        from agentos.agent import process

        kernel, current = KernelSpace(), process.current()
        assert current is not None
        known = {0, 1, 2, current.channel._up.descriptor, current.channel._down.descriptor}
        places = {number: f"/proc/self/fd/{number}" for number in range(3, 64)}
        found = [number for number, place in places.items() if number not in known and is_pipe(place)]
        assert len(found) == 1
        read, write = os.pipe()
        os.dup2(read, found[0])
        try:
            kernel.get_agent_status("the read that is under way is of the pipe")
            kernel.get_agent_status("x")
        except errors.KernelUnavailable as error:
            os.write(write, b"mine")
            time.sleep(0.1)
            return [str(error), os.read(read, 100)]
        return ["answered"]

    def is_pipe(place: str) -> bool:
        return os.path.islink(place) and os.readlink(place).startswith("pipe:")

    with agent(function, on_call=answers) as one:
        assert one.result() == ["the kernel is gone", b"mine"]


# --- what the kernel asks --------------------------------------------------------------------------------------------


def wait_for_the_kernel() -> None:
    agentos.act("read", "ready")
    signal.sigwait([signal.SIGUSR1])


def queries(function: Callable[..., Any], *words: str, **options: Any) -> list[wire.Answer]:
    """Ask a running agent each of `words` and return its answers, in order."""

    def prepared() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        function()
        wait_for_the_kernel()

    with agent(prepared, **options) as one:
        one.until(wire.Act)
        found = []
        for number, word in enumerate(words):
            one.tell(wire.Query(number, word))
            found.append(one.until(wire.Answer, number + 1))
        os.kill(one.pid, signal.SIGUSR1)
        one.result()
        assert [answer.id for answer in found] == list(range(len(words)))
        return found


def test_state_is_answered_while_the_function_runs() -> None:
    def function() -> None:
        agentos.save_state({"step": 3})

    get, save = queries(function, "get_state", "save_state")
    assert (get.ok, unpack_value(get.value)) == (True, {"step": 3})
    assert (save.ok, unpack_value(save.value)) == (True, {"step": 3})


def test_an_agent_that_saved_nothing_has_the_state_none() -> None:
    (answer,) = queries(lambda: None, "get_state")
    assert (answer.ok, unpack_value(answer.value)) == (True, None)


def test_clean_up_on_request_runs_each_function_once(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def function() -> None:
        def clean() -> None:
            with out.open("a") as file:
                file.write("cleaned ")
            agentos.save_state("clean")

        agentos.on_cleanup(clean)

    first, second = queries(function, "cleanup", "cleanup")
    assert (first.ok, second.ok) == (True, True)
    assert unpack_value(first.value) == "clean"
    assert out.read_text() == "cleaned "


def test_a_clean_up_that_fails_is_an_answer_too() -> None:
    def function() -> None:
        agentos.on_cleanup(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        agentos.on_cleanup(lambda: sys.exit(3))

    (answer,) = queries(function, "cleanup")
    assert not answer.ok
    assert answer.error == "ZeroDivisionError in a clean-up function"


def test_an_unknown_query_is_answered_and_harms_nothing() -> None:
    unknown, state = queries(lambda: None, "fly", "get_state")
    assert (unknown.ok, unknown.error) == (False, "unknown query 'fly'")
    assert state.ok


def test_an_agent_without_room_for_a_thread_answers_later_questions() -> None:
    """What it is asked meanwhile it never answers, which the kernel says; its calls and its other answers go on."""

    def function() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        threading.stack_size(256 * 1024 * 1024)  # more than may be left over from a thread that has ended
        before = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 1024 * 1024, before[1]))
        wait_for_the_kernel()
        KernelSpace().get_agent_status("child-1")  # answered behind the question
        resource.setrlimit(resource.RLIMIT_AS, before)
        wait_for_the_kernel()

    with agent(function, on_call=answers) as one:
        for number in (1, 2):
            one.until(wire.Act, number)
            one.tell(wire.Query(number, "get_state"))
            if number == 2:
                assert one.until(wire.Answer).id == 2
            os.kill(one.pid, signal.SIGUSR1)
        one.result()


def test_signals_stay_with_the_main_thread() -> None:
    def function() -> bool:
        caught: list[str] = []
        signal.signal(signal.SIGUSR1, lambda *_: caught.append(threading.current_thread().name))
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGUSR1)
        masks = Path("/proc/self/task").iterdir()
        blocked = [task.joinpath("status").read_text().split("SigBlk:")[1].split()[0] for task in masks]
        return set(caught) == {"MainThread"} and max(blocked) > "7fffffff00000000"

    with agent(function) as one:
        assert one.result()
