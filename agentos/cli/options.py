"""What people type: durations, signals, levels, `OP:RESOURCE`, `K=V`. Parsed once; a refusal says what is right."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from agentos.actions import LEVELS, OPERATIONS, base_operation
from agentos.errors import BadRequest, nearest
from agentos.restart_policy import parse_restart
from agentos.signals import AgentSignal, parse_signal

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
DURATION_S_MAX: Final = 100 * 366 * 86_400.0  # a century: beyond it, deadlines no longer fit the clocks


def parse_duration(text: str) -> float:
    """Return the seconds in `10`, `10s`, `250ms`, `1h30m` or `90d`. Raises BadRequest."""
    word = text.strip().lower()
    parts = _PART.findall(word)
    if re.fullmatch(r"\d+(\.\d+)?", word, re.ASCII):
        seconds = float(word)
    elif word.isascii() and parts and "".join(number + unit for number, unit in parts) == word:
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    else:
        raise BadRequest(f"{text!r} is not a duration: write 250ms, 10s, 5m, 1h30m or 90d")
    if seconds > DURATION_S_MAX:
        raise BadRequest(f"{text!r} is longer than a hundred years")
    return seconds


def parse_age(text: str) -> float:
    """Return the seconds of a duration whose unit is said: `--older-than 5` must not take five seconds for five days."""
    seconds = parse_duration(text)
    if not text.strip()[-1:].isalpha():
        raise BadRequest(f"{text!r} needs a unit: {text}d, {text}h or {text}m")
    return seconds


def parse_operation(word: str) -> str:
    """Return `word` when it is an operation or a sub-operation of one. Raises BadRequest naming the nearest."""
    if base_operation(word) not in OPERATIONS:
        raise BadRequest(f"unknown operation {word!r}{nearest(word, OPERATIONS)}; known: {', '.join(OPERATIONS)}")
    return word


def parse_rule(text: str) -> str:
    """Return `OP:RESOURCE` when both halves are there and the operation exists. Raises BadRequest."""
    operation, colon, resource = text.partition(":")
    if not colon or not resource:
        raise BadRequest(f"{text!r} is not OPERATION:RESOURCE, for example read:data/*")
    parse_operation(operation)
    return text


def parse_operations(text: str) -> list[str]:
    """Return the operations of a comma-separated list; the empty list is a ceiling that allows nothing."""
    return [parse_operation(word.strip()) for word in text.split(",") if word.strip()]


def parse_level(word: str) -> str:
    if word not in LEVELS:
        raise BadRequest(f"unknown level {word!r}{nearest(word, LEVELS)}; known: {', '.join(LEVELS)}")
    return word


def parse_pair(text: str) -> tuple[str, str]:
    """Return the halves of `K=V`. Raises BadRequest when there is no `=` or no key."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadRequest(f"{text!r} is not KEY=VALUE")
    return key, value


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4; 8.1 cannot subscript it
    """A click type around one of the parsers above: its BadRequest becomes a usage error of that option."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except BadRequest as error:
            self.fail(str(error), param, ctx)

    def parse(self, text: str) -> Any:
        raise NotImplementedError


class Duration(_Parsed):
    name = "duration"

    def parse(self, text: str) -> float:
        return parse_duration(text)


class Age(_Parsed):
    name = "duration"

    def parse(self, text: str) -> float:
        return parse_age(text)


class Rule(_Parsed):
    name = "op:resource"

    def parse(self, text: str) -> str:
        return parse_rule(text)


class Operations(_Parsed):
    name = "list"

    def parse(self, text: str) -> list[str]:
        return parse_operations(text)


class Level(_Parsed):
    name = "level"

    def parse(self, text: str) -> str:
        return parse_level(text)


class Restart(_Parsed):
    name = "when"

    def parse(self, text: str) -> str:
        return str(parse_restart("", text))


class Pair(_Parsed):
    name = "k=v"

    def parse(self, text: str) -> tuple[str, str]:
        return parse_pair(text)


class Signal(click.ParamType):  # type: ignore[type-arg]  # as above
    """One of the seven. UnknownSignal passes through: it is a usage error by itself and names the nearest."""

    name = "sig"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AgentSignal:
        return parse_signal(value)
