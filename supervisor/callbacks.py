"""Call-backs: what the kernel asks of its host program, and what came of it.

Owns their ids and the waiting, which always ends: with the host's answer, at the limit that the asker gave, or at once
when the host is gone. What the host was not asked, or answers too late, is dropped. Failures are values: what follows
from one is the asker's to decide.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from agentos import wire
from agentos.errors import HostError, ProtocolError
from agentos.supervisor.outbox import Outbox

PENDING_MAX: Final = 4_096  # as many as agents may live: each has one signal heard, or one result verified, at a time
ERROR_CHARS_MAX: Final = 500  # of what the host says went wrong: it goes on record and into error texts

RAISED: Final = "raised"
LATE: Final = "late"
NO_HOST: Final = "no host"
UNSENT: Final = "unsent"


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a call-back: a value, or which failure it was (RAISED, LATE, NO_HOST, UNSENT) and its text."""

    value: Any = None
    failure: str = ""
    text: str = ""


Ask = Callable[[str, dict[str, Any], float], Awaitable[Told]]


async def nobody(*_: Any) -> Told:
    """Answer for a kernel that has no host program."""
    return Told(failure=NO_HOST, text="the host program is gone")


class Callbacks:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ids = itertools.count(1)
        self._outbox: Outbox | None = None
        self._pending: dict[int, asyncio.Future[Told]] = {}

    def adopt(self, outbox: Outbox) -> None:
        """From here on there is a host program, which reads what is written to `outbox`."""
        self._outbox = outbox

    def leave(self) -> None:
        """The host program is gone, or answers for its agents no more: nobody waits for it any longer."""
        self._outbox = None
        for future in self._pending.values():
            _settle(future, Told(failure=NO_HOST, text="the host program is gone"))

    async def ask(self, name: str, params: dict[str, Any], limit_s: float) -> Told:
        """Have the host program run what it has under `name`, and wait at most `limit_s`."""
        outbox = self._outbox
        if outbox is None:
            return await nobody()
        if len(self._pending) >= PENDING_MAX:
            return Told(failure=UNSENT, text=f"{PENDING_MAX} call-backs wait for the host program already")
        number = next(self._ids)
        future: asyncio.Future[Told] = self._loop.create_future()
        self._pending[number] = future
        try:
            data = wire.encode(wire.Callback(number, name, {**params, "limit_s": limit_s}))
            async with asyncio.timeout(limit_s):
                await outbox.turn(len(data))
                outbox.write(data)
                return await future
        except (ProtocolError, HostError) as error:
            return Told(failure=UNSENT, text=str(error)[:ERROR_CHARS_MAX])
        except TimeoutError:
            return Told(failure=LATE, text=f"no answer within {limit_s:g} s")
        finally:
            del self._pending[number]

    def on_returned(self, frame: wire.Returned) -> None:
        future = self._pending.get(frame.id)
        if future is None:
            return
        if frame.error is not None:
            _settle(future, Told(failure=RAISED, text=frame.error[:ERROR_CHARS_MAX]))
        else:
            _settle(future, Told(frame.value))


def _settle(future: asyncio.Future[Told], told: Told) -> None:
    if not future.done():
        future.set_result(told)
