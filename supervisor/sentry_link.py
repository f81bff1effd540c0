"""The kernel's side of one agent's sentry: what it says, in order, and what it had said when it died.

The exit comes from here: first what lies in a Python agent's own pipe, then the exit on record, and only then may the
sentry reap (Reap). A sentry that died is read to its end before it is called lost: an exit it told of is not lost.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Any, Final

from agentos import lifecycle, wire
from agentos.errors import ProtocolError
from agentos.supervisor.agents import Agent
from agentos.supervisor.broker import Broker
from agentos.supervisor.endings import Endings

READ_BYTES: Final = 65_536


class SentryLink:
    """One per kernel, for all sentries."""

    def __init__(self, loop: asyncio.AbstractEventLoop, broker: Broker, endings: Endings) -> None:
        self._loop = loop
        self._broker = broker
        self._endings = endings

    def watch(self, agent: Agent, descriptor: int) -> None:
        """Listen to the sentry of `agent` from now on."""
        os.set_blocking(descriptor, False)
        decoder = wire.Decoder(wire.FROM_SENTRY)
        agent.hear_sentry = partial(self._read, agent, descriptor, decoder)
        self._loop.add_reader(descriptor, agent.hear_sentry)

    def on_died(self, agent: Agent, frame: wire.Died) -> None:
        """The zygote reaped the sentry and ended what it left."""
        while agent.hear_sentry is not None and agent.hear_sentry():
            pass
        if (
            agent.exited is not None and not agent.exit_on_record
        ):  # its last word; the agent's pipe was still being read
            unfinished = agent.intake.drain_at_once() if agent.intake is not None else 0
            self._broker.on_exit(agent, agent.exited, unfinished)
        self._endings.on_sentry_died(agent, frame)

    def _read(self, agent: Agent, descriptor: int, decoder: wire.Decoder) -> bool:
        """Take in one read; False when there was nothing, or nothing more will come."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._deafen(agent, descriptor)
            return False
        agent.silent_beats = 0
        try:
            for frame in decoder.feed(data):
                self._take(agent, frame)
        except (ProtocolError, lifecycle.IllegalTransition) as error:
            self._deafen(agent, descriptor)
            self._broker.protocol_fault(agent, error)
            return False
        return agent.hear_sentry is not None

    def _deafen(self, agent: Agent, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        agent.hear_sentry = None

    def _take(self, agent: Agent, frame: Any) -> None:
        match frame:
            case wire.Exited():
                agent.exited = frame
                if agent.intake is None:
                    self._on_exit(agent, 0)
                else:
                    agent.intake.drain(partial(self._on_exit, agent))
            case wire.TreeGone():
                self._endings.on_tree_gone(agent, frame)
            case _:
                self._broker.on_sentry_frame(agent, frame)

    def _on_exit(self, agent: Agent, unfinished_bytes: int) -> None:
        if agent.exited is None or agent.exit_on_record:  # its sentry died while we drained: the books are closed
            return
        self._broker.on_exit(agent, agent.exited, unfinished_bytes)
        if agent.to_sentry is not None:
            agent.to_sentry.write(wire.encode(wire.Reap(0)))
