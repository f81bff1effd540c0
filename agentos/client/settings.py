"""What only the constructor of a KernelSpace takes, checked before anything starts; the rest is agentos.arguments'.

Every check returns the value or raises BadRequest, which names the argument, what it was and what it takes.
"""

from __future__ import annotations

import os
from typing import Any

from agentos.actions import LEVELS
from agentos.arguments import shown, words
from agentos.client.dispatcher import SignalDispatcher
from agentos.errors import BadRequest, nearest
from agentos.policies import Policy
from agentos.recorder.flight import FlightRecorder


def policy(value: Any) -> str | Policy:
    """Check that it may be a policy; whether a name or a file holds one is seen when it is loaded."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str | Policy):
        raise BadRequest(f"policy={shown(value)} must be the name of a built-in policy, a YAML file or a Policy")
    return value


def flight_recorder(value: Any) -> FlightRecorder | None:
    """Check that it is one."""
    if not isinstance(value, FlightRecorder | None):
        raise BadRequest(f"flight_recorder={shown(value)} must be a FlightRecorder, such as FlightRecorder('sqlite')")
    return value


def signal_dispatcher(value: Any) -> SignalDispatcher | None:
    """Check that it is one."""
    if not isinstance(value, SignalDispatcher | None):
        raise BadRequest(f"signal_dispatcher={shown(value)} must be a SignalDispatcher, such as SignalDispatcher(None)")
    return value


def level(value: Any) -> str | None:
    """Check the name of a level."""
    if value is not None and value not in LEVELS:
        hint = nearest(value, LEVELS) if isinstance(value, str) else ""
        raise BadRequest(f"require={shown(value)} is no level{hint}; known: {', '.join(LEVELS)}")
    return value  # type: ignore[no-any-return]


def modules(value: Any) -> list[str]:
    """Check names of modules as such; whether there are such modules is seen when the kernel starts."""
    for name in words("preload", value, what := "module names, such as ['numpy']"):
        if not all(part.isidentifier() for part in name.split(".")):
            raise BadRequest(f"preload={shown(value)} must be a list of {what}; {shown(name)} is no such name")
    return list(value)


def directory(where: str, value: Any) -> str | None:
    """Check a path as such; whether it is there is seen when the kernel starts."""
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise BadRequest(f"{where}={shown(value)} must be the path of a directory")
    return path
