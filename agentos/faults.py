"""Errors across a process border: an exception as a Fault frame and back.

Closed set: the classes of agentos.errors, and SeveralFailed, which arrives as an ExceptionGroup of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

from agentos import errors, wire

_PLAIN: Final = (str, int, float, tuple, type(None))
_TEXT_MAX: Final = 1_500_000  # characters of the messages of several failures, and as many of each field: one frame
_TEXT_MIN: Final = 100  # an id is never cut


class SeveralFailed(errors.AgentosError):
    """A call failed in several ways at once: the one error that leaves as several."""

    def __init__(self, failures: Sequence[errors.AgentosError]) -> None:
        super().__init__(f"{len(failures)} of the agents failed")
        self.failures = tuple(failures)


def to_fault(request_id: int, error: errors.AgentosError) -> wire.Fault:
    """Return the frame for `error`; only plain fields travel."""
    fields: dict[str, Any]
    if isinstance(error, SeveralFailed):
        room = max(_TEXT_MIN, _TEXT_MAX // max(1, len(error.failures)))
        fields = {"failures": [_shortened(to_fault(0, failure), room) for failure in error.failures]}
    else:
        fields = {name: value for name, value in vars(error).items() if isinstance(value, _PLAIN)}
    return wire.Fault(request_id, type(error).__name__, str(error), fields)


def _shortened(fault: wire.Fault, room: int) -> list[Any]:
    """Return name, message and fields with texts of at most `room` characters; a traceback says most at its end."""
    fields = {name: value[-room:] if isinstance(value, str) else value for name, value in fault.fields.items()}
    return [fault.error, fault.message[:room], fields]


def rebuild(fault: wire.Fault) -> Exception:
    """Return the exception that `fault` describes: an error of the closed set, or an ExceptionGroup of them."""
    if fault.error == SeveralFailed.__name__:
        failures = [_rebuild(*each) for each in _several(fault.fields.get("failures"))]
        return ExceptionGroup(fault.message, failures) if failures else errors.AgentosError(fault.message)
    return _rebuild(fault.error, fault.message, fault.fields)


def _several(failures: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Return those of several failures that are any: name, message and fields."""
    kinds = [str, str, dict]
    found = failures if isinstance(failures, list) else []
    return [tuple(each) for each in found if isinstance(each, list) and [*map(type, each)] == kinds]


def _rebuild(name: str, message: str, fields: dict[str, Any]) -> errors.AgentosError:
    """Return the error with its fields and its text as they were; one we do not know becomes the root."""
    cls = getattr(errors, name, errors.AgentosError)
    if not (isinstance(cls, type) and issubclass(cls, errors.AgentosError)):
        cls = errors.AgentosError
    error = cls.__new__(cls, message)
    error.args = (message,)
    for field, value in fields.items():
        if isinstance(field, str) and not field.startswith("_"):
            with contextlib.suppress(TypeError, ValueError):  # built in and of another type: no field of ours
                setattr(error, field, tuple(value) if isinstance(value, list) else value)
    return error
