"""The built-in policies: what each allows and denies (R12)."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentos.actions import Action
from agentos.errors import PolicyLoadError
from agentos.policies import BUILTINS, Decision, EffectivePolicy, Pattern, Policy

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
EVERYTHING = ["read", "write", "execute", "network"]

SECRETS = [
    ".env", "sub/.env", ".env.local", "prod.env", ".envrc", "a/b/.env.production",
    "key.pem", "a/server.key", "x.p12", "x.pfx", "x.jks", "x.keystore", "x.kdbx", "x.ppk",
    "id_rsa", "keys/id_ed25519", "id_ecdsa_sk", "id_rsa.old", "id_rsa-work", "id_dsa_backup",
    ".ssh", ".ssh/", ".ssh/config", "home/.aws/credentials", ".azure/x", ".gnupg/x/y", ".kube/config",
    ".password-store/x.gpg",
    ".terraform.d/x", ".config/gcloud/x", ".config/gh/hosts.yml", ".config/op/", ".config/rclone/rclone.conf",
    ".netrc", "_netrc", ".git-credentials", ".npmrc", ".pypirc", ".pgpass", ".my.cnf", ".boto", ".s3cfg",
    ".htpasswd", ".vault-token",
    "credentials.json", "config/secrets.yaml", "service-account-prod.json", "service_account.json",
    ".docker/config.json",
    ".cargo/credentials", ".cargo/credentials.toml", ".bash_history", ".psql_history",
    "terraform.tfstate", "x.tfstate.backup", "prod.tfvars", "prod.tfvars.json",
]  # fmt: skip
NO_SECRETS = [
    ".env.example", ".env.sample", "a/.env.template", "id_rsa.pub", "id_ed25519_work.pub", "environment.py",
    "src/keys.py", "secrets.py",
    "docs/credentials.md", "keyboard.txt", "a.pem.txt", "ssh/config", ".config/nvim/init.lua", "tests/env", "monkey",
    ".gitignore", ".git/HEAD",
]  # fmt: skip


def decided(policy: str, operation: str, resource: str, permissions: list[str] | None = None, **more: Any) -> Decision:
    return Policy.builtin(policy).decide(operation, resource, permissions=permissions, **more)


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_stay_denied_whatever_is_granted(secret: str) -> None:
    for policy in ("strict", "workspace"):
        for operation in ("read", "write", "write/delete"):
            made = decided(policy, operation, secret, EVERYTHING)
            assert made.effect == "deny", policy
            assert made.rule_name
            assert made.reason not in {"default_deny", "not_permitted"}
    made = decided("audit", "read", secret, EVERYTHING)
    assert (made.effect, made.would_deny) == ("allow", True)


@pytest.mark.parametrize("name", NO_SECRETS)
def test_what_only_looks_like_a_secret_is_none(name: str) -> None:
    assert decided("strict", "read", name, ["read"]).allowed
    assert decided("workspace", "read", name).allowed


def test_the_three_lists_of_secrets_are_one_list() -> None:
    def secrets(policy: str) -> list[Any]:
        return [rule.as_dict() for rule in Policy.builtin(policy).rules[:5]]

    assert secrets("strict") == secrets("audit") == secrets("workspace")
    assert [rule["name"] for rule in secrets("strict")] == [
        "environment files", "private keys", "credential directories", "credential files", "infrastructure state",
    ]  # fmt: skip


def test_every_rule_that_denies_says_why() -> None:
    for name in BUILTINS:
        for rule in Policy.builtin(name).rules:
            assert rule.name, name
            assert rule.reason, rule.name


# --- strict ------------------------------------------------------------------------------------------------------


def test_strict_allows_what_permissions_grant_and_nothing_else() -> None:
    for operation in EVERYTHING:
        name = "https://h/" if operation == "network" else "x"
        assert decided("strict", operation, name).reason == "default_deny"
        assert decided("strict", operation, name, []).reason == "not_permitted"
        made = decided("strict", operation, name, [operation])
        assert (made.effect, made.reason) == ("allow", "Granted by permissions")
        others = [other for other in EVERYTHING if other != operation]
        assert decided("strict", operation, name, others).reason == "not_permitted"


def test_strict_grants_files_only_inside_the_workspace() -> None:
    assert decided("strict", "read", "/etc/shadow", ["read"]).reason == "Outside the workspace"
    assert decided("strict", "write", "/home/me/x", EVERYTHING).reason == "Outside the workspace"
    assert decided("strict", "execute", "/usr/bin/git", ["execute"]).allowed


def test_the_example_of_the_specification() -> None:
    """`@kernel.register(name="data_processor", permissions=["read",
    "write"])` under strict: network calls are blocked."""
    permissions = ["read", "write"]
    assert decided("strict", "read", "data/in.csv", permissions).allowed
    assert decided("strict", "write", "data/out.csv", permissions).allowed
    assert decided("strict", "network/connect", "https://api.example.com/", permissions).reason == "not_permitted"
    assert not decided("strict", "execute", "/usr/bin/git", permissions).allowed


# --- permissive, audit, custom -----------------------------------------------------------------------------------


def test_permissive_allows_everything_that_can_be_read() -> None:
    for operation, name in [
        ("read", "/etc/shadow"),
        ("write", ".env"),
        ("execute", "/bin/sh"),
        ("network", "https://evil.com/"),
    ]:
        assert decided("permissive", operation, name).reason == "default_allow"
    assert decided("permissive", "read", "..").reason == "invalid_resource"
    policy = Policy.builtin("permissive")
    policy.add_rule("deny", Pattern("read", "x"))
    assert not policy.decide("read", "x").allowed


@pytest.mark.parametrize("permissions", [None, [], ["read"], EVERYTHING])
def test_audit_decides_as_strict_does_and_lets_everything_through(permissions: list[str] | None) -> None:
    """R12: what strict would refuse is on record as `would_deny`."""
    names = ["x", ".env", "/etc/shadow", "a/key.pem", "https://h/x"]
    for operation in EVERYTHING:
        for name in names:
            strict, audit = (
                decided("strict", operation, name, permissions),
                decided("audit", operation, name, permissions),
            )
            assert audit.allowed
            assert audit.would_deny is (strict.effect == "deny")
            assert audit.on_violation is None
            assert audit.durable or not audit.would_deny
            assert not (audit.would_deny and audit.cacheable)


def test_audit_blocks_only_names_that_cannot_be_read_and_agentos_itself() -> None:
    for name in ("..", "", "a\0b"):
        made = decided("audit", "read", name)
        assert (made.effect, made.reason, made.would_deny) == ("deny", "invalid_resource", False)
    assert decided("audit", "fly", "x").reason == "invalid_operation"


def test_a_strict_parent_enforces_what_an_auditing_child_would_only_record() -> None:
    bound = Policy.builtin("audit").bounded_by(Policy.builtin("strict"))
    assert not bound.decide("read", ".env", permissions=["read"]).allowed
    assert bound.decide("read", "x", permissions=["read"]).allowed
    reverse = Policy.builtin("strict").bounded_by(Policy.builtin("audit"))
    assert not reverse.decide("read", ".env", permissions=["read"]).allowed


def test_custom_is_empty_and_filled_by_add_rule() -> None:
    policy = Policy.builtin("custom")
    assert policy.rules == ()
    assert policy.decide("read", "x").reason == "default_deny"
    policy.add_rule("allow", Pattern("read", "x"))
    assert policy.decide("read", "x").allowed
    assert Policy.builtin("custom").rules == ()  # each call has its own


def test_an_unknown_built_in_is_named_with_the_nearest_one() -> None:
    with pytest.raises(PolicyLoadError, match=r"unknown built-in policy 'stict' \(did you mean 'strict'\?\)"):
        Policy.builtin("stict")
    assert [Policy.builtin(name).name for name in BUILTINS] == list(BUILTINS)
    assert [Policy.builtin(name).default_action for name in ("strict", "permissive", "audit")] == [
        "deny",
        "allow",
        "allow",
    ]


# --- workspace ---------------------------------------------------------------------------------------------------


def test_workspace_reads_writes_and_runs_without_any_grant_but_has_no_network() -> None:
    for operation, name in [
        ("read", "src/a.py"),
        ("write", "src/a.py"),
        ("write/delete", "old.py"),
        ("read", "./"),
        ("execute", "/usr/bin/git"),
    ]:
        assert decided("workspace", operation, name).allowed
    for url in ("https://pypi.org/", "http://localhost/", "tcp://1.2.3.4:22", "unix:/run/docker.sock"):
        assert decided("workspace", "network/connect", url).reason == "default_deny"
        assert decided("workspace", "network/connect", url, ["read", "network"]).allowed
    assert decided("workspace", "read", "/etc/shadow").reason == "Outside the workspace"
    assert decided("workspace", "write", "/tmp/x").reason == "Outside the workspace"


RUN_LATER = [
    ".git/config", ".git/hooks/pre-commit", ".git/hooks/", ".git/config.worktree", ".git/info/attributes",
    ".gitmodules",
    ".git", "sub/.git", ".git/commondir", ".git/worktrees/w/commondir", ".git/worktrees/w/config.worktree",
    ".git/modules/lib/config", ".git/modules/a/b/hooks/post-checkout", ".git/modules/a/modules/b/config",
    ".git/modules/x/info/attributes",
    "vendor/.git/hooks/x", ".husky/pre-push", ".pre-commit-config.yaml", "lefthook.yml",
    ".github/workflows/ci.yml", ".github/actions/x/action.yml", ".gitlab-ci.yml", ".circleci/config.yml", "Jenkinsfile",
    "azure-pipelines.yml", ".travis.yml", ".drone.yml", ".ci/run", "buildspec.yml",
    ".vscode/tasks.json", ".vscode/settings.json", "sub/.idea/workspace.xml", ".devcontainer/devcontainer.json",
    ".devcontainer.json",
    ".vimrc", ".exrc", ".nvim.lua", ".dir-locals.el", "x.code-workspace", ".helix/languages.toml",
    ".bashrc", ".profile", ".zshenv", ".tmux.conf", ".gitconfig",
    ".claude/settings.json", ".codex/config.toml", ".mcp.json", "agentos.yaml",
]  # fmt: skip


@pytest.mark.parametrize("name", RUN_LATER)
def test_workspace_keeps_agents_from_what_a_persons_tools_run_later(name: str) -> None:
    """A hook, a pipeline or an editor runs it as you, outside any wall."""
    for operation in ("write", "write/rename", "write/symlink", "write/link", "write/delete"):
        made = decided("workspace", operation, name, EVERYTHING)
        assert made.effect == "deny"
        assert made.rule_name
    assert decided("workspace", "read", name).allowed


@pytest.mark.parametrize(
    "name", [".git/info", ".git/modules", ".git/modules/lib", ".git/worktrees", ".git/worktrees/w"]
)
def test_what_holds_them_cannot_be_replaced(name: str) -> None:
    for operation in ("write/rename", "write/delete", "write/rmdir"):
        assert decided("workspace", operation, name).rule_name == "git as a whole"


def test_git_itself_goes_on_working() -> None:
    for name in (".git/index.lock", ".git/objects/ab/cdef", ".git/refs/heads/main", ".git/logs/HEAD",
    ".git/COMMIT_EDITMSG", ".git/HEAD",
                 ".git/modules/lib/index.lock", ".git/info/exclude", ".gitattributes", "src/config",
                 ".github/CODEOWNERS"):  # fmt: skip
        for operation in ("write", "write/rename", "write/delete"):
            assert decided("workspace", operation, name).allowed, name


def git(cwd: Path, *words: str) -> None:
    home = {"PATH": os.environ["PATH"], "HOME": str(cwd), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *words], cwd=cwd, env=home, check=False, capture_output=True, timeout=60)


@pytest.mark.parametrize("lure", [".git/commondir", "sub/.git"])
def test_why_git_must_not_be_led_to_a_configuration_elsewhere(lure: str, tmp_path: Path) -> None:
    """The attack, on a real git: files that no rule could know by name, and one that leads there."""
    git(tmp_path, "init", "-q")
    evil, proof = tmp_path / "evil", tmp_path / "proof"
    shutil.copytree(tmp_path / ".git", evil, ignore=shutil.ignore_patterns("hooks"))
    with (evil / "config").open("a") as config:
        config.write(f'[core]\n fsmonitor = "touch {proof}; false"\n')
    victim = tmp_path / "sub" if lure == "sub/.git" else tmp_path
    victim.mkdir(exist_ok=True)
    (tmp_path / lure).write_text("gitdir: ../evil\n" if lure == "sub/.git" else "../evil\n")
    git(victim, "status")
    assert proof.exists()  # git ran it, as whoever asked for the status
    for name in ("evil/config", "evil/HEAD"):
        assert decided("workspace", "write", name).allowed
    assert not decided("workspace", "write", lure).allowed


def test_an_agent_under_workspace_sees_names_as_files() -> None:
    """The same policy, with files named as the system names them."""
    who = EffectivePolicy(Policy.builtin("workspace"), workspace="/home/me/project")

    def act(operation: str, path: str, resolved: str | None = None) -> bool:
        action = Action(operation=operation, resource=path, resolved=resolved, source="hook")
        return who.decide(action, cwd="/home/me/project/src", context={}, name="a", now_s=0, at=NOW).allowed

    assert act("write", "a.py")
    assert act("read", "/home/me/project/README.md")
    assert not act("read", "../.env")
    assert not act("read", "../../.ssh/id_rsa")
    assert not act("read", "notes.txt", resolved="/home/me/project/.env")
    assert not act("write", "../x", resolved="/home/me/project/.git/hooks/pre-commit")
    assert not act("read", "/home/me/other/file")
