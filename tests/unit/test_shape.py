"""What may be inside a frame: counted before it is decoded, exactly and at no more cost than the limit."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.shape import ITEMS_MAX, check_items, check_plain

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40)
    | st.binary(max_size=300) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40))
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=5), inner, max_size=20)
)


def count(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + sum(1 + count(inner) for inner in value.values())
    return 1


@given(values)
def test_items_are_counted_exactly(value: Any) -> None:
    body = msgpack.packb(value)
    check_items(body, count(value))
    if count(value) > 1:
        with pytest.raises(ValueError, match=f"more than {count(value) - 1} items"):
            check_items(body, count(value) - 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_or_refused(body: bytes) -> None:
    try:
        check_items(body, 100)
    except ValueError as error:
        assert str(error) in ("holds more than 100 items", "ends before what it announces")


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    bomb = msgpack.packb([{}] * 8_000_000)
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=f"more than {ITEMS_MAX} items"):
        check_items(bomb)
    assert time.perf_counter() - begin < 1.0  # decoding it takes longer, and half a gigabyte


def test_lists_that_only_announce_their_items_are_refused() -> None:
    with pytest.raises(ValueError, match="ends before"):
        check_items(b"\xdd\xff\xff\xff\xff" * 500)


@given(st.integers(1, 12))
def test_depth_is_what_is_nested(depth: int) -> None:
    value: Any = "leaf"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    check_plain(value, depth)
    with pytest.raises(ValueError, match="nested deeper"):
        check_plain(value, depth - 1)


@pytest.mark.parametrize("strange", [msgpack.Timestamp(1), msgpack.ExtType(1, b""), (1,), object()])
def test_only_plain_data_is_plain(strange: Any) -> None:
    for value in (strange, [strange], {"k": [strange]}):
        with pytest.raises(ValueError, match="no plain value"):
            check_plain(value, 8)


def test_a_key_is_a_scalar() -> None:
    check_plain({0: 1, "a": 2, b"b": 3, None: 4, True: 5, 1.5: 6}, 1)
    with pytest.raises(ValueError, match="no scalar"):
        check_plain([{(1, 2): 3}], 8)
