"""The benchmarks' method: quantiles, medians of ratios, the best of at most three series, and when to stop."""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.method import ROUNDS, ROUNDS_QUICK, SERIES_MAX, Line, Reading, judge, medians, quantile, settled
from benchmarks.runner import Bench, LeftAlive, Round, Settings, measure

RATIO = Line(name="ratio", what="a", floor="b", unit="µs", ratio_limit=2.0)
SPEED = Line(name="speed", what="a", floor="b", unit="/s", ratio_limit=3.0, more_is_better=True)
SIZE = Line(name="size", what="a", floor="b", unit="MB", subject_limit=3.5)
EITHER = Line(name="either", what="a", floor="b", unit="ms", subject_limit=600.0, ratio_limit=60.0)
FREE = Line(name="free", what="a", floor="b", unit="µs")


@pytest.mark.parametrize(("share", "expected"), [(0.5, 3), (0.99, 5), (1.0, 5), (0.2, 1), (0.21, 2), (0.0001, 1)])
def test_a_quantile_is_a_value_that_was_seen(share: float, expected: int) -> None:
    assert quantile([5, 3, 1, 4, 2], share) == expected


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200), st.floats(0.001, 1.0))
def test_a_quantile_is_the_smallest_that_enough_values_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    wanted = math.ceil(len(values) * share)
    assert found in values
    assert sum(value <= found for value in values) >= wanted
    assert sum(value < found for value in values) < wanted


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_no_quantile_of_nothing(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        quantile(values, share)


@pytest.mark.parametrize(("subject", "floor"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_a_reading_that_cannot_be_is_refused(subject: float, floor: float) -> None:
    with pytest.raises(ValueError, match="takes no time"):
        Reading(subject, floor)


def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    middle = medians([Reading(10, 10, 7), Reading(30, 10, 9), Reading(40, 20)])
    assert (middle.subject, middle.floor, middle.ratio, middle.p99) == (30, 10, 2.0, 8)


def test_where_no_event_was_timed_there_is_no_p99() -> None:
    assert medians([Reading(1, 1)]).p99 is None


def of(*ratios: float) -> list[list[Reading]]:
    """One series for each ratio."""
    return [[Reading(ratio, 1.0)] for ratio in ratios]


@pytest.mark.parametrize(
    ("line", "series", "best", "passed"),
    [
        (RATIO, of(2.0), 2.0, True),
        (RATIO, of(2.1, 3.0, 2.0), 2.0, True),
        (RATIO, of(2.1, 3.0, 2.2), 2.1, False),
        (SPEED, of(2.9, 3.0, 1.0), 3.0, True),
        (SPEED, of(2.9, 2.8), 2.9, False),
        (SIZE, of(3.6, 3.5), 3.5, True),
        (SIZE, of(3.6), 3.6, False),
        (FREE, of(1e9), 1e9, True),
    ],
)
def test_the_best_series_counts(line: Line, series: list[list[Reading]], best: float, passed: bool) -> None:
    outcome = judge(line, series)
    assert (outcome.best.ratio, outcome.passed) == (best, passed)
    assert len(outcome.medians) == len(outcome.series) == len(series)


@pytest.mark.parametrize(
    ("reading", "passed"),
    [
        (Reading(600, 1), True),  # slower than 60 floors, and yet within the limit in milliseconds
        (Reading(700, 100), True),
        (Reading(700, 1), False),
    ],
)
def test_of_two_limits_one_is_enough(reading: Reading, passed: bool) -> None:
    assert judge(EITHER, [[reading]]).passed is passed


@pytest.mark.parametrize("count", [0, SERIES_MAX + 1])
def test_a_verdict_takes_one_to_three_series(count: int) -> None:
    with pytest.raises(ValueError, match="series"):
        judge(RATIO, of(*[1.0] * count))


def test_measuring_ends_when_no_series_could_change_a_verdict() -> None:
    assert settled([RATIO], {"ratio": of(1.0)})
    assert not settled([RATIO], {"ratio": of(9.0, 9.0)})
    assert settled([RATIO], {"ratio": of(9.0, 9.0, 9.0)})
    assert not settled([RATIO, SPEED], {"ratio": of(1.0), "speed": of(1.0)})
    assert settled([RATIO, FREE], {"ratio": of(1.0), "free": of(9.0)})


@pytest.mark.parametrize(
    ("line", "words"),
    [(RATIO, "≤ 2 x"), (SPEED, "≥ 3 x"), (SIZE, "≤ 3.5 MB"), (EITHER, "≤ 600 ms or ≤ 60 x"), (FREE, "none")],
)
def test_a_budget_in_words(line: Line, words: str) -> None:
    assert line.budget == words


class Script:
    """A bench that reads what it is told: one value a round, the last one for ever."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.rounds_read = 0
        self.open = False

    def bench(self) -> Bench:
        return Bench("script", (RATIO, FREE), self.rounds)

    @contextlib.contextmanager
    def rounds(self, settings: Settings) -> Iterator[Round]:
        self.open = True
        yield self.read
        self.open = False

    def read(self) -> Mapping[str, Reading]:
        self.rounds_read += 1
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        return {"ratio": Reading(value, 1.0), "free": Reading(value, 2.0)}


@pytest.mark.parametrize(("quick", "rounds"), [(False, ROUNDS), (True, ROUNDS_QUICK)])
def test_one_good_series_is_enough(tmp_path: Path, quick: bool, rounds: int) -> None:
    script = Script(1.0)
    outcomes = measure(script.bench(), Settings(tmp_path, quick), [RATIO, FREE], lambda _: None)
    assert script.rounds_read == rounds
    assert not script.open
    assert [(one.line, one.passed) for one in outcomes] == [(RATIO, True), (FREE, True)]


def test_a_budget_is_missed_only_after_three_series(tmp_path: Path) -> None:
    script = Script(9.0)
    (outcome,) = measure(script.bench(), Settings(tmp_path), [RATIO], lambda _: None)
    assert script.rounds_read == SERIES_MAX * ROUNDS
    assert not outcome.passed


def test_a_noisy_first_series_is_forgiven(tmp_path: Path) -> None:
    script = Script(*[9.0] * ROUNDS, 1.0)
    (outcome,) = measure(script.bench(), Settings(tmp_path), [RATIO], lambda _: None)
    assert script.rounds_read == 2 * ROUNDS
    assert outcome.passed
    assert outcome.best.ratio == 1.0


def test_a_bench_that_leaves_a_process_behind_is_named(tmp_path: Path) -> None:
    left: list[subprocess.Popen[bytes]] = []

    class Careless(Script):
        def read(self) -> Mapping[str, Reading]:
            left.append(subprocess.Popen(["sleep", "60"]))
            return super().read()

    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            with pytest.raises(LeftAlive, match="script left the processes") as named:
                measure(Careless(1.0).bench(), Settings(tmp_path), [RATIO], lambda _: None)
            assert all(str(child.pid) in str(named.value) for child in left)
            assert str(other.pid) not in str(named.value)
        finally:
            for child in (*left, other):
                child.kill()
                child.wait()
