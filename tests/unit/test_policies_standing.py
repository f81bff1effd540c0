"""The rule sets before every policy, the two names of an action (R2.4), and files as agents name them (R2.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agentos.actions import Action
from agentos.errors import BadRequest
from agentos.policies import Decision, EffectivePolicy, Pattern, Policy, Rule, standing

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
SETS = standing(
    sys_prefixes=["/opt/venv", "/usr"],
    package_dir="/opt/agentos/agentos",
    self_paths=["/w/agentos.yaml", "/opt/agentos/bin"],
    secret_self_paths=["/var/state", "/w/.agentos"],
    private_paths=["/var/state/tmp/a1"],
    command_paths=["/opt/tool/run"],
    code_paths=["/home/me/agent", "/home/me/single.py"],
)
ALLOW_ALL = Policy("all", rules=[Rule("allow", Pattern("*", "*"))])
NOTHING = Policy("none")


def agent(policy: Policy = ALLOW_ALL, **more: Any) -> EffectivePolicy:
    return EffectivePolicy(policy, workspace="/w", standing=SETS, **more)


def act(who: EffectivePolicy, operation: str, resource: str, *, cwd: str = "/w", **fields: Any) -> Decision:
    fields.setdefault("source", "hook")
    action = Action(operation=operation, resource=resource, **fields)
    return who.decide(action, cwd=cwd, context={}, name="a", now_s=0.0, at=NOW)


# --- @self -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/opt/venv/lib/python3/site.py", "/opt/venv", "/opt/agentos/agentos/wire.py", "/opt/agentos/bin/agentos",
        "/w/agentos.yaml", "agentos.yaml", "./x/../agentos.yaml", "/var/state/flight.db", "/w/.agentos/key", ".agentos",
        "/usr/lib/python3/os.py", "/usr/bin/python3",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "policy", [ALLOW_ALL, Policy("lax", default_action="allow", enforce=False)], ids=lambda p: p.name
)
def test_agentos_itself_cannot_be_changed_under_any_policy(path: str, policy: Policy) -> None:
    """@self: also where nothing is enforced, whatever is permitted, and before the rules of the command line."""
    extra = [Rule("allow", Pattern("*", "*"))]
    made = act(agent(policy, permissions=["*"], extra_rules=extra), "write", path)
    assert (made.effect, made.reason, made.layer, made.rule, made.would_deny) == (
        "deny",
        "protected",
        "@self",
        None,
        False,
    )
    assert made.durable


@pytest.mark.parametrize("operation", ["read", "write", "execute", "network/connect"])
def test_state_keys_and_sockets_cannot_even_be_read(operation: str) -> None:
    path = "unix:/var/state/sock" if operation.startswith("network") else "/var/state/keys/x"
    assert act(agent(), operation, path).reason == "protected"


def test_neighbours_of_what_is_protected_are_not() -> None:
    for path in (
        "/var/statement",
        "/w/.agentos2",
        "/w/agentos.yaml.bak",
        "/usr/share2/x",
        "/usr/local2/x",
        "/opt/venv2",
    ):
        assert act(agent(), "write", path).allowed
    assert act(agent(), "read", "/opt/agentos/bin/agentos").allowed  # write-denied is not read-denied


@pytest.mark.parametrize("operation", ["write/rename", "write/delete", "write/unlink", "write/rmdir"])
def test_a_directory_above_what_is_protected_cannot_be_moved_away(operation: str) -> None:
    for path in ("/opt", "/opt/agentos", "/var", "/", "/w", "."):
        assert act(agent(), operation, path).reason == "protected"
    assert act(agent(), "write/mkdir", "/opt/new").allowed
    assert act(agent(), operation, "/opt/other").allowed


# --- @private, @command, @runtime --------------------------------------------------------------------------------


def test_the_agents_own_directory_is_its_own() -> None:
    who = agent(NOTHING, permissions=[])
    for operation in ("read", "write", "write/delete"):
        made = act(who, operation, "/var/state/tmp/a1/x")
        assert (made.effect, made.layer, made.reason) == ("allow", "@private", "standing_allow")
    assert act(who, "read", "/var/state/tmp/a10/x").reason == "protected"
    assert act(who, "read", "/var/state/tmp/a1/../../flight.db").reason == "protected"


def test_the_named_program_and_the_agents_own_source_may_be_loaded() -> None:
    who = agent(NOTHING)
    assert act(who, "execute", "/opt/tool/run").layer == "@command"
    assert act(who, "read", "/opt/tool/run").allowed
    assert not act(who, "write", "/opt/tool/run").allowed
    assert not act(who, "execute", "/opt/tool/running").allowed
    for path in (
        "/home/me/agent/a.py",
        "/home/me/agent/pkg/b.pyc",
        "/home/me/agent/",
        "/home/me/agent/pkg/",
        "/home/me/single.py",
    ):
        assert act(who, "read/import", path).layer == "@command", path
        assert not act(who, "read", path).allowed, path  # as a file it is one like any other
    for path in (
        "/home/me/agent/.env",
        "/home/me/agent/.git/x.py",
        "/home/me/agent/data.csv",
        "/home/me/other.py",
        "/home/me/",
    ):
        assert not act(who, "read/import", path).allowed, path
    assert not act(who, "write", "/home/me/agent/a.py").allowed


@pytest.mark.parametrize(
    "path",
    ["/usr/lib/x.so", "/lib64/ld.so", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs/ca.pem", "/dev/urandom"],
)
def test_what_every_program_reads_before_its_first_line_is_readable(path: str) -> None:
    made = act(agent(NOTHING), "read", path)
    assert (made.effect, made.layer, made.cacheable) == ("allow", "@runtime", True)
    assert not act(agent(NOTHING), "execute", path).allowed
    assert not act(agent(Policy("p", runtime=False)), "read", path).allowed  # a policy can drop it
    if path != "/dev/urandom":
        assert not act(agent(NOTHING), "write", path).allowed


def test_dev_null_takes_everything_and_the_rest_of_dev_nothing() -> None:
    assert act(agent(NOTHING), "write", "/dev/null").layer == "@runtime"
    for path in ("/dev/sda", "/dev/null/x", "/dev/urandom", "/dev/"):
        assert not act(agent(NOTHING), "write", path).allowed


def test_runtime_is_bounded_by_a_parent_that_dropped_it() -> None:
    parent = agent(Policy("p", runtime=False))
    child = agent(NOTHING, parent=parent)
    assert not act(child, "read", "/usr/lib/x.so").allowed


def test_semantic_names_are_no_files_of_the_system() -> None:
    assert not act(agent(NOTHING), "read", "usr/lib/x.so", source="sdk").allowed
    assert not act(agent(NOTHING), "network", "/usr/lib/x.so", source="sdk").allowed


@pytest.mark.parametrize("path", ["relative", "/", "//", "/a\nb", "./x"])
def test_what_shall_be_protected_must_have_a_name(path: str) -> None:
    with pytest.raises(BadRequest, match="cannot protect"):
        standing(secret_self_paths=[path])


def test_protected_paths_are_normalised_as_the_names_of_files_are() -> None:
    sets = standing(secret_self_paths=["/var//x/../state/"], self_paths=["/a/./b", ""], command_paths=["relative", "/"])
    assert sets.read_denied == ("/var/state/",)
    assert sets.write_denied == ("/a/b/", "/var/state/")
    assert sets.command == ()


# --- both names --------------------------------------------------------------------------------------------------

DATA_ONLY = Policy(
    "data", rules=[Rule("deny", Pattern("read", "data/secret")), Rule("allow", Pattern("read", "data/*"))]
)


@pytest.mark.parametrize(
    ("asked", "resolved", "allowed", "decided"),
    [
        ("data/a", None, True, "data/a"),
        ("data/a", "/w/data/a", True, "data/a"),
        ("data/link", "/w/data/a", True, "data/link"),
        ("data/link", "/w/data/secret", False, "data/secret"),  # a link out of what is allowed
        ("data/link", "/etc/shadow", False, "/etc/shadow"),
        ("data/link", "/etc/passwd", True, "data/link"),  # @runtime: everybody may read that
        ("other/link", "/w/data/a", False, "other/link"),  # a name that is not allowed, whatever it leads to
        ("data/secret", "/w/data/a", False, "data/secret"),
        ("data/link", "/w/data/\x00", False, "data/link"),
        ("data/link", "", False, "data/link"),
    ],
)
def test_both_the_name_asked_for_and_the_object_behind_it_must_pass(
    asked: str, resolved: str | None, allowed: bool, decided: str
) -> None:
    """R2.4: either deny wins; the decision names the one that was refused."""
    made = act(agent(DATA_ONLY), "read", asked, resolved=resolved)
    assert (made.allowed, made.resource) == (allowed, decided)


def test_a_link_into_what_is_protected_is_refused_and_so_is_one_out_of_the_runtime() -> None:
    assert act(agent(), "read", "innocent", resolved="/var/state/key").reason == "protected"
    assert not act(agent(NOTHING), "read", "/usr/lib/x.so", resolved="/etc/shadow").allowed


def test_one_name_may_be_asked_about_and_the_other_denied() -> None:
    policy = Policy(
        "p",
        rules=[Rule("ask", Pattern("read", "a")), Rule("deny", Pattern("read", "b")), Rule("allow", Pattern("*", "*"))],
    )
    assert act(agent(policy), "read", "a", resolved="/w/c").effect == "ask"
    assert act(agent(policy), "read", "a", resolved="/w/b").effect == "deny"
    assert act(agent(policy), "read", "c", resolved="/w/a").effect == "ask"


def test_a_program_may_be_meant_by_the_name_that_the_system_gives_it() -> None:
    """`/bin/sh` leads to dash on one machine and to bash on another; only root plants names there."""
    shell = Policy("p", rules=[Rule("allow", Pattern("execute", "sh"))])
    assert act(agent(shell), "execute", "/bin/sh", resolved="/usr/bin/dash", argv=("sh",)).allowed
    assert not act(agent(shell), "execute", "sh", resolved="/w/evil", argv=("sh",)).allowed
    assert not act(agent(shell), "execute", "/tmp/sh", resolved="/usr/bin/python3", argv=("sh",)).allowed
    assert not act(agent(shell), "execute", "/bin/sh", resolved="/w/dash", argv=("sh",)).allowed
    dash = Policy("p", rules=[Rule("deny", Pattern("execute", "dash")), Rule("allow", Pattern("execute", "*"))])
    assert not act(agent(dash), "execute", "/bin/sh", resolved="/usr/bin/dash", argv=("sh",)).allowed
    but = Policy("p", rules=[Rule("allow", Pattern("execute", "*", exclude="dash"))])
    assert not act(agent(but), "execute", "/bin/sh", resolved="/usr/bin/dash", argv=("sh",)).allowed


# --- R2.3: names as agents give them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "cwd"),
    [("secret", "/w/data"), ("./secret", "/w/data"), ("../data/secret", "/w/src"), ("/w/data/secret", "/"),
     ("/w//data/./x/../secret", "/"), ("data/secret", "/w"), ("/x/../w/data/secret", "/etc"),
     ("../../../../w/data/secret", "/w/data")],
)  # fmt: skip
def test_no_spelling_of_a_file_leads_around_its_rule(spelling: str, cwd: str) -> None:
    made = act(agent(DATA_ONLY), "read", spelling, cwd=cwd)
    assert (made.effect, made.rule, made.resource) == ("deny", 0, "data/secret")
    assert act(agent(DATA_ONLY), "read", spelling.replace("secret", "public"), cwd=cwd).allowed


def test_a_semantic_action_has_no_working_directory() -> None:
    who = agent(DATA_ONLY)
    assert act(who, "read", "data/a", cwd="/elsewhere", source="sdk").allowed
    assert act(who, "read", "/w/data/a", cwd="/elsewhere", source="sdk").allowed
    assert act(who, "read", "/w/data/secret", cwd="/elsewhere", source="sdk").rule == 0
    assert not act(who, "read", "data/a", cwd="/elsewhere").allowed
    assert act(who, "read", "../x", source="sdk").reason == "invalid_resource"


def test_bytes_that_are_no_text_and_text_that_was_such_bytes_are_one_name() -> None:
    policy = Policy("p", rules=[Rule("deny", Pattern("read", "a\\\\xff")), Rule("allow", Pattern("read", "*"))])
    for source in ("hook", "sdk"):
        assert act(agent(policy), "read", "a\udcff", source=source).rule == 0
        assert act(agent(policy), "read", "a\xff", source=source).rule == 1


@pytest.mark.parametrize("workspace", ["/w/", "//w", "/x/../w", "/w/."])
def test_the_workspace_is_read_as_its_files_are(workspace: str) -> None:
    who = EffectivePolicy(DATA_ONLY, workspace=workspace)
    assert who.workspace == "/w"
    assert act(who, "read", "/w/data/secret").rule == 0


@pytest.mark.parametrize("workspace", ["w", "", "./w", "/a\nb"])
def test_a_workspace_that_no_file_can_lie_in_is_refused(workspace: str) -> None:
    with pytest.raises(BadRequest, match="the workspace"):
        EffectivePolicy(DATA_ONLY, workspace=workspace)


WEIRD = [
    "",
    "\0",
    "\ud800",
    "a\ud800\udcff",
    "é\ud800",
    "..",
    "https://",
    "http://[",
    "unix:",
    "unix:/a\n",
    "x" * 40_000,
    "://",
    "%",
    "\u2028",
]


@pytest.mark.parametrize("source", ["hook", "sdk", "kernel"])
@pytest.mark.parametrize("operation", ["read", "write/x", "execute", "network/connect", "", "no such", "read/\ud800"])
def test_whatever_an_agent_asks_is_answered(source: str, operation: str) -> None:
    """Total: what cannot be read is a denial, never an exception in the kernel's loop."""
    who = agent(ALLOW_ALL)
    for resource in WEIRD:
        for fields in (
            {},
            {"resolved": "\ud800"},
            {"argv": ("\ud800", "\n"), "claims": {"cost": 10**400, "x": [object()]}},
        ):
            made = act(who, operation, resource, source=source, **fields)
            assert made.effect in {"allow", "deny"}
            assert made.allowed or made.reason in {"invalid_resource", "invalid_operation", "protected"}
