"""Who acts by a policy and must follow each change of it: kernels that run, each through the client that started it.

A change is in force everywhere or nowhere: every follower is told, in the order of the changes, before `add_rule`
returns; when one of them refuses, those that were told are told back. Reaches no kernel itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final, Protocol

from agentos.errors import AgentosError, BadRequest
from agentos.policies.rule import Rule

CHANGE_LIMIT_S: Final = 120.0  # a kernel that is being started, or one that hangs, is waited for at most that long


class Follower(Protocol):
    """What acts by a policy. Both calls return once it is done, and do nothing for one that has ended."""

    @property
    def ended(self) -> bool:
        """Whether it acts by nothing any more: it is not told again."""

    def rule_added(self, rule: Rule, before: str, after: str) -> None:
        """Act by the policy of hash `after`, which is that of hash `before` and `rule`, unless it does so already.

        Raises AgentosError.
        """

    def rule_taken_back(self, before: str, after: str) -> None:
        """Act by the policy of hash `before` again, unless it never acted by `after`. Raises AgentosError."""


class Followers:
    """The followers of one policy, and the lock under which it changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changing = 0  # the thread that does; a signal handler may interrupt it
        self._all: tuple[Follower, ...] = ()

    def add(self, follower: Follower) -> None:
        """Tell `follower` of every change from now on; it reads the rules as they are after this call."""
        self._all = (*self._living(), follower)

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Hold the right to change the policy. Raises BadRequest where waiting for it would be for ever."""
        if self._changing == threading.get_ident():
            raise BadRequest("add_rule interrupted an add_rule of the same policy; call it outside the signal handler")
        if not self._lock.acquire(timeout=CHANGE_LIMIT_S):
            raise BadRequest(f"another add_rule of this policy has not returned for {CHANGE_LIMIT_S:g} s")
        try:
            self._changing = threading.get_ident()
            yield
        finally:
            self._changing = 0
            self._lock.release()

    def tell(self, rule: Rule, before: str, after: str) -> None:
        """Have everybody follow. Raises what the first that cannot says; `take_back` is what is left to do then."""
        for follower in self._living():
            follower.rule_added(rule, before, after)

    def take_back(self, before: str, after: str, error: BaseException) -> None:
        """Have everybody go back, those with them who began to follow meanwhile; who cannot is named in `error`."""
        for follower in self._living():
            try:
                follower.rule_taken_back(before, after)
            except AgentosError as left:
                error.add_note(f"a kernel may still act by the rule: {left}")

    def __bool__(self) -> bool:
        return bool(self._living())

    def _living(self) -> list[Follower]:
        return [one for one in self._all if not one.ended]
