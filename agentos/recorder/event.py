"""The audit event: one row of the record, and the forms in which it leaves the recorder.

Pure. An event's id is its run and its place in that run, so it is unique across runs, can be computed by whoever
knows both, and costs nothing where events are made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any, Final

from agentos.clock import rfc3339, to_datetime
from agentos.errors import BadRequest, nearest
from agentos.shape import ITEMS_MAX

SEVERITIES: Final[tuple[str, ...]] = ("debug", "info", "warning", "error", "critical")  # least first
DEPTH_MAX: Final = 64  # twice what the wire lets through; msgpack itself would stop at 511
WORD_CHARS_MAX: Final = 256  # an event type or an agent id: names, not texts
# Keys and values in the data of one logged event, which travels in a frame; what refers to itself has no end
ENTRY_ITEMS_MAX: Final = ITEMS_MAX - 64
ENTRY_DEPTH_MAX: Final = 24  # with what is around it, it fits the wire
ENTRY_BYTES_MAX: Final = 512 * 1024  # as JSON; half of what the journal takes
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1  # what msgpack holds


def severity_rank(severity: str) -> int:
    """Return the place of `severity` in SEVERITIES, so that ranks compare. Raises BadRequest for an unknown word."""
    try:
        return SEVERITIES.index(severity)
    except ValueError:
        known = ", ".join(SEVERITIES)
        hint = nearest(str(severity), SEVERITIES)
        raise BadRequest(f"unknown severity {severity!r}{hint}; known: {known}") from None


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that happened, or is about to. `seq` counts from 1 without gaps within one run.

    `data` holds only what JSON can say (see `printable`), so the same event reads the same from every storage.
    `durable` says that somebody waited until it was on disk.
    """

    run_id: str
    seq: int
    ts_ns: int  # CLOCK_REALTIME
    mono_ns: int  # CLOCK_MONOTONIC: orders events of one boot when the wall clock jumps
    event_type: str
    severity: str
    agent_id: str
    agent_name: str
    execution_id: str
    data: Mapping[str, Any]
    durable: bool = False

    @property
    def event_id(self) -> str:
        return f"{self.run_id}-{self.seq}"

    def to_json(self) -> dict[str, Any]:
        """Return the event as `agentos audit --json` prints it; fields are added, never renamed."""
        return {
            "seq": self.seq,
            "event_id": self.event_id,
            "ts": rfc3339(self.ts_ns),
            "event_type": self.event_type,
            "severity": self.severity,
            "agent_id": self.agent_id,
            "agent_name": self.agent_name,
            "execution_id": self.execution_id,
            "data": dict(self.data),
        }

    def to_row(self) -> dict[str, Any]:
        """Return the event as `FlightRecorder.query` gives it: `timestamp` is an aware datetime in UTC."""
        return {
            "seq": self.seq,
            "event_id": self.event_id,
            "timestamp": to_datetime(self.ts_ns),
            "event_type": self.event_type,
            "severity": self.severity,
            "agent_id": self.agent_id,
            "agent_name": self.agent_name,
            "execution_id": self.execution_id,
            "data": dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """What a program asks to have logged, checked and made plain. Made by `parse_entry`."""

    event_type: str
    agent_id: str
    data: dict[str, Any]
    severity: str


def parse_entry(event_type: Any, agent_id: Any, data: Any, severity: Any) -> Entry:
    """Check what shall be logged. Raises BadRequest naming the argument and what it takes.

    `data` is copied as `printable` says; deeper than ENTRY_DEPTH_MAX it becomes "[nested too deeply]".
    """
    for name, word in (("event_type", event_type), ("agent_id", agent_id), ("severity", severity)):
        if not isinstance(word, str):
            raise BadRequest(f"log: {name} must be a str, not {type(word).__name__}")
        if len(word) > WORD_CHARS_MAX:
            raise BadRequest(f"log: {name} has {len(word)} characters, the limit is {WORD_CHARS_MAX}; use data")
    if not event_type:
        raise BadRequest("log: event_type is empty; pass a name such as 'action_blocked'")
    if not isinstance(data, Mapping):
        raise BadRequest(f"log: data must be a dict, not {type(data).__name__}")
    severity_rank(severity)
    _check_count(data)
    plain: dict[str, Any] = printable(data, DEPTH_MAX - ENTRY_DEPTH_MAX)
    size = len(json.dumps(plain))
    if size > ENTRY_BYTES_MAX:
        raise BadRequest(f"log: data has {size} bytes, the limit is {ENTRY_BYTES_MAX}; log where it is kept instead")
    return Entry(text(event_type), text(agent_id), plain, severity)


def _check_count(data: Any) -> None:
    """Raise BadRequest for more than ENTRY_ITEMS_MAX items. Before anything is copied: a cycle has 2**64 copies."""
    left, count = [data], 0
    while left:
        node = left.pop()
        count += 1
        if isinstance(node, Mapping):
            count += len(node)  # its keys
            left.extend(node.values())
        elif isinstance(node, list | tuple | set | frozenset):
            left.extend(node)
        elif isinstance(node, Enum):
            left.append(node.value)
        if count + len(left) > ENTRY_ITEMS_MAX:
            what = f"more than {ENTRY_ITEMS_MAX} keys and values"
            raise BadRequest(f"log: data holds {what}, or refers to itself; log where it is kept instead")


def printable(value: Any, depth: int = 0) -> Any:
    r"""Return `value` rebuilt of what JSON can say; what is already plain comes back equal.

    Bytes and undecodable characters become text with \xNN, dates ISO 8601, an Enum its value, other types their
    str, NaN and infinities their names, integers beyond 64 bits their digits, keys text. Deeper than DEPTH_MAX a
    value becomes "[nested too deeply]".
    """
    kind = type(value)
    if kind is str:
        return value if value.isascii() else text(value)
    if kind is bool or value is None:
        return value
    if kind is int:
        return value if _INT_MIN <= value <= _INT_MAX else str(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if depth >= DEPTH_MAX:
        return "[nested too deeply]"
    if isinstance(value, Mapping):
        return {_key(key): printable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [printable(item, depth + 1) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Enum):
        return printable(value.value, depth + 1)
    return text(value.isoformat() if isinstance(value, date) else str(value))


def text(value: str) -> str:
    r"""Return `value` with every surrogate (an undecodable byte of a file name, PEP 383) as \xNN or \uNNNN."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join(_escaped(char) for char in value)
    return str(value)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else char


def _key(key: Any) -> str:
    return key if type(key) is str and key.isascii() else str(printable(key, DEPTH_MAX))
