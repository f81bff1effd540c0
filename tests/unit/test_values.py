"""Values cross equal or are refused by name and place; bytes from an agent never become code."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import threading
import tracemalloc
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.errors import NotSerialisable, ProtocolError
from agentos.values import VALUE_ITEMS_MAX, pack_value, unpack_value


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str]


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.datetimes(timezones=st.just(UTC)) | st.dates() | st.timedeltas() | st.decimals(allow_nan=False) | st.uuids()
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(-5, 5), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_goes_in_comes_out(value: Any) -> None:
    back = unpack_value(pack_value(value, "x"))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Colour.RED, "red"),
        (Point(1, {"a"}), {"x": 1, "tags": {"a"}}),
        ([Point(2, set())], [{"x": 2, "tags": set()}]),
        (2**200, 2**200),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        (date(2026, 1, 2), date(2026, 1, 2)),
        (timedelta(days=-1, microseconds=5), timedelta(days=-1, microseconds=5)),
        (Decimal("1.10"), Decimal("1.10")),
        (frozenset({(1, 2)}), frozenset({(1, 2)})),
    ],
)
def test_special_values(value: Any, arrives: Any) -> None:
    assert unpack_value(pack_value(value, "x")) == arrives


@pytest.mark.parametrize("value", [object(), threading.Lock(), lambda: 1, {"deep": [object]}, {object(): 1}, "\ud800"])
def test_anything_else_is_refused_by_type_and_place(value: Any) -> None:
    with pytest.raises(NotSerialisable, match="argument 2 of worker") as caught:
        pack_value(value, "argument 2 of worker")
    assert caught.value.where == "argument 2 of worker"


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotSerialisable, match="nested deeper"):
        pack_value(endless, "x")


@given(st.binary(max_size=100))
def test_foreign_bytes_are_a_protocol_error_or_a_value(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack_value(data)


def test_a_pickle_is_just_bytes() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return UUID, (str(uuid4()),)

    bomb = pickle.dumps(UUID(int=1))
    assert unpack_value(msgpack.packb(bomb)) == bomb
    with pytest.raises(ProtocolError):
        unpack_value(msgpack.packb(msgpack.ExtType(99, bomb)))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd" + (4_000_000).to_bytes(4) + b"\x80" * 4_000_000,
        msgpack.packb([msgpack.ExtType(8, msgpack.packb([0] * 5_000))] * 201),
        msgpack.packb(msgpack.ExtType(8, b"\xdd" + (1_100_000).to_bytes(4) + b"\x80" * 1_100_000)),
    ],
    ids=["dicts", "many tuples", "one tuple"],
)
def test_a_value_is_measured_before_it_is_decoded(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="holds more than .* items"):
            unpack_value(bomb)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_a_large_value_crosses_up_to_the_limit_which_is_named_beyond_it() -> None:
    largest = [0] * (VALUE_ITEMS_MAX - 1)  # the list is an item too
    assert unpack_value(pack_value(largest, "x")) == largest
    with pytest.raises(NotSerialisable, match=rf"the result: .* holds more than {VALUE_ITEMS_MAX} items"):
        pack_value([*largest, 0], "the result")
    with pytest.raises(NotSerialisable, match=f"the limit of a whole value is {VALUE_ITEMS_MAX}"):
        pack_value([tuple(largest[:600_000]), set(range(600_000))], "the result")


def test_a_duration_beyond_python_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="not a packed value"):
        unpack_value(msgpack.packb(msgpack.ExtType(3, msgpack.packb([10**12, 0, 0]))))
