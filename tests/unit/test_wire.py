"""The protocol: what goes in comes out, at any chunking; what is no frame is a ProtocolError and nothing else."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos import wire
from agentos.errors import ProtocolError
from agentos.frames import TAGS

EVERY_KIND = frozenset(TAGS.values())
ACT = wire.Act(7, "read", "data/x", None, ["git", "log"], "/w", {"cost": 1.5}, "sdk")


def sample(cls: type[Any]) -> Any:
    """Build one frame of `cls` from its own types."""
    values: dict[type, Any] = {int: 3, str: "x", bytes: b"\0", bool: True, float: 0.5, dict: {"k": [1]}, list: ["a"]}
    fields = [None if kinds is None else values.get(kinds[0]) for kinds in wire._accepted_types(cls)]
    return cls._make(fields)


@pytest.mark.parametrize("cls", sorted(EVERY_KIND, key=lambda cls: cls.__name__))
def test_every_frame_survives_the_way(cls: type[Any]) -> None:
    frame = sample(cls)
    assert list(wire.Decoder(EVERY_KIND).feed(wire.encode(frame))) == [frame]


@given(st.integers(1, 40), st.integers(1, 5))
def test_frames_are_whole_at_any_chunking(size: int, copies: int) -> None:
    data = wire.encode(ACT) * copies
    decoder = wire.Decoder(wire.FROM_AGENT)
    seen = [frame for start in range(0, len(data), size) for frame in decoder.feed(data[start : start + size])]
    assert seen == [ACT] * copies
    assert decoder.pending_bytes == 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_an_act_is_its_id_and_what_is_the_same_for_every_id(one: int, other: int) -> None:
    found, rest = wire.split_act(wire.encode(ACT._replace(id=one)))
    assert found == one
    assert rest
    assert wire.split_act(wire.encode(ACT._replace(id=other))) == (other, rest)
    assert wire.split_act(wire.encode(ACT._replace(id=other, cwd="/v")))[1] != rest


def test_what_is_not_one_act_is_not_split() -> None:
    whole = wire.encode(ACT)
    no_acts = [whole[:size] for size in range(len(whole))] + [whole * 2, whole + b"x", b"\0" + whole]
    no_acts += [wire.encode(ACT._replace(id=-1)), wire.encode(wire.Outcome(7, True, "x" * 50))]
    assert {wire.split_act(data) for data in no_acts} == {(0, b"")}


def test_a_plain_frame_is_encoded_as_any_other_also_after_one_that_cannot_be() -> None:
    assert wire.encode_plain(ACT) == wire.encode(ACT)
    with pytest.raises(ProtocolError, match="Act cannot be encoded"):
        wire.encode_plain(ACT._replace(resource="\udc41"))
    assert wire.encode_plain(ACT) == wire.encode(ACT)


def raw(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a frame"),
        (b"\xc1", "not a frame"),
        (msgpack.packb({"a": 1}), "no tag"),
        (msgpack.packb([]), "no tag"),
        (msgpack.packb([9999]), "unexpected frame"),
        (msgpack.packb([20, *([0] * 10)]), "unexpected frame Verdict"),
        (msgpack.packb([11, 1, True]), "takes 3 fields"),
        (msgpack.packb([11, "1", True, ""]), "Outcome.id is a str"),
        (msgpack.packb([11, 1, 1, ""]), "Outcome.ok is a int"),
        (msgpack.packb([11, True, True, ""]), "Outcome.id is a bool"),
        (msgpack.packb([12, b""]) + b"\0", "not a frame"),
        (msgpack.packb([11, 1, True, b"\xff"]), "Outcome.detail is a bytes"),
        (b"\x94\x0b\x01\xc3\xa1\xff", "not a frame"),  # text that is no UTF-8
    ],
)
def test_whatever_is_no_frame_of_this_peer_is_named(body: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        list(wire.Decoder(wire.FROM_AGENT).feed(raw(body)))


def test_an_announced_length_over_the_limit_is_refused_before_it_is_buffered() -> None:
    decoder = wire.Decoder(wire.FROM_AGENT)
    with pytest.raises(ProtocolError, match="4294967295 bytes is announced"):
        list(decoder.feed(b"\xff\xff\xff\xff"))
    with pytest.raises(ProtocolError, match="the limit is 8"):
        list(wire.Decoder(wire.FROM_AGENT, frame_bytes_max=8).feed(wire.encode(ACT)))


@pytest.mark.parametrize("opening", [{"k": None}, [None]])
def test_depth_is_bounded(opening: Any) -> None:
    value: Any = "leaf"
    for _ in range(wire.DEPTH_MAX + 1):
        value = {"k": value} if isinstance(opening, dict) else [value]
    data = wire.encode(ACT._replace(claims={"k": value}))
    with pytest.raises(ProtocolError, match="deeper"):
        list(wire.Decoder(wire.FROM_AGENT).feed(data))


@given(st.binary(max_size=200), st.booleans())
def test_nothing_but_protocol_error_escapes(data: bytes, framed: bool) -> None:
    with contextlib.suppress(ProtocolError):
        list(wire.Decoder(EVERY_KIND).feed(raw(data) if framed else data))


def test_what_cannot_be_encoded_is_a_protocol_error_too() -> None:
    with pytest.raises(ProtocolError, match="cannot be encoded"):
        wire.encode(ACT._replace(claims={"x": object()}))
    with pytest.raises(ProtocolError, match="limit"):
        wire.encode(wire.Result(bytes(wire.FRAME_BYTES_MAX)))


def test_a_frame_is_refused_by_its_tag_before_it_is_held() -> None:
    """A result may be large, an action may not; what is no frame of ours at all may not either."""
    size = struct.pack(">I", wire.ACTION_BYTES_MAX + 1)
    for beginning in (b"\x99\x0a", b"\x94\x0b", b"\x95\x0d", b"\xdc\x00", b"\xc4\xff", b"\x93\xcc"):
        decoder = wire.Decoder(wire.FROM_AGENT)
        assert list(decoder.feed(size + beginning[:1])) == []
        with pytest.raises(ProtocolError, match=f"the limit is {wire.ACTION_BYTES_MAX}"):
            list(decoder.feed(beginning[1:]))
    decoder = wire.Decoder(wire.FROM_AGENT)
    assert list(decoder.feed(size + b"\x92\x0c")) == []
    assert decoder.missing_bytes == wire.ACTION_BYTES_MAX + 1 - 2
    assert decoder.pending_bytes == 6


def test_structure_is_bounded_for_peers_that_are_not_trusted() -> None:
    data = wire.encode(wire.Call(1, "status", {"x": [0] * 10_000}))
    assert len(list(wire.Decoder(wire.FROM_AGENT).feed(data))) == 1
    assert len(list(wire.Decoder(wire.FROM_AGENT, items_max=20_000).feed(data))) == 1
    with pytest.raises(ProtocolError, match="more than 1000 items"):
        list(wire.Decoder(wire.FROM_AGENT, items_max=1_000).feed(data))


@pytest.mark.parametrize("strange", [msgpack.Timestamp(1), msgpack.ExtType(5, b"x")])
def test_frames_hold_plain_values_only(strange: Any) -> None:
    for claims in ({"x": strange}, {"x": [strange]}):
        body = msgpack.packb([10, *ACT._replace(claims=claims)], use_bin_type=True)
        with pytest.raises(ProtocolError, match="plain value|extension"):
            list(wire.Decoder(wire.FROM_AGENT).feed(raw(body)))
