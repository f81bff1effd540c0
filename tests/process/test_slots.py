"""max_concurrent_agents, priority and rate_limit hold on real agents: who waits is on record and has no process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import wait_until

import agentos
from agentos import AgentSignal, KernelSpace, RateLimitedError


@pytest.fixture
def kernel(home: Path) -> Iterator[KernelSpace]:
    kernel = KernelSpace(policy="permissive", max_concurrent_agents=2)
    yield kernel
    asyncio.run(kernel.shutdown())


def occupy(folder: str) -> int:
    """Say that it runs, how many others do, and stay for a moment."""
    mine = Path(folder, str(os.getpid()))
    mine.touch()
    most = 0
    for _ in range(20):
        most = max(most, len(list(Path(folder).iterdir())))
        time.sleep(0.01)
    mine.unlink()
    return most


def test_no_more_run_at_once_than_there_are_slots(kernel: KernelSpace, home: Path) -> None:
    kernel.register(occupy)
    (home / "busy").mkdir()

    async def main() -> list[int]:
        return await asyncio.gather(*(kernel.execute(occupy, str(home / "busy")) for _ in range(8)))

    assert max(asyncio.run(main())) == 2


def hold(go: str) -> str:
    while not Path(go).exists():
        time.sleep(0.01)
    return "went"


def test_priority_orders_the_line(home: Path) -> None:
    kernel = KernelSpace(policy="permissive", max_concurrent_agents=1)
    kernel.register(name="holder")(hold)

    def note(name: str) -> None:
        with Path("order").open("a") as file:
            file.write(name + " ")

    for name, priority in (("low", 0), ("middle", 1), ("high", 7)):
        kernel.register(name=name, priority=priority)(note)

    async def main() -> None:
        async with kernel:
            holder = await kernel.spawn("holder", str(home / "go"))
            line = [await kernel.spawn(name, name) for name in ("low", "middle", "high", "low")]
            assert {kernel.get_agent_status(one).state for one in line} == {"waiting"}
            (home / "go").touch()
            await kernel.wait_all([holder, *line])

    asyncio.run(main())
    assert (home / "order").read_text().split() == ["high", "middle", "low", "low"]


def test_a_parent_that_waits_for_its_children_lends_them_its_slot(home: Path) -> None:
    kernel = KernelSpace(policy="permissive", max_concurrent_agents=1)

    @kernel.register
    def leaf(number: int) -> int:
        return number + 1

    @kernel.register
    async def branch(number: int) -> int:
        return sum(await kernel.wait_all([await kernel.spawn(leaf, number) for _ in range(3)]))

    @kernel.register
    async def root() -> int:
        both = [await kernel.spawn(branch, number) for number in (1, 2)]
        first, second = await asyncio.gather(*(kernel.wait_all([one]) for one in both))  # two calls wait at once
        return int(first[0]) + int(second[0])

    async def main() -> int:
        async with kernel:
            return int(await asyncio.wait_for(kernel.execute(root), 60))

    assert asyncio.run(main()) == 15


def test_who_is_in_line_can_be_ended_before_it_ever_ran(home: Path) -> None:
    kernel = KernelSpace(policy="permissive", max_concurrent_agents=1)
    kernel.register(name="holder")(hold)
    kernel.register(name="late")(lambda: Path("ran").touch())

    async def main() -> None:
        async with kernel:
            holder = await kernel.spawn("holder", str(home / "go"))
            one, other = await kernel.spawn("late"), await kernel.spawn("late")
            assert not await kernel.send_signal(one, AgentSignal.SIGSTOP)
            assert await kernel.send_signal(one, AgentSignal.SIGKILL)
            assert kernel.get_agent_status(one).state == "terminated"
            waiting = asyncio.create_task(kernel.execute("late"))
            await asyncio.sleep(0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            cancelled = kernel.current_agent_id or ""
            await asyncio.to_thread(wait_until, lambda: kernel.get_agent_status(cancelled).state == "terminated")
            assert not (home / "ran").exists()
            (home / "go").touch()
            await kernel.wait_all([holder, other])
            with pytest.raises(ExceptionGroup) as failed:
                await kernel.wait_all([one])
            assert "before it had started" in str(failed.value.exceptions[0])

    asyncio.run(main())
    assert (home / "ran").exists()


def test_a_kernel_that_ends_takes_the_line_with_it(home: Path) -> None:
    kernel = KernelSpace(policy="permissive", max_concurrent_agents=1)
    kernel.register(name="holder")(hold)

    async def main() -> None:
        async with kernel:
            for _ in range(5):
                await kernel.spawn("holder", str(home / "go"))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_agent_over_its_rate_is_refused_and_told_when(home: Path) -> None:
    recorder = agentos.FlightRecorder()
    kernel = KernelSpace(policy="permissive", flight_recorder=recorder)

    @kernel.register(rate_limit=2)
    def quick() -> int:
        return 1

    @kernel.register
    async def parent() -> str:
        try:
            await kernel.spawn(quick)
        except RateLimitedError as refusal:
            return f"{refusal.retry_after_s > 0}"
        return "was not refused"

    async def main() -> None:
        async with kernel:
            assert [await kernel.execute(quick), await kernel.execute(quick)] == [1, 1]
            with pytest.raises(RateLimitedError, match="rate_limit=2") as refused:
                await kernel.execute(quick)
            assert 0 < refused.value.retry_after_s <= 60
            assert await kernel.execute(parent) == "True"
        events = await recorder.query(event_type="execution_refused")
        assert [event["agent_name"] for event in events] == ["quick", "quick"]

    asyncio.run(main())


def test_what_cannot_be_started_in_its_turn_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    kernel = KernelSpace(policy="permissive", max_concurrent_agents=1)
    kernel.register(name="holder")(hold)

    async def main() -> None:
        async with kernel:
            holder = await kernel.spawn("holder", str(home / "go"))
            late = await kernel.spawn("holder", str(home / "go"))
            place.rmdir()  # where it would start
            (home / "go").touch()
            assert await kernel.wait_all([holder]) == ["went"]
            with pytest.raises(ExceptionGroup) as failed:
                await kernel.wait_all([late])
            assert "could not be started" in str(failed.value.exceptions[0])
            assert "place" in str(failed.value.exceptions[0])

    asyncio.run(main())


def test_the_default_timeout_binds_children_too(home: Path) -> None:
    kernel = KernelSpace(policy="permissive", timeout=0.5)
    kernel.register(name="holder")(hold)

    async def main() -> None:
        async with kernel:
            with pytest.raises(ExceptionGroup) as failed:
                await kernel.wait_all([await kernel.spawn("holder", str(home / "never"))])
            assert isinstance(failed.value.exceptions[0], agentos.AgentTimeoutError)

    asyncio.run(main())
