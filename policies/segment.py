"""The syntax within one segment of a pattern, and `{a,b}`: from a pattern's text to a regular expression's.

`*` and `?` stop at `/`; `[a-z]`, `[!a]` and `[^a]` never match it; a backslash takes the meaning from what follows
(R1.2 to R1.8). Knows nothing of paths, URLs or matching: glob.py puts segments together.
"""

from __future__ import annotations

from typing import Final

import re2

ALTERNATIVES_MAX: Final = 1_000  # of one pattern after {a,b} expansion: a list, not a bomb
_SPECIAL: Final = frozenset("*?[\\")


class GlobError(ValueError):
    """The pattern means nothing, or would mean different things to different readers."""


def segment_regex(segment: str, *, empty: bool = False) -> str:
    """Translate one segment; `*` as a whole segment needs a character unless `empty`."""
    if "**" in segment:
        raise GlobError(f"'**' must be a whole segment, not part of {segment!r}")
    if segment == "*":
        return "[^/]*" if empty else "[^/]+"
    out: list[str] = []
    at = 0
    while at < len(segment):
        at, piece = _piece(segment, at)
        out.append(piece)
    return "".join(out)


def _piece(segment: str, at: int) -> tuple[int, str]:
    char = segment[at]
    if char == "*":
        return at + 1, "[^/]*"
    if char == "?":
        return at + 1, "[^/]"
    if char == "[":
        return _class(segment, at)
    if char == "\\":
        if at + 1 == len(segment):
            raise GlobError("a backslash at the end of a segment escapes nothing")
        return at + 2, re2.escape(segment[at + 1])
    return at + 1, re2.escape(char)


def _class(segment: str, at: int) -> tuple[int, str]:
    """Translate `[...]`, which never matches `/` even when a range spans it (R1.4)."""
    start = at + 1
    negated = segment[start : start + 1] in ("!", "^")
    start += negated
    end = segment.find("]", start + 1)
    if end < 0:
        raise GlobError(f"'[' without ']' in {segment!r} (a class cannot hold '/'; write \\[ for the character)")
    body = segment[start:end]
    if "[:" in body or "\\" in body:
        raise GlobError(f"named classes and backslashes are not known inside {segment[at : end + 1]!r}")
    ranges = _ranges(body)
    if negated:
        return end + 1, "[^/" + "".join(_span(low, high) for low, high in ranges) + "]"
    spans = [_span(a, b) for low, high in ranges for a, b in _without_slash(low, high)]
    if not spans:
        raise GlobError(f"{segment[at : end + 1]!r} matches nothing")
    return end + 1, "[" + "".join(spans) + "]"


def _ranges(body: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(body):
        is_range = at + 2 < len(body) and body[at + 1] == "-"  # a '-' that ends the class is itself
        high = body[at + 2] if is_range else body[at]
        if high < body[at]:
            raise GlobError(f"the range {body[at]}-{high} runs backwards")
        found.append((ord(body[at]), ord(high)))
        at += 3 if is_range else 1
    return found


def _without_slash(low: int, high: int) -> list[tuple[int, int]]:
    slash = ord("/")
    if not low <= slash <= high:
        return [(low, high)]
    return [(a, b) for a, b in ((low, slash - 1), (slash + 1, high)) if a <= b]


def _span(low: int, high: int) -> str:
    return f"\\x{{{low:x}}}-\\x{{{high:x}}}"


def literal(segment: str) -> str | None:
    """Return the text of a segment without wildcards, unescaped; None when it has wildcards."""
    if not _SPECIAL.intersection(segment):
        return segment
    out: list[str] = []
    at = 0
    while at < len(segment):
        if segment[at] in "*?[":
            return None
        if segment[at] == "\\":
            if at + 1 == len(segment):
                raise GlobError("a backslash at the end of a segment escapes nothing")
            at += 1
        out.append(segment[at])
        at += 1
    return "".join(out)


def expand_braces(pattern: str) -> tuple[str, ...]:
    """Expand `{a,b}` (nested too), leaving backslash escapes alone. Raises GlobError."""
    done: list[str] = []
    waiting = [pattern]
    while waiting:
        text = waiting.pop()
        found = _first_brace(text)
        if found is None:
            done.append(text)
        else:
            start, end, choices = found
            waiting.extend(text[:start] + choice + text[end + 1 :] for choice in reversed(choices))
        if len(done) + len(waiting) > ALTERNATIVES_MAX:
            raise GlobError(f"more than {ALTERNATIVES_MAX} alternatives")
    if "" in done:
        raise GlobError("an alternative of the pattern is empty")
    return tuple(done)


def _first_brace(text: str) -> tuple[int, int, list[str]] | None:
    """Return (index of the first `{`, index of its `}`, the choices between), None when there is none."""
    depth, start, cut, at = 0, -1, 0, 0
    choices: list[str] = []
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
        elif char == "{":
            depth += 1
            if depth == 1:
                start = cut = at
        elif depth and char in ",}":
            if depth == 1:
                choices.append(text[cut + 1 : at])
                cut = at
            if char == "}":
                depth -= 1
                if depth == 0:
                    return start, at, choices
        at += 1
    if depth:
        raise GlobError("'{' without '}' (write \\{ for the character)")
    return None
