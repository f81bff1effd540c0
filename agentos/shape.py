"""What may be inside a frame: how many items, counted before it is decoded, and how deep, once it is.

A byte of an empty map becomes 64 bytes of a dict, and a list is allocated at the length it announces: what an agent
sends must be measured before it is decoded. Both checks stop at their limit, so a bomb costs no more than the limit
does. Facts: the msgpack specification (types and their first bytes).
"""

from __future__ import annotations

from typing import Any, Final

ITEMS_MAX: Final = 65_536  # an argv as long as Linux takes holds fewer words; decoded they cost a few megabytes

_FIX_MAP, _FIX_ARRAY, _FIX_STR, _NIL, _NEGATIVE = 0x80, 0x90, 0xA0, 0xC0, 0xE0  # where each range of types begins
_PLAIN: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
                 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17, 0xC0: 0, 0xC1: 0, 0xC2: 0, 0xC3: 0}  # fmt: skip
# first byte → (bytes of the length that follows, fixed bytes beside the payload)
_SIZED: Final = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
                 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
# first byte → (bytes of the length that follows, items per entry)
_HOLDING: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}

_NESTED: Final = (list, dict)
_KEYS: Final = frozenset({str, int, bytes, bool, float, type(None)})
_VALUES: Final = _KEYS | set(_NESTED)


def check_items(body: bytes | bytearray | memoryview, items_max: int = ITEMS_MAX) -> int:
    """Return how many items `body` holds, at any depth. Raises ValueError unless it is complete and within the limit.

    A map counts its keys; what an extension holds is not looked at.
    """
    position, left, end = 0, 1, len(body)
    for count in range(1, items_max + 1):
        if position >= end:
            raise ValueError("ends before what it announces")
        position, inside = _step(body, position)
        left += inside - 1
        if left == 0:
            return count
    raise ValueError(f"holds more than {items_max} items")


def _step(body: bytes | bytearray | memoryview, position: int) -> tuple[int, int]:
    """Return where the next item begins and how many items the one at `position` holds."""
    first = body[position]
    position += 1
    if first < _FIX_MAP or first >= _NEGATIVE:
        return position, 0
    if first < _FIX_ARRAY:
        return position, 2 * (first & 15)
    if first < _FIX_STR:
        return position, first & 15
    if first < _NIL:
        return position + (first & 31), 0
    if first in _PLAIN:
        return position + _PLAIN[first], 0
    if first in _SIZED:
        width, beside = _SIZED[first]
        return position + width + beside + int.from_bytes(body[position : position + width]), 0
    width, each = _HOLDING[first]
    return position + width, each * int.from_bytes(body[position : position + width])


def check_plain(value: Any, depth_max: int) -> None:
    """Raise ValueError unless decoded `value` is plain data, at most `depth_max` deep. Depth costs no stack of ours."""
    level: list[Any] = [[value]]
    for _ in range(depth_max + 1):
        items = [item for node in level for item in (node.values() if type(node) is dict else node)]
        if not _VALUES.issuperset(map(type, items)):  # msgpack decodes a timestamp without asking the extension hook
            raise ValueError("holds what is no plain value")
        level = [item for item in items if type(item) in _NESTED]
        if not all(_KEYS.issuperset(map(type, node)) for node in level if type(node) is dict):
            raise ValueError("holds a map key that is no scalar")
        if not level:
            return
    raise ValueError(f"is nested deeper than {depth_max}")
