"""How an agent's exception is told to the kernel: type, message, a bounded traceback without our own frames.

Reads exceptions of any make and trusts none: a message whose `__str__` fails is said to have failed.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from typing import Any, Final

from agentos import wire
from agentos.errors import PolicyViolationError

TRACEBACK_CHARACTERS_MAX: Final = 32 * 1024
MESSAGE_CHARACTERS_MAX: Final = 8 * 1024
TYPE_CHARACTERS_MAX: Final = 200
_NOT_THEIRS: Final = (os.path.dirname(os.path.abspath(__file__)) + os.sep, "<frozen importlib")  # ours, and import's
_NUMBER_MAX: Final = 2**63
_QUALNAME: Final = type.__dict__["__qualname__"]
_FIELDS: Final = ("operation", "resource", "reason", "rule", "rule_name", "event_id", "on_violation", "retry_after_s")


def raised(error: BaseException) -> wire.Raised:
    """Return the frame for `error`; its violation is filled when nothing but refusals ended the agent."""
    report = traceback.TracebackException.from_exception(error, compact=True)
    _trim(report)
    return wire.Raised(
        type_name(error),
        _bounded(str(report), MESSAGE_CHARACTERS_MAX),
        _bounded("".join(report.format()), TRACEBACK_CHARACTERS_MAX),
        _violation(error),
    )


def type_name(error: BaseException) -> str:
    """Return the name of the class, as it was made, whatever its metaclass says."""
    return _bounded(_QUALNAME.__get__(type(error)), TYPE_CHARACTERS_MAX)


def _trim(report: traceback.TracebackException) -> None:
    """Drop our own frames from a report and from all that it was caused by or holds."""
    reports = [report]
    while reports:
        each = reports.pop()
        each.stack[:] = [frame for frame in each.stack if not frame.filename.startswith(_NOT_THEIRS)]
        reports += [other for other in (each.__cause__, each.__context__) if other is not None]
        reports += each.exceptions or []


def _bounded(text: str, characters_max: int) -> str:
    """Return `text` as UTF-8 can carry it, cut in the middle: the beginning says where from, the end says what."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= characters_max:
        return text
    mark = f"\n… {len(text) - characters_max} characters left out …\n"
    head = characters_max // 4
    return text[:head] + mark + text[head + len(mark) - characters_max :]


def _violation(error: BaseException) -> dict[str, Any] | None:
    """Return the fields of a refusal; of a group (asyncio.TaskGroup raises those) when it holds nothing else."""
    leaves = list(_leaves(error))
    if not leaves or not all(isinstance(leaf, PolicyViolationError) for leaf in leaves):
        return None
    fields = vars(leaves[0])
    return {name: _plain(fields[name]) for name in _FIELDS if isinstance(fields.get(name), str | int | float)}


def _plain(value: str | float) -> str | float:
    """Return what was set on the error as the wire can carry it, whoever set it."""
    if isinstance(value, str):
        return _bounded(str(value), MESSAGE_CHARACTERS_MAX)
    return value if abs(value) < _NUMBER_MAX else 0


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what a group holds, however deep; an error that is no group is all there is."""
    nodes = [error]
    for node in nodes:
        if isinstance(node, BaseExceptionGroup):
            nodes += node.exceptions
        else:
            yield node
