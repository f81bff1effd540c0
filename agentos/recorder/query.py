"""What can be asked of the record: the named fields, as SQL and as the same predicate in Python.

Pure. Values are always bound, never written into SQL. Time windows are half-open, [start_time, end_time); naive
datetimes are local time. Filters inside `data` are not among the fields.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from agentos.errors import BadRequest
from agentos.recorder.event import AuditEvent, severity_rank, text

LIMIT_DEFAULT: Final = 1_000  # what a person reads and a program holds without thinking about it
NAMED_FIELDS: Final = (
    "event_type", "agent_id", "severity", "start_time", "end_time", "execution_id", "limit", "after_seq",
    "newest_first",
)  # fmt: skip
RUN_SHIFT: Final = 40  # the key of a row is run number << 40 | seq: a trillion events in each of eight million runs

_NS_MIN, _NS_MAX = -(2**63), 2**63 - 1  # what a column holds: the years 1677 to 2262; datetime goes on to 9999
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question to one storage; None asks for everything of its field. Made by `parse_query`."""

    event_type: str | None = None
    agent_id: str | None = None
    severities: tuple[str, ...] | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    execution_id: str | None = None
    after_seq: int = 0  # seq counts within one run
    limit: int | None = LIMIT_DEFAULT
    newest_first: bool = True

    def matches(self, event: AuditEvent) -> bool:
        """Whether `event` is asked for; says in Python what `to_sql` says in SQL."""
        return (
            self.event_type in {None, event.event_type}
            and self.agent_id in {None, event.agent_id}
            and (self.severities is None or event.severity in self.severities)
            and (self.start_ns is None or event.ts_ns >= self.start_ns)
            and (self.end_ns is None or event.ts_ns < self.end_ns)
            and self.execution_id in {None, event.execution_id}
            and event.seq > self.after_seq
        )

    def select(self, events: Iterable[AuditEvent]) -> list[AuditEvent]:
        """Return what is asked for of `events`, which must come oldest first."""
        found = [event for event in events if self.matches(event)]
        if self.newest_first:
            found.reverse()
        return found if self.limit is None else found[: self.limit]


def parse_query(
    *,
    event_type: str | None = None,
    agent_id: str | None = None,
    severity: str | Iterable[str] | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    execution_id: str | None = None,
    limit: int | None = LIMIT_DEFAULT,
    after_seq: int = 0,
    newest_first: bool = True,
    filters: Mapping[str, Any] | None = None,
) -> Query:
    """Check the named fields and return the Query. Raises BadRequest naming the field and what it takes.

    `severity` is one word or several; `limit=None` asks for all; with `newest_first` the newest `limit` events come,
    newest first, otherwise the oldest, oldest first.
    """
    if filters is not None:
        raise BadRequest(f"filters= is not available in this version; the named fields are {', '.join(NAMED_FIELDS)}")
    for name, word in (("event_type", event_type), ("agent_id", agent_id), ("execution_id", execution_id)):
        if word is not None and not isinstance(word, str):
            raise BadRequest(f"{name} must be a str, not {type(word).__name__}")
    return Query(
        event_type=_word(event_type),
        agent_id=_word(agent_id),
        severities=_severities(severity),
        start_ns=_to_ns("start_time", start_time),
        end_ns=_to_ns("end_time", end_time),
        execution_id=_word(execution_id),
        after_seq=_count("after_seq", after_seq),
        limit=None if limit is None else _count("limit", limit),
        newest_first=bool(newest_first),
    )


def merge(events: Iterable[AuditEvent], query: Query) -> list[AuditEvent]:
    """Return what several sources found for `query` as one answer: each event once, within a run in its order.

    Runs are interleaved by time. Each source must have been asked `query` itself, so that its limit holds for all.
    """
    runs: defaultdict[str, dict[int, AuditEvent]] = defaultdict(dict)
    for event in events:
        runs[event.run_id][event.seq] = event
    newest_first = query.newest_first
    in_order = ([run[seq] for seq in sorted(run, reverse=newest_first)] for run in runs.values())
    merged = list(heapq.merge(*in_order, key=lambda event: event.ts_ns, reverse=newest_first))
    return merged if query.limit is None else merged[: query.limit]


def to_sql(query: Query, run: int | None = None) -> tuple[str, list[Any]]:
    """Return what follows `SELECT … FROM events` and the values to bind; with `run`, for that run number only."""
    parts: list[tuple[str, list[Any]]] = []
    for column in ("event_type", "agent_id", "execution_id"):
        word = getattr(query, column)
        if word is not None:
            parts.append((f"{column} = ?", [word]))
    if query.severities is not None:
        parts.append((f"severity IN ({', '.join('?' * len(query.severities))})", list(query.severities)))
    if query.start_ns is not None:
        parts.append(("ts_ns >= ?", [query.start_ns]))
    if query.end_ns is not None:
        parts.append(("ts_ns < ?", [query.end_ns]))
    if run is not None:
        parts.append(("id > ? AND id < ?", [run << RUN_SHIFT | query.after_seq, (run + 1) << RUN_SHIFT]))
    elif query.after_seq:
        parts.append(("seq > ?", [query.after_seq]))
    where = " AND ".join(condition for condition, _ in parts) or "TRUE"
    values = [value for _, bound in parts for value in bound]
    order = "DESC" if query.newest_first else "ASC"
    return f"WHERE {where} ORDER BY id {order} LIMIT ?", [*values, -1 if query.limit is None else query.limit]


def _word(given: str | None) -> str | None:
    """Return the word as it is stored."""
    return None if given is None else text(given)


def _severities(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, Iterable):
        raise BadRequest(f"severity must be a str or several, not {type(given).__name__}")
    words = [given] if isinstance(given, str) else list(given)
    return tuple(sorted(words, key=severity_rank))


def _to_ns(name: str, moment: datetime | None) -> int | None:
    """Return nanoseconds since the epoch, exactly, or the nearest that a column holds; a naive datetime is local."""
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise BadRequest(f"{name} must be a datetime, not {type(moment).__name__}")
    try:
        exact = (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND * 1000
    except (OverflowError, ValueError) as error:
        raise BadRequest(f"{name}: {moment} is out of range") from error
    return min(max(exact, _NS_MIN), _NS_MAX)


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << RUN_SHIFT:
        raise BadRequest(f"{name} must be a whole number of at least 0, not {value!r}")
    return value
