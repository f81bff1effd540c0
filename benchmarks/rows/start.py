"""A function agent: from `execute()` in the host program to the first line of the function, everything warm.

In between lie the intent on disk, the fork of a sentry, the fork of the agent, and the function's way there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks import agents
from benchmarks.beside import Beside
from benchmarks.kernel import kernel
from benchmarks.method import Line, Reading, quantile
from benchmarks.runner import Bench, Round, Settings

STARTS: Final = 20
FORKS: Final = 40
FRESH: Final = 3
REST_S: Final = 0.01  # the end of one agent is not part of the start of the next

LINES: Final = (
    Line(name="start-fork", what="execute() to the first line of a function agent, warm, p50",
         floor="fork, exit and wait in a process with the zygote's imports", unit="ms", ratio_limit=5.0),
    Line(name="start-fresh", what="the same",
         floor="a fresh interpreter with the zygote's imports, to its first line", unit="ms", ratio_limit=0.1),
)  # fmt: skip


@contextmanager
def rounds(_: Settings) -> Iterator[Round]:
    with kernel() as live, Beside("birth") as birth:

        async def start_ns() -> int:
            await asyncio.sleep(REST_S)
            before = time.monotonic_ns()
            first_line: int = await live.space.execute(agents.first_line)
            return first_line - before

        def read() -> dict[str, Reading]:
            floor = birth.ask(forks=FORKS, fresh=FRESH)
            spent = [live.run(start_ns()) for _ in range(STARTS)]
            middle, tail = quantile(spent, 0.5) / 1e6, quantile(spent, 0.99) / 1e6
            return {
                "start-fork": Reading(middle, quantile(floor["fork_ns"], 0.5) / 1e6, tail),
                "start-fresh": Reading(middle, quantile(floor["fresh_ns"], 0.5) / 1e6, tail),
            }

        yield read


BENCH: Final = Bench("start", LINES, rounds)
