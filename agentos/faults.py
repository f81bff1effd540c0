"""Errors across a process border: an exception as a Fault frame and back. Closed set: the classes of agentos.errors."""

from __future__ import annotations

from agentos import errors, wire


def rebuild(fault: wire.Fault) -> errors.AgentosError:
    """Return the exception that `fault` describes: a class of agentos.errors with its fields and text, or the root."""
    cls = getattr(errors, fault.error, errors.AgentosError)
    if not (isinstance(cls, type) and issubclass(cls, errors.AgentosError)):
        cls = errors.AgentosError
    error = cls.__new__(cls, fault.message)
    error.args = (fault.message,)
    for name, value in fault.fields.items():
        setattr(error, name, value)
    return error


def to_fault(request_id: int, error: errors.AgentosError) -> wire.Fault:
    """Return the frame for `error`; only plain fields travel."""
    fields = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return wire.Fault(request_id, type(error).__name__, str(error), fields)
