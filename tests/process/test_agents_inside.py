"""Agents that use the kernel themselves: their children, what bounds those, and whom they may not touch.

The kernel is real; what is refused is refused by it, also to an agent that writes its calls by hand.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import PROJECT, directories, wait_until

import agentos
from agentos import AgentFailed, AgentSignal, AgentTimeoutError, KernelSpace, PolicyViolationError, errors
from agentos.recorder.event import AuditEvent
from agentos.recorder.reader import RunReader


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelSpace]:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    kernel = KernelSpace(policy="strict")
    yield kernel
    asyncio.run(kernel.shutdown())


def run(kernel: KernelSpace, function: Any, *args: Any, **options: Any) -> Any:
    return asyncio.run(kernel.execute(function, *args, **options))


def record(kernel: KernelSpace) -> list[AuditEvent]:
    assert kernel._connection is not None
    reader = RunReader(kernel._connection.run.state)
    try:
        return list(reader.events())
    finally:
        reader.close()


def state_of_latest(kernel: KernelSpace) -> str:
    """Return the state of the agent that the host program started last, "" before it started any."""
    agent_id = kernel.current_agent_id
    return kernel.get_agent_status(agent_id).state if agent_id else ""


def register_prober(kernel: KernelSpace) -> Callable[..., dict[str, bool]]:
    """Register an agent that may do all there is, and says which of the four operations it was allowed."""

    @kernel.register(name="prober", permissions=["read", "write", "execute", "network"])
    def prober() -> dict[str, bool]:
        allowed = {}
        for operation, resource in (
            ("read", "data/x"), ("write", "data/x"), ("execute", "tools/x"), ("network", "https://example.org/x"),
        ):  # fmt: skip
            try:
                agentos.act(operation, resource)
                allowed[operation] = True
            except PolicyViolationError:
                allowed[operation] = False
        return allowed

    return prober


# --- children --------------------------------------------------------------------------------------------------------


def test_a_coordinator_as_the_specification_has_it(kernel: KernelSpace) -> None:
    @kernel.register
    async def coordinator(tasks: list[str]) -> list[dict[str, Any]]:
        """Spawn child agents for parallel processing."""
        child_ids = []

        for task in tasks:
            child_id = await kernel.spawn(
                worker_agent,
                task,
                parent_id=kernel.current_agent_id,
                additional_restrictions=["no_network"],
            )
            child_ids.append(child_id)

        # Wait for all children to complete
        return await kernel.wait_all(child_ids)

    @kernel.register
    async def worker_agent(task: str) -> dict[str, str]:
        """Process individual task."""
        return {"task": task, "status": "complete"}

    tasks = [f"task {number}" for number in range(8)]
    assert run(kernel, coordinator, tasks) == [{"task": task, "status": "complete"} for task in tasks]
    starts = [event for event in record(kernel) if event.event_type == "agent_starting"]
    parent = starts[0].agent_id
    assert [start.data["parent_id"] for start in starts] == [None, *[parent] * 8]
    assert {start.execution_id for start in starts} == {parent}
    calls = [event.data["method"] for event in record(kernel) if event.event_type == "kernel_call"]
    assert calls == ["spawn"] * 8 + ["wait_all"]


@pytest.mark.parametrize(
    ("permissions", "restrictions", "expected"),
    [
        (["read", "write", "execute", "network"], [], {"read", "write", "execute", "network"}),
        (["read", "write", "execute", "network"], ["no_network", "no_execute"], {"read", "write"}),
        (["read", "network"], ["no_network"], {"read"}),
        (["read"], [], {"read"}),
        ([], [], set()),
    ],
)
def test_a_child_may_do_what_its_parent_and_it_may(
    kernel: KernelSpace, permissions: list[str], restrictions: list[str], expected: set[str]
) -> None:
    prober = register_prober(kernel)

    @kernel.register(permissions=permissions)
    async def parent(restrictions: list[str]) -> dict[str, bool]:
        child = await kernel.spawn(prober, additional_restrictions=restrictions)
        return (await kernel.wait_all([child]))[0]  # type: ignore[no-any-return]

    found = run(kernel, parent, restrictions)
    assert {operation for operation, allowed in found.items() if allowed} == expected


def test_every_ancestor_bounds_a_grandchild(kernel: KernelSpace) -> None:
    prober = register_prober(kernel)

    @kernel.register(permissions=["read", "write"])
    async def middle() -> Any:
        return await kernel.execute(prober)

    @kernel.register(permissions=["write", "network"])
    async def top() -> Any:
        return await kernel.execute(middle)

    assert run(kernel, top) == {"read": False, "write": True, "execute": False, "network": False}


def test_an_unknown_restriction_and_an_unknown_agent_are_named(kernel: KernelSpace) -> None:
    prober = register_prober(kernel)

    @kernel.register
    async def parent() -> list[str]:
        said = []
        for spawn in (kernel.spawn(prober, additional_restrictions=["no_netwrok"]), kernel.spawn("probre")):
            try:
                await spawn
            except errors.CallerError as error:
                said.append(f"{type(error).__name__}: {error}")
        return said

    restriction, name = run(kernel, parent)
    assert "no_netwrok" in restriction
    assert "no_network" in restriction
    assert name.startswith("NotRegistered: 'probre' is not a registered agent (did you mean 'prober'?)")


def test_a_child_has_its_parents_context(kernel: KernelSpace) -> None:
    policy = agentos.Policy(name="by context")
    admin = agentos.Pattern(operation="read", resource="data/*", conditions={"user_role": ["admin"]})
    policy.add_rule(action="allow", pattern=admin)
    ours = KernelSpace(policy=policy)

    @ours.register
    def child() -> str:
        try:
            return agentos.act("read", "data/x", user_role="admin").resource  # a claim satisfies nothing
        except PolicyViolationError as refusal:
            return refusal.reason

    @ours.register
    async def parent() -> Any:
        return await ours.execute(child)

    try:
        assert run(ours, parent, context={"user_role": "admin"}) == "data/x"
        assert run(ours, parent, context={"user_role": "guest"}) != "data/x"
    finally:
        asyncio.run(ours.shutdown())


def test_failures_of_children_reach_the_parent_as_they_were(kernel: KernelSpace) -> None:
    @kernel.register
    def child(how: str) -> str:
        if how == "raise":
            raise KeyError("missing")
        if how == "act":
            agentos.act("network", "https://example.org/")
        if how == "sleep":
            time.sleep(60)
        return how

    @kernel.register
    async def parent() -> list[Any]:
        try:
            await kernel.wait_all([await kernel.spawn(child, how) for how in ("raise", "fine", "act")])
        except* AgentFailed as failed:
            first: list[Any] = [len(failed.exceptions), failed.exceptions[0].remote_type]  # type: ignore[union-attr]
        except* PolicyViolationError as refused:
            second = [refused.exceptions[0].operation]  # type: ignore[union-attr]
        try:
            await kernel.execute(child, "sleep", timeout=0.3)
        except AgentTimeoutError as error:
            return [*first, *second, error.timeout_s]
        return [*first, *second, "no time-out"]

    assert run(kernel, parent) == [1, "KeyError", "network", 0.3]


def test_a_parent_waits_pauses_and_ends_its_children(kernel: KernelSpace) -> None:
    @kernel.register
    def child() -> None:
        while True:
            time.sleep(0.01)

    @kernel.register
    async def parent() -> list[Any]:
        child_id = await kernel.spawn(child)
        seen = [kernel.get_agent_status(child_id).state]
        for signal in (AgentSignal.SIGSTOP, AgentSignal.SIGCONT):
            assert await kernel.send_signal(child_id, signal)
            seen.append(kernel.get_agent_status(child_id).state)
        seen.append(kernel.get_agent_status(kernel.current_agent_id or "").name)
        try:
            await asyncio.wait_for(kernel.execute(child), 0.3)  # given up: that child is asked to end
        except TimeoutError:
            seen.append("gave up")
        await kernel.send_signal(child_id, AgentSignal.SIGKILL)
        try:
            await kernel.wait_all([child_id])
        except* AgentFailed as failed:
            seen.append(failed.exceptions[0].signal)  # type: ignore[union-attr]
        seen.append(await kernel.send_signal(child_id, AgentSignal.SIGTERM))
        return seen

    assert run(kernel, parent) == ["running", "stopped", "running", "parent", "gave up", 9, False]
    ids = {event.agent_id for event in record(kernel) if event.agent_name == "child"}
    assert len(ids) == 2
    for agent_id in ids:
        wait_until(lambda agent_id=agent_id: kernel.get_agent_status(agent_id).state == "terminated")  # type: ignore[misc]


def test_who_waits_for_children_is_shown_as_waiting(kernel: KernelSpace) -> None:
    @kernel.register
    def child(path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.01)
        return "went"

    @kernel.register
    async def parent(path: str) -> Any:
        return await kernel.wait_all([await kernel.spawn(child, path)])

    async def main(path: Path) -> None:
        task = asyncio.create_task(kernel.execute(parent, str(path)))
        await asyncio.to_thread(wait_until, lambda: state_of_latest(kernel) == "waiting")
        path.touch()
        assert await task == ["went"]

    asyncio.run(main(Path.cwd() / "go"))


def test_an_agent_that_stops_itself_goes_on_when_it_is_continued(kernel: KernelSpace) -> None:
    @kernel.register
    async def sleeper() -> list[Any]:
        done = await kernel.send_signal(kernel.current_agent_id or "", AgentSignal.SIGSTOP)
        if kernel.is_stopped():
            await kernel.wait_for_continue()
        return [done, kernel.is_stopped()]

    async def main() -> Any:
        task = asyncio.create_task(kernel.execute(sleeper))
        await asyncio.to_thread(wait_until, lambda: state_of_latest(kernel) == "stopped")
        assert kernel.is_stopped()
        waiting = asyncio.create_task(kernel.wait_for_continue())
        await asyncio.sleep(0.2)
        assert not task.done()
        assert not waiting.done()
        await kernel.send_signal(kernel.current_agent_id or "", AgentSignal.SIGCONT)
        await waiting
        assert not kernel.is_stopped()
        return await task

    assert asyncio.run(main()) == [True, False]


def test_a_rate_limit_that_only_the_agent_knows_of_holds(kernel: KernelSpace) -> None:
    @kernel.register(permissions=["read"])
    async def parent() -> list[Any]:
        from attackers import probe

        kernel.register(permissions=["read"], rate_limit=2)(probe)
        said = [await kernel.execute(probe) for _ in range(2)]
        try:
            await kernel.execute(probe)
        except agentos.RateLimitedError as refusal:
            said.append(0 < refusal.retry_after_s <= 60)
        return said

    assert run(kernel, parent) == [["read"], ["read"], True]
    refused = [event.data for event in record(kernel) if event.event_type == "execution_refused"]
    assert [(one["name"], one["limit"]) for one in refused] == [("probe", 2)]


def test_the_client_works_under_any_loop_and_from_threads(kernel: KernelSpace) -> None:
    @kernel.register
    def double(number: int) -> int:
        return number * 2

    @kernel.register
    def parent() -> list[Any]:
        import threading

        import uvloop

        async def both(number: int) -> Any:
            child = await kernel.spawn(double, number)
            return [await kernel.execute(double, number + 1), *await kernel.wait_all([child])]

        def work(number: int) -> None:
            found[number] = (uvloop.run if number % 2 else asyncio.run)(both(number))

        found: dict[int, Any] = {}
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [uvloop.run(both(10)), asyncio.run(both(20)), *(found[number] for number in range(4))]

    assert run(kernel, parent) == [[number * 2 + 2, number * 2] for number in (10, 20, 0, 1, 2, 3)]


# --- whom it may not touch -------------------------------------------------------------------------------------------


def by_hand(method: str, params: dict[str, Any]) -> str:
    """Make a call without the client; what came of it."""
    import _thread

    from agentos.agent import process

    agent = process.current()
    assert agent is not None
    assert agent.runtime is not None
    found: list[str] = []
    arrived = _thread.allocate_lock()
    arrived.acquire()

    def done(value: Any, error: Exception | None) -> None:
        found.append(f"done: {value!r}" if error is None else type(error).__name__)
        arrived.release()

    agent.runtime.call(method, params, done)
    assert arrived.acquire(timeout=20)
    return found[0]


HOST_ONLY: list[tuple[str, dict[str, Any]]] = [
    ("register", {"name": "sneak", "pickle": b"", "permissions": ["network"]}),
    ("start", {"argv": ["/bin/true"], "require": "none"}),
    ("shutdown", {}),
    ("detach", {}),
    ("log", {"event_type": "lie", "data": {}}),
    ("ps", {}),
    ("follow", {}),
]
ABOUT_ANOTHER = ("status", "inspect", "signal", "send_signal", "stop", "wait", "result", "wait_all")


def test_calls_that_are_not_for_agents_are_refused_and_on_record(kernel: KernelSpace) -> None:
    @kernel.register
    def sneak(calls: list[tuple[str, dict[str, Any]]]) -> list[str]:
        return [by_hand(method, params) for method, params in calls]

    assert run(kernel, sneak, HOST_ONLY) == ["NotPermitted"] * len(HOST_ONLY)
    refused = [e.data["resource"] for e in record(kernel) if e.event_type == "policy_violation"]
    assert refused == [method for method, _ in HOST_ONLY]
    assert kernel.get_agent_status(kernel.current_agent_id or "").violations_count == len(HOST_ONLY)


def test_no_agent_touches_another_that_is_not_below_it(kernel: KernelSpace) -> None:
    """The victims: an agent of the host's, the attacker's own parent, one that does not exist, and a pattern."""

    @kernel.register
    def bystander(path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.01)
        return "unharmed"

    @kernel.register
    def attacker(victims: list[str]) -> list[str]:
        found = []
        for victim in victims:
            params = {"id": victim, "agent_id": victim, "ids": [victim], "signal": 9, "scope": "tree"}
            found += [by_hand(method, params) for method in ABOUT_ANOTHER]
        return found

    @kernel.register
    async def parent(victims: list[str]) -> Any:
        return await kernel.execute(attacker, [*victims, kernel.current_agent_id])

    async def main(path: Path) -> None:
        victim = await kernel.spawn(bystander, str(path))
        found = await kernel.execute(parent, [victim, "no-such-agent", "*", ""])
        assert found == ["NotPermitted"] * (5 * len(ABOUT_ANOTHER))
        assert kernel.get_agent_status(victim).state == "running"
        path.touch()
        assert await kernel.wait_all([victim]) == ["unharmed"]

    asyncio.run(main(Path.cwd() / "go"))


def test_a_parent_that_is_claimed_is_refused(kernel: KernelSpace) -> None:
    """Also one below the caller: whose child a child is decides who bounds it and who may signal it."""
    prober = register_prober(kernel)

    @kernel.register(permissions=["read", "write", "execute", "network"])
    def mighty(path: str) -> None:
        while not os.path.exists(path):
            time.sleep(0.01)

    @kernel.register(permissions=["read"])
    async def weak(other: str, path: str) -> list[Any]:
        own = kernel.current_agent_id
        child = await kernel.spawn(mighty, path, parent_id=own)
        found = await kernel.wait_all([await kernel.spawn(prober, parent_id=own)])
        for parent_id in (other, child):
            try:
                found.append(await kernel.spawn(prober, parent_id=parent_id))
            except errors.NotPermitted as error:
                found.append(str(error).replace(parent_id, "ID"))
        await kernel.send_signal(child, AgentSignal.SIGKILL)
        return found

    async def main(path: Path) -> None:
        other = await kernel.spawn(mighty, str(path))
        bounded, *refused = await kernel.execute(weak, other, str(path))
        assert bounded == {"read": True, "write": False, "execute": False, "network": False}
        assert refused == ["spawn: parent_id='ID' is not this agent; its children are its own"] * 2
        path.touch()

    asyncio.run(main(Path.cwd() / "go"))
    parents = {e.data["parent_id"] for e in record(kernel) if e.event_type == "agent_starting" and e.data["parent_id"]}
    assert [kernel.get_agent_status(parent).name for parent in parents] == ["weak"]


@pytest.mark.parametrize(
    "params",
    [
        {"name": "prober", "timeout_s": "soon"},
        {"name": "prober", "timeout_s": -1},
        {"name": "prober", "timeout_s": float("nan")},
        {"name": "none such", "target": 5},
        {"name": "none such", "target": "json:loads", "permissions": "network"},
        {"name": "none such", "target": "json:loads", "permissions": ["fly"]},
        {"name": "none such", "target": "json:loads", "rate_limit": 0},
        {"name": "none such", "target": "json:loads", "priority": "first"},
        {"name": ["prober"]},
        {},
    ],
)
def test_a_spawn_that_makes_no_sense_starts_nothing(kernel: KernelSpace, params: dict[str, Any]) -> None:
    register_prober(kernel)

    @kernel.register
    def sneak(params: dict[str, Any]) -> str:
        return by_hand("spawn", params)

    assert run(kernel, sneak, params) in ("BadRequest", "NotRegistered")
    assert [event.agent_name for event in record(kernel) if event.event_type == "agent_starting"] == ["sneak"]
    assert not [event for event in record(kernel) if event.event_type == "kernel_fault"]


# --- agents from files -----------------------------------------------------------------------------------------------

APP = """
from agent_os import KernelSpace, PolicyViolationError
import agentos

