"""The kernel's side of the flight recorder: append to the journal, ring the recorder, know what is durable.

Owns the order "record, then act". An append that fails raises RecorderUnavailable and the action is denied; so does one
while the recorder has confirmed nothing for too long, or is too far behind. Whoever needs durability waits for the
recorder's acknowledgement; if none comes in time it is told so and must deny. What could not be recorded is counted,
and the count is on record before anything else is.
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
from agentos.mould import Mould
from agentos.recorder.journal import JournalWriter

QUIET_BELL_S: Final = 0.02  # the recorder commits at most fifty times a second when nobody waits
DURABLE_LIMIT_S: Final = 5.0  # long enough for a restarted recorder, short enough for an agent to hear why
SILENT_BEATS_MAX: Final = 10  # what is in the journal is safe, but without a recorder nobody may act for ever
BACKLOG_BYTES_MAX: Final = 512 * 1024 * 1024  # a journal that grows faster than it is committed must not fill the disk
PATIENT_BEATS: Final = (
    2  # a recorder that is silent for longer is not waited for: agents shall hear why they may not act
)
MARKS_MAX: Final = 10_000  # three minutes of rings: with fewer marks the backlog is only seen to shrink later
WAITING_MAX: Final = 100_000  # whoever sends without reading verdicts must not fill our memory


class Recording:
    """One per kernel. `send` reaches the recorder process; it does nothing while there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal: JournalWriter, clock: Clock) -> None:
        self._loop = loop
        self._journal = journal
        self._clock = clock
        self._waiting: deque[tuple[int, float, Callable[[bool], None]]] = deque()  # seq, deadline, what to do
        self._bell: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._marks: deque[tuple[int, int]] = deque()  # seq, bytes in the journal up to it; one a ring
        self._confirmed_bytes = 0
        self._untold: dict[str, int] = {}  # what could not be recorded and is not on record as a number either
        self.send: Callable[[wire.TailTo], None] = lambda _: None
        self.on_room: Callable[[], None] = lambda: None  # it may be less behind than it was, or not waited for any more
        self.why_not = ""  # what the last recorder died of, in its own words
        self.last_seq = 0
        self.durable_seq = 0
        self.silent_beats = 0  # for how many beats something has been waiting while nothing was confirmed
        self.lost = 0  # events of things that had already happened and could not be recorded; shown by inspect

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
        """Write one event, before its effect, to the journal; returns its sequence number.

        Raises RecorderUnavailable when that failed, or when it would not be committed in any foreseeable time.
        """
        try:
            self._check_recorder()
            return self._write(event_type, severity, agent_id, agent_name, execution_id, data, durable)
        except RecorderUnavailable:
            self._untold["refused"] = self._untold.get("refused", 0) + 1
            raise

    def mould(self, event_type: str, severity: str, who: tuple[str, str, str], data: dict[str, Any]) -> Mould | None:
        """Return the mould of an event for `append_cast`. `who` is agent id, agent name and execution id."""
        return self._journal.mould(event_type, severity, *who, data)

    def append_cast(self, mould: Mould, number: int) -> int:
        """As `append`, for an event that is not durable and differs from others by the one `number` in its data."""
        self._check_recorder()
        if self._untold:
            self._tell_untold()
        self.last_seq = self._journal.append_cast(
            mould, number, ts_ns=self._clock.wall_ns(), mono_ns=self._clock.monotonic_ns()
        )
        self._ring_soon()
        return self.last_seq

    def try_append(
        self,
        event_type: str,
        data: dict[str, Any],
        *,
        severity: str = "info",
        agent_id: str = "",
        agent_name: str = "",
        execution_id: str = "",
        durable: bool = False,
    ) -> None:
        """Record something that already happened: if that fails there is nothing left to deny.

        Without a recorder agents could fill the disk with what needs no leave: beyond a limit it is only counted.
        """
        try:
            if self._backlog_bytes > (BACKLOG_BYTES_MAX * 2 if durable else BACKLOG_BYTES_MAX):
                raise RecorderUnavailable(f"the recorder is more than {BACKLOG_BYTES_MAX} bytes behind the journal")
            self._write(event_type, severity, agent_id, agent_name, execution_id, data, durable)
        except RecorderUnavailable:
            self.lost += 1
            self._untold["lost"] = self._untold.get("lost", 0) + 1

    def when_durable(self, seq: int, then: Callable[[bool], None]) -> None:
        """Call `then(True)` once `seq` is committed, `then(False)` when that did not happen in DURABLE_LIMIT_S."""
        if seq <= self.durable_seq or len(self._waiting) >= WAITING_MAX:
            then(seq <= self.durable_seq)
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
            raise RecorderUnavailable(
                f"the recorder did not confirm event {seq} within {DURABLE_LIMIT_S:g} s{self._because()}"
            )

    def acknowledged(self, seq: int) -> None:
        """The recorder committed everything up to `seq`."""
        self.durable_seq = max(self.durable_seq, seq)
        self.silent_beats = 0
        self.why_not = ""
        while self._marks and self._marks[0][0] <= self.durable_seq:
            self._confirmed_bytes = self._marks.popleft()[1]
        while self._waiting and self._waiting[0][0] <= self.durable_seq:
            self._waiting.popleft()[2](True)
        self.on_room()

    @property
    def is_behind(self) -> bool:
        """Whether the recorder works and has so much to do that those who send should wait for it."""
        backlog_bytes = self._journal.appended_bytes - self._confirmed_bytes  # hot path: asked after every read
        return backlog_bytes > BACKLOG_BYTES_MAX // 2 and self.silent_beats <= PATIENT_BEATS

    @property
    def _backlog_bytes(self) -> int:
        return self._journal.appended_bytes - self._confirmed_bytes

    def beat(self) -> None:
        """Count a beat of this very process, once a second: a kernel that was stopped blames nobody for that."""
        if self.durable_seq < self.last_seq:
            self.silent_beats += 1
            self.on_room()

    def reconnected(self) -> None:
        """A new recorder process tails from where the database ends; tell it that people wait."""
        if self.last_seq:
            self.send(wire.TailTo(self.last_seq, bool(self._waiting)))

    def close(self) -> None:
        self._journal.close()

    def _check_recorder(self) -> None:
        if self.silent_beats > SILENT_BEATS_MAX:
            raise RecorderUnavailable(f"the recorder has confirmed nothing for {self.silent_beats} s{self._because()}")
        if self._backlog_bytes > BACKLOG_BYTES_MAX:
            raise RecorderUnavailable(f"the recorder is more than {BACKLOG_BYTES_MAX} bytes behind the journal")

    def _because(self) -> str:
        return f": {self.why_not}" if self.why_not else ""

    def _write(
        self, event_type: str, severity: str, agent_id: str, name: str, execution_id: str, data: dict[str, Any],
        durable: bool,
    ) -> int:  # fmt: skip
        if self._untold:
            self._tell_untold()
        self.last_seq = self._journal.append(
            event_type, severity, agent_id, name, execution_id, data,
            durable=durable, ts_ns=self._clock.wall_ns(), mono_ns=self._clock.monotonic_ns(),
        )  # fmt: skip
        self._ring_soon()
        return self.last_seq

    def _ring_soon(self) -> None:
        if self._bell is None:
            self._bell = self._loop.call_later(QUIET_BELL_S, self._ring)

    def _tell_untold(self) -> None:
        data, self._untold = self._untold, {}
        try:
            self._write("not_recorded", "error", "", "", "", dict(data), durable=True)
        except RecorderUnavailable:
            self._untold = data
            raise

    def _ring(self) -> None:
        self._bell = None
        if len(self._marks) >= MARKS_MAX:
            self._marks.pop()
        self._marks.append((self.last_seq, self._journal.appended_bytes))
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
