"""What a host program passes to KernelSpace, checked before anything starts.

Every check returns the value or raises BadRequest, which names the argument, what it was and what it takes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from agentos.actions import LEVELS
from agentos.errors import BadRequest, nearest
from agentos.policies import Policy
from agentos.recorder.flight import FlightRecorder

PERMISSIONS: Final = ("read", "write", "execute", "network")
_SHOWN_CHARS_MAX: Final = 100  # of a value in an error text


def whole_number(where: str, value: Any, *, at_least: int | None = None) -> int:
    """Check a number of things; `where` is how the text begins, such as "register('a'): rate_limit"."""
    if type(value) is not int or (at_least is not None and value < at_least):
        what = "must be a whole number" if at_least is None else f"must be a whole number of at least {at_least}"
        raise BadRequest(f"{where}={_shown(value)} {what}")
    return value


def seconds(where: str, value: Any) -> float:
    """Check a length of time."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise BadRequest(f"{where}={_shown(value)} must be a positive number of seconds")
    return value  # type: ignore[no-any-return]


def policy(value: Any) -> str | Policy:
    """Check that it may be a policy; whether a name or a file holds one is seen when it is loaded."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str | Policy):
        raise BadRequest(f"policy={_shown(value)} must be the name of a built-in policy, a YAML file or a Policy")
    return value


def flight_recorder(value: Any) -> FlightRecorder | None:
    """Check that it is one."""
    if not isinstance(value, FlightRecorder | None):
        raise BadRequest(f"flight_recorder={_shown(value)} must be a FlightRecorder, such as FlightRecorder('sqlite')")
    return value


def signal_dispatcher(value: Any) -> None:
    """Refuse one: handlers that never run are worse than none."""
    if value is not None:
        raise BadRequest(
            "signal_dispatcher= is not available in this version, its handlers would never run; leave it out: "
            "send_signal() delivers real POSIX signals, which the agent may handle itself"
        )


def level(value: Any) -> str | None:
    """Check the name of a level."""
    if value is not None and value not in LEVELS:
        hint = nearest(value, LEVELS) if isinstance(value, str) else ""
        raise BadRequest(f"require={_shown(value)} is no level{hint}; known: {', '.join(LEVELS)}")
    return value  # type: ignore[no-any-return]


def directory(where: str, value: Any) -> str | None:
    """Check a path as such; whether it is there is seen when the kernel starts."""
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise BadRequest(f"{where}={_shown(value)} must be the path of a directory")
    return path


def permissions(where: str, value: Any) -> list[str] | None:
    """Check a list of operations."""
    if value is None:
        return None
    for word in words(f"{where}permissions", value, "operations, such as ['read']"):
        if word not in PERMISSIONS:
            hint = nearest(word, PERMISSIONS)
            raise BadRequest(f"{where}unknown permission {word!r}{hint}; known: {', '.join(PERMISSIONS)}")
    return list(value)


def words(where: str, value: Any, what: str) -> list[str]:
    """Check a list of texts. One text is no list of them: it would be taken apart into letters."""
    usable = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    found = list(value) if usable else []
    if not usable or not all(isinstance(one, str) for one in found):
        raise BadRequest(f"{where}={_shown(value)} must be a list of {what}")
    return found


def facts(where: str, value: Any) -> dict[str, Any]:
    """Check a context: what a policy's conditions may use, by name."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise BadRequest(f"{where}={_shown(value)} must be a dict with names as keys, such as {{'user_id': 'u1'}}")
    return dict(value)


def agent_id(where: str, value: Any) -> str:
    """Check the id of an agent as such; whether there is one is the kernel's to say."""
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{where}={_shown(value)} must be the id of an agent, as spawn() returns it")
    return value


def function(where: str, value: Any) -> Callable[..., Any]:
    """Check that it can be called."""
    if not callable(value):
        raise BadRequest(f"{where}: {_shown(value)} is not a function")
    return value  # type: ignore[no-any-return]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"
