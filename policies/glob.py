"""Patterns: the glob dialect "AppArmor, plus: a final `/*` is recursive" (R1), compiled for RE2.

`data/*` is everything below `data`, at any depth; any other `*` or `?` stops at `/`. `*` alone is everything.
`**` is a whole segment: any number of segments. `[a-z]`, `[!a]`, `{a,b}`, backslash. Anchored at both ends,
case-sensitive, a leading dot is ordinary. A pattern stays in its own name space: `**/x` is relative, `/**/x`
absolute, `https://h/**/x` a URL. Owns the translation; matching is in `Glob.matches`, indexing in engine.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal

import re2

from agentos.policies import url
from agentos.policies.normalise import InvalidResource, is_url

REGEX_MEMORY_BYTES: Final = 8 << 20  # RE2's own default
ALTERNATIVES_MAX: Final = 1_000  # of one pattern after {a,b} expansion: a list, not a bomb
_SPECIAL: Final = frozenset("*?[\\")
_NO_NAMES: Final = ("*", "**", ".", "..")  # without a slash, and yet no program's name
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")

Kind = Literal["any", "exact", "prefix", "regex", "person"]  # "person": a regular expression someone wrote


class GlobError(ValueError):
    """The pattern means nothing, or would mean different things to different readers."""


def compile_regex(expression: str, memory_bytes: int = REGEX_MEMORY_BYTES) -> re2._Regexp:
    """Compile for RE2: linear time, no look-around, no back-references (R4). Raises GlobError."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = memory_bytes
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        detail = error.args[0]
        raise GlobError(f"not an RE2 expression: {detail.decode() if isinstance(detail, bytes) else detail}") from error


