"""Ids: UUIDv7 (RFC 9562), so that ids sort by the time they were made."""

from __future__ import annotations

import os
import uuid


def new_id(wall_ns: int) -> str:
    """Return a UUIDv7 string: 48 bits of milliseconds, 74 random bits. Two of one millisecond are not ordered."""
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (wall_ns // 1_000_000 & (2**48 - 1)) << 80
    value |= 0x7 << 76 | (random_bits >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | (random_bits & (2**62 - 1))
    return str(uuid.UUID(int=value))
