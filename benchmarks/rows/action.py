"""A semantic action: from the agent's `act` to its verdict, decided by 1,000 rules and on record before it returns.

Agents mostly do again what they did before: the names of `action-idle` and `action-busy` are drawn from a few hundred,
and none of `action-new` comes twice. Agent and kernel share one CPU, as the two ends of the floor's pipes do; the host
program and the recorder have the others.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from benchmarks import agents, rules
from benchmarks.beside import Beside
from benchmarks.kernel import Live, kernel, two_places
from benchmarks.method import Line, Reading, quantile
from benchmarks.runner import Bench, Round, Settings

RULES: Final = 1_000
NAMES: Final = 500
COUNT: Final = 2_000
WARM_UP: Final = 200
BUDGET: Final = 2.5
_FLOOR: Final = "bare msgpack echo through two pipes, same CPU"

LINES: Final = (
    Line(name="action-idle", what=f"act() to verdict, 1,000 rules, {NAMES} names, journalled, p50; host program idle",
         floor=_FLOOR, unit="µs", ratio_limit=BUDGET),
    Line(name="action-busy", what="the same while the host program computes in Python",
         floor=_FLOOR, unit="µs", ratio_limit=BUDGET),
    Line(name="action-new", what="the same as action-idle, but no name comes twice", floor=_FLOOR, unit="µs"),
)  # fmt: skip


@contextmanager
def rounds(_: Settings) -> Iterator[Round]:
    hot, others = two_places()
    with kernel(rules.policy(RULES)) as live, Beside("echo", hot) as echo:
        os.sched_setaffinity(live.kernel_pid, {hot})
        os.sched_setaffinity(live.recorder_pid, others)
        seeds = iter(range(1_000_000))

        def reading(names: list[str], *, busy: bool = False) -> Reading:
            floor_ns = echo.ask(message=_message(), warm_up=WARM_UP, count=COUNT)
            arguments = (agents.act_often, hot, names, WARM_UP)
            spent_ns = _while_computing(live, others, *arguments) if busy else live.execute(*arguments)
            return Reading(quantile(spent_ns, 0.5) / 1e3, quantile(floor_ns, 0.5) / 1e3, quantile(spent_ns, 0.99) / 1e3)

        yield lambda: {
            "action-idle": reading(_drawn(next(seeds))),
            "action-busy": reading(_drawn(next(seeds)), busy=True),
            "action-new": reading(_different(COUNT + WARM_UP, next(seeds))),
        }


def _different(count: int, seed: int) -> list[str]:
    return [name for _, name in rules.actions(count, RULES, seed, operations=("read",))]


def _drawn(seed: int) -> list[str]:
    return random.Random(seed).choices(_different(NAMES, seed), k=COUNT + WARM_UP)  # noqa: S311 - for everybody the same


def _message() -> list[Any]:
    """The fields of an action's frame: the floor carries what the real thing carries."""
    return [10, 1234, "read", "data/tenant_123/report/1234.json", None, None, os.getcwd(), {}, "sdk"]


def _while_computing(live: Live, cpus: set[int], *arguments: Any) -> Any:
    """Execute an agent from a second thread while this one, the program's main thread, computes without a pause."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(live.execute(*arguments)))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    thread.start()
    number = 1
    while thread.is_alive():
        for _ in range(10_000):
            number = number * 1_103_515_245 % 2_147_483_647
    os.sched_setaffinity(0, before)
    thread.join()
    return result[0]


BENCH: Final = Bench("action", LINES, rounds)
