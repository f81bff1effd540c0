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
_FIELDS: Final = ("operation", "resource", "reason", "rule", "rule_name", "event_id", "on_violation", "retry_after_s")


def raised(error: BaseException) -> wire.Raised:
    """Return the frame for `error`; its violation is filled when nothing but refusals ended the agent."""
    report = traceback.TracebackException.from_exception(error, compact=True)
    _trim(report)
    return wire.Raised(
        _bounded(type(error).__qualname__, TYPE_CHARACTERS_MAX),
        _bounded(str(report), MESSAGE_CHARACTERS_MAX),
        _bounded("".join(report.format()), TRACEBACK_CHARACTERS_MAX),
        _violation(error),
    )


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
    return {name: value for name in _FIELDS if (value := getattr(leaves[0], name, None)) is not None}


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
