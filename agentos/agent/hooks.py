"""Audit hooks of CPython as the interceptor of level hooks. This first slice installs none: only act() is decided."""

from __future__ import annotations

from agentos.agent.process import AgentProcess


def install(agent: AgentProcess) -> None:
    """Install nothing so far."""
