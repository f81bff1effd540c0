"""The doors of the kernel: the host's socketpair and the control socket of the run.

Owns who may speak: same uid or root, by SO_PEERCRED, and never from inside an agent's own process tree: an agent must
not approve itself. A caller whose ancestry cannot be read is refused too. Every refusal is on record.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from agentos import wire
from agentos.errors import NotPermitted, ProtocolError
from agentos.supervisor import linux
from agentos.supervisor.outbox import Outbox
from agentos.supervisor.pipes import RightsReader

PEERS_MAX: Final = 512
_SO_PEERPIDFD: Final = 77  # Linux 6.5; Python has no name for it
_BACKLOG: Final = 128
_ANCESTORS_MAX: Final = 4_096

OnCall = Callable[["Peer", wire.Call, list[int]], None]


class Peer:
    """One connected client: the host program (`is_host`) or a CLI verb."""

    def __init__(self, control: Control, sock: socket.socket, *, is_host: bool, pid: int) -> None:
        sock.setblocking(False)
        self.is_host = is_host
        self.pid = pid
        self.follows: set[str] = set()  # agent ids, or "*"
        self._control = control
        self._sock = sock
        self._reader = RightsReader(sock, wire.FROM_CLIENT)
        self._greeted = False
        self._outbox = Outbox(control.loop, sock.fileno(), lambda _: self.close())
        control.loop.add_reader(sock.fileno(), self._read)

    def send(self, frame: Any) -> None:
        self._outbox.write(wire.encode(frame))

    @property
    def pending_bytes(self) -> int:
        """What the peer has not read yet: notices are dropped, not queued, while this is large."""
        return self._outbox.pending_bytes

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._outbox.close()
        self._control.loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._control.forget(self)

    def _read(self) -> None:
        try:
            pairs = self._reader.read()
            if pairs is None:
                self.close()
                return
            for frame, descriptors in pairs:
                try:
                    self._take(frame, descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):  # a client that speaks nonsense is hung up on; it is no agent
            self.close()

    def _take(self, frame: Any, descriptors: list[int]) -> None:
        if isinstance(frame, wire.Hello):
            self._greeted = frame.version == wire.VERSION
            self.send(wire.Hello(wire.VERSION, "kernel", os.getpid()))
        elif not self._greeted:
            raise ProtocolError("no Hello of our version")
        elif isinstance(frame, wire.Call):
            self._control.on_call(self, frame, descriptors)


class Control:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_call: OnCall,
        on_host_gone: Callable[[], None],
        is_sentry: Callable[[int], bool],
        on_refused: Callable[[dict[str, Any]], None],
    ) -> None:
        self.loop = loop
        self.on_call = on_call
        self._on_host_gone = on_host_gone
        self._is_sentry = is_sentry
        self._on_refused = on_refused
        self._peers: set[Peer] = set()
        self._listener: socket.socket | None = None

    def adopt_host(self, descriptor: int) -> Peer:
        peer = Peer(self, socket.socket(fileno=descriptor), is_host=True, pid=0)
        self._peers.add(peer)
        return peer

    def listen(self, directory: str) -> None:
        """Bind `sock` in `directory` (0700). Through /proc/self/fd, because sun_path holds only 108 bytes (unix(7))."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        old = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{handle}/sock")
        finally:
            os.umask(old)
            os.close(handle)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        self.loop.add_reader(listener.fileno(), self._accept)

    def peers(self) -> list[Peer]:
        return list(self._peers)

    def forget(self, peer: Peer) -> None:
        self._peers.discard(peer)
        if peer.is_host:
            self._on_host_gone()

    def close(self) -> None:
        if self._listener is not None:
            self.loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for peer in self.peers():
            peer.is_host = False  # we hang up on it, it did not die
            peer.close()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sock, _ = self._listener.accept()
            pid, refusal = self._judge(sock)
            if refusal or len(self._peers) >= PEERS_MAX:
                self._refuse(sock, pid, refusal or f"{PEERS_MAX} clients are connected already")
                return
            self._peers.add(Peer(self, sock, is_host=False, pid=pid))

    def _refuse(self, sock: socket.socket, pid: int, why: str) -> None:
        self._on_refused({"pid": pid, "reason": why})
        with contextlib.suppress(OSError):
            sock.send(wire.encode(wire.Fault(0, NotPermitted.__name__, why, {})))
        sock.close()

    def _judge(self, sock: socket.socket) -> tuple[int, str]:
        """Return (pid, why it is refused or "")."""
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid not in (0, os.getuid()):
            return pid, f"uid {uid} is not the owner of this run"
        if not self._ancestry_is_clean(pid):
            return pid, "callers inside an agent's process tree may not use the control socket"
        if not _still_the_same(sock):
            return pid, "the caller ended before it could be identified"
        return pid, ""

    def _ancestry_is_clean(self, pid: int) -> bool:
        """Whether the walk from `pid` to process 1 meets no sentry; 0 (a foreign pid namespace) is refused."""
        for _ in range(_ANCESTORS_MAX):
            if pid == 0:
                return False
            found = linux.read_stat(str(pid))
            if found is None or self._is_sentry(pid):
                return False
            if pid == 1 or found.ppid == 0:
                return True
            pid = found.ppid
        return False


def _still_the_same(sock: socket.socket) -> bool:
    """Whether the peer still lives, so that what /proc said of its pid was said of it. True where Linux cannot tell."""
    try:
        descriptor = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    alive = not poller.poll(0)  # a pidfd is readable once its process ended (pidfd_open(2))
    os.close(descriptor)
    return alive
