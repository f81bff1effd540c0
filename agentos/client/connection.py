"""A started kernel as its host program holds it: calls out by id, answers in, each by a thread of its own.

Daemon threads write and read the socketpair, so no event loop owns it or waits for it. CPython runs signal handlers in
the main thread alone, inside whatever it does: since that never writes, a handler may call, wait or raise, and no frame
is cut in two. What the kernel asks of this program is handed to `on_callback`, which returns at once. The kernel sees
the end of the socket when this process ends, however it ends, and then ends all agents.
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
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from agentos import errors, wire
from agentos.client.homes import Homes
from agentos.client.launch import Started
from agentos.client.link import Link
from agentos.faults import rebuild
from agentos.shape import ITEMS_MAX
from agentos.supervisor import linux, tree

CALL_LIMIT_S: Final = 30.0  # for synchronous calls: the kernel answers in microseconds or is gone
# For `shutdown`, as long as its parts allow themselves: the kernel to confirm the KILL of an agent, see its tree gone
# and bring the record home; then all of that, and the zygote and the guard to end what is left.
ANSWER_LIMIT_S: Final = 160.0
END_LIMIT_S: Final = 300.0
_NAMED_MAX: Final = 10


class _Answer:
    """What `ask` waits for. Not a Future: an interrupted caller that holds its lock would stop our reader."""

    def __init__(self) -> None:
        self._told: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def set_result(self, value: Any) -> None:
        self._told.put((value, None))

    def set_exception(self, error: BaseException) -> None:
        self._told.put((None, error))

    def wait(self, limit_s: float) -> Any:
        try:
            value, error = self._told.get(timeout=limit_s)
        except Empty:
            raise errors.KernelUnavailable(f"the kernel did not answer within {limit_s:g} s; it hangs") from None
        if error is not None:
            raise error
        return value


OnCallback = Callable[["Connection", wire.Callback], None]


def _refuse(connection: Connection, frame: wire.Callback) -> None:
    connection.give_back(frame, None, f"this program has nothing under {frame.name!r}")


class Connection:
    """A started kernel and the thread that reads its answers. Thread-safe."""

    def __init__(self, started: Started, on_callback: OnCallback = _refuse) -> None:
        self.run = started.run
        self.homes = Homes()
        self._on_callback = on_callback
        self.lost = False
        self._link: Link = started.link
        self._guard: subprocess.Popen[bytes] = started.guard
        self._leaving = False  # we said so to the kernel, which hears nothing more from us
        self._ids = itertools.count(1)
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may interrupt a call and make one
        self._waiting: dict[int, Future[Any] | _Answer] = {}
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()  # its put may be interrupted by another; None: end
        self._writer = threading.Thread(target=self._write, name="agentos-link-out", daemon=True)
        self._writer.start()
        self._thread = threading.Thread(target=self._read, name="agentos-link", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    @property
    def ended(self) -> bool:
        """Whether the kernel is gone or was told to go; Linux knows before our reader does."""
        with self._lock:
            return self.lost or self._leaving or _hung_up(self._link.socket)

    def submit(self, method: str, params: dict[str, Any]) -> Future[Any]:
        """Send one call; the future holds its value or raises what the kernel said.

        Raises KernelUnavailable, and BadRequest for params that no frame holds: the kernel would hang up on us.
        """
        future: Future[Any] = Future()
        self._post(method, params, future)
        return future

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Make one call and wait for its answer; a signal handler may do so in the middle of another. Raises as submit.

        Raises KernelUnavailable when there is no answer within CALL_LIMIT_S.
        """
        answer = _Answer()
        self._post(method, params, answer)
        return answer.wait(CALL_LIMIT_S)

    def _post(self, method: str, params: dict[str, Any], answer: Future[Any] | _Answer) -> None:
        self._check_ours()
        request = wire.Call(next(self._ids), method, params)
        data = _encode(request)
        with self._lock:
            if self._leaving:
                raise errors.KernelUnavailable(f"the kernel of run {self.run.run_id} was told to end")
            if self.lost or _hung_up(self._link.socket):
                raise errors.KernelUnavailable("the kernel is gone; its agents are ended")
            self._waiting[request.id] = answer
            self._outgoing.put(data)

    def _check_ours(self) -> None:
        """A fork shares the socket with us and has none of our threads. Raises KernelUnavailable."""
        if os.getpid() != self._pid:
            raise errors.KernelUnavailable("this KernelSpace belongs to the process that made it, not to a fork of it")

    async def begin(self, method: str, params: dict[str, Any]) -> Any:
        """Make a call that starts an agent. If the awaiting task is cancelled meanwhile, that agent is stopped."""
        started: Future[Any] = Future()  # what we wait for; cancelled when we do not any more
        home = asyncio.get_running_loop()
        self.submit(method, params).add_done_callback(partial(self._hand_over, started, home))
        try:
            return await asyncio.wrap_future(started)
        except asyncio.CancelledError:
            if not started.cancel():
                started.add_done_callback(self._stop)
            raise

    def _hand_over(self, started: Future[Any], home: asyncio.AbstractEventLoop, answer: Future[Any]) -> None:
        if answer.exception() is None:  # before the kernel's next frame is read: that may be about this agent
            self.homes.remember(_id_of(answer.result()), home)
        if not started.set_running_or_notify_cancel():
            self._stop(answer)
        elif (error := answer.exception()) is not None:
            started.set_exception(error)
        else:
            started.set_result(answer.result())

    def _stop(self, answer: Future[Any]) -> None:
        if answer.exception() is None:
            self.stop_soon(_id_of(answer.result()))

    def stop_soon(self, agent_id: str) -> None:
        """Have an agent stopped that nobody waits for any more. Never raises, never waits."""
        with contextlib.suppress(errors.KernelUnavailable):
            self.submit("stop", {"id": agent_id})

    def shut_down(self) -> None:
        """End the kernel and wait until its guard, the last process of the run, is gone. May be called again.

        Raises StillAlive naming what lives after ANSWER_LIMIT_S and END_LIMIT_S, which is longer than all that the
        kernel, the zygote and the guard try; KernelUnavailable in a fork of the process that started it.
        """
        self._check_ours()
        with contextlib.suppress(errors.KernelUnavailable, TimeoutError):
            self.submit("shutdown", {}).result(ANSWER_LIMIT_S)
        self._leave()
        if not _ends_within(self._guard, END_LIMIT_S):
            raise errors.StillAlive(
                f"run {self.run.run_id} was told to end and still lives: {_living(self._guard.pid)}; "
                "end these by hand, guard first, or call shutdown() again to wait on"
            )
        self._thread.join()  # it ends with the kernel
        atexit.unregister(self._at_exit)

    def _leave(self) -> None:
        with self._lock:
            self._leaving = True
        self._link.close_write()

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

    def give_back(self, frame: wire.Callback, value: Any, error: str | None) -> None:
        """Send what came of a call-back. Never raises, never waits."""
        try:
            data = wire.encode(wire.Returned(frame.id, value, error))
        except errors.ProtocolError as unsendable:
            data = wire.encode(wire.Returned(frame.id, None, str(unsendable)))
        self._outgoing.put(data)

    def _take(self, frame: Any) -> None:
        if isinstance(frame, wire.Callback):
            self._on_callback(self, frame)
            return
        if not isinstance(frame, wire.Reply | wire.Fault):
            return
        future = self._waiting.pop(frame.id, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(frame, wire.Reply):
            future.set_result(frame.value)
        else:
            future.set_exception(rebuild(frame))


def _id_of(started: Any) -> str:
    """Return the id in what `start` or `spawn` answered."""
    return str(started["id"] if isinstance(started, dict) else started)


def _hung_up(sock: socket.socket) -> bool:
    """Whether the kernel has closed its end, which Linux knows before our reader does."""
    poller = select.poll()
    poller.register(sock, 0)  # a hang-up and an error are always told (poll(2))
    return bool(poller.poll(0))


def _ends_within(guard: subprocess.Popen[bytes], limit_s: float) -> bool:
    if guard.poll() is None:
        descriptor = os.pidfd_open(guard.pid)
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)  # once it has ended (pidfd_open(2))
        poller.poll(limit_s * 1000)
        os.close(descriptor)
    return guard.poll() is not None


def _living(guard_pid: int) -> str:
    """Name the processes of a run that have not ended, from the top."""
    seen = (linux.read_stat(str(pid)) for pid in (guard_pid, *(one.pid for one in tree.members(guard_pid))))
    names = [f"{one.name} (pid {one.pid}, state {one.state})" for one in seen if one and one.state not in "ZX"]
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return ", ".join(names[:_NAMED_MAX]) + more


def _encode(request: wire.Call) -> bytes:
    """Return the frame, read once as the kernel will read it: in size, items, depth and types. Raises BadRequest."""
    try:
        data = wire.encode(request)
        for _ in wire.Decoder(wire.FROM_CLIENT, items_max=ITEMS_MAX).feed(data):
            pass
    except errors.ProtocolError as error:
        raise errors.BadRequest(f"{request.method}: {error}; pass less") from error
    return data
