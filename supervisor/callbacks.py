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
from agentos.errors import ProtocolError

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
        self._send: Callable[[Any], None] | None = None
        self._pending: dict[int, asyncio.Future[Told]] = {}

    def adopt(self, send: Callable[[Any], None]) -> None:
        """From here on there is a host program; `send` writes it a frame."""
        self._send = send

    def leave(self) -> None:
        """The host program is gone, or answers for its agents no more: nobody waits for it any longer."""
        self._send = None
        for future in self._pending.values():
            _settle(future, Told(failure=NO_HOST, text="the host program is gone"))

    async def ask(self, name: str, params: dict[str, Any], limit_s: float) -> Told:
        """Have the host program run what it has under `name`, and wait at most `limit_s`."""
        if self._send is None:
            return await nobody()
        if len(self._pending) >= PENDING_MAX:
            return Told(failure=UNSENT, text=f"{PENDING_MAX} call-backs wait for the host program already")
        number = next(self._ids)
        future = self._pending[number] = self._loop.create_future()
        try:
            self._send(wire.Callback(number, name, {**params, "limit_s": limit_s}))
            return await asyncio.wait_for(future, limit_s)
        except ProtocolError as error:
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
