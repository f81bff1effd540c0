"""Questions to the record: SQL, the predicate in Python and every storage give the same answer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import START_NS, RunOnDisk, event, events

from agentos.clock import to_datetime
from agentos.errors import BadRequest
from agentos.recorder.event import SEVERITIES, AuditEvent
from agentos.recorder.query import LIMIT_DEFAULT, Query, merge, parse_query
from agentos.recorder.reader import RunReader
from agentos.recorder.storage.memory import MemoryStorage
from agentos.recorder.storage.sqlite import SqliteStorage

TYPES = ("action_allowed", "policy_violation", "a'; DROP TABLE events --", "ü\x00")
AGENTS = ("agent-1", "agent-2", "")
RUNS = ("run-a", "run-b")
SPAN = 12  # times lie within so many ticks: many are equal, and bounds hit them exactly

queries = st.builds(
    Query,
    event_type=st.none() | st.sampled_from(TYPES),
    agent_id=st.none() | st.sampled_from(AGENTS),
    severities=st.none() | st.lists(st.sampled_from(SEVERITIES), max_size=3).map(tuple),
    start_ns=st.none() | st.integers(0, SPAN).map(lambda tick: START_NS + tick),
    end_ns=st.none() | st.integers(0, SPAN).map(lambda tick: START_NS + tick),
    execution_id=st.none() | st.sampled_from(AGENTS),
    after_seq=st.integers(0, 8),
    limit=st.none() | st.integers(0, 8),
    newest_first=st.booleans(),
)
fields = st.fixed_dictionaries({
    "event_type": st.sampled_from(TYPES), "agent_id": st.sampled_from(AGENTS), "severity": st.sampled_from(SEVERITIES),
    "execution_id": st.sampled_from(AGENTS), "ts_ns": st.integers(0, SPAN).map(lambda tick: START_NS + tick),
})  # fmt: skip
runs = st.lists(fields, max_size=12)


def as_events(run_id: str, rows: list[dict[str, Any]]) -> list[AuditEvent]:
    return [event(seq, run_id, **row) for seq, row in enumerate(rows, 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("query")
    numbers = itertools.count()
    return (directory / str(number) for number in numbers)


def literally(query: Query, stored: list[AuditEvent]) -> list[AuditEvent]:
    """The question once more, as slowly and plainly as it can be said."""
    found = []
    for one in stored:
        wanted = one.seq > query.after_seq
        wanted &= query.event_type is None or one.event_type == query.event_type
        wanted &= query.agent_id is None or one.agent_id == query.agent_id
        wanted &= query.execution_id is None or one.execution_id == query.execution_id
        wanted &= query.severities is None or one.severity in query.severities
        wanted &= query.start_ns is None or query.start_ns <= one.ts_ns
        wanted &= query.end_ns is None or one.ts_ns < query.end_ns
        if wanted:
            found.append(one)
    if query.newest_first:
        found.reverse()
    return found if query.limit is None else found[: query.limit]


@settings(deadline=None, max_examples=150)
@given(first=runs, second=runs, asked=st.lists(queries, min_size=1, max_size=20))
def test_sql_and_python_agree(files: Iterator[Path], first: list[Any], second: list[Any], asked: list[Query]) -> None:
    stored = {run_id: as_events(run_id, rows) for run_id, rows in zip(RUNS, (first, second), strict=True)}
    memory = MemoryStorage()
    with contextlib.closing(SqliteStorage(next(files))) as sqlite:
        for batch in stored.values():
            memory.insert_many(batch)
            sqlite.insert_many(batch)
        for query, run_id in itertools.product(asked, (None, *RUNS)):
            everything = [one for name, batch in stored.items() if run_id in (None, name) for one in batch]
            expected = literally(query, everything)
            assert query.select(everything) == expected
            assert memory.select(query, run_id) == expected
            assert sqlite.select(query, run_id) == expected


@settings(deadline=None, max_examples=60)
@given(rows=runs, committed=st.integers(0, 12), asked=st.lists(queries, min_size=1, max_size=20))
def test_a_run_answers_the_same_wherever_its_events_are_yet(
    files: Iterator[Path], rows: list[Any], committed: int, asked: list[Query]
) -> None:
    run = RunOnDisk(next(files))
    for row in rows:
        run.record(**row)
    stored = as_events(run.run_id, rows)
    with contextlib.closing(run.storage()) as storage:
        storage.insert_many(stored[:committed])
        reader = RunReader(run.run_dir)
        for query in asked:
            assert reader.select(query) == literally(query, stored)


# --- the arguments ---------------------------------------------------------------------------------------------------


def test_the_named_fields_become_a_query() -> None:
    moment = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
    query = parse_query(
        event_type="x", agent_id="a\udcff", severity=["error", "warning"], start_time=moment,
        end_time=moment + timedelta(microseconds=1), execution_id="e", limit=None, after_seq=4, newest_first=False,
    )  # fmt: skip
    assert query == Query(
        event_type="x", agent_id="a\\xff", severities=("warning", "error"), start_ns=START_NS, end_ns=START_NS + 1000,
        execution_id="e", limit=None, after_seq=4, newest_first=False,
    )  # fmt: skip
    assert parse_query() == Query(limit=LIMIT_DEFAULT)
    assert parse_query(severity="error").severities == ("error",)


def test_a_naive_time_is_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 1_767_322_800_123_456_000
    local = to_datetime(now_ns).astimezone().replace(tzinfo=None)
    assert parse_query(start_time=local).start_ns == now_ns


@pytest.mark.parametrize("moment", [datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)])
def test_a_time_that_no_column_holds_means_always(tmp_path: Path, moment: datetime) -> None:
    query = parse_query(
        start_time=min(moment, datetime(2000, 1, 1, tzinfo=UTC)), end_time=max(moment, datetime(2100, 1, 1, tzinfo=UTC))
    )
    with contextlib.closing(SqliteStorage(tmp_path / "flight.db")) as storage:
        storage.insert_many(events(2))
        assert len(storage.select(query)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"severity": "warn"}, r"unknown severity 'warn' \(did you mean 'warning'"),
        ({"severity": ["info", 7]}, "unknown severity 7"),
        ({"severity": 7}, "severity must be a str or several, not int"),
        ({"event_type": 7}, "event_type must be a str, not int"),
        ({"agent_id": b"x"}, "agent_id must be a str, not bytes"),
        ({"start_time": "yesterday"}, "start_time must be a datetime, not str"),
        ({"end_time": date(2026, 1, 2)}, "end_time must be a datetime, not date"),
        ({"limit": -1}, "limit must be a whole number of at least 0, not -1"),
        ({"limit": True}, "limit must be a whole number"),
        ({"after_seq": 1.5}, "after_seq must be a whole number"),
        (
            {"filters": {"data.action": "write"}},
            "filters= is not available in this version; the named fields are event_type",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_query(**arguments)


# --- several sources -------------------------------------------------------------------------------------------------


def test_answers_of_several_sources_are_one(tmp_path: Path) -> None:
    early, late = events(3, run_id="b"), [event(seq, "a", ts_ns=START_NS + 10**9 + seq) for seq in (1, 2)]
    query = Query(limit=None, newest_first=False)
    assert merge([*late, *early, *early], query) == [*early, *late]
    assert merge([*early, *late], Query(limit=3)) == [late[1], late[0], early[2]]


def test_within_a_run_the_order_is_that_of_the_record_even_when_the_clock_was_set_back() -> None:
    jumped = [event(1, ts_ns=50), event(2, ts_ns=10), event(3, ts_ns=60)]
    beside = [event(1, "other", ts_ns=55)]
    for newest_first in (False, True):
        found = [one.event_id for one in merge([*jumped, *beside], Query(limit=None, newest_first=newest_first))]
        own = [one for one in found if not one.startswith("other")]
        assert own == sorted(own, reverse=newest_first)
        assert len(found) == 4
