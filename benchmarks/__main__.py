"""`python -m benchmarks`, or bin/bench: measures, prints the table, ends with 1 when a budget is missed.

docs/benchmarks.md says what each row means and how it is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from agentos.errors import nearest
from benchmarks import report
from benchmarks.method import SERIES_MAX, Line, Outcome
from benchmarks.rows import action, cli, decision, memory, recorder, start, stop
from benchmarks.runner import Bench, Settings, host, measure, place

BENCHES: Final[tuple[Bench, ...]] = (
    action.BENCH, decision.BENCH, start.BENCH, memory.BENCH, *stop.BENCHES, *recorder.BENCHES, cli.BENCH,
)  # fmt: skip
EXIT_MISSED: Final = 1


def main() -> int:
    options = _parse(sys.argv[1:])
    chosen = choose(BENCHES, options.only)
    outcomes: list[Outcome] = []
    before = host()
    output = Path(options.json).resolve() if options.json else None
    say = _progress if sys.stderr.isatty() else _quiet
    with place(options.directory) as directory:
        settings = Settings(directory, quick=options.quick)
        for bench, lines in chosen:
            outcomes += measure(bench, settings, lines, say)
    say("")
    print("\n".join([*report.legend(outcomes), "", *report.table(outcomes)]))
    if output is not None:
        facts = {"quick": options.quick, "rounds": settings.rounds, "series_max": SERIES_MAX}
        output.write_text(json.dumps(report.document(outcomes, before, facts), indent=1) + "\n")
    return exit_code(outcomes, gated=not options.no_gate)


def exit_code(outcomes: Sequence[Outcome], *, gated: bool) -> int:
    """Return what the program ends with."""
    return EXIT_MISSED if gated and not all(outcome.passed for outcome in outcomes) else 0


def choose(benches: Sequence[Bench], names: Sequence[str]) -> list[tuple[Bench, list[Line]]]:
    """Return the benches with the lines to measure: all, or those named by line or by bench. Raises SystemExit."""
    known = {bench.name for bench in benches} | {line.name for bench in benches for line in bench.lines}
    for name in names:
        if name not in known:
            raise SystemExit(f"benchmarks: no row {name!r}{nearest(name, known)}; known: {', '.join(sorted(known))}")
    chosen = [
        (bench, [line for line in bench.lines if not names or {bench.name, line.name} & set(names)])
        for bench in benches
    ]
    return [(bench, lines) for bench, lines in chosen if lines]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measures agentos against its floors and budgets.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows, or groups such as `recorder`")
    parser.add_argument("--quick", action="store_true", help="3 rounds a series instead of 7, 100 agents, not 1,000")
    parser.add_argument("--json", metavar="FILE", help="also write everything that was measured")
    parser.add_argument("--no-gate", action="store_true", help="end with 0 although a budget was missed")
    parser.add_argument("--directory", metavar="DIR", help="where to put the record, on a disk; default /var/tmp")
    return parser.parse_args(arguments)


def _progress(text: Any) -> None:
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def _quiet(_: str) -> None:
    """Not a terminal: the table says it all."""


if __name__ == "__main__":
    sys.exit(main())
