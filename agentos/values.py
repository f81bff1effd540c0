"""Arguments and results as bytes: msgpack and a closed set of extension types. Never pickle (ADR 0004).

Both ends are this module, so what goes in comes out equal: None, bool, int (any size), float, str, bytes, list,
tuple, dict, set, frozenset, datetime, date, timedelta, Decimal, UUID. An Enum crosses as its value, a dataclass or a
pydantic model as a dict of its fields. Anything else is NotSerialisable, naming the type and the place.

A value holds at most VALUE_ITEMS_MAX items, keys and values at every depth together. They are counted before anything
is decoded: a byte becomes up to 72 bytes of memory, so what an agent returns may cost its host 72 MB, not gigabytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgpack

from agentos.errors import NotSerialisable, ProtocolError
from agentos.shape import check_items

VALUE_ITEMS_MAX: Final = 1_000_000
COUNTED_FROM_BYTES: Final = 4_096  # what is smaller cannot decode into much

_DATETIME, _DATE, _TIMEDELTA, _DECIMAL, _UUID, _SET, _FROZENSET, _TUPLE, _INT = range(1, 10)
_DEPTH_MAX: Final = 200  # msgpack's own unpacker stops at 511; leave room


def pack_value(value: Any, where: str) -> bytes:
    """Return `value` as bytes. Raises NotSerialisable; `where` says which value it was ("argument 2", "the result")."""
    try:
        packed: bytes = msgpack.packb(_plain(value, where, 0), use_bin_type=True)
    except (ValueError, OverflowError, UnicodeEncodeError) as error:
        raise NotSerialisable(f"{type(value).__name__} ({error})", where) from error
    if len(packed) > VALUE_ITEMS_MAX:  # an item takes a byte at least
        try:
            unpack_value(packed)
        except ProtocolError as error:
            raise NotSerialisable(f"{type(value).__name__} ({error})", where) from error
    return packed


def pack_arguments(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the params `args` and `kwargs` of a call that starts `name`. Raises NotSerialisable."""
    for position, value in enumerate(args, 1):
        pack_value(value, f"argument {position} of {name}")
    for key, value in kwargs.items():
        pack_value(value, f"argument {key!r} of {name}")
    return {"args": pack_value(list(args), name), "kwargs": pack_value(dict(kwargs), name)}


def unpack_value(data: bytes) -> Any:
    """Return the value. Raises ProtocolError for bytes that `pack_value` cannot have made."""
    try:
        return _Unpacker(VALUE_ITEMS_MAX).unpack(data)
    except (ValueError, TypeError, ArithmeticError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not a packed value: {error}") from error


def _plain(value: Any, where: str, depth: int) -> Any:
    """Rebuild `value` of what msgpack and the extension types hold; exact types first, they are the common case."""
    kind = type(value)
    if kind in (str, bytes, float, bool, type(None)):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else msgpack.ExtType(_INT, str(value).encode())
    if depth > _DEPTH_MAX:
        raise NotSerialisable(f"{kind.__name__} nested deeper than {_DEPTH_MAX}", where)
    if kind is list:
        return [_plain(item, where, depth + 1) for item in value]
    if kind is dict:
        return {_key(key, where): _plain(item, where, depth + 1) for key, item in value.items()}
    return _special(value, where, depth)


def _key(key: Any, where: str) -> Any:
    if isinstance(key, str | bytes | int | float | bool | None):
        return key.value if isinstance(key, Enum) else key
    raise NotSerialisable(f"{type(key).__name__} (as a dict key)", where)


def _special(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, tuple | set | frozenset):
        code = _TUPLE if isinstance(value, tuple) else _SET if isinstance(value, set) else _FROZENSET
        items = [_plain(item, where, depth + 1) for item in value]
        return msgpack.ExtType(code, msgpack.packb(items, use_bin_type=True))
    if isinstance(value, Enum):
        return _plain(value.value, where, depth + 1)
    if isinstance(value, datetime | date):  # datetime first: it is a date too
        code = _DATETIME if isinstance(value, datetime) else _DATE
        return msgpack.ExtType(code, value.isoformat().encode())
    if isinstance(value, timedelta):
        return msgpack.ExtType(_TIMEDELTA, msgpack.packb([value.days, value.seconds, value.microseconds]))
    if isinstance(value, Decimal | UUID):
        return msgpack.ExtType(_DECIMAL if isinstance(value, Decimal) else _UUID, str(value).encode())
    return _record(value, where, depth)


def _record(value: Any, where: str, depth: int) -> Any:
    """Dataclasses and pydantic models as dicts; subclasses of the plain types as their base; else refuse."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _plain(fields, where, depth + 1)
    if hasattr(type(value), "model_fields") and callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump(), where, depth + 1)
    bases: tuple[Callable[[Any], Any], ...] = (str, bytes, int, float, list, dict)
    for base in bases:
        if isinstance(value, base):  # type: ignore[arg-type]  # each is a class and its own converter
            return _plain(base(value), where, depth + 1)
    raise NotSerialisable(f"{type(value).__module__}.{type(value).__qualname__}", where)


class _Unpacker:
    """For one value: counts what it holds, inside its extensions too, before it decodes it."""

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._left = items_max

    def unpack(self, data: bytes) -> Any:
        """Return what `data` says. Raises whatever msgpack and the types raise for nonsense."""
        if len(data) > COUNTED_FROM_BYTES or self._left < self._items_max:
            try:
                self._left -= check_items(data, self._left)
            except ValueError as error:
                limit = f"; the limit of a whole value is {self._items_max}" if self._left < self._items_max else ""
                raise ValueError(f"it {error}{limit}") from error
        return msgpack.unpackb(data, raw=False, strict_map_key=False, ext_hook=self._from_ext)

    def _from_ext(self, code: int, data: bytes) -> Any:
        if code in (_SET, _FROZENSET, _TUPLE):
            items = self.unpack(data)
            return set(items) if code == _SET else frozenset(items) if code == _FROZENSET else tuple(items)
        if code == _TIMEDELTA:
            days, seconds, microseconds = self.unpack(data)
            return timedelta(days=days, seconds=seconds, microseconds=microseconds)
        if code not in _READERS:
            raise ValueError(f"unknown extension type {code}")
        return _READERS[code](data.decode())


_READERS: Final[dict[int, Callable[[str], Any]]] = {
    _DATETIME: datetime.fromisoformat,
    _DATE: date.fromisoformat,
    _DECIMAL: Decimal,
    _UUID: UUID,
    _INT: int,
}
