"""A blocking link to a kernel: frames over a Unix stream socket, one call at a time or many by id.

Imports only the standard library and msgpack, because `agentos ps` and `agentos kill` start through here.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Any

from agentos import errors, wire
from agentos.runs import Run

CONNECT_TIMEOUT_S = 5.0


class Link:
    """Not thread-safe: one owner reads. `agentos.client.kernelspace` puts a thread around it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = wire.Decoder(wire.TO_CLIENT)
        self._ready: list[Any] = []
        self._next_id = 0

    def greet(self, role: str) -> wire.Hello:
        """Exchange Hello. Raises KernelUnavailable on a version that is not ours or a kernel that is gone."""
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
        """Call the kernel and wait for the answer; notices that arrive meanwhile are dropped. Raises what Fault names."""
        request = wire.Call(self.new_id(), method, params or {})
        self.send(request, descriptors)
        while True:
            frame = self.receive()
            if isinstance(frame, wire.Reply) and frame.id == request.id:
                return frame.value
            if isinstance(frame, wire.Fault) and frame.id == request.id:
                raise rebuild(frame)

    def close(self) -> None:
        self.socket.close()


def connect(run: Run, role: str = "cli") -> Link:
    """Connect to a live run's control socket. Raises KernelUnavailable."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT_S)
    try:
        sock.connect(str(run.socket))
    except OSError as error:
        sock.close()
        raise errors.KernelUnavailable(f"run {run.run_id}: {run.socket}: {error.strerror}") from error
    link = Link(sock)
    link.greet(role)
    sock.settimeout(None)
    return link


def rebuild(fault: wire.Fault) -> errors.AgentosError:
    """Return the exception that `fault` describes: a class of agentos.errors with its fields and text, or the root."""
    cls = getattr(errors, fault.error, errors.AgentosError)
    if not (isinstance(cls, type) and issubclass(cls, errors.AgentosError)):
        cls = errors.AgentosError
    error = cls.__new__(cls, fault.message)
    error.args = (fault.message,)
    for name, value in fault.fields.items():
        setattr(error, name, value)
    return error


def to_fault(request_id: int, error: errors.AgentosError) -> wire.Fault:
    """Return the frame for `error`; only plain fields travel."""
    fields = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return wire.Fault(request_id, type(error).__name__, str(error), fields)
