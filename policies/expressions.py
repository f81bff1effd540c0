"""Regular expressions, by RE2: linear in the name whatever the pattern, no look-around, no back-references (R4).

The only door to re2. Matching goes through its sets: many expressions in one pass, and no match object for a yes. A
set whose automaton does not fit its memory says "no match" without a word; each is therefore asked, when it is
built, for a text that it must match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import re2

from agentos.policies.segment import GlobError

MEMORY_BYTES: Final = 8 << 20  # of one expression: RE2's own default
SET_MEMORY_BYTES: Final = 64 << 20  # an upper bound for ten thousand; RE2 takes what it needs
_PROBE: Final = "\0"  # no name and no argument holds it

Match = Callable[[str], Sequence[int] | None]


def check(expression: str) -> None:
    """Raise GlobError, with RE2's own words, for what RE2 does not take."""
    _compile(expression)


def matcher(expression: str) -> Callable[[str], object]:
    """Return a function whose answer is true for the texts that `expression` matches as a whole."""
    try:
        return together([expression], MEMORY_BYTES)
    except GlobError:
        fullmatch: Callable[[str], object] = _compile(expression).fullmatch
        return fullmatch


def together(expressions: Sequence[str], memory_bytes: int = SET_MEMORY_BYTES) -> Match:
    """Return a function from a text to the indices of the expressions that match it, None where none does.

    Raises GlobError when together they do not fit `memory_bytes`.
    """
    found = re2.Set.FullMatchSet(_options(memory_bytes))
    try:
        for expression in expressions:
            found.Add(expression)
        probe = found.Add(_PROBE)
        found.Compile()
    except re2.error as error:
        raise GlobError(f"too large together: {len(expressions)} expressions") from error
    match: Match = found.Match
    if probe not in (match(_PROBE) or ()):
        raise GlobError(f"too large together: {len(expressions)} expressions")
    return match


def _compile(expression: str) -> re2._Regexp:
    try:
        return re2.compile(expression, _options(MEMORY_BYTES))
    except re2.error as error:
        detail = error.args[0]
        raise GlobError(f"not an RE2 expression: {detail.decode() if isinstance(detail, bytes) else detail}") from error


def _options(memory_bytes: int) -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = memory_bytes
    return options
