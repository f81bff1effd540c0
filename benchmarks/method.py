"""The method: readings, rounds, series and the verdict on a budget. Pure: no clock, no process, no output.

A round reads a subject and its floor one after the other; their ratio is what counts, because the machine's mood is
in both. A series is some rounds and yields their median. A row is gated on the best of at most `SERIES_MAX` such
medians, and a series that meets the budget ends the measuring: more of them could not change the verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SERIES_MAX: Final = 3
ROUNDS: Final = 7
ROUNDS_QUICK: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table and its budget: a limit on the ratio, on the measure itself, or on either of the two.

    With both limits, meeting one is enough. Without any, the line is for information.
    """

    name: str
    what: str
    floor: str
    unit: str
    ratio_limit: float | None = None
    subject_limit: float | None = None
    more_is_better: bool = False

    @property
    def budget(self) -> str:
        """The budget in words, `≤ 2.5 x` or `≤ 600 ms or ≤ 60 x`."""
        sign = "≥" if self.more_is_better else "≤"
        words = []
        if self.subject_limit is not None:
            words.append(f"{sign} {self.subject_limit:g} {self.unit}")
        if self.ratio_limit is not None:
            words.append(f"{sign} {self.ratio_limit:g} x")
        return " or ".join(words) or "none"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one round saw of one line, in the unit of the line. `p99` where single events were timed."""

    subject: float
    floor: float
    p99: float | None = None

    def __post_init__(self) -> None:
        if not self.subject > 0 or not self.floor > 0:
            raise ValueError(f"nothing takes no time: subject {self.subject!r}, floor {self.floor!r}")

    @property
    def ratio(self) -> float:
        return self.subject / self.floor


@dataclass(frozen=True, slots=True)
class Medians:
    """The middle of one series, each figure by itself."""

    subject: float
    floor: float
    ratio: float
    p99: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All series of one line, and the one that counts."""

    line: Line
    series: tuple[tuple[Reading, ...], ...]
    medians: tuple[Medians, ...]
    best: Medians
    passed: bool


def medians(readings: Sequence[Reading]) -> Medians:
    """Return the medians of one series. The ratio is the median of ratios, not the ratio of medians."""
    tails = [reading.p99 for reading in readings if reading.p99 is not None]
    return Medians(
        subject=statistics.median(reading.subject for reading in readings),
        floor=statistics.median(reading.floor for reading in readings),
        ratio=statistics.median(reading.ratio for reading in readings),
        p99=statistics.median(tails) if tails else None,
    )


def judge(line: Line, series: Sequence[Sequence[Reading]]) -> Outcome:
    """Return the outcome of a line from one to SERIES_MAX series of readings."""
    if not 1 <= len(series) <= SERIES_MAX:
        raise ValueError(f"{line.name}: {len(series)} series, a verdict takes 1 to {SERIES_MAX}")
    middles = tuple(medians(readings) for readings in series)
    best = (max if line.more_is_better else min)(middles, key=lambda middle: _figure(line, middle))
    return Outcome(line, tuple(map(tuple, series)), middles, best, any(_meets(line, middle) for middle in middles))


def settled(lines: Sequence[Line], series: Mapping[str, Sequence[Sequence[Reading]]]) -> bool:
    """Whether no further series can change a verdict: every line has passed, or has had its last."""
    return all(judge(line, series[line.name]).passed or len(series[line.name]) == SERIES_MAX for line in lines)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed (nearest rank, no interpolation)."""
    ordered = sorted(values)
    if not ordered or not 0 < share <= 1:
        raise ValueError(f"no quantile {share!r} of {len(ordered)} values")
    return ordered[math.ceil(len(ordered) * share) - 1]


def _figure(line: Line, middle: Medians) -> float:
    return middle.ratio if line.ratio_limit is not None or line.subject_limit is None else middle.subject


def _meets(line: Line, middle: Medians) -> bool:
    limits = [(line.ratio_limit, middle.ratio), (line.subject_limit, middle.subject)]
    given = [(limit, figure) for limit, figure in limits if limit is not None]
    return not given or any(figure >= limit if line.more_is_better else figure <= limit for limit, figure in given)
