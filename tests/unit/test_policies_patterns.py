"""Which names a pattern covers: the glob dialect (R1), regular expressions (R4), programs and their arguments (R11)."""

from __future__ import annotations

import functools

import pytest

from agentos.errors import PolicyLoadError
from agentos.policies import Pattern, Policy, Rule, engine, expressions
from agentos.policies.segment import GlobError


def covers(pattern: str, name: str, *, operation: str = "read", match_type: str = "glob", **more: object) -> bool:
    policy = Policy("t", rules=[Rule("allow", Pattern(operation, pattern, match_type))])
    return policy.decide(operation, name, **more).allowed  # type: ignore[arg-type]


R1 = """
    R1.1    data/*          data/a data/a/b data/.env data/a/b/c.txt data/      -  data database data.txt other/data/a
    R1.1    *               a a/b /etc/passwd https://h/x unix:/run/x unix:@x . /
    R1.1    /etc/*          /etc/passwd /etc/a/b                                -  /etc etc/passwd /etcetera
    R1.2    files/*.txt     files/a.txt files/.txt                              - files/a/b.txt files/a.txtx files/a.TXT
    R1.2    data/*/x        data/a/x                                            -  data/x data/a/b/x data/a/x/y
    R1.2    a?c             abc a.c                                             -  ac a/c abbc
    R1.2    a*/b            a/b ab/b                                            -  a/x/b b/b
    R1.2    *.pem           a.pem .pem                                          -  a/b.pem /a.pem
    R1.3    **/x            x a/x a/b/x                                         -  ax a/x/y /x
    R1.3    a/**/b          a/b a/x/b a/x/y/b                                   -  ab a/xb b a/b/c
    R1.3    a/**            a/b a/b/c                                           -  a ab
    R1.3    /**/x           /x /a/b/x                                           -  x a/x
    R1.3    **              a a/b /etc/passwd https://h/x
    R1.4    [a-c]x          ax cx                                               -  dx Ax /x
    R1.4    [!a]x           bx .x                                               -  ax
    R1.4    [^a-c]x         dx                                                  -  ax cx
    R1.4    a[.-0]b         a.b a0b                                             -  a/b
    R1.4    a[!x]b          ayb a.b                                             -  a/b axb
    R1.4    []-]x           ]x -x                                               -  ax
    R1.5    {a,b}/c         a/c b/c                                             -  c/c {a,b}/c
    R1.5    a{,.txt}        a a.txt                                             -  a.
    R1.5    {a,b{c,d}}      a bc bd                                             -  b c
    R1.6    Data/*          Data/x                                              -  data/x DATA/x
    R1.6    *x              x .x .hidden.x                                      -  x.
    R1.8    a\\*            a*                                                  -  ab a a\\*
    R1.8    a\\[b]          a[b]                                                -  ab
    R1.8    a\\{b,c\\}      a{b,c}                                              -  ab ac
    R1.9    a               a a/                                                -  aa b/a a/b
    R1.9    b.c             b.c                                                 -  bxc a/b.c
"""  # a name ends at a blank; what stands after the dash is not covered


def rows(table: str) -> list[tuple[str, str, str, bool]]:
    found = []
    for line in filter(None, map(str.strip, table.splitlines())):
        number, pattern, *names = line.split()
        dash = names.index("-") if "-" in names else len(names)
        found += [(number, pattern, name, True) for name in names[:dash]]
        found += [(number, pattern, name, False) for name in names[dash + 1 :]]
    return found


@pytest.mark.parametrize(("rule", "pattern", "name", "expected"), rows(R1))
def test_the_glob_dialect(rule: str, pattern: str, name: str, expected: bool) -> None:
    assert covers(pattern, name) is expected


def test_a_star_stops_at_a_slash_so_that_a_path_cannot_pose_as_a_host() -> None:
    """R1.2: with the semantics of fnmatch, `https://*.example.com/*` would match evil.com."""
    assert not covers("https://*.example.com/*", "https://evil.com/x.example.com/y", operation="network")


