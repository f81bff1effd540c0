"""KernelSpace runs functions as processes: what comes back, what is refused, and how it is said."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from world import state_of, wait_until

import agentos
from agentos import (
    AgentFailed,
    AgentSignal,
    AgentTimeoutError,
    KernelSpace,
    Pattern,
    Policy,
    PolicyViolationError,
    errors,
)


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
        agent_id = await asyncio.to_thread(wait_until, lambda: kernel.current_agent_id)
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
        asyncio.run(kernel.execute("knwn"))
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
        await asyncio.to_thread(wait_until, lambda: kernel.current_agent_id)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    agent_id = kernel.current_agent_id
    assert agent_id is not None
    wait_until(lambda: kernel.get_agent_status(agent_id).state == "terminated", 15.0)


def rows(kernel: KernelSpace) -> list[dict[str, Any]]:
    """Return what `ps` shows of the kernel's agents, ended ones too."""
    assert kernel._connection is not None
    found: list[dict[str, Any]] = kernel._connection.submit("ps", {}).result(20)["agents"]
    return found


@pytest.mark.parametrize("call", ["execute", "spawn"])
def test_an_agent_whose_start_nobody_waits_for_any_more_is_ended(kernel: KernelSpace, call: str) -> None:
    """Cancelled at every moment of a start: before the kernel knows, while it forks, when its answer is on the way."""

    @kernel.register
    def forever() -> None:
        time.sleep(60)

    async def main() -> int:
        given_up = 0
        for delay_ms in range(0, 24, 2):
            coroutine: Any = getattr(kernel, call)(forever)
            task = asyncio.create_task(coroutine)
            await asyncio.sleep(delay_ms / 1000)
            given_up += task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await kernel.send_signal(task.result(), AgentSignal.SIGKILL)
        return given_up

    async def warm_up() -> None:
        await kernel.send_signal(await kernel.spawn(forever), AgentSignal.SIGKILL)

    asyncio.run(warm_up())
    assert asyncio.run(main()) > 3
    assert len(rows(kernel)) > 3  # some were started
    wait_until(lambda: all(row["state"] == "terminated" for row in rows(kernel)), 30.0, "the agents to be ended")


def test_a_wait_that_was_given_up_leaves_the_others_their_answer(kernel: KernelSpace) -> None:
    """Also when that answer is the end of the kernel."""

    @kernel.register
    def forever() -> None:
        time.sleep(60)

    async def main() -> None:
        agent_id = await kernel.spawn(forever)
        waits = [asyncio.create_task(kernel.wait_all([agent_id])) for _ in range(3)]
        await asyncio.sleep(0.1)
        waits[0].cancel()
        await asyncio.wait(waits[:1])
        os.kill(rows(kernel)[0]["sentry_pid"], 0)
        assert kernel._connection is not None
        inspected = kernel._connection.submit("inspect", {"id": agent_id}).result(20)
        os.kill(inspected["kernel_pid"], 9)
        for wait in waits[1:]:
            with pytest.raises(errors.KernelUnavailable):
                await asyncio.wait_for(wait, 20)
        wait_until(lambda: state_of(inspected["pid"]) == "", 20.0, "the agent to end with its kernel")

    asyncio.run(main())


def test_the_context_manager_leaves_nothing_behind(home: Path) -> None:
    async def main() -> int:
        async with KernelSpace(policy="permissive") as kernel:
            kernel.register(name="napper")(time.sleep)
            await kernel.spawn("napper", 60)
            return int(kernel.current_agent_id is not None)

    assert asyncio.run(main()) == 1
    assert list((home.parent / "run" / "runs").iterdir()) == []


# --- the calls, one by one -------------------------------------------------------------------------------------------


def test_agents_are_run_by_name_too_and_async_callable_objects_work(kernel: KernelSpace) -> None:
    class Greeter:
        def __init__(self, word: str) -> None:
            self.word = word

        async def greet(self, name: str) -> str:
            return f"{self.word} {name}"

        def __call__(self, name: str) -> str:
            return f"{self.word}, {name}"

    kernel.register(name="method")(Greeter("hello").greet)
    kernel.register(name="object")(Greeter("good day"))
    assert run(kernel, "method", "ada") == "hello ada"
    assert run(kernel, "object", "ada") == "good day, ada"


def test_large_values_cross_and_too_large_ones_are_refused_on_either_side(kernel: KernelSpace) -> None:
    @kernel.register
    def repeat(text: str, times: int) -> str:
        return text * times

    text = "x" * 1_000_000
    for _ in range(3):
        assert run(kernel, repeat, text, 12) == text * 12
    with pytest.raises(errors.BadRequest, match="the limit is"):
        run(kernel, repeat, "x" * 17_000_000, 1)
    with pytest.raises(AgentFailed, match="the limit is"):
        run(kernel, repeat, text, 17)
    assert run(kernel, repeat, "x", 2) == "xx"


