"""What an idle agent takes: the proportional set size of agent and sentry after one action, a hundred side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks import agents
from benchmarks.beside import Beside
from benchmarks.kernel import kernel, readable_sentries
from benchmarks.method import Line, Reading
from benchmarks.programs import pss_bytes
from benchmarks.runner import Bench, Round, Settings

AGENTS: Final = 100
REST_S: Final = 0.5  # between rounds: heartbeats come once a second

LINES: Final = (
    Line(name="memory", what=f"PSS of an idle agent and its sentry after one action, mean of {AGENTS}",
         floor="PSS of an idle fork of a process with the zygote's imports", unit="MB", subject_limit=3.5),
)  # fmt: skip


@contextmanager
def rounds(_: Settings) -> Iterator[Round]:
    with readable_sentries(), kernel() as live, Beside("crowd", 2 * AGENTS, "zygote") as crowd:
        ids = live.spawn_many(agents.act_once_and_idle, AGENTS)
        pids = [pid for row in live.rows(ids) for pid in (row["pid"], row["sentry_pid"])]

        def read() -> dict[str, Reading]:
            time.sleep(REST_S)
            total = sum(map(pss_bytes, pids))
            return {"memory": Reading(total / AGENTS / 1e6, crowd.ask(what="pss") / 1e6)}

        yield read


BENCH: Final = Bench("memory", LINES, rounds)
