"""Loading is strict, and says where (R14); what is written loads back the same."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agentos import Policy as PublicPolicy
from agentos.errors import PolicyLoadError
from agentos.policies import BUILTINS, Pattern, Policy, Rule, loader

WHOLE = """\
name: healthcare
version: 1.10
description: "What: a policy"
default_action: deny
inheritance: permissive
runtime: false
enforce: true
rules:
  - name: on
    description: first
    action: allow
    operation: [read, write/delete]
    resource:
      - data/*
      - "*"
    match_type: glob
    exclude: data/phi/*
    conditions:
      user_role: [admin, "007", 7, true, "true"]
      user_id: no
      time_window: {start: 09:00, end: 17:00, timezone: Europe/Berlin}
      max_cost: 1e2
      granted: true
      context: {ticket: 7, stage: [prod, 1.5]}
    reason: yes
    on_violation: SIGTERM
    rate_limit: 100
    audit: durable
  - action: ask
    operation: "*"
    resource: db/users/\\d+
    match_type: regex
    ask_timeout: 1.5
"""


def test_every_key_there_is() -> None:
    policy = Policy.from_yaml(WHOLE)
    conditions = {
        "user_role": ["admin", "007", 7, True, "true"],
        "user_id": "no",  # R14: on, no and yes are words here
        "time_window": {"start": "09:00", "end": "17:00", "timezone": "Europe/Berlin"},  # and 17:00 is not 1020
        "max_cost": 100.0,
        "granted": True,
        "context": {"ticket": 7, "stage": ["prod", 1.5]},
    }
    rules = [
        Rule(
            "allow",
            Pattern(["read", "write/delete"], ["data/*", "*"], conditions=conditions, exclude="data/phi/*"),
            name="on", description="first", reason="yes", on_violation="SIGTERM", rate_limit=100, audit="durable",
        ),
        Rule("ask", Pattern("*", r"db/users/\d+", "regex"), ask_timeout_s=1.5),
    ]  # fmt: skip
    same = Policy("healthcare", "1.10", rules, inheritance="permissive", description="What: a policy", runtime=False)
    assert policy.as_dict() == same.as_dict()
    assert policy.rules == same.rules
    assert policy.hash == same.hash
    assert (policy.version, policy.runtime, policy.enforce, policy.inheritance) == ("1.10", False, True, "permissive")


def test_the_least_there_is() -> None:
    policy = Policy.from_yaml("name: x")
    assert (policy.version, policy.default_action, policy.inheritance, policy.rules) == ("1.0.0", "deny", "strict", ())
    assert PublicPolicy is Policy


def rule(**fields: str) -> str:
    """A policy of one rule; its fields stand at column 5 from line 3 on."""
    whole = {"action": "allow", "operation": "read", "resource": "x", **fields}
    lines = [f"{key}: {value}" for key, value in whole.items() if value]
    return "name: t\nrules:\n  - " + "\n    ".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        # unknown and doubled keys: at the key, with the nearest known one
        ("name: t\ndefaultAction: allow", "2:1", r"unknown key 'defaultAction' \(did you mean 'default_action'\?\)"),
        (rule(resorce="y"), "6:5", r"unknown key 'resorce' \(did you mean 'resource'\?\)"),
        ("name: t\n<<: {a: b}", "2:1", "unknown key '<<'"),
        ("name: t\nname: u", "2:1", "the key 'name' stands here twice"),
        (rule() + "    action: deny", "6:5", "the key 'action' stands here twice"),
        (rule(conditions="{user_id: a, user_id: b}"), "6:30", "'user_id' stands here twice"),
        (rule(conditions="{context: {a: 1, a: 2}}"), "6:34", "'a' stands here twice"),
        (rule(conditions="{time_window: {start: 09:00, start: 10:00}}"), "6:46", "'start' stands here twice"),
        ("name: t\n? [a]\n: b", "2:3", "a key is text, not a list"),
        # what is missing
        ("", "1:1", "empty: a policy needs at least a name"),
        ("# nothing\n", "1:1", "empty"),
        ("version: 1", "1:1", "a policy needs a name"),
        ("name: t\nrules:\n  - action: deny\n    resource: x", "3:5", "a rule needs operation"),
        ("name: ", "1:6", "name is empty"),
        (rule(resource='""'), "5:15", "resource is empty"),
        (rule(resource="[]"), "5:15", "resource is an empty list"),
        (rule(resource='[a, ""]'), "5:19", "resource is empty"),
        (rule(exclude="[]"), "6:14", "exclude is an empty list"),
        # wrong types
        ("strict", "1:1", "a policy is a mapping of keys to values, not text"),
        ("- name: t", "1:1", "a policy is a mapping of keys to values, not a list"),
        ("name: [t]", "1:7", "one text is wanted here, not a list"),
        ("name: t\nrules: x", "2:8", "rules is a list, not text"),
        ("name: t\nrules:\n  action: deny", "3:3", "rules is a list, not a mapping; begin each rule with '- '"),
        ("name: t\nrules: [deny]", "2:9", "a rule is a mapping of keys to values, not text"),
        (rule(resource="{a: b}"), "5:15", "one text is wanted here, not a mapping"),
        (rule(operation="[read, [write]]"), "4:23", "one text is wanted here, not a list"),
        ("name: t\nruntime: yes", "2:10", "runtime is true or false, not the text 'yes'"),
        ('name: t\nenforce: "false"', "2:10", "enforce is true or false, not the text 'false'"),
        (rule(rate_limit="ten"), "6:17", "rate_limit is a number, not the text 'ten'"),
        (rule(rate_limit='"10"'), "6:17", "rate_limit is a number, not the text '10'"),
        (rule(rate_limit="1.5"), "6:17", "rate_limit is a number of calls a minute"),
        (rule(rate_limit="0"), "6:17", "rate_limit is a number of calls a minute"),
        (rule(rate_limit="true"), "6:17", "rate_limit is a number, not the text 'True'"),
        (rule(rate_limit="9" * 5_000), "6:17", "rate_limit is a number"),
        (rule(rate_limit="0x10"), "6:17", "not the text '0x10'"),
        (rule(action="ask", ask_timeout="-1"), "6:18", "seconds above 0"),
        (rule(ask_timeout="5"), "6:18", "belongs to an ask rule"),
        (rule(conditions="admin"), "6:17", "conditions is a mapping of keys to values, not text"),
        (rule(conditions="[user_id]"), "6:17", "conditions is a mapping of keys to values, not a list"),
        (rule(conditions="{user_id: {a: b}}"), "6:18", "must be text, a number"),
        (rule(conditions="{user_id: [[a]]}"), "6:28", "one text is wanted here, not a list"),
        (rule(conditions="{context: {a: {b: c}}}"), "6:31", "one text is wanted here, not a mapping"),
        (rule(conditions="{max_cost: dear}"), "6:18", "max_cost must be a number"),
        (rule(conditions='{max_cost: "5"}'), "6:18", "max_cost must be a number"),
        (rule(conditions="{max_cost: .nan}"), "6:18", "max_cost must be a number"),
        (rule(conditions='{granted: "true"}'), "6:18", "granted is true or false"),
        # wrong words: at the value, or at the key where a key is wrong
        ("name: t\ndefault_action: alow", "2:17", r"unknown default_action 'alow' \(did you mean 'allow'\?\)"),
        ("name: t\ninheritance: loose", "2:14", "unknown inheritance 'loose'; known: strict, permissive, none"),
        (rule(action="block"), "3:13", "unknown action 'block'; known: allow, deny, ask"),
        (rule(operation="[read, wrte]"), "4:23", r"unknown operation 'wrte' \(did you mean 'write'\?\)"),
        (rule(match_type="regexp"), "6:17", r"unknown match_type 'regexp' \(did you mean 'regex'\?\)"),
        (rule(on_violation="SIGKIL"), "6:19", r"unknown signal 'SIGKIL' \(did you mean 'SIGKILL'\?\)"),
        (rule(conditions="{user_roles: x}"), "6:18", r"unknown condition 'user_roles' \(did you mean 'user_role'\?\)"),
        (rule(conditions="{time_window: {start: 9:00, end: 17:00}}"), "6:32", "'9:00' is not a time of day"),
        (rule(conditions="{time_window: {start: 09:00, end: 09:00}}"), "6:18", "always, or never"),
        (rule(conditions="{time_window: {start: 09:00, end: 10:00, timezone: Mez}}"), "6:58", "unknown time zone"),
        # patterns
        (rule(resource="foo**bar"), "5:15", "'\\*\\*' must be a whole segment"),
        (rule(resource='[a, "[x"]'), "5:19", "'\\[' without '\\]'"),
        (rule(exclude="[a, ../b]"), "6:18", "'\\.\\.' in a pattern"),
        (rule(resource="(?=a)b", match_type="regex"), "5:15", "not an RE2 expression"),
        (rule(operation="network", resource="https://good.com*"), "5:15", "open at its end"),
        # what YAML does to the unwary
        (rule(operation="*"), "4:16", 'quote the \\*: operation: "\\*"'),
        (rule(resource="*"), "5:15", "quote the \\*"),
        (rule(exclude="[*]"), "6:15", "quote the \\*"),
        (rule(resource="**/x"), "5:15", "quote the \\*"),
        (rule(resource="*.pem"), "5:15", "quote the \\*"),
        ("name: t\nrules:\n\t- action: allow", "3:1", "not YAML"),
        ("name: 't", "1:7", "not YAML"),
        ("name: a: b", "1:8", "not YAML"),
        ("name: t\n---\nname: u", "2:1", "not YAML"),
        ("name: t\nrules: " + "[" * 5_000, "2:1007", "not YAML: exceeded maximum nesting depth"),
        ("name: !!python/object/apply:os.system [x]", "1:7", "one text is wanted"),
        ("name: !!python/name:os.system x", "1:7", "tags such as .* are not accepted"),
        ("name: !local x", "1:7", "tags such as !local are not accepted"),
        ("name: t\nrules: !!set {}", "2:8", "rules is a list"),
        ("name: t\nrules: !!omap []", "2:8", "tags such as tag:yaml.org,2002:omap are not accepted"),
        ("!!set {name: t}", "1:1", "tags such as tag:yaml.org,2002:set are not accepted"),
        ("name: t\n!!int version: 1", "2:1", "tags such as"),
    ],
    ids=lambda value: None if isinstance(value, str) and "\n" in value else value[:30],
)  # fmt: skip
def test_what_is_wrong_is_said_with_line_and_column(text: str, place: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyLoadError, match=says) as caught:
        Policy.from_yaml(text + "\n")
    assert f"{caught.value.line}:{caught.value.column}" == place
    file = tmp_path / "policy.yaml"
    file.write_text(text + "\n")
    with pytest.raises(PolicyLoadError, match=says) as caught:
        Policy.from_yaml(file)
    assert str(caught.value).startswith(f"{file}:{place}: ")