def test_opening_a_directory_is_what_its_contents_pattern_is_about() -> None:
    """R2.5: opening D is tested as `D/`, which `D/*` matches; D itself, as a name, it does not."""
    assert covers("data/*", "data/")
    assert covers("data", "data/")
    assert not covers("data/*", "data")
    assert not covers("data/x", "data/")
    assert covers("**/secret", "a/secret/")


NAME_SPACES = {
    "relative": ("a", "a/x", "x"),
    "absolute": ("/a", "/a/x", "/x"),
    "URLs": ("https://a/", "https://a/x", "http://x/"),
    "sockets": ("unix:/a", "unix:/a/x", "unix:@x"),
}


@pytest.mark.parametrize(
    ("pattern", "space"),
    [
        *(
            (p, "relative")
            for p in ("./*", "*/", "**/*", "**/**", "*/*", "?*/*", "**/x", "[!b]*/**", "h*/*", "u*", "*x")
        ),
        *((p, "relative") for p in ("https:/*", "https:/**/x", "htt*/*")),
        *((p, "absolute") for p in ("/*", "/**", "/**/x", "/*/*", "/?/x")),
        *((p, "URLs") for p in ("https://*/*", "https://*/x", "http://x/**")),
        *((p, "sockets") for p in ("unix:/*", "unix:/**/x", "unix:@*", "unix:@x")),
    ],
)
def test_a_pattern_stays_in_its_own_name_space(pattern: str, space: str) -> None:
    for other, names in NAME_SPACES.items():
        if other != space:
            assert not [name for name in names if covers(pattern, name, operation="network")], other


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("unix:/run/*.sock", "unix:/run/x.sock", "unix:/run/a/x.sock"),
        ("unix:/run/x.sock", "unix:/run//y/../x.sock", "/run/x.sock"),
        ("unix:@*", "unix:@x", "unix:/x"),
        ("unix:@x*", "unix:@xy", "unix:@y"),
        ("unix:@/tmp/*", "unix:@/tmp/.X11-unix/X0", "unix:@/run/x"),
    ],
)
def test_sockets_have_patterns_too(pattern: str, yes: str, no: str) -> None:
    assert covers(pattern, yes, operation="network/connect")
    assert not covers(pattern, no, operation="network/connect")


@pytest.mark.parametrize("pattern", ["./*", "**/*", "*/*", "?*", "[.]*", "**/?"])
def test_the_workspace_itself_is_not_below_itself(pattern: str) -> None:
    assert not covers(pattern, ".")
    assert covers(pattern, "./") is (pattern in {"./*", "**/*"})  # its listing is, for those that mean all of it
    assert covers(".", ".")
    assert covers(".", "./")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("foo**bar", "whole segment"),  # R1.3
        ("a/**b/c", "whole segment"),
        ("[a-", "'\\[' without '\\]'"),  # R1.4
        ("[a/b]", "cannot hold '/'"),
        ("[z-a]", "runs backwards"),
        ("[/]x", "without"),
        ("[[:alpha:]]", "named classes"),
        ("{a,b", "'{' without '}'"),  # R1.5
        ("{,}", "empty"),
        ("a\\", "escapes nothing"),  # R1.8
        ("a/../b", "'\\.\\.'"),  # R2
        ("../a", "'\\.\\.'"),
        ("a/\\.\\./b", "'\\.\\.'"),
        ("a\nb", "control character"),
        ("a\0", "control character"),
        ("a\ud800", "half a character"),
        ("", "empty"),
        ("  ", "empty"),
        ("http*://h/", "no wildcards"),
        ("unix:x", "absolute path or by @name"),
        ("unix:*", "absolute path or by @name"),
        ("x" * 4_097, "longer than 4096"),
        ("{a,b}" * 12, "more than 1000 alternatives"),
        ("{" * 40 + "}" * 40, "empty"),
    ],
)
@pytest.mark.parametrize("field", ["resource", "exclude"])
def test_a_pattern_that_means_nothing_or_two_things_is_refused(pattern: str, says: str, field: str) -> None:
    with pytest.raises(PolicyLoadError, match=says):
        Pattern(**{"operation": "read", "resource": "x", field: pattern})  # type: ignore[arg-type]


