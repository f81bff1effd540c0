"""What the benchmarks say: a table for people, one JSON document for machines. Pure.

JSON fields are added, never renamed; `schema` is raised when a meaning changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.method import Medians, Outcome

SCHEMA: Final = "agentos-benchmarks/1"
HEAD: Final = ("row", "measured", "floor", "ratio", "budget", "p99", "")
_RIGHT: Final = frozenset({"measured", "floor", "ratio", "p99"})


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the lines of the table: the best series of each row, and whether it is within its budget."""
    rows = [HEAD, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return ["  ".join(_padded(*cell) for cell in zip(row, widths, HEAD, strict=True)).rstrip() for row in rows]


def _cells(outcome: Outcome) -> tuple[str, ...]:
    line, best = outcome.line, outcome.best
    return (
        line.name,
        f"{number(best.subject)} {line.unit}",
        f"{number(best.floor)} {line.unit}",
        f"{number(best.ratio)} x",
        line.budget,
        "-" if best.p99 is None else f"{number(best.p99)} {line.unit}",
        "ok" if outcome.passed else "MISSED",
    )


def _padded(cell: str, width: int, column: str) -> str:
    return cell.rjust(width) if column in _RIGHT else cell.ljust(width)


def number(value: float) -> str:
    """Return three significant digits, without an exponent: 0.0123, 1.23, 12.3, 123, 12300."""
    digits = max(0, 2 - _magnitude(value))
    return f"{value:.{digits}f}"


def _magnitude(value: float) -> int:
    """Return the exponent of `value` as it prints with three digits: 9.999 prints as 10.0 and has 1."""
    return int(f"{value:.2e}".partition("e")[2])


def legend(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one line a row: what was measured, and against what."""
    width = max((len(outcome.line.name) for outcome in outcomes), default=0)
    return [f"{o.line.name.ljust(width)}  {o.line.what}; floor: {o.line.floor}" for o in outcomes]


def document(outcomes: Sequence[Outcome], host: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that was measured, as what `--json` writes."""
    return {
        "schema": SCHEMA,
        "host": dict(host),
        "settings": dict(settings),
        "passed": all(outcome.passed for outcome in outcomes),
        "rows": [_row(outcome) for outcome in outcomes],
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    line = outcome.line
    return {
        "name": line.name,
        "what": line.what,
        "floor": line.floor,
        "unit": line.unit,
        "budget": {
            "ratio": line.ratio_limit, "subject": line.subject_limit, "more_is_better": line.more_is_better,
        },
        "passed": outcome.passed,
        "best": _medians(outcome.best),
        "series": [
            {"medians": _medians(middle), "rounds": [[one.subject, one.floor, one.p99] for one in readings]}
            for middle, readings in zip(outcome.medians, outcome.series, strict=True)
        ],
    }  # fmt: skip


def _medians(middle: Medians) -> dict[str, float | None]:
    return {"subject": middle.subject, "floor": middle.floor, "ratio": middle.ratio, "p99": middle.p99}
