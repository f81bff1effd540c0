"""Who this agent process is: its identity, its channel, its state and its clean-up functions. One per process.

Owns the process-wide `current()`; starts no thread, installs nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from agentos import errors, wire
from agentos.agent.channel import Channel
from agentos.values import pack_value

if TYPE_CHECKING:
    from agentos.agent.runtime import Runtime


class AgentProcess:
    """The agent that this process is. `runtime` is None until its thread runs, and in forked children.

    `state` is what it saved last, packed; until then what its previous life did (`saved`).
    """

    def __init__(self, start: wire.Start, channel: Channel, saved: bytes | None = None) -> None:
        self.id = start.agent_id
        self.name = start.name
        self.run_id = start.run_id
        self.level = start.level
        self.pid = os.getpid()
        self.channel = channel
        self.runtime: Runtime | None = None
        self.state = pack_value(None, "the state") if saved is None else saved
        self._cleanups = ExitStack()
        self._cleaning = threading.RLock()  # asked for and at the end of the function, maybe at once

    @property
    def is_first(self) -> bool:
        """Whether this is the process that the kernel started, not one that it forked."""
        return os.getpid() == self.pid

    def on_cleanup(self, function: Callable[[], Any]) -> None:
        self._cleanups.callback(_run_to_its_end, function)

    def cleanup(self) -> None:
        """Run the clean-up functions, last registered first, each once and all of them; raises the last failure.

        Who comes while they run in another thread waits for their end.
        """
        with self._cleaning:
            self._cleanups.pop_all().close()

    def decide(self, operation: str, resource: str, **fields: Any) -> wire.Verdict:
        """Ask the kernel and return its verdict when it allows; `fields` are those of Channel.act.

        Raises PolicyViolationError for anything else, no verdict included; BadRequest for claims that cannot be sent.
        """
        try:
            verdict = self.channel.act(operation, resource, **fields)
        except errors.KernelUnavailable as error:
            raise errors.PolicyViolationError(operation, resource, reason=str(error)) from error
        except errors.ProtocolError as error:
            raise errors.BadRequest(f"{operation} {resource!r}: {error}") from error
        if verdict.effect != "allow":
            raise self._refusal(operation, verdict)
        return verdict

    def _refusal(self, operation: str, verdict: wire.Verdict) -> errors.PolicyViolationError:
        fields: dict[str, Any] = {
            "reason": verdict.reason,
            "rule": verdict.rule,
            "rule_name": verdict.rule_name,
            "event_id": f"{self.run_id}-{verdict.seq}" if verdict.seq else None,
            "on_violation": verdict.on_violation,
        }
        if verdict.retry_after_s is not None:
            retry_after_s = verdict.retry_after_s
            return errors.RateLimitedError(operation, verdict.resource, retry_after_s=retry_after_s, **fields)
        return errors.PolicyViolationError(operation, verdict.resource, **fields)


_current: AgentProcess | None = None


def enter(process: AgentProcess) -> None:
    """Make `process` the current one, once, at the start of the agent."""
    global _current  # noqa: PLW0603 - a process is one agent
    _current = process


def current() -> AgentProcess | None:
    """Return the agent that this process is, or None in a host program."""
    return _current


def _run_to_its_end(function: Callable[[], Any]) -> None:
    result = function()
    if inspect.iscoroutine(result):
        asyncio.run(result)
