"""Handles on real agents: what each kind of agent answers while it does something else, and what is said of the rest.

One kernel for the file. Agents end when they are told to, or with the kernel.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop
from arena import Arena, arena
from world import wait_until

import agentos
from agentos import AgentHandle, AgentSignal, FlightRecorder, KernelSpace, errors

LIFE_S = 120.0  # of agents that a test ends long before
MUCH = 12 * 1024 * 1024  # three of them are more than the backlog of one pipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena(tmp_path_factory.mktemp("handles"), policy="permissive") as made:
        yield made


def start(place: Arena, function: Callable[..., Any], *args: Any) -> AgentHandle:
    return place.kernel.get_agent(place.start(function, *args))


def why(call: Any) -> str:
    with pytest.raises(errors.StateUnavailable) as caught:
        asyncio.run(call)
    return str(caught.value)


def asked(place: Arena, handle: AgentHandle) -> list[Any]:
    """Return what is on record of the questions to one agent."""
    events = [one for one in place.events(agent_id=handle.id) if one.event_type in ("agent_asked", "agent_answered")]
    return [one.data for one in events]


# --- agents that answer ----------------------------------------------------------------------------------------------


def note(log: str) -> None:
    with open(log, "a") as file:
        file.write("closed ")


async def busy_in_its_loop(log: str) -> None:
    @agentos.on_cleanup
    async def close() -> None:
        await asyncio.sleep(0)
        note(log)

    agentos.save_state({"step": 3})
    await asyncio.sleep(LIFE_S)


def busy_in_c(log: str) -> None:
    @agentos.on_cleanup
    def close() -> None:
        note(log)

    agentos.save_state({"step": 3})
    time.sleep(LIFE_S)


@pytest.mark.parametrize("function", [busy_in_its_loop, busy_in_c])
def test_a_graceful_shutdown_as_the_specification_has_it(
    place: Arena, tmp_path: Path, function: Callable[..., Any]
) -> None:
    kernel, log = place.kernel, tmp_path / "log"
    handle = start(place, function, str(log))
    wait_until(lambda: place.events("state_saved", handle.id))

    async def graceful_shutdown(agent_id: str) -> Any:
        agent = kernel.get_agent(agent_id)
        state = await agent.get_state()
        await agent.cleanup()
        await agent.save_state()
        return state

    assert asyncio.run(graceful_shutdown(handle.id)) == {"step": 3}
    assert log.read_text() == "closed "
    assert handle.status().state == "running"
    assert asyncio.run(handle.send_signal(AgentSignal.SIGTERM))
    with pytest.raises(errors.AgentFailed):
        asyncio.run(handle.wait())
    assert log.read_text() == "closed "  # each function once in the life of an agent
    assert asyncio.run(handle.get_state()) == {"step": 3}
    assert [(one["what"], one.get("ok")) for one in asked(place, handle)] == [
        (what, ok) for what in ("get_state", "cleanup", "save_state", "get_state") for ok in (None, True)
    ]
    assert {one["sender"] for one in asked(place, handle)} == {"host"}


def test_a_state_is_dumped_into_a_record(place: Arena, tmp_path: Path) -> None:
    flight_recorder = FlightRecorder()
    handle = start(place, busy_in_c, str(tmp_path / "log"))
    wait_until(lambda: place.events("state_saved", handle.id))

    async def dump_state(agent_id: str) -> list[dict[str, Any]]:
        agent = place.kernel.get_agent(agent_id)
        state = await agent.get_state()
        await flight_recorder.log_state_dump(agent_id, state)
        return await flight_recorder.query(event_type="state_dump", agent_id=agent_id)

    (dumped,) = asyncio.run(dump_state(handle.id))
    assert dumped["data"] == {"state": {"step": 3}}
    asyncio.run(handle.send_signal(AgentSignal.SIGKILL))


def test_a_handle_works_in_every_loop_and_thread(place: Arena, tmp_path: Path) -> None:
    handle = start(place, busy_in_c, str(tmp_path / "log"))
    wait_until(lambda: place.events("state_saved", handle.id))

    async def several() -> list[Any]:
        return await asyncio.gather(*(handle.get_state() for _ in range(5)))

    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(run, several()) for run in (asyncio.run, uvloop.run) * 4]
        assert [one.result(30) for one in runs] == [[{"step": 3}] * 5] * 8
    asyncio.run(handle.send_signal(AgentSignal.SIGKILL))


def test_a_handle_tells_of_the_end_and_gives_the_result(place: Arena) -> None:
    handle = start(place, lambda: 42)
    assert asyncio.run(handle.wait()) == 42
    assert handle.status().state == "terminated"
    assert handle.name.startswith("<lambda>")
    assert not asyncio.run(handle.send_signal(AgentSignal.SIGTERM))
    assert "it has ended (exit code 0); no state of it is kept" in why(handle.get_state())
    assert "it has ended (exit code 0)" in why(handle.cleanup())


def test_an_id_that_does_not_exist_has_no_handle(place: Arena) -> None:
    with pytest.raises(errors.UnknownAgent):
        place.kernel.get_agent("nobody")
    with pytest.raises(errors.UnknownAgent):
        KernelSpace().get_agent("nobody")


def saves_much() -> None:
    agentos.save_state(b"x" * MUCH)


async def asks_for_much() -> list[int]:
    kernel = KernelSpace()
    ids = [await kernel.spawn("saves-much") for _ in range(3)]
    await kernel.wait_all(ids)
    states = await asyncio.gather(*(kernel.get_agent(one).get_state() for one in ids))
    return [len(state) for state in states]


def test_several_large_states_at_once_reach_who_asked(place: Arena) -> None:
    """More together than a backlog may hold: who asks, host or agent, is no peer that does not read."""
    place.kernel.register(name="saves-much")(saves_much)
    place.kernel.register(name="asks-for-much")(asks_for_much)

    async def ask() -> list[int]:
        ids = [await place.kernel.spawn("saves-much") for _ in range(3)]
        await place.kernel.wait_all(ids)
        states = await asyncio.gather(*(place.kernel.get_agent(one).get_state() for one in ids))
        return [len(state) for state in states]

    assert asyncio.run(ask()) == [MUCH] * 3
    assert asyncio.run(place.kernel.execute("asks-for-much")) == [MUCH] * 3


# --- agents that do not ----------------------------------------------------------------------------------------------


def holds_the_interpreter(ready: str) -> int:
    """Compute in C, where no other thread gets a turn."""
    Path(ready).touch()
    return sum(range(10**12))


def cleans_up_slowly(log: str, go: str) -> None:
    @agentos.on_cleanup
    def close() -> None:
        Path(log).write_text("began ")
        while not os.path.exists(go):
            time.sleep(0.01)
        Path(log).write_text("began ended")

    agentos.save_state("slow")
    time.sleep(LIFE_S)


def test_who_lets_no_thread_run_or_takes_longer_is_said_to_be_unconfirmed(place: Arena, tmp_path: Path) -> None:
    """And what began goes on: the end of the function waits for it, and runs nothing twice."""
    log = tmp_path / "log"
    holder = start(place, holds_the_interpreter, str(tmp_path / "ready"))
    slow = start(place, cleans_up_slowly, str(log), str(tmp_path / "go"))
    wait_until((tmp_path / "ready").exists)
    wait_until(lambda: place.events("state_saved", slow.id))

    async def ask() -> list[Any]:
        calls = holder.get_state(), slow.cleanup(), slow.get_state()
        return await asyncio.gather(*calls, return_exceptions=True)

    began = time.monotonic()
    held, cleaned, state = asyncio.run(ask())
    assert time.monotonic() - began >= 2.0
    assert f"({holder.id}): no answer within 2 s" in str(held)
    assert str(cleaned).endswith("no answer within 2 s; the clean-up is not confirmed, what began of it goes on")
    assert {type(held), type(cleaned)} == {errors.StateUnavailable}
    assert state == "slow"
    asyncio.run(slow.send_signal(AgentSignal.SIGTERM))
    time.sleep(0.1)
    assert log.read_text() == "began "
    (tmp_path / "go").touch()
    wait_until(lambda: slow.status().state == "terminated", 20)
    assert log.read_text() == "began ended"
    asyncio.run(holder.send_signal(AgentSignal.SIGKILL))


def test_a_stopped_agent_is_not_waited_for_and_answers_once_it_is_continued(place: Arena, tmp_path: Path) -> None:
    handle = start(place, busy_in_c, str(tmp_path / "log"))
    wait_until(lambda: place.events("state_saved", handle.id))
    asyncio.run(handle.send_signal(AgentSignal.SIGSTOP))
    assert handle.status().state == "stopped"
    for call in (handle.get_state, handle.save_state, handle.cleanup):
        assert "it is stopped, and can answer only once it is continued; send it SIGCONT" in why(call())
    asyncio.run(handle.send_signal(AgentSignal.SIGCONT))
    assert asyncio.run(handle.get_state()) == {"step": 3}
    assert not (tmp_path / "log").exists()  # it was never asked to clean up
    asyncio.run(handle.send_signal(AgentSignal.SIGKILL))


def test_a_program_has_no_state(place: Arena) -> None:
    agent_id = place.call("start", argv=["/bin/sleep", "60"], require="none")["id"]
    handle = place.kernel.get_agent(agent_id)
    assert handle.name == "sleep"
    assert f"get_state of sleep ({agent_id}): it is a program" in why(handle.get_state())
    asyncio.run(handle.send_signal(AgentSignal.SIGKILL))
    assert "it is a program" in why(handle.get_state())


def test_a_clean_up_that_fails_says_so_and_the_others_run(place: Arena, tmp_path: Path) -> None:
    def function(log: str) -> None:
        agentos.on_cleanup(lambda: Path(log).touch())  # type: ignore[arg-type,return-value]
        agentos.on_cleanup(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        agentos.save_state(1)
        time.sleep(LIFE_S)

    handle = start(place, function, str(tmp_path / "log"))
    wait_until(lambda: place.events("state_saved", handle.id))
    assert why(handle.cleanup()).endswith("it answered: ZeroDivisionError in a clean-up function")
    assert (tmp_path / "log").exists()
    asyncio.run(handle.cleanup())  # nothing is left to be run
    asyncio.run(handle.send_signal(AgentSignal.SIGKILL))


def test_what_is_no_value_reaches_nobody(place: Arena) -> None:
    def function() -> None:
        from agentos.agent import process

        current = process.current()
        assert current is not None
        agentos.save_state("mine")
        current.state = b"\xc1" * 1_000_000
        time.sleep(LIFE_S)

    handle = start(place, function)
    wait_until(lambda: place.events("state_saved", handle.id))
    wait_until(lambda: "its answer is not a packed value" in _said(handle))
    asyncio.run(handle.send_signal(AgentSignal.SIGKILL))


def _said(handle: AgentHandle) -> str:
    try:
        return str(asyncio.run(handle.get_state()))
    except errors.StateUnavailable as error:
        return str(error)


# --- in agents -------------------------------------------------------------------------------------------------------


def test_an_agent_asks_itself_and_its_descendants_and_nobody_else(place: Arena, tmp_path: Path) -> None:
    place.kernel.register(name="asked-child")(busy_in_c)

    async def parent(log: str, stranger: str) -> list[Any]:
        kernel = KernelSpace()
        me = kernel.get_agent(str(kernel.current_agent_id))
        agentos.save_state("mine")
        child = kernel.get_agent(await kernel.spawn("asked-child", log))
        states = [await me.get_state(), None]
        while states[1] is None:
            states[1] = await child.get_state()
        await child.cleanup()
        await child.send_signal(AgentSignal.SIGKILL)
        try:
            kernel.get_agent(stranger)
        except errors.NotPermitted as error:
            return [*states, child.name, me.status().state, type(error).__name__]
        return states

    handle = start(place, parent, str(tmp_path / "log"), place.bystander_id)
    said = asyncio.run(handle.wait())
    assert said == ["mine", {"step": 3}, "asked-child", "running", "NotPermitted"]
    assert (tmp_path / "log").read_text() == "closed "
    assert {one["sender"] for one in asked(place, handle)} == {f"agent {handle.id}"}


def test_a_stranger_is_not_asked_for_an_agent_that_writes_the_call_itself(place: Arena) -> None:
    async def function(stranger: str) -> str:
        kernel: Any = KernelSpace()
        handle = AgentHandle(stranger, "forged", kernel)
        try:
            return str(await handle.get_state())
        except errors.NotPermitted as error:
            return str(error)

    before = len(place.events("agent_asked", place.bystander_id))
    handle = start(place, function, place.bystander_id)
    assert "is not this agent or one of its descendants" in asyncio.run(handle.wait())
    (refused,) = place.events("policy_violation", handle.id)
    assert (refused.data["operation"], refused.data["resource"]) == ("kernel", "query")
    assert len(place.events("agent_asked", place.bystander_id)) == before


def test_a_handle_travels_into_an_agent_as_a_handle_of_its_own(place: Arena) -> None:
    stranger = place.kernel.get_agent(place.bystander_id)

    async def function() -> str:
        try:
            return str(await stranger.get_state())
        except errors.NotPermitted:
            return "refused"

    assert asyncio.run(start(place, function).wait()) == "refused"


def test_a_host_thread_may_ask_while_the_loop_of_another_is_busy(place: Arena, tmp_path: Path) -> None:
    handle = start(place, busy_in_c, str(tmp_path / "log"))
    wait_until(lambda: place.events("state_saved", handle.id))
    release, found = threading.Event(), []

    async def blocked() -> None:
        release.wait(30)

    thread = threading.Thread(target=asyncio.run, args=(blocked(),))
    thread.start()
    try:
        found.append(asyncio.run(handle.get_state()))
    finally:
        release.set()
        thread.join()
    assert found == [{"step": 3}]
    asyncio.run(handle.send_signal(AgentSignal.SIGKILL))
