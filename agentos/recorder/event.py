"""The audit event: one row of the record, and the forms in which it leaves the recorder.

Pure. An event's id is its run and its place in that run, so it is unique across runs, can be computed by whoever
knows both, and costs nothing where events are made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any, Final

from agentos.clock import rfc3339, to_datetime
from agentos.errors import BadRequest, nearest

SEVERITIES: Final[tuple[str, ...]] = ("debug", "info", "warning", "error", "critical")  # least first
DEPTH_MAX: Final = 64  # twice what the wire lets through; msgpack itself would stop at 511
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
