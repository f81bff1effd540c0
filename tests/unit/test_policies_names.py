"""One thing, one name: paths (R2), files of a workspace (R2.3), URLs (R3), and what cannot be read in one way only."""

from __future__ import annotations

import pytest

from agentos.errors import PolicyLoadError
from agentos.policies import InvalidResource, Pattern, Policy, Rule, file_resource, normalise

ALLOW_ALL = Policy("t", rules=[Rule("allow", Pattern("*", "*"))], default_action="allow")


@pytest.mark.parametrize(
    ("name", "normalised"),
    [
        ("data/x", "data/x"),
        ("./data//x", "data/x"),
        ("data/./x/", "data/x/"),  # the opening of a directory keeps its mark
        ("data/../data/x", "data/x"),
        ("data/a/../../x", "x"),
        ("/..//../etc/./passwd", "/etc/passwd"),
        ("/", "/"),
        ("//", "/"),
        (".", "."),
        ("a/..", "."),
        ("./", "./"),
        ("a/../", "./"),
        ("...", "..."),
        ("..a/b..", "..a/b.."),
        (".hidden", ".hidden"),
        ("a%2f..%2fb", "a%2f..%2fb"),  # no percent-decoding of paths
        ("A\\..\\b", "A\\..\\b"),  # a backslash is an ordinary character
        ("caf\u00e9", "caf\u00e9"),  # no Unicode normalisation: Linux names are bytes
        ("cafe\u0301", "cafe\u0301"),
        ("a b", "a b"),
        ("unix:/run//x/../y", "unix:/run/y"),
        ("unix:/run/d/", "unix:/run/d"),
        ("unix:@name", "unix:@name"),
    ],
)
def test_a_path_has_one_form(name: str, normalised: str) -> None:
    assert normalise(name) == normalised
    assert normalise(normalised) == normalised


@pytest.mark.parametrize(
    "name",
    [
        "", "..", "../x", "a/../../x", "./..", "a\0b", "a\nb", "a\x7f", "a\x9b", "\ud800", "x" * 32_769,
        "unix:x", "unix:", "unix:/", "unix:/a/..", "unix:@\0",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_read_is_denied_whatever_the_policy(name: str) -> None:
    """R2: even where everything is allowed, and even where nothing is enforced (R12)."""
    with pytest.raises(InvalidResource):
        normalise(name)
    lax = Policy("t", default_action="allow", enforce=False)
    for policy in (ALLOW_ALL, lax):
        made = policy.decide("read", name)
        assert (made.effect, made.reason, made.rule, made.would_deny) == ("deny", "invalid_resource", None, False)
        assert made.resource == name
        assert made.durable


# --- R2.3: files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/x", "sub/data/x"),
        ("../data/x", "data/x"),
        ("../../x", "/x"),
        ("../..", "/"),
        ("..", "."),
        ("../", "./"),
        ("/w/data/x", "data/x"),
        ("/w", "."),
        ("/w/", "./"),
        ("/workspace/x", "/workspace/x"),  # /w is no prefix of names, but of segments
        ("/w/../etc/passwd", "/etc/passwd"),
        ("//w//x", "x"),
        ("http://h/x", "sub/http:/h/x"),  # a file is never a URL
        (b"caf\xc3\xa9", "sub/caf\u00e9"),
        (b"a\xff\xfeb", "sub/a\\xff\\xfeb"),  # no UTF-8: shown, not guessed
        ("a\udcff", "sub/a\\xff"),  # the same name as Python's file functions spell it
    ],
)
def test_a_file_inside_the_workspace_is_relative_outside_absolute(path: str | bytes, name: str) -> None:
    """R2.3: mismatched forms are the bypass that users of other engines report most."""
    assert file_resource(path, cwd="/w/sub", workspace="/w") == name


@pytest.mark.parametrize("path", ["", "a\0b", "a\nb", b"a\x1bb", "a\ud800"])
def test_a_file_name_that_cannot_be_shown_is_no_resource(path: str | bytes) -> None:
    with pytest.raises(InvalidResource):
        file_resource(path, cwd="/w", workspace="/w")


def test_a_file_of_the_workspace_cannot_pose_as_a_socket() -> None:
    with pytest.raises(InvalidResource, match="socket"):
        file_resource("unix:/run/x.sock", cwd="/w", workspace="/w")
    assert file_resource("sub/unix:/x", cwd="/w", workspace="/w") == "sub/unix:/x"


def test_a_workspace_may_be_the_root_or_absent() -> None:
    assert file_resource("/etc/x", cwd="/", workspace="/") == "etc/x"
    assert file_resource("/", cwd="/", workspace="/") == "./"
    assert file_resource("x", cwd="/w", workspace=None) == "/w/x"