kernel = KernelSpace(policy="strict")

@kernel.register(name="the worker", permissions=["read", "write"])
async def worker_agent(task):
    allowed = []
    for operation in ("read", "write", "execute"):
        try:
            agentos.act(operation, f"data/{task}")
            allowed.append(operation)
        except PolicyViolationError:
            pass
    return f"{task} may {' '.join(allowed)}"

@kernel.register
async def coordinator(*tasks):
    child_ids = []
    for task in tasks:
        child_id = await kernel.spawn(worker_agent, task, parent_id=kernel.current_agent_id)
        child_ids.append(child_id)
    for line in await kernel.wait_all(child_ids):
        print(line, flush=True)

if __name__ == "__main__":
    raise SystemExit("imported as a program")
"""


def agentos_run(base: Path, *words: str) -> subprocess.CompletedProcess[str]:
    with directories(base) as environment:
        return subprocess.run(
            [sys.executable, "-m", "agentos", "run", *words], cwd=base / "work", env=environment, timeout=100,
            capture_output=True, text=True, check=False,
        )  # fmt: skip


def test_a_file_of_registered_agents_runs_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "app.py").write_text(APP)
    grants = ("--policy", "strict", "--permissions", "read,execute")
    done = agentos_run(tmp_path, *grants, f"{tmp_path}/app.py:coordinator", "a", "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a may read", "b may read"]


def test_functions_of_a_module_are_the_same_agents_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "app.py").write_text(APP.replace("async def coordinator", "async def coordinate"))
    program = (
        "import asyncio, app\n"
        "async def main():\n"
        "    async with app.kernel:\n"
        "        await app.kernel.execute(app.coordinate, 'a')\n"
        "        print(await app.kernel.execute(app.worker_agent, 'b'))\n"
        "asyncio.run(main())\n"
    )
    with directories(tmp_path) as environment:
        environment["PYTHONPATH"] = f"{PROJECT}:{tmp_path}"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path / "work", env=environment, timeout=100,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["b may read write"]


def test_nothing_that_an_agent_does_is_on_record_before_its_start(kernel: KernelSpace) -> None:
    @kernel.register(permissions=["read"])
    def hasty() -> None:
        agentos.act("read", "data/x")

    async def main() -> None:
        await asyncio.gather(*(kernel.execute(hasty) for _ in range(20)))

    asyncio.run(main())
    story: dict[str, list[str]] = {}
    for event in record(kernel):
        story.setdefault(event.agent_id, []).append(event.event_type)
    told = [kinds for kinds in story.values() if "action_allowed" in kinds]
    assert len(told) == 20
    assert [kinds for kinds in told if kinds.index("agent_started") > kinds.index("action_allowed")] == []
