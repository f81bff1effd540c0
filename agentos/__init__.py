"""agentos: a supervisor for AI agents that uses real operating-system processes.

The names of the public API are loaded at first use, so that `agentos ps` and an agent's own start pay for none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentos.agent.sdk import act as act
    from agentos.agent.sdk import on_cleanup as on_cleanup
    from agentos.agent.sdk import save_state as save_state
    from agentos.agent.sdk import saved_state as saved_state
    from agentos.agent.sdk import tool as tool
    from agentos.client.dispatcher import SignalDispatcher as SignalDispatcher
    from agentos.client.handle import AgentHandle as AgentHandle
    from agentos.client.kernelspace import KernelSpace as KernelSpace
    from agentos.errors import AgentFailed as AgentFailed
    from agentos.errors import AgentosError as AgentosError
    from agentos.errors import AgentTimeoutError as AgentTimeoutError
    from agentos.errors import PolicyViolationError as PolicyViolationError
    from agentos.errors import RateLimitedError as RateLimitedError
    from agentos.errors import ResultWithheld as ResultWithheld
    from agentos.errors import SignalQueueFull as SignalQueueFull
    from agentos.policies import Pattern as Pattern
    from agentos.policies import Policy as Policy
    from agentos.policies import Rule as Rule
    from agentos.recorder.flight import FlightRecorder as FlightRecorder
    from agentos.signals import AgentSignal as AgentSignal
    from agentos.status import AgentStatus as AgentStatus

__version__ = "0.1.0"

_HOMES = {
    "act": "agentos.agent.sdk",
    "on_cleanup": "agentos.agent.sdk",
    "save_state": "agentos.agent.sdk",
    "saved_state": "agentos.agent.sdk",
    "tool": "agentos.agent.sdk",
    "AgentHandle": "agentos.client.handle",
    "SignalDispatcher": "agentos.client.dispatcher",
    "KernelSpace": "agentos.client.kernelspace",
    "AgentFailed": "agentos.errors",
    "AgentosError": "agentos.errors",
    "AgentTimeoutError": "agentos.errors",
    "PolicyViolationError": "agentos.errors",
    "RateLimitedError": "agentos.errors",
    "ResultWithheld": "agentos.errors",
    "SignalQueueFull": "agentos.errors",
    "Pattern": "agentos.policies",
    "Policy": "agentos.policies",
    "Rule": "agentos.policies",
    "FlightRecorder": "agentos.recorder.flight",
    "AgentSignal": "agentos.signals",
    "AgentStatus": "agentos.status",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'agentos' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