# --- R4: regular expressions -------------------------------------------------------------------------------------


def regex(pattern: str, name: str) -> bool:
    return covers(pattern, name, match_type="regex")


def test_a_regular_expression_matches_the_whole_name() -> None:
    """R4, and the example of the specification: under search, `db/users/1/secret` would match."""
    assert regex(r"db/users/\d+", "db/users/42")
    assert not regex(r"db/users/\d+", "db/users/1/secret")
    assert not regex(r"db/users/\d+", "x/db/users/1")
    assert regex(r"db/users/\d+", "db/users/42/")  # opened as a directory
    assert not regex(r"db/users/\d+", "db//users/../users/x")


def test_digits_and_word_characters_are_ascii() -> None:
    assert not regex(r"\d", "٣")
    assert not regex(r"\w", "é")


def test_it_is_matched_against_the_normalised_name() -> None:
    assert regex("a/b", "./a//x/../b")


@pytest.mark.parametrize(
    "pattern", ["(?=a)b", "(?!a)b", "(?<=a)b", r"(a)\1", "(?>a)b", "a(", "[", "*a", r"(a{1000}){1000}"]
)
def test_what_linear_time_cannot_do_is_refused_at_load(pattern: str) -> None:
    with pytest.raises(PolicyLoadError, match="not an RE2 expression"):
        Pattern("read", pattern, "regex")


def test_among_many_an_expression_is_what_it_is_alone() -> None:
    """More of them than are tried one by one are first tried as one: that must not lose any."""
    alone = ["a/b$", "^c", r"d\b", "(?i)E", "f|g", r"h\z", "[^/]+/i", r"\Qj.", r"k\Q.\E(l)"]
    policy = Policy(
        "t", rules=[Rule("deny", Pattern("read", each, "regex")) for each in [*alone, *(f"x{i}" for i in range(40))]]
    )
    names = ["a/b", "a/b/", "c/", "d/", "e", "e/", "f", "g/", "h", "h/", "z/i/", "j.", "k.l"]
    assert [policy.decide("read", name).reason for name in names] == ["denied_by_rule"] * len(names)
    assert policy.decide("read", "a/bc").reason == "default_deny"


def test_a_set_of_expressions_that_does_not_fit_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """RE2 would answer "no match" for want of memory: a deny rule would be lost without a word."""
    with pytest.raises(GlobError, match="too large together"):
        expressions.together(["a{1000}", "b{1000}"], memory_bytes=1 << 12)
    with pytest.raises(GlobError, match="too large together"):
        expressions.together([f"a{i}/.*" for i in range(100)], memory_bytes=1 << 12)
    small = functools.partial(expressions.together, memory_bytes=1 << 12)
    monkeypatch.setattr(engine, "together", small)
    policy = Policy("t", rules=[Rule("deny", Pattern("read", f"a{i:03}.*b", "regex")) for i in range(100)])
    assert [policy.decide("read", f"a{i:03}xb").rule for i in range(100)] == list(range(100))
    halved = policy.compiled()._blocks[0].index("read").anything._crowd
    assert halved is not None
    assert halved._halves


def test_excludes_use_the_match_type_of_the_rule() -> None:
    """R6.2"""
    policy = Policy("t", rules=[Rule("allow", Pattern("read", r"a/\w+", "regex", exclude=r"a/secret\d"))])
    assert policy.decide("read", "a/b").allowed
    assert not policy.decide("read", "a/secret1").allowed
    assert policy.decide("read", "a/secret").allowed


# --- R11: operations, programs, arguments ------------------------------------------------------------------------


def test_operations_are_a_closed_set_and_name_the_nearest_one() -> None:
    with pytest.raises(PolicyLoadError, match=r"unknown operation 'raed' \(did you mean 'read'\?\)"):
        Pattern("raed", "x")
    for wrong in ("Read", "read/", "read/a b", "*/x", "read/\u00e9", "read/" + "x" * 33, "write//x"):
        with pytest.raises(PolicyLoadError):
            Pattern(wrong, "x")


