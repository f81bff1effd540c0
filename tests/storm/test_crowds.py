"""Many agents at once: every action is decided as computed and on record once; nothing of a thousand is left behind."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from crowd import Crowd, crowd, descendants, policy, pss_bytes, resident_bytes, say
from records import recorded
from workers import is_denied, name_of, tenant_of
from world import state_of

from agentos import AgentSignal
from agentos.recorder.event import AuditEvent
from agentos.runs import Run

WORKERS = int(os.environ.get("AGENTOS_TEST_AGENTS", "300"))
IDLE = int(os.environ.get("AGENTOS_TEST_IDLE", "1000"))
ACTIONS = 100
RULES = 1_000
LIMIT_S = 100.0
STARTS_AT_ONCE = 8
KEPT_BYTES_MAX = 48 * 1024  # of kernel memory for each agent that ended, for `ps` and `wait`


async def start(place: Crowd, name: str, count: int, *args: Any) -> list[str]:
    """Start so many agents, each with its number; returns once all of them have done their first action."""
    room = asyncio.Semaphore(STARTS_AT_ONCE)

    async def one(number: int) -> str:
        async with room:
            return await place.kernel.spawn(name, number, *args)

    ids = await asyncio.gather(*(one(number) for number in range(count)))
    deadline = time.monotonic() + LIMIT_S
    while not all(row["actions_count"] for row in await place.rows(ids)):
        assert time.monotonic() < deadline, "not all of them have begun"
        await asyncio.sleep(0.1)
    return ids


@pytest.mark.timeout(400)
def test_of_many_agents_that_act_at_once_every_action_is_decided_rightly_and_recorded_once(tmp_path: Path) -> None:
    with crowd(tmp_path, policy=policy(RULES), max_concurrent_agents=WORKERS) as place:
        run, rows, denied = asyncio.run(act_all_at_once(place))
        for worker, row in enumerate(rows):
            assert denied[worker] == [n for n in range(ACTIONS) if is_denied(tenant_of(worker, n, RULES))]
            assert row["state"] == "terminated"
    record = recorded(run.state)
    assert [one.seq for one in record] == list(range(1, len(record) + 1))
    assert [one.data for one in record if one.event_type == "kernel_fault"] == []
    assert sum(len(numbers) for numbers in denied) > WORKERS * ACTIONS // 20
    by_agent: dict[str, list[AuditEvent]] = {row["id"]: [] for row in rows}
    for one in record:
        if one.event_type in ("action_allowed", "policy_violation") and one.agent_id in by_agent:
            by_agent[one.agent_id].append(one)
    for worker, row in enumerate(rows):
        mine = by_agent[row["id"]]
        assert len(mine) == row["actions_count"]
        said = [(one.data["resource"], one.data["effect"]) for one in mine if one.data["mechanism"] == "sdk"]
        assert said == [(f"ready/{worker}", "allow"), *expected(worker)]


def expected(worker: int) -> list[tuple[str, str]]:
    return [
        (name_of(worker, n, RULES), "deny" if is_denied(tenant_of(worker, n, RULES)) else "allow")
        for n in range(ACTIONS)
    ]


async def act_all_at_once(place: Crowd) -> tuple[Run, list[dict[str, Any]], list[list[int]]]:
    """Return the run, the row of each agent once it has ended, and the numbers of the actions that it was denied."""
    begin = time.monotonic()
    ids = await start(place, "work", WORKERS, ACTIONS, RULES, str(place.signal_file))
    assert Counter(row["state"] for row in await place.rows(ids)) == {"running": WORKERS}
    began = time.monotonic()
    place.signal_file.touch()
    denied = await place.kernel.wait_all(ids)
    spent_s = time.monotonic() - began
    rows = await place.rows(ids)
    rate = WORKERS * ACTIONS / spent_s
    say(f"{WORKERS} started in {began - begin:.1f} s; {rate:.0f} actions a second for {spent_s:.1f} s")
    run = place.run
    await place.kernel.shutdown()
    return run, rows, denied


@pytest.mark.timeout(400)
def test_a_thousand_idle_agents_stop_continue_and_end_and_leave_nothing(tmp_path: Path) -> None:
    with crowd(tmp_path, policy="permissive", max_concurrent_agents=IDLE) as place:
        asyncio.run(idle_together(place))


async def idle_together(place: Crowd) -> None:
    (stays,) = await start(place, "idle", 1, str(place.signal_file) + "-never")  # what the first one costs remains
    before = await census(place, stays)
    began = time.monotonic()
    ids = await start(place, "idle", IDLE - 1, str(place.signal_file))
    spent_s = time.monotonic() - began
    everybody = [stays, *ids]
    await assert_all(place, everybody, "running", "SRD")
    full = await census(place, stays)
    assert len(full.processes) == len(before.processes) + 2 * len(ids)
    say(f"{IDLE} started in {spent_s:.1f} s: {full}; before: {before}")
    for signal, state, letters in ((AgentSignal.SIGSTOP, "stopped", "T"), (AgentSignal.SIGCONT, "running", "SRD")):
        begin = time.monotonic()
        done = await asyncio.gather(*(place.kernel.send_signal(one, signal) for one in everybody))
        spent_s = time.monotonic() - begin
        assert done == [True] * IDLE
        await assert_all(place, everybody, state, letters)
        say(f"{signal.name} of {IDLE}: {spent_s * 1e3:.0f} ms")
    half = ids[: len(ids) // 2]  # is stopped and then killed; the others end by themselves
    for signal in (AgentSignal.SIGSTOP, AgentSignal.SIGKILL):
        assert all(await asyncio.gather(*(place.kernel.send_signal(one, signal) for one in half)))
    place.signal_file.touch()
    assert await place.kernel.wait_all(ids[len(half) :]) == list(range(len(half), len(ids)))
    await assert_all(place, ids, "terminated", "")
    await assert_nothing_left(place, stays, before)
    await place.kernel.shutdown()


async def assert_nothing_left(place: Crowd, stays: str, before: Census) -> None:
    deadline = time.monotonic() + LIMIT_S
    while True:
        left = await census(place, stays)
        if (left.processes, left.descriptors, left.directories) == before[:3]:
            break
        assert time.monotonic() < deadline, f"left: {left}; before: {before}"
        await asyncio.sleep(0.1)
    say(f"left: {left}")
    assert left.kernel_bytes - before.kernel_bytes < KEPT_BYTES_MAX * IDLE


class Census(NamedTuple):
    """What there is of a kernel."""

    processes: frozenset[int]
    descriptors: int
    directories: int
    kernel_bytes: int
    pss_bytes: int

    def __str__(self) -> str:
        return (
            f"{len(self.processes)} processes, PSS {self.pss_bytes / 1e6:.0f} MB; the kernel has {self.descriptors} "
            f"descriptors, {self.directories} directories, {self.kernel_bytes / 1e6:.1f} MB"
        )


async def census(place: Crowd, agent_id: str) -> Census:
    facts = await place.call("inspect", id=agent_id)
    processes = frozenset(descendants(facts["guard_pid"]))
    directories = len(list(place.run.runtime.glob("tmp/*")))
    return Census(
        processes, facts["kernel_descriptors"], directories, resident_bytes(facts["kernel_pid"]),
        sum(map(pss_bytes, processes)),
    )  # fmt: skip


async def assert_all(place: Crowd, ids: list[str], state: str, letters: str) -> None:
    """Shown, and so: of every agent the first process."""
    rows = await place.rows(ids)
    assert Counter(row["state"] for row in rows) == {state: len(ids)}
    assert {state_of(row["pid"]) for row in rows} <= set(letters or {""})
