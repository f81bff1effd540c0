"""Audit events: whatever is in them, they read the same from journal, database and memory, and JSON can say them."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import RunOnDisk, event

from agentos.errors import BadRequest
from agentos.recorder.event import (
    ENTRY_BYTES_MAX,
    ENTRY_DEPTH_MAX,
    ENTRY_ITEMS_MAX,
    WORD_CHARS_MAX,
    parse_entry,
    printable,
    severity_rank,
    text,
)
from agentos.recorder.reader import RunReader
from agentos.recorder.recover import recover
from agentos.recorder.storage.memory import MemoryStorage


class Colour(Enum):
    RED = "red"


HOSTILE: list[Any] = [
    "\ud800", "a\udcff\x00b", "\u2028</script>\x1b[31m", "\uffff", "𝄞", "",
    2**64, -(2**63) - 1, 2**200, True, 0.1, math.nan, math.inf, -math.inf,
    b"\xff\x00", bytearray(b"x"), {1, 2}, frozenset(), (1, (2,)), Colour.RED, datetime(2026, 1, 2, tzinfo=UTC),
    {None: 1, True: 2, 1.5: 3, b"\xff": 4, "\udcff": 5, (1, 2): 6, ((1,), "x"): 7}, object, len,
]  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_hostile_values_reach_the_database_and_are_plain(tmp_path: Path, value: Any) -> None:
    run = RunOnDisk(tmp_path / "run")
    run.record(data={"value": value, "list": [value]}, agent_name=value if isinstance(value, str) else "name")
    run.record()
    before = RunReader(run.run_dir).read()
    assert recover(run.run_dir) == 2
    stored = RunReader(run.run_dir).read()
    assert stored == before
    assert stored[0].data == {"value": printable(value), "list": [printable(value)]}
    assert json.loads(json.dumps(stored[0].data, allow_nan=False)) == stored[0].data
    json.dumps(stored[0].to_json(), ensure_ascii=False).encode()


def test_a_field_of_the_wrong_kind_does_not_stop_what_comes_after_it(tmp_path: Path) -> None:
    run = RunOnDisk(tmp_path / "run")
    run.record(event_type=b"\xff", severity=7, agent_id=None, agent_name=["a"], data="text", durable=1)
    run.record()
    assert recover(run.run_dir) == 2
    first, second = RunReader(run.run_dir).read()
    assert (first.event_type, first.severity, first.agent_id, first.agent_name) == ("\\xff", "7", "None", "['a']")
    assert first.data == {"value": "text"}
    assert second == event(2)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers() | st.tuples(st.text()), inner)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=50)
@given(
    data=st.dictionaries(st.text(st.characters()), values),
    words=st.lists(st.text(st.characters()), min_size=4, max_size=4),
)
def test_journal_database_and_memory_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], words: list[str]
) -> None:
    run = RunOnDisk(tmp_path_factory.mktemp("run"))
    event_type, agent_id, agent_name, execution_id = words
    run.record(data=data, event_type=event_type, agent_id=agent_id, agent_name=agent_name, execution_id=execution_id)
    (journalled,) = RunReader(run.run_dir).read()
    memory = MemoryStorage()
    with contextlib.closing(run.storage()) as storage:
        for made in (storage, memory):
            made.insert_many([journalled])
            assert made.insert_many([journalled]) == 0  # what is stored is the very event
    assert [text(word) for word in words] == [
        journalled.event_type, journalled.agent_id, journalled.agent_name, journalled.execution_id
    ]  # fmt: skip
    assert journalled.data == printable(data)


# --- what a program asks to have logged ------------------------------------------------------------------------------


def test_an_entry_is_checked_and_made_plain() -> None:
    entry = parse_entry("a\udcff", "agent", {"when": datetime(2026, 1, 2, tzinfo=UTC), "nan": math.nan}, "warning")
    assert (entry.event_type, entry.agent_id, entry.severity) == ("a\\xff", "agent", "warning")
    assert entry.data == {"when": "2026-01-02T00:00:00+00:00", "nan": "nan"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"x", "a", {}, "info"), "event_type must be a str, not bytes"),
        (("x", None, {}, "info"), "agent_id must be a str, not NoneType"),
        (("", "a", {}, "info"), "event_type is empty"),
        (("x" * (WORD_CHARS_MAX + 1), "a", {}, "info"), "event_type has 257 characters, the limit is 256"),
        (("x", "a", ["no", "dict"], "info"), "data must be a dict, not list"),
        (("x", "a", {}, "warn"), r"unknown severity 'warn' \(did you mean 'warning'\?\); known: debug"),
        (("x", "a", {}, 7), "severity must be a str"),
        (("x", "a", {"x": "ü" * ENTRY_BYTES_MAX}, "info"), f"the limit is {ENTRY_BYTES_MAX}"),
        (("x", "a", {"x": [0] * (ENTRY_ITEMS_MAX - 2)}, "info"), f"more than {ENTRY_ITEMS_MAX} keys and values"),
        (("x", "a", dict.fromkeys(map(str, range(40_000))), "info"), f"more than {ENTRY_ITEMS_MAX} keys and values"),
    ],
)
def test_what_cannot_be_logged_is_refused_by_name(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_entry(*arguments)


def test_what_refers_to_itself_is_refused_at_once() -> None:
    cycle: list[Any] = []
    cycle += [cycle, cycle, cycle]
    with pytest.raises(BadRequest, match="refers to itself"):
        parse_entry("x", "a", {"cycle": cycle}, "info")


def test_depth_is_cut_where_it_would_not_fit_a_frame() -> None:
    data = parse_entry("x", "a", {"deep": nested(ENTRY_DEPTH_MAX + 5)}, "info").data
    depth, value = 1, data["deep"]
    while isinstance(value, list):
        depth, (value,) = depth + 1, value
    assert (depth, value) == (ENTRY_DEPTH_MAX, "[nested too deeply]")
    assert parse_entry("x", "a", {"deep": nested(5)}, "info").data == {"deep": nested(5)}


def test_severities_are_ordered() -> None:
    ranks = [severity_rank(word) for word in ("debug", "info", "warning", "error", "critical")]
    assert ranks == sorted(set(ranks))
