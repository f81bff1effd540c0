"""A blocking link to a kernel: frames over a Unix stream socket, one call at a time or many by id.

Imports only the standard library and msgpack, because `agentos ps` and `agentos kill` start through here.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

from agentos import errors, wire
from agentos.faults import rebuild
from agentos.runs import Run

CONNECT_TIMEOUT_S = 5.0


class Link:
    """Not thread-safe: one owner reads. `agentos.client.connection` puts a thread around it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = wire.Decoder(wire.TO_CLIENT)
        self._ready: list[Any] = []
        self._next_id = 0

    def greet(self, role: str) -> wire.Hello:
        """Exchange Hello. Raises NotPermitted, or KernelUnavailable for another version or a kernel that is gone."""
        with contextlib.suppress(errors.KernelUnavailable):  # whoever refuses us hangs up, but first says why
            self.send(wire.Hello(wire.VERSION, role, os.getpid()))
        hello = self.receive()
        if isinstance(hello, wire.Fault):
            raise rebuild(hello)
        if not isinstance(hello, wire.Hello) or hello.version != wire.VERSION:
            raise errors.KernelUnavailable(f"the kernel speaks another protocol: {hello!r}; use one version of agentos")
        return hello

    def send(self, frame: Any, descriptors: Sequence[int] = ()) -> None:
        data = wire.encode(frame)
        try:
            if descriptors:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                sent = self.socket.sendmsg([data], rights)
                data = data[sent:]
            self.socket.sendall(data)
        except OSError as error:
            raise errors.KernelUnavailable(f"the kernel is gone ({error.strerror})") from error

    def receive(self) -> Any:
        """Return the next frame, blocking (the socket's own timeout applies). Raises KernelUnavailable at the end."""
        while not self._ready:
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise
            except OSError as error:
                raise errors.KernelUnavailable(f"the kernel is gone ({error.strerror})") from error
            if not data:
                raise errors.KernelUnavailable("the kernel is gone; its agents are ended")
            self._ready.extend(self._decoder.feed(data))
        return self._ready.pop(0)

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def call(self, method: str, params: dict[str, Any] | None = None, descriptors: Sequence[int] = ()) -> Any:
        """Call the kernel and wait for the answer; notices meanwhile are dropped. Raises what Fault names."""
        request = wire.Call(self.new_id(), method, params or {})
        self.send(request, descriptors)
        while True:
            frame = self.receive()
            if isinstance(frame, wire.Reply) and frame.id == request.id:
                return frame.value
            if isinstance(frame, wire.Fault) and frame.id == request.id:
                raise rebuild(frame)

    def close_write(self) -> None:
        """Tell the kernel that this end is leaving; what it still says can be read."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


def connect(run: Run, role: str = "cli") -> Link:
    """Connect to a live run's control socket. Raises KernelUnavailable, NotPermitted."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT_S)
    try:
        handle = os.open(run.runtime, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{handle}/sock")  # sun_path holds only 108 bytes (unix(7))
        finally:
            os.close(handle)
        link = Link(sock)
        link.greet(role)
    except TimeoutError as error:
        sock.close()
        why = f"it does not answer within {CONNECT_TIMEOUT_S:g} s; its kernel hangs or is stopped"
        raise errors.KernelUnavailable(f"run {run.run_id}: {why}") from error
    except OSError as error:
        sock.close()
        raise errors.KernelUnavailable(f"run {run.run_id}: {run.socket}: {error.strerror}") from error
    except errors.AgentosError:
        sock.close()
        raise
    sock.settimeout(None)
    return link
