"""A decision alone, in one process: what 10,000 rules cost where 10 would do.

The same kind of names for both, none asked twice, so that the policy's cache of names helps neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from agentos.actions import Action
from agentos.policies import EffectivePolicy
from benchmarks import rules
from benchmarks.method import Line, Reading, quantile
from benchmarks.runner import Bench, Round, Settings

MANY: Final = 10_000
FEW: Final = 10
COUNT: Final = 2_000
BLOCK: Final = 100  # few and many take turns, so that both see the same weather
_AT: Final = datetime(2026, 1, 2, tzinfo=UTC)

LINES: Final = (
    Line(name="decision", what="one decision among 10,000 rules, a new name each time, p50",
         floor="the same among 10 rules", unit="µs", ratio_limit=2.0),
)  # fmt: skip


@contextmanager
def rounds(settings: Settings) -> Iterator[Round]:
    policies = {count: EffectivePolicy(rules.policy(count), workspace=str(settings.directory)) for count in (FEW, MANY)}
    seeds = iter(range(1_000_000))
    for count, policy in policies.items():  # indices and trees are built by the first that need them
        _spent_ns(policy, rules.actions(COUNT, count, next(seeds)))

    def read() -> dict[str, Reading]:
        spent: dict[int, list[int]] = {FEW: [], MANY: []}
        for _ in range(COUNT // BLOCK):
            seed = next(seeds)
            for count, policy in policies.items():
                spent[count] += _spent_ns(policy, rules.actions(BLOCK, count, seed))
        few, many = spent[FEW], spent[MANY]
        return {"decision": Reading(quantile(many, 0.5) / 1e3, quantile(few, 0.5) / 1e3, quantile(many, 0.99) / 1e3)}

    yield read


def _spent_ns(policy: EffectivePolicy, wanted: list[tuple[str, str]]) -> list[int]:
    clock, decide = time.perf_counter_ns, policy.decide
    spent = []
    for operation, name in wanted:
        start = clock()
        decide(Action(operation=operation, resource=name), cwd="/", context={}, name="agent", now_s=0.0, at=_AT)
        spent.append(clock() - start)
    return spent


BENCH: Final = Bench("decision", LINES, rounds)
