"""Names of resources, made comparable once and in one place (R2, R3).

Four name spaces that never meet: relative names (files of the workspace, tools, anything semantic), absolute
paths, URLs (`scheme://`, see url.py) and unix sockets (`unix:/path`, `unix:@abstract`). Purely lexical: links
are the interceptor's business, and so the resolved name is tested as well (R2.4). A final `/` marks the opening
of a directory and is kept: `D/` is what `D/*` matches. No percent-decoding, case folding or Unicode
normalisation of paths: Linux names are bytes.
"""

from __future__ import annotations

import re
from typing import Final

from agentos.actions import RESOURCE_BYTES_MAX

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_@%+=,-][A-Za-z0-9_@%+=,.-]*(?:/[A-Za-z0-9_@%+=,-][A-Za-z0-9_@%+=,.-]*)*")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
# A URL or a socket to some parsers and not to others: ` https://h`, `https:h`, `<https://h>`, `//h`, `UNIX:/x`.
_ALMOST_URL: Final = re.compile(r"//|\\|[^a-z0-9]*(?:https?|wss?|ftp|tcp|udp|unix):|.*://", re.IGNORECASE)


class InvalidResource(ValueError):
    """The name cannot be read in one way only: denied whatever the policy says."""


def normalise(resource: str) -> str:
    """Return the one form of `resource` that patterns are compared with. Raises InvalidResource."""
    if _PLAIN.fullmatch(resource) and len(resource) < RESOURCE_BYTES_MAX:  # nothing to do, the usual case
        return resource
    if _SCHEME.match(resource):
        from agentos.policies.url import normalise_url  # noqa: PLC0415 - url.py needs this module's error first

        check_text(resource)
        return normalise_url(resource)
    if resource.startswith("unix:"):
        return _unix(resource)
    return normalise_path(resource)


def normalise_network(resource: str) -> str:
    """Return the one form of what a network operation is about: a URL, a socket, or an opaque name that is neither.

    Raises InvalidResource also for what merely looks like a URL: whoever dials it may read it as one (R3).
    """
    if not is_url(resource) and not resource.startswith("unix:") and _ALMOST_URL.match(resource):
        raise InvalidResource("a URL to some readers and not to others; write scheme://host/path")
    return normalise(resource)


def is_url(resource: str) -> bool:
    """Return whether `resource` belongs to the name space of URLs."""
    return "://" in resource and _SCHEME.match(resource) is not None


def check_text(resource: str) -> None:
    """Raise InvalidResource for an empty, over-long or control-character-bearing name."""
    if not resource:
        raise InvalidResource("an empty name")
    if len(resource) > RESOURCE_BYTES_MAX:
        raise InvalidResource(f"longer than {RESOURCE_BYTES_MAX} characters")
    found = _CONTROL.search(resource)
    if found:
        raise InvalidResource(f"character {found.group()!r} at {found.start()}")


def normalise_path(path: str) -> str:
    """Return `path` without `//`, `.` and `..` (R2). Raises InvalidResource for `..` above a relative root."""
    check_text(path)
    absolute = path.startswith("/")
    kept: list[str] = []
    for segment in path.split("/"):
        if segment in {"", "."}:
            continue
        if segment != "..":
            kept.append(segment)
        elif kept:
            kept.pop()
        elif not absolute:
            raise InvalidResource("'..' leaves the root of a relative name")
    if not kept:
        return "/" if absolute else ("./" if _marks_directory(path) else ".")
    return ("/" if absolute else "") + "/".join(kept) + ("/" if _marks_directory(path) else "")


def _marks_directory(path: str) -> bool:
    return path.endswith("/")


def _unix(resource: str) -> str:
    """`unix:/run/x.sock` keeps its scheme; an abstract name (`unix:@x`) has no path to resolve."""
    name = resource.removeprefix("unix:")
    if name.startswith("@"):
        check_text(resource)
        return resource
    path = normalise_path(name).rstrip("/") if name.startswith("/") else ""
    if not path:
        raise InvalidResource("a unix socket is named by an absolute path or by @name")
    return f"unix:{path}"


def printable_name(path: str | bytes) -> str:
    r"""Return a file name as text; bytes that are no UTF-8 read as `\xNN` (a name may hold any byte but / and NUL).

    Raises InvalidResource for text that no bytes can have given.
    """
    try:
        raw = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidResource("a surrogate that stands for no byte") from error
    return raw.decode("utf-8", "backslashreplace")


def file_resource(path: str | bytes, *, cwd: str, workspace: str | None) -> str:
    """Return the resource name of a file: workspace-relative inside the workspace, absolute outside (R2.3).

    `cwd` and `workspace` are absolute. The workspace itself is `.`. A final `/` (a directory being opened) is
    kept. Raises InvalidResource for names with control characters.
    """
    if not path:
        raise InvalidResource("an empty name")
    if isinstance(path, bytes) or not path.isascii():
        path = printable_name(path)
    if not path.startswith("/"):
        path = f"{cwd}/{path}"
    return workspace_form(normalise_path(path), workspace)


def workspace_form(absolute: str, workspace: str | None) -> str:
    """Return a normalised absolute path in the form that policies see. Raises InvalidResource."""
    if workspace is None:
        return absolute
    root = workspace.rstrip("/")
    if absolute == root:
        return "."
    if not absolute.startswith(root + "/"):
        return absolute
    relative = absolute[len(root) + 1 :]
    if relative.startswith("unix:"):
        raise InvalidResource("a file of the workspace whose name reads as a socket's")
    return relative or "./"
