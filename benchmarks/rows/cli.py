"""The command line: all of `agentos ps` and of `agentos kill`, beside an interpreter that imports what they need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks import agents
from benchmarks.beside import process_ms
from benchmarks.kernel import kernel
from benchmarks.method import Line, Reading, quantile
from benchmarks.runner import Bench, Round, Settings

RUNS: Final = 7  # of each, taking turns
_IMPORTS: Final = "import click, msgpack, socket"
_FLOOR: Final = [sys.executable, "-P", "-c", _IMPORTS]
_AGENTOS: Final = [sys.executable, "-P", "-m", "agentos"]

LINES: Final = tuple(
    Line(name=f"cli-{verb}", what=f"`{call}` with one agent alive", floor=f"python -c '{_IMPORTS}'", unit="ms",
         ratio_limit=1.3)
    for verb, call in (("ps", "agentos ps"), ("kill", "agentos kill -CONT AGENT"))
)  # fmt: skip


@contextmanager
def rounds(_: Settings) -> Iterator[Round]:
    with kernel() as live:
        (agent_id,) = live.spawn_many(agents.act_once_and_idle, 1)
        commands = (_FLOOR, [*_AGENTOS, "ps"], [*_AGENTOS, "kill", "-CONT", agent_id])

        def read() -> dict[str, Reading]:
            spent = [[process_ms(command) for command in commands] for _ in range(RUNS)]
            floor, ps, kill = (quantile(column, 0.5) for column in zip(*spent, strict=True))
            return {"cli-ps": Reading(ps, floor), "cli-kill": Reading(kill, floor)}

        yield read


BENCH: Final = Bench("cli", LINES, rounds)
