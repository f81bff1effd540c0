"""Deliveries of one dispatcher: how many are under way, and in order if they shall be.

Owns the count and the line, for any number of threads and event loops; sends nothing. KILL and STOP are neither
counted nor in line: what must stop an agent waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future, InvalidStateError

from agentos.errors import SignalQueueFull
from agentos.signals import AgentSignal


class Delivery:
    """One delivery under way. `leave` it in every case, from any thread, once or more often."""

    def __init__(self, queue: DeliveryQueue | None = None) -> None:
        self._queue = queue
        self._turn: Future[None] = Future()

    async def turn(self) -> None:
        """Wait until those before have left. Cancelled, it leaves its place to the next, once that is due."""
        if not self._turn.done():
            await asyncio.shield(asyncio.wrap_future(self._turn))  # the end of who waits is not the end of the turn

    def leave(self) -> None:
        if self._queue is not None:
            self._queue.forget(self)

    def call(self) -> None:
        """It is this one's turn: who enters may find so in one thread while who gives up does in another."""
        with contextlib.suppress(InvalidStateError):
            self._turn.set_result(None)


class DeliveryQueue:
    def __init__(self, size: int, *, in_order: bool) -> None:
        self._size = size
        self._in_order = in_order
        self._lock = threading.RLock()  # a signal handler of the host program may interrupt a delivery and make one
        self._line: dict[Delivery, None] = {}  # in the order of the calls

    def enter(self, signal: AgentSignal, *, inside: bool = False) -> Delivery:
        """Return a new delivery of `signal`. Raises SignalQueueFull.

        `inside`: a handler sends it, on whose end another delivery waits; it waits for nothing and takes no room.
        """
        if inside or not signal.catchable:
            delivery = Delivery()
            delivery.call()
            return delivery
        delivery = Delivery(self)
        with self._lock:
            if len(self._line) >= self._size:
                raise SignalQueueFull(signal.name, self._size)
            self._line[delivery] = None
            its_turn = not self._in_order or len(self._line) == 1
        if its_turn:
            delivery.call()
        return delivery

    def forget(self, delivery: Delivery) -> None:
        """It is over, or was given up: the next may begin."""
        with self._lock:
            self._line.pop(delivery, None)
            following = next(iter(self._line), None)
        if following is not None:
            following.call()
