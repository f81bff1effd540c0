"""The gate of level hooks: CPython's audit hooks turn what the agent's Python code is about to do into actions.

Installed once, before the first byte of the user's code; a hook cannot be taken out again (PEP 578). It runs in the
agent's own process, so it holds code that errs and not code that means harm: docs/limits.md says what it cannot see.
What an event asks for is read in hooks_files, hooks_programs and hooks_network, one table each. The hook itself keeps
no state and causes no event of these tables, so a signal handler that acts while a verdict is awaited is decided too.
An exception of any kind keeps the operation from happening.

Sources: the audit events table of CPython's documentation; PEP 578.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from agentos.agent import hooks_files, hooks_network, hooks_programs
from agentos.agent.process import AgentProcess
from agentos.agent.wanted import Wanted

Reader = Callable[..., Iterable[Wanted]]

EVENTS: Final[dict[str, Reader]] = {**hooks_files.EVENTS, **hooks_programs.EVENTS, **hooks_network.EVENTS}


def install(agent: AgentProcess) -> None:
    """Have every event of the tables decided from now on; a refusal is PolicyViolationError at the refused call."""
    for wrap in (hooks_files.wrap, hooks_programs.wrap, hooks_network.wrap):
        wrap()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        read = EVENTS.get(event)  # hot path: CPython raises far more events than we decide
        if read is None:
            return
        for wanted in read(*args):
            agent.decide(wanted.operation, wanted.resource, resolved=wanted.resolved, argv=wanted.argv, source="hook")

    sys.addaudithook(hook)