# --- R3: URLs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("https://h/x", "https://h/x"),
        ("HTTPS://Api.Example.COM/Path", "https://api.example.com/Path"),  # R3.1
        ("https://h:443/x", "https://h/x"),  # R3.2
        ("http://h:80/", "http://h/"),
        ("http://h:443/", "http://h:443/"),
        ("https://h:/", "https://h/"),
        ("https://h./x", "https://h/x"),  # R3.4
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),  # R3.5
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://[2001:DB8:0:0::1]:8443/", "https://[2001:db8::1]:8443/"),  # R3.6
        ("https://[::ffff:10.0.0.1]/", "https://10.0.0.1/"),  # one endpoint, one name
        ("https://10.0.0.1/", "https://10.0.0.1/"),
        ("https://h/%7Euser/%41%2d", "https://h/~user/A-"),  # R3.7: unreserved are decoded, once
        ("https://h/%2541", "https://h/%2541"),
        ("https://h/%c3%a9", "https://h/%C3%A9"),
        ("https://h/\u00e9", "https://h/%C3%A9"),
        ("https://h/a|b{c}", "https://h/a%7Cb%7Bc%7D"),  # what every client escapes
        ("https://h/a/./b/../c", "https://h/a/c"),  # R3.8
        ("https://h/../../x", "https://h/x"),
        ("https://h/%2e%2e/x", "https://h/x"),
        ("https://h/a/..", "https://h/"),
        ("https://h/a//b", "https://h/a//b"),  # empty segments stay
        ("https://h/x?y=/../z#f", "https://h/x"),  # R3.9
        ("https://h?x", "https://h/"),
        ("https://h", "https://h/"),  # R3.10
        ("https://h/a/", "https://h/a/"),
        ("tcp://10.0.0.1:5432", "tcp://10.0.0.1:5432"),
        ("udp://h:53/", "udp://h:53"),
    ],
)
def test_a_url_has_one_form(url: str, normalised: str) -> None:
    assert normalise(url) == normalised
    assert normalise(normalised) == normalised


BAD_URLS = [
    "https://good.com\\@evil.com/",  # urlsplit reads evil.com here, browsers good.com
    "https://user@h/", "https://user:pw@h/", "https://@h/", "https://h@/",  # R3.3
    "https://", "https:///x", "https://:443/", "https://./", "https://a..b/", "https://.a/",
    "https://h:0/", "https://h:65536/", "https://h:080/", "https://h:8a/", "https://h:\u0664/", "https://h:1:2/", "https://h:-1/",
    "http://0x7f.1/", "http://2130706433/", "http://0177.0.0.1/", "http://127.1/", "http://1.2.3.4.5/",  # R3.6
    "http://1.2.3.256/",
    "http://0x7f000001/", "http://foo.0x1/", "http://1.2.3.08/",
    "http://[::1", "http://::1/", "http://[::1]x/", "http://[fe80::1%25eth0]/", "http://[1.2.3.4]/", "http://[]/", "http://[::g]/",
    "https://h/%2Fx", "https://h/%5c", "https://h/%00", "https://h/%0a", "https://h/%7f",  # R3.7
    "https://h/%", "https://h/%4", "https://h/%zz",
    "https://h/\u0660%\u0664\u0661",
    "https://h\u3002com/", "https://h\uff0ecom/", "https://\uff48/",  # R3.5
    "https://\u212aernel.org/", "https://\u00df\u0130.x/",
    "https://xn--a/", "https://xn--/", "https://a\u200db.x/", "https://-a.x/", "https://a b/", "https://a%2eb/",
    "https://" + "a" * 64 + ".x/", "https://" + "a." * 130 + "x/", "https://" + "\u00fc" * 20_000 + "/",
    "https://h/a b", "https://h/a\tb", "https://h\t/", "https://h/\\", "https://h\u00a0/", "https://h/\x85",  # R3.12
    "tcp://h", "tcp://h:80/x", "udp://h/",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS, ids=lambda url: ascii(url)[:40])
def test_what_two_parsers_read_differently_is_denied_whatever_the_policy(url: str) -> None:
    with pytest.raises(InvalidResource):
        normalise(url)
    assert ALLOW_ALL.decide("network", url).reason == "invalid_resource"


@pytest.mark.parametrize(
    "name",
    [
        " https://evil.com/", "\u2003https://evil.com/", "<https://evil.com/>", "URL:https://evil.com/",
        "https:evil.com", "https:/evil.com/", "HTTP:\\\\evil.com", "//evil.com/", "\\\\evil.com\\x",
        "UNIX:/run/docker.sock", "Unix:@x", "tcp:1.2.3.4:80", "x/y://z",
    ],
)  # fmt: skip
def test_what_merely_looks_like_a_url_is_no_name_for_the_network(name: str) -> None:
    """The one who dials may read it as one: urllib strips blanks, `<>` and `URL:`, browsers repair slashes."""
    made = ALLOW_ALL.decide("network/connect", name)
    assert (made.effect, made.reason) == ("deny", "invalid_resource")