def test_a_child_of_the_hosts_choice_is_bounded_by_the_parent_unless_told_otherwise(kernel: KernelSpace) -> None:
    @kernel.register(permissions=["read"])
    def parent(path: str) -> None:
        while not os.path.exists(path):
            time.sleep(0.01)

    @kernel.register(permissions=["read", "network"])
    def child() -> list[bool]:
        allowed = []
        for operation, resource in (("read", "data/x"), ("network", "https://example.org/")):
            try:
                agentos.act(operation, resource)
                allowed.append(True)
            except PolicyViolationError:
                allowed.append(False)
        return allowed

    async def main(path: Path) -> None:
        parent_id = await kernel.spawn(parent, str(path))
        alone, bound, free, restricted = [
            await kernel.spawn(child),
            await kernel.spawn(child, parent_id=parent_id),
            await kernel.spawn(child, parent_id=parent_id, inherit_permissions=False),
            await kernel.spawn(child, additional_restrictions=["no_network"]),
        ]
        found = await kernel.wait_all([alone, bound, free, restricted])
        assert found == [[True, True], [True, False], [True, True], [True, False]]
        assert [row["parent_id"] for row in rows(kernel)] == [None, None, parent_id, parent_id, None]
        path.touch()
        assert await kernel.wait_all([parent_id, alone]) == [None, [True, True]]  # results stay

    asyncio.run(main(Path.cwd() / "go"))


def test_who_is_not_there_is_named_with_who_is_nearest(kernel: KernelSpace) -> None:
    with pytest.raises(errors.UnknownAgent, match="no agent 'nobody'"):
        kernel.get_agent_status("nobody")
    assert kernel._connection is None  # that needed no kernel

    @kernel.register
    def brief() -> None: ...

    run(kernel, brief)
    hint = f"no agent 'breif': an id is needed, .* named 'brief' has the id {kernel.current_agent_id}"
    for call in (
        lambda: kernel.send_signal("breif", AgentSignal.SIGTERM),
        lambda: kernel.wait_all(["breif"]),
        lambda: kernel.spawn(brief, parent_id="breif"),
    ):
        with pytest.raises(errors.UnknownAgent, match=hint):
            asyncio.run(call())
    with pytest.raises(errors.UnknownAgent, match="no agent 'breif'"):
        kernel.get_agent_status("breif")
    with pytest.raises(errors.UnknownSignal, match="'HUP'"):
        asyncio.run(kernel.send_signal("brief", "HUP"))  # type: ignore[arg-type]


def test_a_level_that_cannot_be_had_starts_nothing(home: Path) -> None:
    kernel = KernelSpace(require="syscalls")

    @kernel.register
    def never() -> None:
        Path("ran").touch()

    try:
        with pytest.raises(errors.LevelUnavailable, match="'syscalls' is required") as caught:
            run(kernel, never)
        assert (caught.value.required, caught.value.available) == ("syscalls", "hooks")
        assert rows(kernel) == []
    finally:
        asyncio.run(kernel.shutdown())
    assert not Path("ran").exists()


def test_a_policy_may_be_a_value_a_file_or_a_name_and_a_workspace_may_be_elsewhere(home: Path) -> None:
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "note").write_text("a note")
    value = agentos.Policy(name="mine")
    value.add_rule(action="allow", pattern=agentos.Pattern(operation="read", resource="note"))
    (home / "mine.yaml").write_text(value.to_yaml())

    def read(path: str) -> str:
        try:
            return Path(path).read_text()
        except PolicyViolationError:
            return "refused"

    for policy, expected in ((value, "a note"), (str(home / "mine.yaml"), "a note"), ("custom", "refused")):
        kernel = KernelSpace(policy=policy, workspace=elsewhere)
        kernel.register(name="reader")(read)
        try:
            assert run(kernel, "reader", str(elsewhere / "note")) == expected
            assert run(kernel, "reader", str(home / "mine.yaml")) == "refused"
        finally:
            asyncio.run(kernel.shutdown())


def test_a_function_that_cannot_travel_is_named_and_nothing_starts(kernel: KernelSpace) -> None:
    lock = threading.Lock()

    @kernel.register
    def holder() -> bool:
        return lock.locked()

    with pytest.raises(errors.NotSerialisable, match="agent function 'holder'"):
        run(kernel, holder)
    assert rows(kernel) == []


