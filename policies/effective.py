"""What binds one agent: its policy, the rule sets before it, its permissions, and its parent above.

Order: invalid names, @private, @self, @command, @runtime, permissions and restrictions, rules of the command line, the
policy, its default; then the parent's bound (R9). What it works out is cached until `adopt` gives it another policy.
What an action's moment decides (conditions, limits) is never cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from agentos.actions import Action, base_operation
from agentos.errors import BadRequest
from agentos.policies import decision as reasons
from agentos.policies import verdict
from agentos.policies.decision import Decision
from agentos.policies.engine import Compiled, Subject
from agentos.policies.model import Policy
from agentos.policies.normalise import (
    InvalidResource,
    file_resource,
    is_url,
    normalise,
    normalise_network,
    printable_name,
)
from agentos.policies.quota import Quota
from agentos.policies.rule import Rule, is_operation
from agentos.policies.standing import Standing, standing
from agentos.policies.verdict import Facts, Link, Plan

__all__ = ["EffectivePolicy", "Standing", "standing"]

CACHE_ENTRIES: Final = 4_096  # of one agent; about 1 KB each when full
CACHED_NAME_CHARACTERS_MAX: Final = 1_024  # of one key; an agent chooses its names: they must not fill the kernel
# Where a program's own name can be trusted: nobody plants a link in these without being root.
PROGRAM_DIRS: Final = frozenset({
    "/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/games", "/snap/bin",
})  # fmt: skip

Prepared = Decision | tuple[Plan, ...]


class EffectivePolicy:
    """The policy of one agent, in force. Only `adopt` changes it, and only its policy.

    `workspace` is an absolute path without links. `permissions` None sets no ceiling and grants nothing (R10).
    `name` is the agent's, and keys what its children spend of its rate limits (R8.4); pass the kernel's one
    `quota`, so that limits outlive this object. Raises BadRequest for unknown permissions or restrictions.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        workspace: str | None,
        permissions: Iterable[str] | None = None,
        extra_rules: Iterable[Rule] = (),
        standing: Standing | None = None,
        parent: EffectivePolicy | None = None,
        restrictions: Iterable[str] = (),
        name: str | None = None,
        quota: Quota | None = None,
    ) -> None:
        workspace = None if workspace is None else _root(workspace)
        if parent is not None and parent.workspace != workspace:
            raise BadRequest("a child works in the workspace of its parent")
        self.policy = policy
        self.workspace: str | None = workspace
        self.parent = parent
        self.quota: Quota = quota or (parent.quota if parent is not None else Quota())
        extra = tuple(extra_rules)
        self._extra = Compiled(extra) if extra else None
        self._standing = standing or Standing()
        self._permissions = verdict.ceiling(permissions)
        self._taken_away = verdict.taken_away(restrictions)
        self._agent_name = name
        self.link = self._link()
        self._cached = lru_cache(CACHE_ENTRIES)(self._prepare)

    def adopt(self, policy: Policy) -> None:
        """Decide by `policy` from the next action on, its quota spent as it is; the parent has adopted it before."""
        self.policy = policy
        self.link = self._link()
        self.forget()

    def forget(self) -> None:
        """Let go of what was worked out so far: nobody is going to ask soon. Decisions stay what they are."""
        self._cached.cache_clear()

    @property
    def hash(self) -> str:
        """The hash of the policy in force."""
        return self.link.hash

    def decide(
        self, action: Action, *, cwd: str, context: Mapping[str, Any], name: str, now_s: float, at: datetime
    ) -> Decision:
        """Return the decision on `action` of agent `name`; spends rate limits when the action may go ahead.

        `cwd` is that of the acting process; `context` comes from the kernel, never from the agent; `now_s` is
        monotonic; `at` is aware. Total: a name or operation that cannot be read is a denial.
        """
        resource, resolved = action.resource, action.resolved
        place = cwd if action.source == "hook" else None  # only intercepted names are relative to a directory
        size = len(action.operation) + len(resource) + len(resolved or "") + len(place or "")
        if action.argv is None and size <= CACHED_NAME_CHARACTERS_MAX:
            prepared = self._cached(action.operation, resource, resolved, place)
        else:
            prepared = self._prepare(action.operation, resource, resolved, place, action.argv)
        if isinstance(prepared, Decision):
            return prepared
        return verdict.decide(prepared, Facts(context, action.claims, at), name, self.quota, now_s)

    def settled(self, action: Action, *, cwd: str) -> Decision | None:
        """Return the decision on an action without arguments if no moment can change it, and `decide` with it."""
        place = cwd if action.source == "hook" else None
        prepared = self._cached(action.operation, action.resource, action.resolved, place)
        return prepared if isinstance(prepared, Decision) else None

    def _link(self) -> Link:
        """Join what the policy brings (its own bounds included) with what this agent adds."""
        link = self.policy.link(self._permissions)
        above = self.parent.link if self.parent is not None else None
        return replace(
            link,
            extra=self._extra,
            standing=self._standing,
            workspace=self.workspace,
            restrictions=link.restrictions | self._taken_away,
            name=self._agent_name,
            parent=_joined(link.parent, self._standing, self.workspace, above),
        )

    def _prepare(
        self,
        operation: str,
        resource: str,
        resolved: str | None,
        cwd: str | None,
        argv: tuple[str, ...] | None = None,
    ) -> Prepared:
        """Return the decision where no moment can change it, else the plans for the moment to choose from."""
        if not is_operation(operation):
            return verdict.invalid(self.link, operation, resource, reasons.INVALID_OPERATION)
        try:
            subjects = self._subjects(operation, resource, resolved, cwd, argv)
        except InvalidResource:
            return verdict.invalid(self.link, operation, resource, reasons.INVALID_RESOURCE)
        plans = tuple(verdict.plan(self.link, subject) for subject in subjects)
        return verdict.settle(plans) or plans

    def _subjects(
        self, operation: str, resource: str, resolved: str | None, cwd: str | None, argv: tuple[str, ...] | None
    ) -> tuple[Subject, ...]:
        """Return the asked-for name and, where it differs, the resolved one: both must pass (R2.4)."""
        words = None if argv is None else tuple(printable_name(word) for word in argv)
        asked = self._name(operation, resource, cwd)
        first = Subject(operation, (asked,), words)
        if resolved is None:
            return (first,)
        found = self._name(operation, resolved, cwd)
        if found == asked:
            return (first,)
        aliases = (asked,) if base_operation(operation) == "execute" and _trusted(asked) and found[0] == "/" else ()
        return (first, Subject(operation, (found, *aliases), words))

    def _name(self, operation: str, resource: str, cwd: str | None) -> str:
        """Return the one form of a name: files of the workspace relative, others absolute (R2.3)."""
        if base_operation(operation) == "network":
            return normalise_network(resource)
        if cwd is not None or resource.startswith("/"):
            return file_resource(resource, cwd=cwd or "/", workspace=self.workspace)
        if resource.isascii() or is_url(resource):
            return normalise(resource)
        return normalise(printable_name(resource))


def _root(workspace: str) -> str:
    """Return the workspace in the form that the names of files have, else none of them would lie in it."""
    if not workspace.startswith("/"):
        raise BadRequest(f"the workspace {workspace!r} is no absolute path")
    try:
        return file_resource(workspace, cwd="/", workspace=None).rstrip("/") or "/"
    except InvalidResource as error:
        raise BadRequest(f"the workspace {workspace!r} cannot be named in a policy: {error}") from error


def _trusted(program: str) -> bool:
    """Return whether the name of a program may stand for the program it leads to (`/bin/sh` for dash)."""
    return program.rpartition("/")[0] in PROGRAM_DIRS


def _joined(bound: Link | None, before: Standing, workspace: str | None, above: Link | None) -> Link | None:
    """Put the policies that bound a policy (`bounded_by`) between an agent and its parent agent."""
    if bound is None:
        return above
    parent = _joined(bound.parent, before, workspace, above)
    return replace(bound, standing=before, workspace=workspace, parent=parent)
