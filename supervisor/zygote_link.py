"""The kernel's side of the zygote: ask for a process, hear of its death.

Never blocks the kernel's loop: a zygote that is busy or stopped only makes requests wait, with a limit. Few requests
are under way at a time, so that neither side can fill the socket while the other one writes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from agentos import wire
from agentos.errors import HostError
from agentos.supervisor import pipes

FORKS_AT_ONCE: Final = 8  # the zygote serves one after the other, about a millisecond each
FORK_LIMIT_S: Final = 30.0  # from the moment a request is sent


class _Request:
    """One frame on its way out. Its descriptors leave with its first byte."""

    __slots__ = ("answer", "begun", "data", "descriptors")

    def __init__(self, data: bytes, descriptors: Sequence[int], answer: asyncio.Future[wire.Forked]) -> None:
        self.answer = answer
        self.data = memoryview(data)
        self.descriptors = descriptors
        self.begun = False


class ZygoteLink:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, on_died: Callable[[wire.Died], None]
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_died = on_died
        self._decoder = wire.Decoder(wire.FROM_ZYGOTE)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[wire.Forked]] = {}
        self._queue: deque[_Request] = deque()
        self._turns = asyncio.Semaphore(FORKS_AT_ONCE)
        loop.add_reader(sock.fileno(), self._read)

    async def fork(self, kind: str, params: dict[str, Any], descriptors: Sequence[int]) -> int:
        """Return the pid of a new process of `kind`. Raises HostError: Linux refused the fork, or the zygote is stuck.

        `descriptors` must stay open until this returns or raises; afterwards they are not used any more.
        """
        number = next(self._ids)
        future: asyncio.Future[wire.Forked] = self._loop.create_future()
        request = _Request(wire.encode(wire.Fork(number, kind, params)), descriptors, future)
        async with self._turns:
            self._waiting[number] = future
            try:
                async with asyncio.timeout(FORK_LIMIT_S):
                    self._send(request)
                    forked = await future
            except TimeoutError:
                raise HostError(f"the zygote (pid {os.getppid()}) did not answer within {FORK_LIMIT_S:g} s") from None
            finally:
                self._waiting.pop(number, None)
                if request in self._queue and not request.begun:
                    self._queue.remove(request)
        if forked.errno:
            raise HostError(f"cannot start a process: {os.strerror(forked.errno)}; see the limits in `agentos doctor`")
        return forked.pid

    async def fork_sentry(self, params: dict[str, Any], descriptors: Sequence[int]) -> int:
        return await self.fork("sentry", params, descriptors)

    def _send(self, request: _Request) -> None:
        self._queue.append(request)
        if len(self._queue) == 1:
            self._loop.add_writer(self._sock.fileno(), self._flush)
            self._flush()

    def _flush(self) -> None:
        while self._queue:
            request = self._queue[0]
            rights = () if request.begun else request.descriptors
            try:
                sent = pipes.send_with_rights(self._sock, request.data, rights)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):  # the zygote is gone: `_read` hears of it next
                self._queue.clear()
                break
            except OSError as error:  # this request cannot be sent (EBADF, EMFILE); others may
                self._queue.popleft()
                if not request.answer.done():
                    request.answer.set_exception(HostError(f"cannot ask for a process: {error.strerror}"))
                continue
            request.begun, request.data = True, request.data[sent:]
            if not request.data:
                self._queue.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        try:
            data = self._sock.recv(pipes.READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            os._exit(1)  # the zygote is gone: PDEATHSIG takes us and every sentry; the guard takes what is left
        for frame in self._decoder.feed(data):
            if isinstance(frame, wire.Forked):
                waiting = self._waiting.pop(frame.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)  # else nobody waits any more; its pipes are closed, so it ends by itself
            elif isinstance(frame, wire.Died):
                self._loop.call_soon(self._on_died, frame)  # after whoever waits for this pid has learnt it
