"""The doors of the kernel: the host's socketpair and the control socket of the run.

Owns who may speak: same uid or root, by SO_PEERCRED, and never from inside an agent's process tree, of this run or of
another: an agent must not approve itself. A caller whose ancestry cannot be read is refused too. Every refusal is on
record; of a burst of them the first, and a count. Who speaks nonsense is hung up on, and on record: the host always,
because its agents end with it, of others one a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
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
ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024  # that wait for one client to read on: as much as is kept of results
GREETING_LIMIT_S: Final = 3.0  # who connects and says nothing must not keep others out
ACCEPT_PAUSE_S: Final = 0.5  # when there are no descriptors left for another client
REFUSALS_EVERY_S: Final = 1.0
NONSENSE_EVERY_S: Final = 1.0
NONSENSE_CHARS_MAX: Final = 500
_SO_PEERPIDFD: Final = 77  # Linux 6.5; Python has no name for it
_BACKLOG: Final = 128
_ANCESTORS_MAX: Final = 4_096

OnCall = Callable[["Peer", wire.Call, list[int]], None]


class Peer:
    """One connected client: the host program (`is_host`) or a CLI verb."""

    def __init__(self, control: Control, sock: socket.socket, *, is_host: bool) -> None:
        sock.setblocking(False)
        self.is_host = is_host
        self.follows: set[str] = set()  # agent ids, or "*"
        self.waiting: set[asyncio.Task[Any]] = set()  # calls that only wait: for nobody, once the peer is gone
        self._control = control
        self._sock = sock
        self._reader = RightsReader(sock, wire.FROM_CLIENT)
        self._greeted = False
        self._may_return = is_host  # a host that detached may still answer what it was asked before
        self.outbox = Outbox(control.loop, sock.fileno(), lambda _: self.close(), waiting_bytes_max=ANSWER_BYTES_MAX)
        self._impatience = control.loop.call_later(GREETING_LIMIT_S, self._lose_patience)
        control.loop.add_reader(sock.fileno(), self._read)

    def send(self, frame: Any) -> None:
        self.outbox.write(wire.encode(frame))

    @property
    def pending_bytes(self) -> int:
        """What the peer has not read yet: notices are dropped, not queued, while this is large."""
        return self.outbox.pending_bytes

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self.outbox.close()
        self._impatience.cancel()
        self._control.loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._reader.close()
        for task in list(self.waiting):
            self._control.loop.call_soon(task.cancel)  # not before it has begun: it closes what came with the call
        self._control.forget(self)

    def _lose_patience(self) -> None:
        if not self._greeted:
            self.close()

    def _read(self) -> None:
        try:
            pairs = self._reader.read()
            if pairs is None:
                self.close()
                return
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        except ProtocolError as error:  # a client that speaks nonsense is hung up on; it is no agent
            self._hang_up(error)
            return
        try:
            while pairs:
                self._take(*pairs.pop(0))
        except ProtocolError as error:
            self._hang_up(error)
        finally:
            for _, descriptors in pairs:
                _close_all(descriptors)

    def _hang_up(self, error: ProtocolError) -> None:
        self._control.complain(self, error)
        self.close()

    def _take(self, frame: Any, descriptors: list[int]) -> None:
        if isinstance(frame, wire.Call) and self._greeted:
            self._control.on_call(self, frame, descriptors)  # which owns them from here on
            return
        _close_all(descriptors)
        if isinstance(frame, wire.Returned) and self._may_return and self._greeted:
            self._control.on_returned(frame)
        elif isinstance(frame, wire.Returned):
            raise ProtocolError("Returned from a client that is never asked")
        elif isinstance(frame, wire.Hello):
            self._greeted = frame.version == wire.VERSION
            self.send(wire.Hello(wire.VERSION, "kernel", os.getpid()))
        elif not self._greeted:
            raise ProtocolError("no Hello of our version")


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Control:
    """`agent_of` returns the id of the agent whose sentry a pid is, "" for any other process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_call: OnCall,
        on_returned: Callable[[wire.Returned], None],
        on_host_gone: Callable[[], None],
        agent_of: Callable[[int], str],
        on_refused: Callable[[dict[str, Any]], None],
        on_nonsense: Callable[[dict[str, Any]], None],
    ) -> None:
        self.loop = loop
        self.on_call = on_call
        self.on_returned = on_returned
        self._on_host_gone = on_host_gone
        self._agent_of = agent_of
        self._on_refused = on_refused
        self._on_nonsense = on_nonsense
        self._peers: set[Peer] = set()
        self._listener: socket.socket | None = None
        self._own_line = _ancestors(os.getpid())  # a kernel may itself run inside an agent of another one
        self._quiet_until = 0.0  # nonsense of others than the host is not put on record before
        self._refused = 0  # since the last one that is on record by itself

    def adopt_host(self, descriptor: int) -> Peer:
        peer = Peer(self, socket.socket(fileno=descriptor), is_host=True)
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

    def complain(self, peer: Peer, error: ProtocolError) -> None:
        """Have it put on record why `peer` is hung up on."""
        now = self.loop.time()
        if not peer.is_host and now < self._quiet_until:
            return
        self._quiet_until = now + NONSENSE_EVERY_S
        self._on_nonsense({"client": "host" if peer.is_host else "cli", "error": str(error)[:NONSENSE_CHARS_MAX]})

    def close(self) -> None:
        if self._listener is not None:
            self.loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for peer in self.peers():
            peer.is_host = False  # we hang up on it, it did not die
            peer.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # EMFILE, ENFILE: it stays readable, and asking again at once would spin
            self.loop.remove_reader(self._listener.fileno())
            self.loop.call_later(ACCEPT_PAUSE_S, self._listen_again)
            return
        try:
            refusal = self._judge(sock)
        except OSError as error:  # no descriptor is left to read /proc with
            refusal = {"reason": f"the caller cannot be identified: {error.strerror}"}
        if not refusal and len(self._peers) >= PEERS_MAX:
            refusal = {"reason": f"{PEERS_MAX} clients are connected already"}
        if refusal:
            self._refuse(sock, refusal)
            return
        self._peers.add(Peer(self, sock, is_host=False))

    def _listen_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self.loop.add_reader(self._listener.fileno(), self._accept)

    def _refuse(self, sock: socket.socket, refusal: dict[str, Any]) -> None:
        self._refused += 1
        if self._refused == 1:
            self._on_refused(refusal)
            self.loop.call_later(REFUSALS_EVERY_S, self._tell_refusals, refusal)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(wire.encode(wire.Fault(0, NotPermitted.__name__, refusal["reason"], {})))
        sock.close()

    def _tell_refusals(self, first: dict[str, Any]) -> None:
        repeats, self._refused = self._refused - 1, 0
        if repeats:
            self._on_refused({**first, "repeats": repeats})

    def _judge(self, sock: socket.socket) -> dict[str, Any]:
        """Return why this caller is refused, and who it is; {} when it is not."""
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        caller = {"pid": pid, "uid": uid}
        if uid not in (0, os.getuid()):
            return caller | {"reason": f"uid {uid} is not the owner of this run"}
        line = _ancestors(pid)
        if line is None:
            return caller | {"reason": "the ancestry of the caller cannot be read"}
        if any(self._begins_agents(one) for one in line):
            agent_id = next(filter(None, (self._agent_of(one.pid) for one in line)), "")
            reason = "callers inside an agent's process tree may not use the control socket"
            return caller | {"reason": reason, "agent_id": agent_id}
        return {} if _still_the_same(sock) else caller | {"reason": "the caller ended before it could be identified"}

    def _begins_agents(self, ancestor: linux.ProcStat) -> bool:
        """Whether nothing but agents descends from it: a sentry of ours, or the zygote of any run but one above us."""
        if self._agent_of(ancestor.pid) or ancestor.pid == os.getppid():
            return True
        above_us = {one.pid for one in self._own_line or ()}
        return ancestor.name == linux.ZYGOTE_NAME and ancestor.pid not in above_us


def _ancestors(pid: int) -> list[linux.ProcStat] | None:
    """Return `pid` and those above it; None when that cannot be read to its end, or ends in a foreign pid namespace."""
    line: list[linux.ProcStat] = []
    for _ in range(_ANCESTORS_MAX):
        found = linux.read_stat(str(pid)) if pid else None
        if found is None:
            return None
        line.append(found)
        if pid == 1 or found.ppid == 0:
            return line
        pid = found.ppid
    return None


def _still_the_same(sock: socket.socket) -> bool:
    """Whether the peer still lives, so that what /proc said of its pid was said of it. True where Linux cannot tell."""
    try:
        descriptor = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:  # anything else says that it is gone, or that there is no descriptor left to tell with
        return error.errno == errno.ENOPROTOOPT
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    alive = not poller.poll(0)  # a pidfd is readable once its process ended (pidfd_open(2))
    os.close(descriptor)
    return alive