def test_scalars_are_text_where_a_field_wants_text() -> None:
    """R14: YAML 1.1 reads 22:30 as 1350, `on` as true and 1.10 as 1.1."""
    policy = Policy.from_yaml(
        "name: on\nversion: 1.10\nrules:\n- {action: deny, operation: read, resource: 22:30, name: 0o17, reason: ~}"
    )
    assert (policy.name, policy.version) == ("on", "1.10")
    assert (policy.rules[0].pattern.resource, policy.rules[0].name, policy.rules[0].reason) == ("22:30", "0o17", "~")


def test_quotes_make_text_of_what_would_be_a_number() -> None:
    text = rule(conditions='{context: {a: 1, b: "1", c: true, d: "true", e: 1e3, f: -0.5, g: 1_000}}')
    assert Policy.from_yaml(text).rules[0].pattern.conditions == {
        "context": {"a": 1, "b": "1", "c": True, "d": "true", "e": 1000.0, "f": -0.5, "g": "1_000"}
    }  # fmt: skip


def test_anchors_are_shorthand_and_no_bomb() -> None:
    shared = rule(resource="&secret [a, b]") + "  - {action: deny, operation: write, resource: *secret}"
    assert Policy.from_yaml(shared).rules[1].pattern.resources == ("a", "b")
    itself = rule(conditions="&c {context: *c}")
    with pytest.raises(PolicyLoadError, match="one text is wanted"):
        Policy.from_yaml(itself)
    laughs = "\n".join(f"  c{i}: &c{i} [{', '.join([f'*c{i - 1}' if i else 'x'] * 9)}]" for i in range(12))
    with pytest.raises(PolicyLoadError, match="one text is wanted"):
        Policy.from_yaml(rule(conditions="{context: {\n" + laughs.replace("\n", ",\n") + "}}"))
    many = (
        "name: t\nrules:\n- &r {action: deny, operation: read, resource: [" + "x," * 3_000 + "]}\n" + "- *r\n" * 3_000
    )
    with pytest.raises(PolicyLoadError, match="more than 1000000 values"):
        Policy.from_yaml(many)


