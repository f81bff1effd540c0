"""The recorder: how many durable events a second 1, 16 and 64 clients get, each waiting until its own is on disk.

Two sets of rows. `recorder-N` is journal and recorder process alone, with clients that wait inside the kernel's loop:
what the budget is about. `durable-N` is the same for real agents and their actions, with all of the way that an action
takes; it has no budget, and says what an agent gets of it.
The floor is one process that appends and syncs; beating it takes commits in groups.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks import agents
from benchmarks.beside import Beside, durable_appends_per_s
from benchmarks.kernel import Live, kernel
from benchmarks.method import Line, Reading
from benchmarks.runner import Bench, Round, Settings

SECONDS: Final = 0.5
EVENT_BYTES: Final = 512  # what one such event takes in the journal, rounded up
START_S: Final = 0.5  # for the first agent to be ready, and for each further one:
START_MORE_S: Final = 0.03
BUDGETS: Final = {1: 0.6, 16: 3.0, 64: 3.5}
_FLOOR: Final = f"append of {EVENT_BYTES} bytes and fdatasync, one after the other"

PAIR: Final = tuple(
    Line(name=f"recorder-{count}", what=f"durable events of {count} waiting in the kernel, journal and recorder alone",
         floor=_FLOOR, unit="/s", ratio_limit=limit, more_is_better=True)
    for count, limit in BUDGETS.items()
)  # fmt: skip
AGENTS: Final = tuple(
    Line(name=f"durable-{count}", what=f"durable actions of {count} real agent{'s' * (count > 1)}, together",
         floor=_FLOOR, unit="/s", more_is_better=True)
    for count in BUDGETS
)  # fmt: skip


@contextmanager
def rounds_of_the_pair(settings: Settings) -> Iterator[Round]:
    with Beside("recorder", settings.directory) as pair:

        def reading(count: int) -> Reading:
            floor = durable_appends_per_s(settings.directory, EVENT_BYTES, SECONDS)
            return Reading(pair.ask(clients=count, seconds=SECONDS), floor)

        yield lambda: {f"recorder-{count}": reading(count) for count in BUDGETS}


@contextmanager
def rounds_of_agents(settings: Settings) -> Iterator[Round]:
    with kernel() as live:

        def reading(count: int) -> Reading:
            floor = durable_appends_per_s(settings.directory, EVENT_BYTES, SECONDS)
            return Reading(_durable_actions_per_s(live, count), floor)

        yield lambda: {f"durable-{count}": reading(count) for count in BUDGETS}


def _durable_actions_per_s(live: Live, count: int) -> float:
    begin_ns = time.monotonic_ns() + int((START_S + START_MORE_S * count) * 1e9)
    end_ns = begin_ns + int(SECONDS * 1e9)

    async def all_of_them() -> int:
        return sum(
            await asyncio.gather(*(live.space.execute(agents.act_durably, begin_ns, end_ns) for _ in range(count)))
        )

    return live.run(all_of_them()) / SECONDS


BENCHES: Final = (Bench("recorder", PAIR, rounds_of_the_pair), Bench("durable", AGENTS, rounds_of_agents))
