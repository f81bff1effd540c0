"""Frames by dice, and what may become of their bytes on the way. Knows the structure, so that few of them die early.

Everything is drawn from one seeded generator: the seed that a failed test shows brings the same bytes back.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgpack

from agentos import wire
from agentos.frames import TAGS
from agentos.shape import ITEMS_MAX

if TYPE_CHECKING:  # agents import this module, too
    import pytest

SECONDS: Final = float(os.environ.get("AGENTOS_FUZZ_S", "60"))  # all of tests/fuzz together
SEED: Final = int(os.environ.get("AGENTOS_FUZZ_SEED") or random.SystemRandom().randrange(10**9))

ACCEPTS: Final[dict[str, frozenset[Any]]] = {
    name: accept for name, accept in vars(wire).items() if isinstance(accept, frozenset) and name.isupper()
    and not name.startswith("_")
}  # fmt: skip
KINDS: Final = sorted(TAGS.values(), key=lambda cls: cls.__name__)
INTEGERS: Final = (
    0,
    1,
    -1,
    7,
    127,
    128,
    -32,
    -33,
    255,
    256,
    65_535,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
)
WORDS: Final = ("", "x", "read", "data/x", "ü€😀", "a\0b", "%s{}", "../..", "\u202e", "x" * 31, "x" * 32, "x" * 256)
_HEADER: Final = struct.Struct(">I")


def dice_of(*place: object) -> random.Random:
    """Return the generator of one round: rounds do not depend on how many came before them."""
    return random.Random("/".join(map(str, (SEED, *place))))


def report(capsys: pytest.CaptureFixture[str], what: str, figures: Mapping[str, float]) -> None:
    """Print the seed and the figures of a run, whether or not it fails."""
    with capsys.disabled():
        print(
            f"\n  AGENTOS_FUZZ_SEED={SEED} {what}: " + ", ".join(f"{v:,.5g} {k}" for k, v in figures.items()), end=" "
        )


# --- what is well-formed -------------------------------------------------------------------------------------------


def word(dice: random.Random) -> str:
    if dice.random() < 0.03:
        return dice.choice("aé漢") * dice.choice((300, 4_080, 4_096, 5_000, 70_000))
    return dice.choice(WORDS)


def plain(dice: random.Random, depth: int = 0) -> Any:
    """Return any plain value; its depth stays far below the limit."""
    kind = dice.randrange(9 if depth < 4 else 6)
    if kind == 6:
        return [plain(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind > 6:
        return {
            dice.choice((word(dice), dice.choice(INTEGERS))): plain(dice, depth + 1) for _ in range(dice.randrange(4))
        }
    return (None, dice.random() < 0.5, dice.choice(INTEGERS), dice.uniform(-1e9, 1e9), word(dice), packed_bytes(dice))[
        kind
    ]


def packed_bytes(dice: random.Random) -> bytes:
    return dice.randbytes(dice.choice((0, 1, 5, 40, 255, 256)))


def frame_of(dice: random.Random, cls: type[Any]) -> Any:
    """Return one frame of `cls`, each field of a type that the wire takes there."""
    makers: dict[type, Callable[[], Any]] = {
        int: lambda: dice.choice(INTEGERS), str: lambda: word(dice), bytes: lambda: packed_bytes(dice),
        bool: lambda: dice.random() < 0.5, float: lambda: dice.uniform(0, 99), type(None): lambda: None,
        list: lambda: [plain(dice) for _ in range(dice.randrange(4))],
        dict: lambda: {word(dice): plain(dice) for _ in range(dice.randrange(4))},
    }  # fmt: skip
    fields = (plain(dice) if kinds is None else makers[dice.choice(kinds)]() for kinds in wire._accepted_types(cls))
    return cls._make(fields)


def sized_act(body_bytes: int) -> Any:
    """Return an action whose frame has exactly this many bytes behind its length (more than 70,000)."""
    act = wire.Act(1, "read", "x" * 70_000, None, None, "/", {}, "sdk")
    return act._replace(resource="x" * (70_000 + body_bytes - len(wire.encode(act)) + _HEADER.size))


# --- and what is not any more --------------------------------------------------------------------------------------


def framed(body: bytes) -> bytes:
    return _HEADER.pack(len(body)) + body


def flip(dice: random.Random, data: bytes) -> bytes:
    broken = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
    return bytes(broken)


def flip_body(dice: random.Random, data: bytes) -> bytes:
    return data[: _HEADER.size] + flip(dice, data[_HEADER.size :])


def cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def cut_whole(dice: random.Random, data: bytes) -> bytes:
    """Shorten what is inside; the length is right again."""
    return framed(data[_HEADER.size : dice.randrange(_HEADER.size, len(data))])


def lie_about_length(dice: random.Random, data: bytes) -> bytes:
    size = len(data) - _HEADER.size
    lies = (size - 1, size + 1, 0, 1, 2, wire.COUNTED_FROM_BYTES, wire.ACTION_BYTES_MAX, wire.ACTION_BYTES_MAX + 1,
            wire.FRAME_BYTES_MAX, wire.FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1)  # fmt: skip
    return _HEADER.pack(max(0, dice.choice(lies))) + data[_HEADER.size :]


def splice(dice: random.Random, data: bytes) -> bytes:
    """Repeat, remove or replace a piece; the length is made right half of the time."""
    at, until = sorted(dice.randrange(_HEADER.size, len(data) + 1) for _ in range(2))
    piece = dice.choice((b"", data[at:until] * 2, dice.randbytes(dice.randrange(1, 9))))
    broken = data[:at] + piece + data[until:]
    return framed(broken[_HEADER.size :]) if dice.random() < 0.5 else broken


def confuse(dice: random.Random, data: bytes) -> bytes:
    """Put a value of another kind where msgpack holds one: in a field, inside a field, or as the tag."""
    fields = msgpack.unpackb(data[_HEADER.size :], raw=False, strict_map_key=False)
    strange: Any = dice.choice(
        (plain(dice), msgpack.ExtType(dice.randrange(128), b"x"), msgpack.Timestamp(1), {None: 1}, {1.5: {b"k": []}},
         True, -1, 1.0, "10", 2**64 - 1)
    )  # fmt: skip
    index = dice.randrange(len(fields))
    match dice.randrange(5):
        case 0:
            fields[index] = strange
        case 1:
            fields.insert(index, strange)
        case 2:
            del fields[index]
        case 3:
            fields[0] = dice.choice(sorted(TAGS))
        case _:
            fields[index] = {"k": strange} if isinstance(fields[index], dict) else [strange]
    return framed(msgpack.packb(fields if dice.random() < 0.95 else {"k": fields}, use_bin_type=True))


def nest(dice: random.Random, data: bytes) -> bytes:
    """Put a deep value into one frame: just within the limit, just beyond it, or far beyond what msgpack takes."""
    depth = dice.choice((wire.DEPTH_MAX - 1, wire.DEPTH_MAX, wire.DEPTH_MAX + 1, 500, 1_100, 60_000))
    opening = dice.choice((b"\x91", b"\x81\xa1k"))
    return framed(b"\x94\x1e\x01\xa1x" + b"\x81\xa1v" + opening * depth + b"\xc0")


def announce(dice: random.Random, data: bytes) -> bytes:
    """Announce more items or bytes than there are; each of them may be allocated before the end is seen."""
    count = dice.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")) + dice.choice(
        (b"\xff\xff\xff\xff", b"\0\xff\xff\xff")
    )
    return framed(
        b"\x93\x1e\x01\xa1x" + count * dice.choice((1, 1, 30, 400, 2_000)) + bytes(dice.choice((0, 9, 9_000)))
    )


def crowd(dice: random.Random, data: bytes) -> bytes:
    """Hold as many small things as a number of bytes can."""
    item = dice.choice((b"\x80", b"\x90", b"\xc0", b"\x91\xc0", b"\x81\x01\x01"))
    count = dice.choice((900, 4_000, *range(ITEMS_MAX - 8, ITEMS_MAX)))
    return framed(b"\x94\x1e\x01\xa1x" + b"\x81\xa1v" + b"\xdd" + _HEADER.pack(count) + item * count)


def noise(dice: random.Random, data: bytes) -> bytes:
    return dice.randbytes(dice.randrange(1, 60))


MUTATIONS: Final[tuple[Callable[[random.Random, bytes], bytes], ...]] = (
    flip, flip_body, flip_body, cut, cut_whole, lie_about_length, splice, splice, confuse, confuse, confuse, nest,
    announce, crowd, noise,
)  # fmt: skip


def mutant(dice: random.Random, frame: Any) -> bytes:
    return dice.choice(MUTATIONS)(dice, wire.encode(frame))


def pieces(dice: random.Random, data: bytes) -> Iterator[bytes]:
    """Yield `data` as reads may return it."""
    at = 0
    while at < len(data):
        size = dice.choice((1, 2, 3, 4, 5, 7, 60, 4_096, 65_536))
        yield data[at : at + size]
        at += size
