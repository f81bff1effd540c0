"""A msgpack message that is said again and again, packed once: only some numbers are put in anew. Pure.

Whoever makes a mould packs the message as ever, with HOLE where such a number will stand. What is cast decodes to the
same as what is packed anew; the numbers take nine bytes, whatever they are.

Facts, from the msgpack specification: an unsigned integer of 64 bits is 0xcf and eight bytes, the highest first. HOLE
is eight times 0xff there, which no UTF-8 text holds.
"""

from __future__ import annotations

import struct
from typing import Final, Self

HOLE: Final = 2**64 - 1
_HOLE: Final = HOLE.to_bytes(8)
_eight_bytes: Final = struct.Struct(">Q").pack


class Mould:
    """Made by `of`. Immutable."""

    __slots__ = ("_parts",)

    def __init__(self, pieces: list[bytes]) -> None:
        self._parts = [b""] * (2 * len(pieces) - 1)  # the numbers go in between
        self._parts[::2] = pieces

    @classmethod
    def of(cls, data: bytes, holes: int) -> Self | None:
        """Return the mould of a packed message with that many holes; None when something else in it looks like one."""
        pieces = data.split(_HOLE)
        return cls(pieces) if len(pieces) == holes + 1 else None

    def cast(self, *numbers: int) -> bytes:
        """Return the message with these numbers in its holes, in order; each from 0 to 2**64 - 1."""
        parts = self._parts[:]
        parts[1::2] = map(_eight_bytes, numbers)
        return b"".join(parts)
