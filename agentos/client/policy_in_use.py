"""The policy of one KernelSpace: read once, handed to every kernel that it starts, and changed in those that run.

A kernel acts by a copy of its own. What keeps the two alike is the Policy itself, which tells each running kernel of
every rule before its `add_rule` returns.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentos import errors
from agentos.client.connection import Connection
from agentos.client.launch import START_LIMIT_S
from agentos.policies import Policy, Rule, loader


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A policy and where it came from, which says the same in fewer words as long as no rule was added."""

    policy: Policy
    rules: tuple[Rule, ...] | None = None  # as they came; None: from a program
    name: str = ""  # of a built-in
    text: str | None = None  # of a file
    files: tuple[str, ...] = ()

    def words(self) -> dict[str, Any]:
        """Return what start_kernel is told. Raises PolicyLoadError for a policy that no file could hold."""
        as_it_came = self.policy.rules is self.rules
        text = self.text if as_it_came else self.policy.to_yaml()
        return {"policy": self.name or self.policy.name, "policy_text": text, "policy_files": self.files}


class PolicyInUse:
    """What the constructor took as policy; nothing is read before the first need. Thread-safe."""

    def __init__(self, given: str | Policy) -> None:
        self._given = given
        self._loaded: _Loaded | None = None
        self._loading = threading.Lock()

    @property
    def policy(self) -> Policy:
        """The one Policy, for good. Raises PolicyLoadError."""
        return self._load().policy

    @contextlib.contextmanager
    def starting(self) -> Iterator[RunningKernel]:
        """Follow the policy with a kernel that starts within: it gets `words`, and sets `connection` when it runs."""
        loaded = self._load()
        kernel = RunningKernel()
        loaded.policy.followers.add(kernel)  # first: a rule that is added from here on is in the words, or told later
        try:
            kernel.words = loaded.words()
            yield kernel
        finally:
            kernel.settled.set()

    def _load(self) -> _Loaded:
        with self._loading:
            if self._loaded is None:
                self._loaded = _load(self._given)
            return self._loaded


class RunningKernel:
    """A kernel as the Policy that it acts by knows it: from before it starts until it has ended."""

    def __init__(self) -> None:
        self.words: dict[str, Any] = {}
        self.connection: Connection | None = None
        self.settled = threading.Event()  # it runs, or it did not start

    @property
    def ended(self) -> bool:
        return self.settled.is_set() and (self.connection is None or self.connection.ended)

    def rule_added(self, rule: Rule, before: str, after: str) -> None:
        self._tell("add_rule", {"rule": rule.as_dict(), "before": before, "after": after})

    def rule_taken_back(self, before: str, after: str) -> None:
        self._tell("take_rule_back", {"before": before, "after": after})

    def _tell(self, method: str, params: dict[str, Any]) -> None:
        if not self.settled.wait(START_LIMIT_S):
            raise errors.KernelUnavailable(f"{method}: a kernel with this policy is being started and does not answer")
        if self.connection is None:
            return
        try:
            self.connection.ask(method, params)
        except errors.KernelUnavailable:
            if not self.ended:  # a kernel that is gone, or ends now, has no agents to bind
                raise


def _load(given: str | Policy) -> _Loaded:
    if isinstance(given, Policy):
        return _Loaded(given)
    if given.endswith((".yaml", ".yml")) or os.sep in given:
        path = Path(given).resolve()
        text = loader.read(path)  # once: what this program holds and what the kernel is told are the same
        policy = loader.parse(text, str(path))
        return _Loaded(policy, policy.rules, text=text, files=(str(path),))
    policy = Policy.builtin(given)  # an unknown name is refused before anything starts
    return _Loaded(policy, policy.rules, name=given)
