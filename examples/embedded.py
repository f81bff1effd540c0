"""A host program: agents as functions with permissions, children, a real pause, and the record of it all.

    python examples/embedded.py

Each agent is a process of its own. The analyst may read; what it tries beyond that is refused before it happens.
"""

from __future__ import annotations

import asyncio

import agentos
from agentos import AgentSignal, FlightRecorder, KernelSpace, PolicyViolationError

recorder = FlightRecorder()  # in memory; KernelSpace() alone records to a file under the state directory
kernel = KernelSpace(policy="strict", flight_recorder=recorder)


@kernel.register(permissions=["read"])
def count_lines(path: str) -> int:
    """A worker: reads one file of the workspace."""
    with open(path, encoding="utf-8") as file:
        return sum(1 for _ in file)


@kernel.register(permissions=["read"])
async def analyst(paths: list[str]) -> dict[str, object]:
    """Spread the work over children, then reach too far. What it prints goes to its log, see `agentos logs`."""
    children = [await kernel.spawn(count_lines, path, parent_id=kernel.current_agent_id) for path in paths]
    counts = await kernel.wait_all(children)
    try:
        agentos.act("network", "https://example.org/upload")
        refused = ""
    except PolicyViolationError as refusal:
        refused = refusal.reason
    return {"lines": dict(zip(paths, counts, strict=True)), "refused": refused}


@kernel.register
def clock(ticks: int) -> int:
    """Something to pause."""
    import time  # noqa: PLC0415 - a registered function of __main__ travels by value

    for _ in range(ticks):
        time.sleep(0.1)
    return ticks


async def main() -> None:
    async with kernel:
        print(await kernel.execute(analyst, ["README.md", "LICENSE"], context={"user_id": "user_123"}))

        ticking = asyncio.create_task(kernel.execute(clock, 10))
        await asyncio.sleep(0.5)
        agent_id = kernel.current_agent_id or ""
        await kernel.send_signal(agent_id, AgentSignal.SIGSTOP)
        print(f"the clock is {kernel.get_agent_status(agent_id).state}")
        await kernel.send_signal(agent_id, AgentSignal.SIGCONT)
        print(f"the clock ticked {await ticking} times")
    for event in await recorder.query(event_type="policy_violation"):
        print(f"on record: {event['agent_name']} {event['data']['operation']} {event['data']['resource']}")


if __name__ == "__main__":
    asyncio.run(main())
