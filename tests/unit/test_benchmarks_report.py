"""What the benchmarks print: a table that lines up, one JSON document, rows by name; and every row is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report, rules
from benchmarks.__main__ import BENCHES, EXIT_MISSED, choose, exit_code
from benchmarks.method import Line, Outcome, Reading, judge

ROOT = Path(__file__).resolve().parents[2]
SLOW = Line(name="slow", what="something", floor="nothing", unit="µs", ratio_limit=2.0)
LARGE = Line(name="large-one", what="a thing", floor="air", unit="MB", subject_limit=3.5)


def outcomes() -> list[Outcome]:
    return [
        judge(SLOW, [[Reading(30.0, 10.0, 65.0)], [Reading(25.0, 10.0, 60.0)]]),
        judge(LARGE, [[Reading(3.0, 1.5)]]),
    ]


@given(st.floats(1e-6, 1e9))
def test_a_number_has_three_digits_that_mean_something(value: float) -> None:
    shown = report.number(value)
    assert abs(float(shown) - value) <= 0.005 * value
    assert "e" not in shown
    assert len(shown.replace(".", "").lstrip("0")) >= 3


@pytest.mark.parametrize(
    ("value", "shown"), [(9.999, "10.0"), (0.99951, "1.00"), (1234.5, "1234"), (0.01234, "0.0123"), (12.34, "12.3")]
)
def test_a_number_that_grows_by_rounding_keeps_its_digits(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_the_table_lines_up_and_says_what_was_missed() -> None:
    head, slow, large = report.table(outcomes())
    assert head.split() == ["row", "measured", "floor", "ratio", "budget", "p99"]
    assert slow.split("  ")[0] == "slow"
    assert re.split(r"\s{2,}", slow)[1:] == ["25.0 µs", "10.0 µs", "2.50 x", "≤ 2 x", "60.0 µs", "MISSED"]
    assert re.split(r"\s{2,}", large)[1:] == ["3.00 MB", "1.50 MB", "2.00 x", "≤ 3.5 MB", "-", "ok"]
    assert slow.index("≤") == large.index("≤")


def test_the_legend_says_what_each_row_is() -> None:
    assert report.legend(outcomes()) == ["slow       something; floor: nothing", "large-one  a thing; floor: air"]
    assert report.legend([]) == []


def test_the_document_holds_everything_that_was_measured() -> None:
    found = json.loads(json.dumps(report.document(outcomes(), {"cpus": 2}, {"quick": True})))
    assert found.keys() == {"schema", "host", "settings", "passed", "rows"}
    assert (found["schema"], found["passed"]) == ("agentos-benchmarks/1", False)
    slow: dict[str, Any] = found["rows"][0]
    assert slow.keys() == {"name", "what", "floor", "unit", "budget", "passed", "best", "series"}
    assert slow["budget"] == {"ratio": 2.0, "subject": None, "more_is_better": False}
    assert slow["best"] == {"subject": 25.0, "floor": 10.0, "ratio": 2.5, "p99": 60.0}
    assert [series["rounds"] for series in slow["series"]] == [[[30.0, 10.0, 65.0]], [[25.0, 10.0, 60.0]]]


def test_a_document_without_a_miss_has_passed() -> None:
    assert report.document(outcomes()[1:], {}, {})["passed"] is True


def test_a_missed_budget_is_the_exit_code_unless_nobody_wants_to_know() -> None:
    assert exit_code(outcomes(), gated=True) == EXIT_MISSED != 0
    assert exit_code(outcomes(), gated=False) == 0
    assert exit_code(outcomes()[1:], gated=True) == 0


def test_rows_are_chosen_by_their_name_or_that_of_their_group() -> None:
    assert choose(BENCHES, []) == [(bench, list(bench.lines)) for bench in BENCHES]
    chosen = choose(BENCHES, ["recorder", "action-busy"])
    assert [line.name for _, lines in chosen for line in lines] == [
        "action-busy", "recorder-1", "recorder-16", "recorder-64",
    ]  # fmt: skip


def test_an_unknown_row_is_answered_with_the_nearest() -> None:
    with pytest.raises(SystemExit, match=r"no row 'action-idel'.*action-idle"):
        choose(BENCHES, ["action-idel"])


def test_every_row_has_a_name_of_its_own_and_is_explained() -> None:
    names = [line.name for bench in BENCHES for line in bench.lines]
    assert len(names) == len(set(names))
    explained = set(re.findall(r"^\| `([\w-]+)`", (ROOT / "docs/benchmarks.md").read_text(), re.MULTILINE))
    assert explained == set(names)


def test_the_budgets_in_the_document_are_those_that_are_gated() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE))
    assert rows == {line.name: line.budget for bench in BENCHES for line in bench.lines}


def test_the_rules_of_the_benchmarks_are_all_of_the_kinds_that_they_claim_and_mostly_hit() -> None:
    policy = rules.policy(100)
    wanted = rules.actions(2_000, 100, 3)
    decided = [policy.decide(operation, name) for operation, name in wanted]
    assert len(set(wanted)) == len(wanted)
    assert {decision.effect for decision in decided} == {"allow"}
    hit = {decision.rule for decision in decided if decision.rule is not None}
    assert 0.55 < sum(decision.rule is not None for decision in decided) / len(decided) < 0.75
    kinds = {rules._KINDS[number % len(rules._KINDS)] for number in hit}
    assert kinds == set(rules._KINDS) - {"exact"}  # its one name would be no new name the second time


def test_the_same_seed_gives_the_same_names_and_another_seed_others() -> None:
    assert rules.actions(50, 10, 1) == rules.actions(50, 10, 1)
    assert not set(rules.actions(50, 10, 1)) & set(rules.actions(50, 10, 2))
