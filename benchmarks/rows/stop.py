"""STOP: from `send_signal` in the host program until Linux has confirmed that nothing of the tree can run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentos import AgentSignal
from benchmarks import agents
from benchmarks.beside import Beside
from benchmarks.kernel import Live, kernel
from benchmarks.method import Line, Reading, quantile
from benchmarks.runner import Bench, Round, Settings

STOPS: Final = 100
CROWD: Final = 1_000
CROWD_QUICK: Final = 100

ONE: Final = Line(
    name="stop-one", what="STOP of one computing agent until confirmed, p99",
    floor="SIGSTOP by pidfd and waitid of one plain child", unit="ms", subject_limit=20.0,
)  # fmt: skip
MANY: Final = Line(
    name="stop-many", what=f"STOP of {CROWD:,} idle agents at once until confirmed (--quick: of {CROWD_QUICK}, scaled)",
    floor="SIGSTOP by pidfd and waitid of as many plain children", unit="ms", subject_limit=600.0, ratio_limit=60.0,
)  # fmt: skip


@contextmanager
def rounds_one(_: Settings) -> Iterator[Round]:
    with kernel() as live, Beside("crowd", 1, "small") as child:
        ids = live.spawn_many(agents.act_once_and_compute, 1)

        def read() -> dict[str, Reading]:
            floor = quantile([child.ask(what="stop") for _ in range(STOPS)], 0.99)
            tail = quantile([_stop_all_ms(live, ids) for _ in range(STOPS)], 0.99)
            return {ONE.name: Reading(tail, floor / 1e6, tail)}

        yield read


@contextmanager
def rounds_many(settings: Settings) -> Iterator[Round]:
    count = CROWD_QUICK if settings.quick else CROWD
    with kernel() as live, Beside("crowd", count, "small") as crowd:
        ids = live.spawn_many(agents.act_once_and_idle, count)
        scale = CROWD / count
        yield lambda: {MANY.name: Reading(_stop_all_ms(live, ids) * scale, crowd.ask(what="stop") / 1e6 * scale)}


def _stop_all_ms(live: Live, ids: list[str]) -> float:
    """Stop all, continue all; return the milliseconds of the first. Raises when one was not confirmed."""

    async def send(signal: AgentSignal) -> None:
        if not all(await asyncio.gather(*(live.space.send_signal(agent_id, signal) for agent_id in ids))):
            raise RuntimeError(f"{signal.name} was not confirmed for all of {len(ids)} agents")

    start = time.perf_counter_ns()
    live.run(send(AgentSignal.SIGSTOP))
    spent = time.perf_counter_ns() - start
    live.run(send(AgentSignal.SIGCONT))
    return spent / 1e6


BENCHES: Final = (Bench("stop-one", (ONE,), rounds_one), Bench("stop-many", (MANY,), rounds_many))
