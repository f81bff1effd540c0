"""From the words of a call (policy, permissions, --allow, --deny, restrictions) to one agent's effective policy."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agentos.actions import OPERATIONS, base_operation
from agentos.errors import BadRequest, nearest
from agentos.policies import EffectivePolicy, Pattern, Policy, Quota, Rule, Standing, standing

PACKAGE_DIR = Path(__file__).resolve().parent.parent
_OWN: Final = tuple(
    str(PACKAGE_DIR / room) for room in ("agentos", "agent_os", "supervisor", "sandbox", "policies", "bin")
)

_DATABASE_FILES = ("", "-wal", "-shm", ".lock")  # a record may lie anywhere, and SQLite keeps files beside it


def load_policy(boot: Mapping[str, Any]) -> Policy:
    """Return the run's policy: a built-in by name, or the YAML text that the client read. Raises PolicyLoadError."""
    text = boot.get("policy_text")
    return Policy.from_yaml(text) if text is not None else Policy.builtin(boot["policy"])


def standing_for(
    boot: Mapping[str, Any], *, private: str, command: str = "", code_paths: Sequence[str] = ()
) -> Standing:
    """Return the rule sets that stand before every policy: @private, @self, @command, @runtime."""
    return standing(
        sys_prefixes=_settled(_installed()),
        package_dir=_OWN[0],
        self_paths=[*_settled(_OWN[1:]), *_both_forms([*boot.get("policy_files", []), _settings(boot)])],
        secret_self_paths=_settled((*boot["places"], *(boot["database"] + suffix for suffix in _DATABASE_FILES))),
        private_paths=_both_forms([private]),
        command_paths=_both_forms([command] if command else []),
        code_paths=_both_forms([path or os.getcwd() for path in code_paths]),
    )


def _settings(boot: Mapping[str, Any]) -> str:
    return os.path.join(boot["workspace"], "agentos.yaml")


def _both_forms(paths: Sequence[str]) -> list[str]:
    """Return every path as it is named and as the object that it leads to: an action is tested under both (R2.4)."""
    return [form for path in paths for form in (path, os.path.realpath(path))]


_settled = functools.cache(_both_forms)  # of places that stay what they are as long as this kernel lives


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return where Python is installed."""
    return tuple(sorted({sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}))


def parse_rule(action: str, text: str) -> Rule:
    """Return the rule for `--allow OP:RESOURCE` or `--deny OP:RESOURCE`. Raises BadRequest or PolicyLoadError."""
    operation, colon, resource = text.partition(":")
    if not colon or not resource:
        raise BadRequest(f"--{action} {text!r}: write OPERATION:RESOURCE, such as read:data/*")
    _check_operation(operation, f"--{action} {text!r}")
    return Rule(action, Pattern(operation=operation, resource=resource), name=f"--{action} {text}")


def parse_permissions(words: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the granted operations, None for no ceiling. Raises BadRequest naming the nearest operation."""
    if words is None:
        return None
    for word in words:
        _check_operation(word, "permissions")
    return tuple(words)


def _check_operation(word: str, where: str) -> None:
    if word != "*" and base_operation(word) not in OPERATIONS:
        raise BadRequest(
            f"{where}: unknown operation {word!r}{nearest(word, OPERATIONS)}; known: {', '.join(OPERATIONS)}"
        )


def effective(
    policy: Policy,
    boot: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    private: str,
    command: str = "",
    code_paths: Sequence[str] = (),
    parent: EffectivePolicy | None = None,
    name: str,
    quota: Quota,
) -> EffectivePolicy:
    """Return the effective policy of one agent. `params` may hold permissions, allow, deny and restrictions.

    `private` is the agent's own temporary directory; its files are its own whatever the policy says. Rate limits are
    spent in `quota`, the kernel's one, under `name`: whoever runs again has not forgotten what it spent.
    """
    denies = [parse_rule("deny", text) for text in params.get("deny") or ()]
    allows = [parse_rule("allow", text) for text in params.get("allow") or ()]
    return EffectivePolicy(
        policy,
        workspace=params.get("workspace") or boot["workspace"],
        permissions=parse_permissions(params.get("permissions")),
        extra_rules=(*denies, *allows),
        standing=standing_for(boot, private=private, command=command, code_paths=code_paths),
        parent=parent,
        restrictions=tuple(params.get("restrictions") or ()),
        name=name,
        quota=quota,
    )
