"""The kernel's side of the flight recorder: append to the journal, ring the recorder, know what is durable.

Owns the order "record, then act". An append that fails raises RecorderUnavailable and the action is denied. Whoever
needs durability waits for the recorder's acknowledgement; if none comes in time it is told so and must deny.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from agentos import wire
from agentos.clock import Clock
from agentos.errors import RecorderUnavailable
from agentos.recorder.journal import JournalWriter

QUIET_BELL_S: Final = 0.02  # the recorder commits at most fifty times a second when nobody waits
DURABLE_LIMIT_S: Final = 5.0  # long enough for a restarted recorder, short enough for an agent to hear why


class Recording:
    """One per kernel. `send` reaches the recorder process, or raises OSError while there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal: JournalWriter, clock: Clock) -> None:
        self._loop = loop
        self._journal = journal
        self._clock = clock
        self._waiting: deque[tuple[int, float, Callable[[bool], None]]] = deque()  # seq, deadline, what to do
        self._bell: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self.send: Callable[[wire.TailTo], None] = lambda _: None
        self.last_seq = 0
        self.durable_seq = 0

    def append(
        self,
        event_type: str,
        data: dict[str, Any],
        *,
        severity: str = "info",
        agent_id: str = "",
        agent_name: str = "",
        execution_id: str = "",
        durable: bool = False,
    ) -> int:
        """Write one event to the journal; returns its sequence number. Raises RecorderUnavailable."""
        self.last_seq = self._journal.append(
            event_type,
            severity,
            agent_id,
            agent_name,
            execution_id,
            data,
            durable=durable,
            ts_ns=self._clock.wall_ns(),
            mono_ns=self._clock.monotonic_ns(),
        )
        if self._bell is None:
            self._bell = self._loop.call_later(QUIET_BELL_S, self._ring)
        return self.last_seq

    def try_append(self, event_type: str, data: dict[str, Any], **fields: Any) -> None:
        """Record something that already happened: if that fails there is nothing left to deny."""
        try:
            self.append(event_type, data, **fields)
        except RecorderUnavailable:
            self.lost += 1

    lost = 0  # events of things that had already happened and could not be recorded; shown by inspect

    def when_durable(self, seq: int, then: Callable[[bool], None]) -> None:
        """Call `then(True)` once `seq` is committed, `then(False)` when that did not happen in DURABLE_LIMIT_S."""
        if seq <= self.durable_seq:
            then(True)
            return
        self._waiting.append((seq, self._loop.time() + DURABLE_LIMIT_S, then))
        self.send(wire.TailTo(seq, True))
        if self._sweep is None:
            self._sweep = self._loop.call_later(DURABLE_LIMIT_S, self._give_up)

    async def durable(self, seq: int) -> None:
        """Wait until `seq` is committed. Raises RecorderUnavailable."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self.when_durable(seq, lambda ok: None if future.done() else future.set_result(ok))
        if not await future:
            raise RecorderUnavailable(f"the recorder did not confirm event {seq} within {DURABLE_LIMIT_S:g} s")

    def acknowledged(self, seq: int) -> None:
        """The recorder committed everything up to `seq`."""
        self.durable_seq = max(self.durable_seq, seq)
        while self._waiting and self._waiting[0][0] <= self.durable_seq:
            self._waiting.popleft()[2](True)

    def reconnected(self) -> None:
        """A new recorder process tails from where the database ends; tell it that people wait."""
        if self.last_seq:
            self.send(wire.TailTo(self.last_seq, bool(self._waiting)))

    def close(self) -> None:
        self._journal.close()

    def _ring(self) -> None:
        self._bell = None
        self.send(wire.TailTo(self.last_seq, False))

    def _give_up(self) -> None:
        self._sweep = None
        now = self._loop.time()
        late = list(itertools.takewhile(lambda entry: entry[1] <= now, self._waiting))
        for _ in late:
            self._waiting.popleft()
        for _, _, then in late:
            then(False)
        if self._waiting:
            self._sweep = self._loop.call_later(max(0.0, self._waiting[0][1] - now), self._give_up)
