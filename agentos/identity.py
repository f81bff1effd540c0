"""Ids and names: a UUIDv7 (RFC 9562) for agents, a time and random digits for runs; both sort by when they began."""

from __future__ import annotations

import os
import uuid
from typing import Final

from agentos.clock import to_datetime

NAME_CHARS_MAX: Final = 128  # of an agent's name: it stands in every table


def new_id(wall_ns: int) -> str:
    """Return a UUIDv7 string: 48 bits of milliseconds, 74 random bits. Two of one millisecond are not ordered."""
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (wall_ns // 1_000_000 & (2**48 - 1)) << 80
    value |= 0x7 << 76 | (random_bits >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | (random_bits & (2**62 - 1))
    return str(uuid.UUID(int=value))


def new_run_id(wall_ns: int) -> str:
    """Return a run id that fits a socket path: 20260102T030405-1a2b3c."""
    return f"{to_datetime(wall_ns):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}"
