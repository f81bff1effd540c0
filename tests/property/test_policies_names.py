"""Names: whatever the spelling, one form; whatever the text, an answer."""

from __future__ import annotations

import contextlib
import os.path
import random
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentos.actions import Action
from agentos.policies import EffectivePolicy, InvalidResource, Pattern, Policy, Rule, file_resource, normalise

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
ALLOW_ALL = EffectivePolicy(Policy("all", rules=[Rule("allow", Pattern("*", "*"))]), workspace="/w")
SEGMENT = st.sampled_from(["a", "b.c", "...", "..x", "x..", "é", "%2e", "a b", "~", "-", "\\"]) | st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4
).filter(lambda text: text not in {".", ".."})
PATHS = st.lists(SEGMENT, min_size=1, max_size=5)
BITS = [
    "/",
    "//",
    "..",
    ".",
    "a",
    "https://",
    "http:",
    "h",
    ":",
    "@",
    "%2f",
    "%41",
    "%",
    "[",
    "]",
    "::1",
    "?",
    "#",
    "\\",
    "unix:",
    "é",
    "\u3002",
    "K",
    "xn--",
    "0x7f",
    "1",
    "\0",
    " ",
    "\ud800",
    "*",
]
JUNK = st.text(max_size=30) | st.lists(st.sampled_from(BITS), max_size=9).map("".join)
CHAOS = st.randoms(use_true_random=False)


@given(JUNK)
def test_a_name_has_one_form_or_none(text: str) -> None:
    """Nothing but InvalidResource is raised, and what is normal stays as it is."""
    try:
        once = normalise(text)
    except InvalidResource:
        return
    assert normalise(once) == once
    if "://" not in once:
        assert (
            not {"", ".", ".."} & set(once.removeprefix("unix:").strip("/").split("/"))
            or once.strip("/") in {"", "."}
            or once[:6] == "unix:@"
        )


@given(
    JUNK,
    JUNK | st.none(),
    st.sampled_from(["read", "write/delete", "execute", "network/connect"]) | JUNK,
    st.lists(JUNK, max_size=3) | st.none(),
    st.sampled_from(["hook", "sdk"]),
)
def test_an_agent_may_ask_anything(
    resource: str, resolved: str | None, operation: str, argv: list[str] | None, source: Any
) -> None:
    """Total: an answer, never an exception; and a denial for whatever has no form."""
    words = None if argv is None else tuple(argv)
    action = Action(operation=operation, resource=resource, resolved=resolved, argv=words, source=source)
    made = ALLOW_ALL.decide(action, cwd="/w/sub", context={}, name="a", now_s=0.0, at=NOW)
    assert made.allowed or made.reason in {"invalid_resource", "invalid_operation"}


@given(st.booleans(), PATHS, CHAOS)
def test_no_spelling_of_a_path_makes_another_name_of_it(
    absolute: bool, segments: list[str], chaos: random.Random
) -> None:
    plain = ("/" if absolute else "") + "/".join(segments)
    spelled = "/" * absolute
    for segment in segments:
        for _ in range(chaos.randrange(3)):
            spelled += chaos.choice(["./", "/" if spelled else "./", "zz/../", "zz/./yy//../../"])
        spelled += segment + "/"
    spelled = spelled.rstrip("/") + chaos.choice(["", "/", "//", "/."])
    with contextlib.suppress(InvalidResource):
        if "://" not in plain and not plain.startswith("unix:"):
            assert normalise(spelled).rstrip("/") == normalise(plain)


@given(PATHS, PATHS, st.lists(st.sampled_from(["..", ".", "", "a", "b"]), max_size=8), st.booleans())
def test_a_file_is_where_the_system_finds_it(
    root: list[str], inner: list[str], steps: list[str], absolute: bool
) -> None:
    """The lexical part of path resolution, against os.path: inside the workspace relative, outside absolute."""
    workspace = "/" + "/".join(root)
    cwd = workspace + "/" + "/".join(inner)
    path = ("/" if absolute else "") + "/".join([*steps, "x"])
    expected = os.path.normpath(os.path.join(cwd, path)).replace("//", "/", 1)
    relative = os.path.relpath(expected, workspace)
    wanted = expected if relative.startswith("../") or relative == ".." else relative
    with contextlib.suppress(InvalidResource):
        assert file_resource(path, cwd=cwd, workspace=workspace) == wanted


# --- URLs --------------------------------------------------------------------------------------------------------

HOSTS = st.sampled_from(["example.com", "a.b-c.example", "10.0.0.1", "[2001:db8::1]", "xn--bcher-kva.example"])
URL_SEGMENTS = st.lists(
    st.text("abcXYZ019-._~!$&'()*+,;=:@", min_size=1, max_size=5).filter(lambda s: s not in {".", ".."}), max_size=4
)


def shouted(text: str, chaos: random.Random) -> str:
    return "".join(c.upper() if chaos.random() < 0.5 else c for c in text)


def escaped(text: str, chaos: random.Random) -> str:
    """Some of the unreserved characters as percent-escapes, in either case."""
    return "".join(
        f"%{ord(c):02{chaos.choice('xX')}}" if (c.isalnum() or c in "-._~") and chaos.random() < 0.4 else c
        for c in text
    )


@settings(max_examples=300)
@given(
    st.sampled_from([("http", "80"), ("https", "443")]),
    HOSTS,
    st.sampled_from(["", "8443"]),
    URL_SEGMENTS,
    st.booleans(),
    CHAOS,
)
def test_no_spelling_of_a_url_makes_another_name_of_it(
    scheme: tuple[str, str], host: str, port: str, segments: list[str], slash: bool, chaos: random.Random
) -> None:
    plain = f"{scheme[0]}://{host}{':' + port if port else ''}/{'/'.join(segments)}{'/' if slash and segments else ''}"
    assert normalise(plain) == plain
    dot = "." if host[-1].isalpha() and chaos.random() < 0.3 else ""
    its_port = f":{port}" if port else chaos.choice(["", ":", f":{scheme[1]}"])
    path = ""
    for segment in segments:
        for _ in range(chaos.randrange(3)):
            path += chaos.choice(["/.", "/%2e", "/zz/..", "/zz/%2E%2e", "/zz/.%2e"])
        path += "/" + escaped(segment, chaos)
    if slash or not segments:
        path += chaos.choice(["/", "/.", "/zz/.."])
    rest = chaos.choice(["", "?", "?q=/../x", "#f", "?a#b"])
    spelled = f"{shouted(scheme[0], chaos)}://{shouted(host, chaos)}{dot}{its_port}{path}{rest}"
    assert normalise(spelled) == plain


@given(HOSTS, JUNK)
def test_what_an_allowed_host_pattern_covers_is_that_host(host: str, junk: str) -> None:
    """However the text goes on, a URL that passes for the host has that authority and no other."""
    policy = Policy("t", rules=[Rule("allow", Pattern("network", f"https://{host}/*"))])
    for text in (f"https://{host}{junk}", f"https://{junk}{host}/", f"https:{junk}//{host}/"):
        made = policy.decide("network", text)
        if made.allowed:
            assert made.resource.startswith(f"https://{host}/")
            authority = text.partition("//")[2].partition("?")[0].partition("#")[0].partition("/")[0].lower()
            assert authority in {host + end for end in ("", ".", ":", ":443", ".:443", ".:")}