class Glob:
    """One alternative of a pattern. Immutable; `tokens` are whole literal segments that every match contains."""

    __slots__ = ("_match", "kind", "regex", "text", "tokens")

    def __init__(self, kind: Kind, regex: str, *, text: str = "", tokens: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.regex = regex
        self.text = text
        self.tokens = tokens
        self._match: Callable[[str], object] | None = None

    def matches(self, name: str) -> bool:
        """Return whether the normalised `name` (`D/` for the opening of a directory) is covered."""
        if self.kind == "prefix":
            return name.startswith(self.text)
        if self.kind == "exact":
            return name == self.text or (name[-1:] == "/" and name[:-1] == self.text and not is_url(name))
        if self.kind == "any":
            return True
        if self._match is None:  # compiled on first need: most rules of a large policy are never tried
            self._match = compile_regex(self.regex).fullmatch
        if self._match(name) is not None:
            return True
        return self.kind == "person" and name[-1:] == "/" and not is_url(name) and self._match(name[:-1]) is not None


ANY: Final = Glob("any", r"(?s:.*)")


@lru_cache(maxsize=4_096)
def globs(pattern: str) -> tuple[Glob, ...]:
    """Return the alternatives of a resource pattern. Raises GlobError."""
    return tuple(_one(text) for text in expand_braces(pattern))


@lru_cache(maxsize=1_024)
def regex_glob(pattern: str) -> Glob:
    """Return a regular expression as a Glob: full match of the name, with or without a directory's slash (R4)."""
    compile_regex(pattern)
    return Glob("person", pattern)


@lru_cache(maxsize=4_096)
def argument_globs(pattern: str) -> tuple[Glob, ...]:
    """Return the alternatives for one argument of a program: the same dialect, but nothing is normalised."""
    return tuple(_argument(text) for text in expand_braces(pattern))


@lru_cache(maxsize=4_096)
def program_globs(pattern: str) -> tuple[Glob, ...]:
    """Return the alternatives for a program: a bare name also is the basename of a program outside the workspace."""
    return tuple(_one(text) if "/" in text or text in _NO_NAMES else _bare(text) for text in expand_braces(pattern))


def _one(text: str) -> Glob:
    if _CONTROL.search(text):
        raise GlobError("a control character in a pattern")
    if text in ("*", "**"):
        return ANY
    if is_url(text):
        return _url_glob(text)
    if "://" in text:
        raise GlobError("the scheme of a URL has no wildcards; write {http,https}://")
    if text.startswith("unix:/"):
        return _path_glob(text.removeprefix("unix:"), before="unix:")
    return _path_glob(text)


# --- paths and other slash-separated names -----------------------------------------------------------------------


def _path_glob(text: str, before: str = "") -> Glob:
    absolute = text.startswith("/")
    segments = [s for s in text.split("/") if s not in ("", ".")]
    if any(_literal(s) == ".." for s in segments):
        raise GlobError("'..' in a pattern; write the path it leads to")
    if not segments:
        return _exact("/" if absolute else ".", ())
    return _segments(segments, before + ("/" if absolute else ""))


def _segments(segments: list[str], start: str) -> Glob:
    """Build the glob of `start` (what every match begins with, literally) and the segments after it."""
    literals = [_literal(s) for s in segments]
    tokens = tuple(s for s in literals if s is not None)
    whole = len(tokens) == len(segments)
    if whole:
        return _exact(start + "/".join(tokens), tokens)
    recursive = segments[-1] in ("*", "**")
    if recursive and len(tokens) == len(segments) - 1:
        text = start + "".join(f"{t}/" for t in tokens)
        return Glob("prefix", re2.escape(text) + "(?s:.*)", text=text, tokens=tokens)
    middle = segments[:-1] if recursive else segments
    body = "".join("(?:[^/]+/)*" if s == "**" else f"{_segment(s)}/" for s in middle)
    if not recursive:
        return Glob("regex", re2.escape(start) + body + "?", tokens=tokens)  # the last slash is a directory's
    rest = "[^/](?s:.*)" if all(s == "**" for s in middle) else "(?s:.*)"  # never into the absolute names
    return Glob("regex", re2.escape(start) + body + rest, tokens=tokens)


def _exact(text: str, tokens: tuple[str, ...]) -> Glob:
    return Glob("exact", re2.escape(text) + "/?", text=text, tokens=tokens)


def _bare(text: str) -> Glob:
    if _CONTROL.search(text):
        raise GlobError("a control character in a pattern")
    literal = _literal(text)
    return Glob("regex", f"(?:/(?:[^/]+/)*)?{_segment(text)}", tokens=() if literal is None else (literal,))


def _argument(text: str) -> Glob:
    if text == "*":
        return ANY
    body = text[:-1] if text.endswith("/*") else text
    regex = "/".join("(?s:.*)" if s == "**" else _segment(s, empty=True) for s in body.split("/"))
    return Glob("regex", regex + ("(?s:.*)" if body != text else ""))


def _segment(segment: str, *, empty: bool = False) -> str:
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


def _literal(segment: str) -> str | None:
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


# --- URLs --------------------------------------------------------------------------------------------------------


def _url_glob(text: str) -> Glob:
    """Build the glob of a URL pattern; the host is judged by label, the path by segment (R3)."""
    scheme, _, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    try:
        host, port = url.split_authority(authority)
        host_regex, host_token = _host(host)
        port_regex, port_text = _port(scheme.lower(), port)
        path = url.unescape(path)
    except InvalidResource as error:
        raise GlobError(f"not a URL pattern: {error}") from error
    if "#" in path or " " in path:
        raise GlobError("a fragment or a space never takes part in a match")
    literal = ""
    if port_text is not None and host_regex == re2.escape(host_token):
        literal = f"{scheme.lower()}://{host_token}{port_text}"
    origin = f"{re2.escape(scheme.lower())}://{host_regex}{port_regex}"
    tokens = (host_token + (port_text or ""),) if host_token and port_text is not None else (f"{scheme.lower()}:",)
    if scheme.lower() in url.PORT_ONLY:
        if slash + path not in ("", "/") or port_text == "":
            raise GlobError(f"{scheme}:// needs a host and a port (or ':*') and no path")
        return Glob("exact", origin, text=literal, tokens=tokens) if literal else Glob("regex", origin, tokens=tokens)
    return _url_path(origin, literal, path.split("/"), tokens)


def _url_path(origin: str, literal: str, segments: list[str], tokens: tuple[str, ...]) -> Glob:
    if any(_literal(s) == ".." for s in segments):
        raise GlobError("'..' in a pattern; write the path it leads to")
    segments = [s for s in segments if s != "."] or [""]
    recursive = segments[-1] in ("*", "**")
    middle = segments[:-1] if recursive else segments
    literals = [_literal(s) for s in middle]
    tokens += tuple(s for s in literals if s)
    if literal and None not in literals and segments[-1] != "**":
        text = literal + "".join(f"/{s}" for s in literals)
        if recursive:
            return Glob("prefix", re2.escape(text + "/") + "(?s:.*)", text=text + "/", tokens=tokens)
        return Glob("exact", re2.escape(text), text=text, tokens=tokens)
    body = "".join("(?:/[^/]*)*" if s == "**" else "/" + _segment(s, empty=True) for s in middle)
    tail = {"*": "/(?s:.*)", "**": "/(?s:.+)"}[segments[-1]] if recursive else ""
    return Glob("regex", origin + body + tail, tokens=tokens)


def _host(host: str) -> tuple[str, str]:
    """Return (regex, index token) of a host pattern: literal, `*`, `*.example.com`, or `*` within a label."""
    if host == "*":
        return r"(?:[^/:\[\]]+|\[[^\]/]+\])", ""
    if "*" not in host and "?" not in host:
        name = url.normalise_host(host)
        return re2.escape(name), name
    labels = host.lower().removesuffix(".").split(".")
    if "*" in labels[-1] or "?" in labels[-1] or "[" in host:
        raise GlobError(f"the host {host!r} is open at its end: it would match hosts of other owners")
    whole_first = labels[0] == "*"
    rest = labels[1:] if whole_first else labels
    wild = any("*" in label or "?" in label for label in rest)
    regex = r"\.".join(_host_label(label) for label in rest)
    if whole_first:
        regex = r"(?:[^/:.\[\]]+\.)+" + regex
    if wild or not whole_first:
        return regex, ""
    return regex, "*." + url.normalise_host(".".join(rest))


def _host_label(label: str) -> str:
    if "**" in label:
        raise GlobError("'**' means nothing in a host")
    if not label:
        raise GlobError("an empty label in a host")
    parts = re.split(r"([*?])", label if label.isascii() else url.normalise_host(label))
    return "".join({"*": r"[^/:.\[\]]*", "?": r"[^/:.\[\]]"}.get(p) or re2.escape(p) for p in parts)


def _port(scheme: str, port: str) -> tuple[str, str | None]:
    """Return (regex, literal suffix); the suffix is None for `:*`, which is any port."""
    if port == "*":
        return "(?::[0-9]+)?", None
    suffix = url.port_suffix(scheme, port)
    return suffix, suffix


# --- {a,b} -------------------------------------------------------------------------------------------------------


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