def test_a_sub_operation_belongs_to_its_operation() -> None:
    policy = Policy("t", rules=[Rule("allow", Pattern("network/connect", "*")), Rule("allow", Pattern("write", "*"))])
    assert policy.decide("network/connect", "https://h/").allowed
    assert policy.decide("network/connect/now", "https://h/").allowed
    assert not policy.decide("network/connected", "https://h/").allowed
    assert not policy.decide("network", "https://h/").allowed
    assert policy.decide("write/delete", "x").allowed


@pytest.mark.parametrize(
    "operation", ["", "READ", "admin", "*", "read/", "read/\x1b[2J", "read/" + "x" * 40, "read ", "/read"]
)
def test_an_operation_that_nobody_knows_is_denied_whatever_the_default(operation: str) -> None:
    made = Policy("t", rules=[Rule("allow", Pattern("*", "*"))], default_action="allow").decide(operation, "x")
    assert (made.effect, made.reason, made.layer, made.durable) == ("deny", "invalid_operation", "invalid", True)


def runs(pattern: str, program: str, *words: str) -> bool:
    return covers(pattern, program, operation="execute", argv=(program, *words))


def test_a_program_is_matched_by_name_by_path_and_word_by_word() -> None:
    """R11: the resolved program and its words, never a shell string."""
    assert runs("git", "/usr/bin/git", "push")
    assert runs("git", "git")
    assert not runs("git", "/usr/bin/gitk")
    assert not runs("git", "tools/git")  # a file of the workspace has to be named
    assert runs("/usr/bin/*", "/usr/bin/git")
    assert runs("g?t", "/opt/x/git")
    assert runs("git {push,fetch}", "/usr/bin/git", "fetch", "--all")
    assert not runs("git {push,fetch}", "/usr/bin/git", "pull")
    assert not runs("git push", "/usr/bin/git")
    assert not runs("git push", "/usr/bin/git", "push;ls")
    assert not runs("git push", "/usr/bin/git", "push --force")  # one word with a blank is not two words
    assert runs(r"git push\ --force", "/usr/bin/git", "push --force")
    assert runs("git * origin", "git", "push", "origin")
    assert runs("git log --author=*", "git", "log", "--author=me")
    assert not runs("git log --author=*", "git", "log", "--author=a/b")  # the same dialect: * stops at /
    assert runs("git add **/x", "git", "add", "a/b/x")
    assert runs("git add **/x", "git", "add", "x")
    assert runs("git add a/**/x", "git", "add", "a/x")
    assert not runs("git add **/x", "git", "add", "ax")
    assert runs("cat data/*", "cat", "data/a/b")
    assert runs("echo *", "echo", "a\nb")


def test_unknown_arguments_count_against_the_action() -> None:
    """R7.2 for words: an allow rule does not match what it cannot see, a deny rule does."""
    allow = Policy("t", rules=[Rule("allow", Pattern("execute", "git push"))])
    deny = Policy("t", rules=[Rule("deny", Pattern("execute", "git push"))], default_action="allow")
    assert not allow.decide("execute", "git").allowed
    assert not deny.decide("execute", "git").allowed
    assert deny.decide("execute", "git", argv=["git", "status"]).allowed
    but = Policy("t", rules=[Rule("allow", Pattern("execute", "git", exclude="git push"))])
    assert not but.decide("execute", "git").allowed
    assert but.decide("execute", "git", argv=["git", "log"]).allowed
    deny_but = Policy("t", rules=[Rule("deny", Pattern("execute", "git", exclude="git log"))], default_action="allow")
    assert not deny_but.decide("execute", "git").allowed
    assert deny_but.decide("execute", "git", argv=["git", "log"]).allowed


def test_words_of_a_pattern_are_words_only_for_programs() -> None:
    """`my files/*` is one path to a reader, a program and its argument to `execute`."""
    assert covers("my files/*", "my files/a")
    assert not covers("my files/*", "my files/a", operation="execute")
    assert covers("my files/*", "my", operation="execute", argv=("my", "files/a"))


def test_tools_are_programs_by_relative_name() -> None:
    assert covers("tools/*", "tools/search", operation="execute")
    assert not covers("tools/*", "tool", operation="execute")
