"""What is cast decodes to what would have been packed anew."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from agentos.mould import HOLE, Mould

numbers = st.integers(0, 2**64 - 1)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 2) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(plain, plain, plain, numbers, numbers)
def test_what_is_cast_is_what_would_be_packed(before: Any, between: Any, after: Any, one: int, other: int) -> None:
    mould = Mould.of(msgpack.packb([before, HOLE, {"k": between, "n": HOLE}, after]), 2)
    assert mould is not None
    for pair in ((one, other), (other, one)):  # and casting leaves it as it was
        assert msgpack.unpackb(mould.cast(*pair)) == [before, pair[0], {"k": between, "n": pair[1]}, after]


def test_another_number_that_looks_like_a_hole_makes_no_mould() -> None:
    assert Mould.of(msgpack.packb([HOLE, "x", 2**64 - 1]), 1) is None
    assert Mould.of(msgpack.packb([HOLE, [-1] * 8]), 1) is None
    assert Mould.of(msgpack.packb(["x"]), 1) is None
