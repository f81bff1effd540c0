"""Values cross equal or are refused by name and place; bytes from an agent never become code."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import threading
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
from agentos.values import pack_value, unpack_value


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
