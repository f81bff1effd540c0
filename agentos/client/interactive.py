"""Functions that are typed: at a prompt, or in a notebook's cell, which is run again after every change.

Knows what was typed anew from what bears a name that is taken. Keeps nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from agentos.agent.calls import place_of


def is_retyped(before: Callable[..., Any], after: Callable[..., Any]) -> bool:
    """Whether `after` is `before` typed again: the same name at the top of `__main__`, and no file holds either."""
    place = place_of(after)
    return place == place_of(before) and place.startswith("__main__:") and "<" not in place and _typed(before, after)


def _typed(*functions: Callable[..., Any]) -> bool:
    """Whether no file has their code: a prompt calls its source <stdin>, a notebook by a file that it never wrote."""
    codes = [getattr(inspect.unwrap(function), "__code__", None) for function in functions]
    return all(code is not None and not os.path.exists(code.co_filename) for code in codes)
