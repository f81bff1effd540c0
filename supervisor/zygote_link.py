"""The kernel's side of the zygote: ask for a process, hear of its death."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable
from typing import Any

from agentos import wire
from agentos.errors import HostError
from agentos.supervisor import pipes


class ZygoteLink:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, on_died: Callable[[wire.Died], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_died = on_died
        self._decoder = wire.Decoder(wire.FROM_ZYGOTE)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[wire.Forked]] = {}
        loop.add_reader(sock.fileno(), self._read)

    async def fork(self, kind: str, params: dict[str, Any], descriptors: list[int]) -> int:
        """Return the pid of a new process of `kind`. Raises HostError when Linux refused the fork."""
        request = wire.Fork(next(self._ids), kind, params)
        future: asyncio.Future[wire.Forked] = self._loop.create_future()
        self._waiting[request.id] = future
        pipes.send_with_rights(self._sock, request, descriptors)
        forked = await future
        if forked.errno:
            raise HostError(f"cannot start a process: {os.strerror(forked.errno)}; see the limits in `agentos doctor`")
        return forked.pid

    async def fork_sentry(self, params: dict[str, Any], descriptors: list[int]) -> int:
        return await self.fork("sentry", params, descriptors)

    def _read(self) -> None:
        data = self._sock.recv(pipes.READ_BYTES)
        if not data:
            os._exit(1)  # the zygote is gone: PDEATHSIG takes us and every sentry; the guard takes what is left
        for frame in self._decoder.feed(data):
            if isinstance(frame, wire.Forked):
                self._waiting.pop(frame.id).set_result(frame)
            elif isinstance(frame, wire.Died):
                self._on_died(frame)