# --- files -------------------------------------------------------------------------------------------------------


def test_a_policy_comes_from_text_from_a_path_or_from_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p.yaml", "p.yml"):
        Path(name).write_text("name: from-file\n")
        assert Policy.from_yaml(name).name == "from-file"
    Path("odd").write_text("name: odd\n")
    assert Policy.from_yaml(Path("odd")).name == "odd"
    assert Policy.from_yaml("\ufeffname: bom\r\nversion: 2\r\n").version == "2"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyLoadError, match=r"missing\.yaml: cannot read it: No such file"):
        Policy.from_yaml(tmp_path / "missing.yaml")
    with pytest.raises(PolicyLoadError, match="Is a directory"):
        Policy.from_yaml(tmp_path)
    with pytest.raises(PolicyLoadError, match="cannot read it: embedded null"):
        Policy.from_yaml("a\0b.yaml")
    with pytest.raises(PolicyLoadError, match="File name too long"):
        Policy.from_yaml("x" * 5_000 + ".yaml")


def test_a_file_that_is_no_utf_8_is_named_with_the_place(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: t\ndescription: für".encode("latin-1"))
    with pytest.raises(PolicyLoadError, match=re.escape(f"{file}:2:15: not UTF-8: byte 22")):
        Policy.from_yaml(file)
    file.write_bytes(b"name: a\0b")
    with pytest.raises(PolicyLoadError, match="not YAML"):
        Policy.from_yaml(file)


def test_a_huge_file_and_an_endless_one_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    with file.open("wb") as out:
        out.write(b"name: t\n")
        out.truncate(loader.FILE_BYTES_MAX + 1)
    with pytest.raises(PolicyLoadError, match="larger than 16777216 bytes"):
        Policy.from_yaml(file)
    with pytest.raises(PolicyLoadError, match="larger than"):
        Policy.from_yaml(Path("/dev/zero"))


def test_a_failed_load_changes_nothing() -> None:
    policy = Policy.from_yaml("name: t")
    before = policy.hash
    with pytest.raises(PolicyLoadError):
        policy.add_rule("alow", Pattern("read", "x"))
    assert (policy.rules, policy.hash) == ((), before)


# --- there and back ----------------------------------------------------------------------------------------------


def test_what_is_written_loads_back_with_the_same_hash() -> None:
    policy = Policy.from_yaml(WHOLE)
    again = Policy.from_yaml(policy.to_yaml())
    assert again.as_dict() == policy.as_dict()
    assert again.hash == policy.hash
    assert again.to_yaml() == policy.to_yaml()


@pytest.mark.parametrize("name", BUILTINS)
def test_built_ins_too(name: str) -> None:
    assert Policy.from_yaml(Policy.builtin(name).to_yaml()).hash == Policy.builtin(name).hash


def test_a_policy_in_bounds_has_no_file_of_its_own() -> None:
    for policy in (Policy("a").bounded_by(Policy("b")), Policy("a").restricted(["no_network"])):
        with pytest.raises(PolicyLoadError, match="no YAML form"):
            policy.to_yaml()


def test_every_field_is_in_the_hash() -> None:
    hashes = {Policy.from_yaml(WHOLE).hash}
    changes: list[dict[str, Any]] = [
        {"name": "x"}, {"version": "2"}, {"description": "x"}, {"default_action": "allow"}, {"inheritance": "none"},
        {"runtime": None}, {"enforce": False}, {"rules": None},
    ]  # fmt: skip
    fields: list[dict[str, Any]] = [
        {"name": "x"}, {"description": "x"}, {"action": "deny"}, {"operation": "read"}, {"resource": "x"},
        {"exclude": "x"}, {"conditions": {"user_id": "x"}}, {"reason": "x"}, {"on_violation": "SIGKILL"},
        {"rate_limit": 1}, {"audit": "normal"},
    ]  # fmt: skip
    policy = Policy.from_yaml(WHOLE)
    for change in changes:
        whole = {**policy.as_dict(), **change}
        hashes.add(Policy.from_yaml(dump(whole)).hash)
    for change in fields:
        rules = policy.as_dict()["rules"]
        hashes.add(Policy.from_yaml(dump({**policy.as_dict(), "rules": [{**rules[0], **change}, *rules[1:]]})).hash)
    assert len(hashes) == 1 + len(changes) + len(fields)


def dump(whole: dict[str, Any]) -> str:
    return yaml.safe_dump({key: value for key, value in whole.items() if value is not None})


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
TRICKY = st.sampled_from(
    [
        "on",
        "no",
        "~",
        "null",
        "1.10",
        "17:00",
        "0x1",
        "1e5",
        ".inf",
        "true",
        "*",
        "- x",
        "a: b",
        "#x",
        "'",
        '"',
        "|",
        "!x",
        "&a",
        "=",
        "<<",
        " x ",
        "x\n",
        "x\u2028",
        "x\x85y",
        "\ufeff",
        "é",
        "😀",
    ]
)
SCALARS = TEXT | TRICKY | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False)
CONDITIONS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "user_id": SCALARS | st.lists(SCALARS, min_size=1, max_size=3),
        "max_cost": st.integers(0, 9) | st.floats(0, allow_nan=False),
        "context": st.dictionaries(TEXT | TRICKY, SCALARS, max_size=3),
    },
)


@given(TEXT | TRICKY, TEXT | TRICKY, st.none() | TEXT | TRICKY, CONDITIONS, st.none() | st.integers(1, 10**6))
def test_any_text_survives_the_way_to_a_file_and_back(
    name: str, version: str, reason: str | None, conditions: dict[str, Any] | None, rate_limit: int | None
) -> None:
    built = Rule("deny", Pattern("read", "x", conditions=conditions), reason=reason, rate_limit=rate_limit, name=name)
    policy = Policy(name, version, [built])
    again = Policy.from_yaml(policy.to_yaml() + os.linesep)
    assert again.as_dict() == policy.as_dict()
    assert again.hash == policy.hash
