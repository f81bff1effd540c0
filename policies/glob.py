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

from agentos.policies import expressions, url
from agentos.policies.normalise import InvalidResource, is_url
from agentos.policies.segment import GlobError, expand_braces, literal, segment_regex

_NO_NAMES: Final = ("*", "**", ".", "..")  # without a slash, and yet no program's name
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")

# "relative": whatever is below the root of the relative names; "person": a regular expression someone wrote
Kind = Literal["any", "relative", "exact", "prefix", "regex", "person"]


class Glob:
    """One alternative of a pattern. Immutable; `tokens` are whole literal segments that every match contains."""

    __slots__ = ("_match", "kind", "regex", "relative_only", "text", "tokens")

    def __init__(
        self, kind: Kind, regex: str, *, text: str = "", tokens: tuple[str, ...] = (), relative_only: bool = False
    ) -> None:
        self.kind = kind
        self.relative_only = relative_only  # its first segment is open: only this keeps it from the other name spaces
        self.regex = regex
        self.text = text
        self.tokens = tokens
        self._match: Callable[[str], object] | None = None

    def matches(self, name: str) -> bool:
        """Return whether the normalised `name` (`D/` for the opening of a directory) is covered."""
        if self.relative_only and not _is_relative(name):
            return False
        if self.kind == "prefix":
            return name.startswith(self.text)
        if self.kind == "exact":
            return name == self.text or (name[-1:] == "/" and name[:-1] == self.text and not is_url(name))
        if self.kind == "any":
            return True
        if self.kind == "relative":
            return name == "./" or _is_relative(name)
        if self._match is None:  # compiled on first need: most rules of a large policy are never tried
            self._match = expressions.matcher(self.regex)
        if self._match(name):
            return True
        return self.kind == "person" and name[-1:] == "/" and not is_url(name) and bool(self._match(name[:-1]))


def _is_relative(name: str) -> bool:
    """Return whether the name is below the root of the relative ones: not the root itself, no path, URL or socket."""
    if name[:1] == "/" or name in (".", "./"):
        return False
    return ":" not in name or not (is_url(name) or name.startswith("unix:"))


ANY: Final = Glob("any", r"(?s:.*)")
RELATIVE: Final = Glob("relative", r"(?s:.*)")


@lru_cache(maxsize=4_096)
def globs(pattern: str) -> tuple[Glob, ...]:
    """Return the alternatives of a resource pattern. Raises GlobError."""
    return tuple(_one(text) for text in expand_braces(pattern))


@lru_cache(maxsize=1_024)
def regex_glob(pattern: str) -> Glob:
    """Return a regular expression as a Glob: full match of the name, with or without a directory's slash (R4)."""
    expressions.check(pattern)
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
    if text.startswith("unix:") and text[5:6] != "@":
        raise GlobError("a unix socket is named by an absolute path or by @name")
    return _path_glob(text)


# --- paths and other slash-separated names -----------------------------------------------------------------------


def _path_glob(text: str, before: str = "") -> Glob:
    absolute = text.startswith("/")
    segments = [s for s in text.split("/") if s not in ("", ".")]
    if any(literal(s) == ".." for s in segments):
        raise GlobError("'..' in a pattern; write the path it leads to")
    if not segments:
        return _exact("/" if absolute else ".", ())
    return _segments(segments, before + ("/" if absolute else ""))


def _segments(segments: list[str], start: str) -> Glob:
    """Build the glob of `start` (what every match begins with, literally) and the segments after it."""
    literals = [literal(s) for s in segments]
    tokens = tuple(s for s in literals if s is not None)
    if len(tokens) == len(segments):
        return _exact(start + "/".join(tokens), tokens)
    named = literals[0] is not None and not literals[0].endswith(":")
    open_start = not (start or named or segments[0].startswith("unix:@"))
    recursive = segments[-1] in ("*", "**")
    if recursive and not start and all(s == "**" for s in segments[:-1]):
        return RELATIVE
    if recursive and len(tokens) == len(segments) - 1:
        text = start + "".join(f"{t}/" for t in tokens)
        regex = re2.escape(text) + "(?s:.*)"
        return Glob("prefix", regex, text=text, tokens=tokens, relative_only=open_start)
    middle = segments[:-1] if recursive else segments
    body = "".join("(?:[^/]+/)*" if s == "**" else f"{segment_regex(s)}/" for s in middle)
    rest = "(?s:.*)" if recursive else "?"  # the last slash is a directory's
    return Glob("regex", re2.escape(start) + body + rest, tokens=tokens, relative_only=open_start)


def _exact(text: str, tokens: tuple[str, ...]) -> Glob:
    return Glob("exact", re2.escape(text) + "/?", text=text, tokens=tokens)


def _bare(text: str) -> Glob:
    if _CONTROL.search(text):
        raise GlobError("a control character in a pattern")
    name = literal(text)
    return Glob("regex", f"(?:/(?:[^/]+/)*)?{segment_regex(text)}", tokens=() if name is None else (name,))


def _argument(text: str) -> Glob:
    if text in ("*", "**"):
        return ANY
    *middle, last = text.split("/")
    body = "".join("(?:[^/]*/)*" if s == "**" else segment_regex(s, empty=True) + "/" for s in middle)
    rest = {"*": "(?s:.*)", "**": "(?s:.+)"}.get(last) if middle else None
    return Glob("regex", body + (rest or segment_regex(last, empty=True)))


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
    exact = ""
    if port_text is not None and host_regex == re2.escape(host_token):
        exact = f"{scheme.lower()}://{host_token}{port_text}"
    origin = f"{re2.escape(scheme.lower())}://{host_regex}{port_regex}"
    tokens = (host_token + (port_text or ""),) if host_token and port_text is not None else (f"{scheme.lower()}:",)
    if scheme.lower() in url.PORT_ONLY:
        if slash + path not in ("", "/") or port_text == "":
            raise GlobError(f"{scheme}:// needs a host and a port (or ':*') and no path")
        return Glob("exact", origin, text=exact, tokens=tokens) if exact else Glob("regex", origin, tokens=tokens)
    return _url_path(origin, exact, path.split("/"), tokens)


def _url_path(origin: str, exact: str, segments: list[str], tokens: tuple[str, ...]) -> Glob:
    if any(literal(s) == ".." for s in segments):
        raise GlobError("'..' in a pattern; write the path it leads to")
    segments = [s for s in segments if s != "."] or [""]
    recursive = segments[-1] in ("*", "**")
    middle = segments[:-1] if recursive else segments
    literals = [literal(s) for s in middle]
    tokens += tuple(s for s in literals if s)
    if exact and None not in literals and segments[-1] != "**":
        text = exact + "".join(f"/{s}" for s in literals)
        if recursive:
            return Glob("prefix", re2.escape(text + "/") + "(?s:.*)", text=text + "/", tokens=tokens)
        return Glob("exact", re2.escape(text), text=text, tokens=tokens)
    body = "".join("(?:/[^/]*)*" if s == "**" else "/" + segment_regex(s, empty=True) for s in middle)
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
