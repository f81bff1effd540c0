"""What can be wrong with a policy's text, as one error that remembers which field it is about.

The constructors raise it as it is; the loader, which knows where each field stands in the file, adds the place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from agentos.errors import PolicyLoadError, nearest

Path = tuple[str | int, ...]
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # neither YAML nor a regular expression can hold one


class FieldError(PolicyLoadError):
    """A field of a policy, rule or pattern is wrong. `path` leads to it: `("conditions", "max_cost")`."""

    def __init__(self, message: str, path: Path, source: str = "policy") -> None:
        super().__init__(message, source=source)
        self.path = path


def one_of(value: object, known: Iterable[str], path: Path, what: str) -> str:
    """Return `value` when it is one of `known`; raises FieldError with the nearest known word."""
    words = tuple(known)
    if not isinstance(value, str) or value not in words:
        hint = nearest(str(value), words)
        raise FieldError(f"unknown {what} {value!r}{hint}; known: {', '.join(words)}", path)
    return value


def text(value: object, path: Path, what: str) -> str:
    """Return `value` when it is a string with something in it."""
    if not isinstance(value, str):
        raise FieldError(f"{what} must be text, not {type(value).__name__}", path)
    if not value.strip():
        raise FieldError(f"{what} is empty", path)
    if _SURROGATE.search(value):
        raise FieldError(f"{what} {value!r} holds half a character (a lone surrogate)", path)
    return value


def texts(value: object, path: Path, what: str) -> tuple[str, ...]:
    """Return one string or a list of strings as a tuple; raises FieldError naming the item that is wrong."""
    if isinstance(value, str):
        return (text(value, path, what),)
    if not isinstance(value, (list, tuple)):
        raise FieldError(f"{what} must be text or a list of texts, not {type(value).__name__}", path)
    if not value:
        raise FieldError(f"{what} is an empty list", path)
    return tuple(text(item, (*path, index), what) for index, item in enumerate(value))
