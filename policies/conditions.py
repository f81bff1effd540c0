"""Conditions of a rule: who, when, how dear, and whatever else the context says (R7).

Known keys: `user_role`, `user_id`, `session_id` (a value or a list of values), `time_window` (`start`, `end`,
optional `timezone`), `max_cost`, `granted` (is the operation in `permissions`?) and `context`, a mapping of any
other context key to a value or list. All must hold. Missing or ill-typed context is unknown: an allow rule then
does not match, a deny or ask rule does (XACML Indeterminate; skipping a deny on error fails open).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from types import MappingProxyType
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agentos.policies.faults import FieldError, one_of, text

PLAIN_KEYS: Final = ("user_role", "user_id", "session_id")
KEYS: Final = (*PLAIN_KEYS, "time_window", "max_cost", "granted", "context")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?")
_DAY_END: Final = "24:00"
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Window:
    """A daily time window, half-open: `start` is in, `end` is out; start > end crosses midnight (R7.4 to R7.6)."""

    start: time
    end: time | None  # None is midnight at the end of the day
    zone: ZoneInfo | None  # None is UTC

    def holds(self, at: datetime) -> bool | None:
        """Return whether the aware `at` lies in the window; None at the ends of time, where no clock shows it."""
        try:
            local = at.astimezone(self.zone or UTC).time()
        except OverflowError:
            return None
        if self.end is None:
            return self.start <= local
        if self.start < self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must hold, ready to be evaluated. `granted` is settled when a policy meets its permissions."""

    equal: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()
    window: Window | None = None
    cost_max: float | None = None
    granted: bool | None = None

    @property
    def static(self) -> bool:
        """Whether nothing here depends on the moment of the action."""
        return not self.equal and self.window is None and self.cost_max is None

    def hold(self, context: Mapping[str, Any], at: datetime | None) -> bool | None:
        """Return True or False, or None when what is missing or ill-typed leaves it unknown (R7.2)."""
        answers = [_equal(context.get(key), wanted) for key, wanted in self.equal]
        if self.window is not None:
            answers.append(None if at is None else self.window.holds(at))
        if self.cost_max is not None:
            cost = as_cost(context.get("cost"))
            answers.append(None if cost is None else cost <= self.cost_max)
        if False in answers:
            return False
        return None if None in answers else True


def matches(
    conditions: Conditions, action: str, context: Mapping[str, Any], claims: Mapping[str, Any], at: datetime | None
) -> bool:
    """Return whether a rule with these conditions applies.

    Claims come from the agent and only tighten: one may raise `cost`, or make a deny rule match; no claim
    satisfies an allow or ask rule, and none stands in for context that is missing.
    """
    if action == "allow":
        return conditions.hold(with_claimed_cost(context, claims), at) is True
    if conditions.hold(context, at) is not False:
        return True
    return action == "deny" and bool(claims) and conditions.hold({**context, **claims}, at) is not False


def with_claimed_cost(context: Mapping[str, Any], claims: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the context with `cost` raised to what the agent claims; a claim that is no cost makes it unknown."""
    if "cost" not in claims or "cost" not in context:
        return context
    known, claimed = as_cost(context["cost"]), as_cost(claims["cost"])
    if known is None or claimed is None:
        return {**context, "cost": None}
    return {**context, "cost": max(known, claimed)}


def as_cost(value: object) -> float | None:
    """Return a number that can be a cost; None for NaN, negatives, booleans, text (R7.3)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:  # NaN is not, either
        return None
    return value


def _equal(value: object, wanted: tuple[Scalar, ...]) -> bool | None:
    if not isinstance(value, (str, int, float, bool)):
        return None
    comparable = [w for w in wanted if _family(w) is _family(value)]
    return value in comparable if comparable else None


def _family(value: Scalar) -> type:
    """True is not 1 and "1" is not 1: values of different families are ill-typed for each other."""
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, (int, float)) else str


# --- construction ------------------------------------------------------------------------------------------------


def freeze(value: object) -> Mapping[str, Any] | None:
    """Return the conditions as written, deeply immutable; None for none. Raises FieldError for the wrong shape."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise FieldError(f"conditions must be a mapping, not {type(value).__name__}", ("conditions",))
    for key in value:
        one_of(key, KEYS, ("conditions", str(key)), "condition")
    return MappingProxyType({key: _frozen(item) for key, item in value.items()}) if value else None


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def parse(raw: Mapping[str, Any] | None) -> Conditions | None:
    """Return the conditions ready for use. Raises FieldError with the path of what is wrong."""
    if raw is None:
        return None
    equal = [(key, _wanted(raw[key], ("conditions", key))) for key in PLAIN_KEYS if key in raw]
    more = raw.get("context", {})
    if not isinstance(more, Mapping):
        raise FieldError("context must be a mapping of context keys to values", ("conditions", "context"))
    for key in more:
        text(key, ("conditions", "context", str(key)), "a context key")
    equal += [(str(key), _wanted(more[key], ("conditions", "context", str(key)))) for key in more]
    window = _window(raw["time_window"]) if "time_window" in raw else None
    cost = _cost_max(raw["max_cost"]) if "max_cost" in raw else None
    granted = raw.get("granted")
    if granted is not None and not isinstance(granted, bool):
        raise FieldError("granted is true or false", ("conditions", "granted"))
    return Conditions(tuple(equal), window, cost, granted)


def _wanted(value: object, path: tuple[str, ...]) -> tuple[Scalar, ...]:
    items = value if isinstance(value, tuple) else (value,)
    if not items:
        raise FieldError("an empty list can never match", path)
    for item in items:
        if not isinstance(item, (str, int, float, bool)):
            raise FieldError(f"must be text, a number, a boolean or a list of them, not {type(item).__name__}", path)
        if item != item:  # noqa: PLR0124 - NaN
            raise FieldError("NaN can never match", path)
    return items


def _cost_max(value: object) -> float:
    cost = as_cost(value)
    if cost is None:
        raise FieldError(f"max_cost must be a number that is not negative, not {value!r}", ("conditions", "max_cost"))
    return cost


def _window(raw: object) -> Window:
    path = ("conditions", "time_window")
    if not isinstance(raw, Mapping):
        raise FieldError("time_window must be a mapping with start and end", path)
    for key in raw:
        one_of(key, ("start", "end", "timezone"), (*path, str(key)), "key")
    for key in ("start", "end"):
        if key not in raw:
            raise FieldError(f"time_window needs {key}", path)
    start = _clock(raw["start"], (*path, "start"))
    end = None if raw["end"] == _DAY_END else _clock(raw["end"], (*path, "end"))
    if start == end:
        raise FieldError("start and end are the same: is that always, or never?", path)
    return Window(start, end, _zone(raw.get("timezone"), (*path, "timezone")))


def _clock(value: object, path: tuple[str, ...]) -> time:
    parts = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        raise FieldError(f"{value!r} is not a time of day; write '09:00' (24 hours, quoted)", path)
    return time(int(parts[1]), int(parts[2]), int(parts[3] or 0))


def _zone(name: object, path: tuple[str, ...]) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise FieldError(f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin", path) from error
