"""The pipes between the kernel and one agent's two processes, before those exist. Knows no frame."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Self

from agentos.errors import HostError
from agentos.supervisor.agents import Agent
from agentos.supervisor.outbox import Outbox


class AgentPipes:
    """The pipes of one agent: two with its sentry, three with a Python agent (ADR 0002).

    Our ends are the agent's from the moment they exist; the others' are closed at the end of the `with`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, agent: Agent, *, python: bool, on_unread: Callable[[str], None]
    ) -> None:
        self._agent = agent
        self._theirs: list[int] = []
        try:
            agent.from_sentry = self._reading()
            agent.to_sentry = Outbox(loop, self._writing(), _ignore)
            self._theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            if python:
                agent.up = self._reading()
                agent.verdicts = Outbox(loop, self._writing(), _ignore, on_room=self._go_on)
                agent.calls = Outbox(loop, self._writing(), on_unread)
        except OSError as error:
            self.__exit__()
            raise HostError(
                f"no pipes for {agent.name}: {error.strerror}; see the limits in `agentos doctor`"
            ) from error

    def _reading(self) -> int:
        ours, theirs = os.pipe()
        self._agent.descriptors.append(ours)
        self._theirs.append(theirs)
        return ours

    def _writing(self) -> int:
        theirs, ours = os.pipe()
        self._agent.descriptors.append(ours)
        self._theirs.append(theirs)
        return ours

    def _go_on(self) -> None:
        if self._agent.intake is not None:
            self._agent.intake.go_on()

    def theirs(self, stdin: int | None) -> list[int]:
        """Return what the sentry gets, in its order: from the kernel, to it, stdin, and a Python agent's three."""
        sentry_out, sentry_in, null, *channel = self._theirs
        return [sentry_in, sentry_out, null if stdin is None else stdin, *channel]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs.clear()


def _ignore(_: str) -> None:
    """A peer that cannot be written to is dead or dying: its sentry or the zygote says so next."""