def test_opaque_names_remain_possible_on_the_network() -> None:
    assert ALLOW_ALL.decide("network", "queue/orders").allowed
    assert ALLOW_ALL.decide("network", "example.com:8080").allowed


def reaches(pattern: str, url: str) -> bool:
    return Policy("t", rules=[Rule("allow", Pattern("network", pattern))]).decide("network", url).allowed


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("https://h/*", ["https://h/", "https://h", "https://h/a/b?c"], ["http://h/", "https://h:8443/", "https://x.h/", "wss://h/"]),  # noqa: E501
        ("https://h", ["https://h/"], ["https://h/x"]),
        ("https://h/a", ["https://h/a", "https://h/b/../a"], ["https://h/a/", "https://h/ab"]),  # the last slash counts
        ("https://h/a/", ["https://h/a/"], ["https://h/a"]),
        ("https://h/a/*", ["https://h/a/", "https://h/a/b/c"], ["https://h/a", "https://h/a/../b", "https://h/a/%2e%2e/b"]),
        ("https://h/*/x", ["https://h/a/x"], ["https://h/a/b/x", "https://h/x"]),
        ("https://h/**/x", ["https://h/x", "https://h/a/b/x"], ["https://h/x/y"]),
        ("https://h/a/**", ["https://h/a/b"], ["https://h/a/", "https://h/a"]),
        ("https://h/v?/*.json", ["https://h/v1/a.json"], ["https://h/v1/a/b.json", "https://h/v12/a.json"]),
        ("https://h:8443/*", ["https://h:8443/x"], ["https://h/x"]),
        ("https://h:443/*", ["https://h/x"], []),
        ("https://h:*/*", ["https://h/", "https://h:1/x"], ["https://h.x:1/"]),
        ("https://*/*", ["https://a.b/x", "https://1.2.3.4/", "https://[::1]/"], ["https://h:1/", "http://h/"]),
        ("https://*.example.com/*", ["https://a.example.com/", "https://a.b.example.com/x"],  # R3.11
         ["https://example.com/", "https://evilexample.com/", "https://a.example.com.evil.com/", "https://evil.com/a.example.com/"]),
        ("https://*.example.com:8443/*", ["https://a.example.com:8443/"], ["https://a.example.com/"]),
        ("https://api-*.example.com/*", ["https://api-1.example.com/"], ["https://api-1.x.example.com/", "https://api.example.com/"]),
        ("https://v?.x.org/", ["https://v1.x.org/"], ["https://v.x.org/", "https://v12.x.org/"]),
        ("https://Example.COM./*", ["https://example.com/x"], []),
        ("https://b\u00fccher.example/*", ["https://xn--bcher-kva.example/x", "https://b\u00fccher.example/x"], []),
        ("https://*.b\u00fccher.example/*", ["https://a.xn--bcher-kva.example/"], ["https://b\u00fccher.example/"]),
        ("https://[2001:db8:0::1]/*", ["https://[2001:db8::1]/x"], ["https://[2001:db8::2]/"]),
        ("{http,https}://h/*", ["http://h/", "https://h/x"], ["ftp://h/"]),
        ("https://h/%7Ex/\u00e9/*", ["https://h/~x/%c3%a9/"], []),
        ("https://h/[ab]/{c,d}", ["https://h/a/c", "https://h/b/d"], ["https://h/c/c"]),
        ("tcp://10.0.0.1:5432", ["tcp://10.0.0.1:5432"], ["tcp://10.0.0.1:5433", "tcp://10.0.0.2:5432", "udp://10.0.0.1:5432"]),
        ("tcp://*.db.example:*", ["tcp://a.db.example:1"], ["tcp://db.example:1"]),
    ],
)  # fmt: skip
def test_url_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [url for url in yes if not reaches(pattern, url)] == []
    assert [url for url in no if reaches(pattern, url)] == []


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("https://api.good.com*", "open at its end"),  # R3.11: it would match api.good.com.evil.com
        ("https://api.good.*/x", "open at its end"),
        ("https://good.com?/", "open at its end"),
        ("https://*.*/", "open at its end"),
        ("https://u@h/", "user information"),
        ("https://h/../x", "'\\.\\.'"),
        ("https://h/%2e%2e/x", "'\\.\\.'"),
        ("https://h/%2Fx", "hides a delimiter"),
        ("https://h/%4", "malformed"),
        ("https://h/a#b", "fragment"),
        ("https://h/a b", "space"),
        ("https:///x", "no host"),
        ("https://0x7f.1/", "IPv4"),
        ("https://[::1/", "IPv6"),
        ("https://[::*]/", "open at its end|IPv6"),
        ("https://**.x.org/", "means nothing"),
        ("https://a..*.x.org/", "empty label"),
        ("https://h:99999/", "port"),
        ("tcp://h/*", "needs a host and a port"),
        ("tcp://h:80/x", "needs a host and a port"),
    ],
)
def test_a_url_pattern_that_would_match_something_else_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(PolicyLoadError, match=says):
        Pattern("network", pattern)
