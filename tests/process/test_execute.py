"""KernelSpace runs functions as processes: what comes back, what is refused, and how it is said."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from world import state_of, wait_until

import agentos
from agentos import AgentFailed, AgentSignal, AgentTimeoutError, KernelSpace, PolicyViolationError, errors


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def kernel(home: Path) -> Iterator[KernelSpace]:
    kernel = KernelSpace(policy="strict")
    yield kernel
    asyncio.run(kernel.shutdown())


def run(kernel: KernelSpace, function: Any, *args: Any, **options: Any) -> Any:
    return asyncio.run(kernel.execute(function, *args, **options))


def test_a_function_runs_in_a_process_of_its_own(kernel: KernelSpace) -> None:
    @kernel.register
    def who() -> dict[str, int]:
        return {"pid": os.getpid(), "sid": os.getsid(0)}

    seen = run(kernel, who)
    assert seen["pid"] != os.getpid()
    assert seen["sid"] == seen["pid"]
    assert state_of(seen["pid"]) == ""


def test_async_functions_closures_arguments_and_rich_values(kernel: KernelSpace) -> None:
    base = 40

    @kernel.register(name="adder")
    async def add(number: int, *, when: datetime) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"sum": base + number, "when": when, "pair": (1, {2})}

    when = datetime(2026, 1, 2, tzinfo=UTC)
    assert run(kernel, add, 2, when=when) == {"sum": 42, "when": when, "pair": (1, {2})}


def test_a_kernel_serves_one_asyncio_run_after_the_other_and_many_at_once(kernel: KernelSpace) -> None:
    @kernel.register
    def double(number: int) -> int:
        return number * 2

    async def many() -> list[int]:
        return await asyncio.gather(*(kernel.execute(double, number) for number in range(20)))

    assert run(kernel, double, 4) == 8
    assert asyncio.run(many()) == [number * 2 for number in range(20)]


def test_an_exception_arrives_with_its_type_text_and_traceback(kernel: KernelSpace) -> None:
    @kernel.register
    def broken() -> None:
        raise KeyError("missing thing")

    with pytest.raises(AgentFailed, match="KeyError.*missing thing") as caught:
        run(kernel, broken)
    assert caught.value.remote_type == "KeyError"
    assert "in broken" in (caught.value.remote_traceback or "")


def test_a_refused_action_raises_in_the_agent_and_uncaught_in_the_caller(kernel: KernelSpace) -> None:
    @kernel.register(permissions=["read"])
    def curious(caught: bool) -> str:
        try:
            agentos.act("write", "data/x")
        except PolicyViolationError as refusal:
            if caught:
                return refusal.reason
            raise
        return "written"

    assert run(kernel, curious, True)
    with pytest.raises(PolicyViolationError, match="write data/x") as raised:
        run(kernel, curious, False)
    assert raised.value.operation == "write"
    assert raised.value.resource == "data/x"


def test_a_timeout_ends_the_agent_and_says_so(kernel: KernelSpace) -> None:
    @kernel.register
    def sleeper() -> None:
        time.sleep(30)

    with pytest.raises(AgentTimeoutError) as caught:
        run(kernel, sleeper, timeout=0.5)
    assert kernel.get_agent_status(caught.value.agent_id).state == "terminated"


def test_killed_and_exited_agents_are_told_apart(kernel: KernelSpace) -> None:
    @kernel.register
    def dies(how: str) -> None:
        if how == "exit":
            os._exit(9)
        os.kill(os.getpid(), 9)

    with pytest.raises(AgentFailed) as exited:
        run(kernel, dies, "exit")
    assert (exited.value.code, exited.value.signal) == (9, None)
    with pytest.raises(AgentFailed) as killed:
        run(kernel, dies, "kill")
    assert (killed.value.code, killed.value.signal) == (None, 9)


def test_what_cannot_cross_is_refused_by_name_and_nothing_starts(kernel: KernelSpace) -> None:
    @kernel.register
    def takes(value: Any) -> Any:
        return threading.Lock()

    with pytest.raises(errors.NotSerialisable, match="argument 1 of takes.*lock"):
        run(kernel, takes, threading.Lock())
    assert kernel.current_agent_id is None
    with pytest.raises(AgentFailed, match="result.*lock"):
        run(kernel, takes, 1)


def test_status_signals_and_the_current_agent(kernel: KernelSpace) -> None:
    @kernel.register
    def worker(path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.01)
        return "done"

    async def main(go: Path) -> None:
        task = asyncio.create_task(kernel.execute(worker, str(go)))
        while (agent_id := kernel.current_agent_id) is None:
            await asyncio.sleep(0.01)
        assert kernel.get_agent_status(agent_id).state == "running"
        assert await kernel.send_signal(agent_id, AgentSignal.SIGSTOP)
        status = kernel.get_agent_status(agent_id)
        assert (status.id, status.name, status.state) == (agent_id, "worker", "stopped")
        assert status.started_at.tzinfo is not None
        go.touch()
        await asyncio.sleep(0.1)
        assert not task.done()
        assert await kernel.send_signal(agent_id, AgentSignal.SIGCONT)
        assert await task == "done"
        assert not await kernel.send_signal(agent_id, AgentSignal.SIGTERM)

    asyncio.run(main(Path.cwd() / "go"))


def test_children_are_spawned_by_name_and_bounded_by_their_parent(kernel: KernelSpace) -> None:
    @kernel.register(permissions=["read", "network"])
    def child(task: str) -> str:
        try:
            agentos.act("network", f"https://example.org/{task}")
        except PolicyViolationError:
            return f"{task}: no network"
        return f"{task}: network"

    @kernel.register(permissions=["read"])
    async def parent(tasks: list[str]) -> list[str]:
        ids = [await kernel.spawn(child, task, parent_id=kernel.current_agent_id) for task in tasks]
        return await kernel.wait_all(ids)

    assert run(kernel, parent, ["a", "b"]) == ["a: no network", "b: no network"]


def test_wait_all_gives_results_in_order_or_every_failure(kernel: KernelSpace) -> None:
    @kernel.register
    def maybe(number: int) -> int:
        time.sleep(0.05 * (3 - number))
        if number < 0:
            raise ValueError(number)
        return number

    async def main(numbers: list[int]) -> list[int]:
        return await kernel.wait_all([await kernel.spawn(maybe, number) for number in numbers])

    assert asyncio.run(main([1, 2, 3])) == [1, 2, 3]
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main([1, -1, -2]))
    assert [type(one) for one in caught.value.exceptions] == [AgentFailed, AgentFailed]


def test_callers_mistakes_are_named_before_anything_starts(home: Path) -> None:
    kernel = KernelSpace()

    @kernel.register
    def known() -> None: ...

    with pytest.raises(errors.DuplicateAgent, match="known"):
        kernel.register(known)
    with pytest.raises(errors.BadRequest, match="reed.*did you mean 'read'"):
        kernel.register(name="x", permissions=["reed"])(lambda: None)
    with pytest.raises(errors.NotRegistered, match="knwn"):
        asyncio.run(kernel.execute("knwn"))  # type: ignore[arg-type]
    with pytest.raises(errors.BadRequest, match="timeout"):
        KernelSpace(timeout=0)
    with pytest.raises(errors.PolicyLoadError, match="strikt.*strict"):
        asyncio.run(_first_call("strikt"))
    assert not (home.parent / "run" / "runs").exists()


async def _first_call(policy: str) -> None:
    async with KernelSpace(policy=policy):
        raise AssertionError("a kernel with an unknown policy started")


def test_cancelling_the_caller_ends_the_agent(kernel: KernelSpace) -> None:
    @kernel.register
    def forever() -> None:
        time.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(kernel.execute(forever))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    agent_id = kernel.current_agent_id
    assert agent_id is not None
    wait_until(lambda: kernel.get_agent_status(agent_id).state == "terminated", 15.0)


def test_the_context_manager_leaves_nothing_behind(home: Path) -> None:
    async def main() -> int:
        async with KernelSpace(policy="permissive") as kernel:
            kernel.register(name="napper")(time.sleep)
            await kernel.spawn("napper", 60)  # type: ignore[arg-type]
            return int(kernel.current_agent_id is not None)

    assert asyncio.run(main()) == 1
    assert list((home.parent / "run" / "runs").iterdir()) == []
