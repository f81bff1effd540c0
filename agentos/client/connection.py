"""A started kernel as its host program holds it: calls out by id, answers in, each by a thread of its own.

Daemon threads write and read the socketpair, so no event loop owns it or waits for it. CPython runs signal handlers in
the main thread alone, inside whatever it does: since that never writes, a handler may call, wait or raise, and no frame
is cut in two. The kernel sees the end of the socket when this process ends, however it ends, and then ends all agents.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import select
import socket
import subprocess
import threading
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from agentos import errors, wire
from agentos.client.launch import Started
from agentos.client.link import Link
from agentos.faults import rebuild
from agentos.shape import ITEMS_MAX

CALL_LIMIT_S: Final = 30.0  # for synchronous calls: the kernel answers in microseconds or is gone


class Connection:
    """A started kernel and the thread that reads its answers. Thread-safe."""

    def __init__(self, started: Started) -> None:
        self.run = started.run
        self.lost = False
        self._link: Link = started.link
        self._guard: subprocess.Popen[bytes] = started.guard
        self._ids = itertools.count(1)
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may interrupt a call and make one
        self._waiting: dict[int, Future[Any]] = {}
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()  # its put may be interrupted by another; None: end
        self._writer = threading.Thread(target=self._write, name="agentos-link-out", daemon=True)
        self._writer.start()
        self._thread = threading.Thread(target=self._read, name="agentos-link", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    def submit(self, method: str, params: dict[str, Any]) -> Future[Any]:
        """Send one call; the future holds its value or raises what the kernel said.

        Raises KernelUnavailable, and BadRequest for params that no frame holds: the kernel would hang up on us.
        """
        if os.getpid() != self._pid:
            raise errors.KernelUnavailable("this KernelSpace belongs to the process that made it, not to a fork of it")
        request = wire.Call(next(self._ids), method, params)
        data = _encode(request)
        future: Future[Any] = Future()
        with self._lock:
            if self.lost or _hung_up(self._link.socket):
                raise errors.KernelUnavailable("the kernel is gone; its agents are ended")
            self._waiting[request.id] = future
            self._outgoing.put(data)
        return future

    async def begin(self, method: str, params: dict[str, Any]) -> Any:
        """Make a call that starts an agent. If the awaiting task is cancelled meanwhile, that agent is stopped."""
        started: Future[Any] = Future()  # what we wait for; cancelled when we do not any more
        self.submit(method, params).add_done_callback(partial(self._hand_over, started))
        try:
            return await asyncio.wrap_future(started)
        except asyncio.CancelledError:
            if not started.cancel():
                started.add_done_callback(self._stop)
            raise

    def _hand_over(self, started: Future[Any], answer: Future[Any]) -> None:
        if not started.set_running_or_notify_cancel():
            self._stop(answer)
        elif (error := answer.exception()) is not None:
            started.set_exception(error)
        else:
            started.set_result(answer.result())

    def _stop(self, answer: Future[Any]) -> None:
        if answer.exception() is None:
            started = answer.result()
            self.stop_soon(started["id"] if isinstance(started, dict) else started)

    def stop_soon(self, agent_id: str) -> None:
        """Have an agent stopped that nobody waits for any more. Never raises, never waits."""
        with contextlib.suppress(errors.KernelUnavailable):
            self.submit("stop", {"id": agent_id})

    def shut_down(self) -> None:
        """End the kernel and wait until its guard, the last process of the run, is gone."""
        with contextlib.suppress(errors.KernelUnavailable):
            self.submit("shutdown", {}).result(CALL_LIMIT_S)
        self._link.close_write()
        self._guard.wait()
        self._thread.join()  # it ends with the kernel
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if os.getpid() == self._pid:
            self._link.close_write()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(CALL_LIMIT_S)

    def _read(self) -> None:
        try:
            while True:
                self._take(self._link.receive())
        except (errors.KernelUnavailable, errors.ProtocolError) as error:
            with self._lock:
                self.lost = True
                waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                if future.set_running_or_notify_cancel():
                    future.set_exception(errors.KernelUnavailable(str(error)))
            self._end_writer()
            self._link.close()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reader sees that too, and tells everybody who waits
            while (data := self._outgoing.get()) is not None:
                self._link.socket.sendall(data)

    def _end_writer(self) -> None:
        with contextlib.suppress(OSError):
            self._link.socket.shutdown(socket.SHUT_RDWR)  # nobody reads what it is still sending
        self._outgoing.put(None)
        self._writer.join()

    def _take(self, frame: Any) -> None:
        if not isinstance(frame, wire.Reply | wire.Fault):
            return
        future = self._waiting.pop(frame.id, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(frame, wire.Reply):
            future.set_result(frame.value)
        else:
            future.set_exception(rebuild(frame))


def _hung_up(sock: socket.socket) -> bool:
    """Whether the kernel has closed its end, which Linux knows before our reader does."""
    poller = select.poll()
    poller.register(sock, 0)  # a hang-up and an error are always told (poll(2))
    return bool(poller.poll(0))


def _encode(request: wire.Call) -> bytes:
    """Return the frame, read once as the kernel will read it: in size, items, depth and types. Raises BadRequest."""
    try:
        data = wire.encode(request)
        for _ in wire.Decoder(wire.FROM_CLIENT, items_max=ITEMS_MAX).feed(data):
            pass
    except errors.ProtocolError as error:
        raise errors.BadRequest(f"{request.method}: {error}; pass less") from error
    return data