def test_a_function_that_cannot_travel_stops_no_other_and_is_named_when_a_child_is_made_of_it(
    kernel: KernelSpace,
) -> None:
    lock: Any = threading.Lock()
    large: Any = b""

    @kernel.register
    def bad() -> Any:
        return bool(lock)

    class Stubborn:
        def __call__(self) -> None: ...

        def __reduce__(self) -> Any:
            raise pickle.PicklingError("not me")

    kernel.register(name="stubborn")(Stubborn())

    @kernel.register
    def huge() -> int:
        return len(large)

    @kernel.register
    async def good(name: str) -> Any:
        return await kernel.wait_all([await kernel.spawn(name)])

    @kernel.register
    def other() -> int:
        return 5

    large = b"x" * 17_000_000
    assert run(kernel, good, "other") == [5]
    with pytest.raises(AgentFailed, match=r"NotSerialisable: agent function 'bad': .*lock"):
        run(kernel, good, "bad")
    with pytest.raises(AgentFailed, match=r"NotSerialisable: agent function 'huge': .*the limit is"):
        run(kernel, good, "huge")
    with pytest.raises(AgentFailed, match=r"NotSerialisable: agent function 'stubborn': .*not me"):
        run(kernel, good, "stubborn")
    with pytest.raises(errors.NotSerialisable, match="agent function 'bad'"):
        run(kernel, bad)
    lock, large = "now it can", b"x"
    assert run(kernel, good, "bad") == [True]
    assert run(kernel, huge) == 1


def test_what_is_no_function_is_not_registered(kernel: KernelSpace) -> None:
    with pytest.raises(errors.BadRequest, match="5 is not a function"):
        kernel.register(5)  # type: ignore[arg-type]


def test_rate_limits_are_kept_by_name_across_executions(home: Path) -> None:
    policy = Policy("limited", default_action="deny")
    policy.add_rule("allow", Pattern("read", "data/*"), rate_limit=2)
    kernel = KernelSpace(policy=policy)

    @kernel.register(name="worker")
    def act_once() -> str:
        try:
            agentos.act("read", "data/x")
        except agentos.RateLimitedError as refusal:
            return refusal.reason
        return "allowed"

    kernel.register(name="other")(act_once)
    names = ["worker", "worker", "worker", "other"]
    assert [run(kernel, name) for name in names] == ["allowed", "allowed", "rate_limited", "allowed"]
    asyncio.run(kernel.shutdown())


def test_a_child_that_is_not_bounded_is_a_child_all_the_same(kernel: KernelSpace) -> None:
    kernel.register(name="napper")(time.sleep)

    async def main() -> tuple[dict[str, Any], dict[str, Any]]:
        parent = await kernel.spawn("napper", 20)
        child = await kernel.spawn("napper", 20, parent_id=parent, inherit_permissions=False)
        rows = [await kernel._call("inspect", {"id": one}) for one in (parent, child)]
        return rows[0], rows[1]

    parent, child = asyncio.run(main())
    assert child["parent_id"] == parent["id"]


def test_what_an_agent_calls_its_children_is_bounded(kernel: KernelSpace) -> None:
    @kernel.register
    async def namer() -> list[str]:
        from agentos.agent.calls import agent_kernel

        inside, refused = agent_kernel(), []
        assert inside is not None
        for params in ({"name": "x" * 200_000, "target": "time:sleep"}, {"name": "x", "target": "t" * 20_000 + ":f"}):
            try:
                await inside._call("spawn", params)
            except errors.BadRequest as refusal:
                refused.append(str(refusal)[:9])
        return refused

    assert run(kernel, namer) == ["the name ", "the targe"]


def test_an_unknown_scope_is_named_and_harms_nobody(kernel: KernelSpace) -> None:
    kernel.register(name="napper")(time.sleep)

    async def main() -> str:
        agent_id = await kernel.spawn("napper", 20)
        with pytest.raises(errors.BadRequest, match="signal: scope='5' must be text"):
            await kernel._call("signal", {"id": agent_id, "signal": 10, "scope": 5})
        return kernel.get_agent_status(agent_id).state

    assert asyncio.run(main()) == "running"


def test_to_stop_what_has_ended_does_not_rewrite_how(kernel: KernelSpace) -> None:
    @kernel.register
    def fine() -> int:
        return 1

    async def main() -> dict[str, Any]:
        await kernel.execute(fine)
        agent_id = kernel.current_agent_id
        await kernel._call("stop", {"id": agent_id})
        found: dict[str, Any] = await kernel._call("inspect", {"id": agent_id})
        return found

    ended = asyncio.run(main())
    assert (ended["exit_code"], ended["ended_by"]) == (0, "")


def test_what_was_granted_beside_the_policy_is_on_record(home: Path) -> None:
    recorder = agentos.FlightRecorder()
    kernel = KernelSpace(policy="strict", flight_recorder=recorder)
    kernel.register(name="reader", permissions=["read"])(time.sleep)

    async def main() -> list[dict[str, Any]]:
        async with kernel:
            await kernel.wait_all([await kernel.spawn("reader", 0, additional_restrictions=["no_network"])])
        return await recorder.query(event_type="agent_starting")

    (event,) = asyncio.run(main())
    assert (event["data"]["permissions"], event["data"]["restrictions"]) == (["read"], ["no_network"])
