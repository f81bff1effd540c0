"""The agent's end of its pipes to the kernel: one write and one read per action, and frames that expect no answer.

Blocking and fail-closed: whatever is not a well-formed verdict for this very action is KernelUnavailable, and stays
so. Safe between threads, inside signal handlers (which may interrupt an action and act themselves), and, once the
agent has forked, between processes. Holds no policy; knows nothing of hooks.

Facts: a write of at most PIPE_BUF bytes is atomic (pipe(7)); Python retries system calls after a signal handler ran
(PEP 475), so waiting has a limit after which what a handler may have read for us is looked up; POSIX record locks
belong to a process, not to a thread, and die with it (fcntl(2)).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from agentos import wire
from agentos.actions import RESOURCE_BYTES_MAX
from agentos.errors import KernelUnavailable, ProtocolError

READ_BYTES: Final = 65_536
PIPE_BUF: Final = select.PIPE_BUF
RECHECK_S: Final = 0.5  # an action that a signal handler interrupted and whose verdict that handler read
FLUSH_LIMIT_S: Final = 5.0  # for a large frame of another thread, at exit
TOO_LARGE: Final = "the action is too large to be decided"

_NO_CLAIMS: Final[Mapping[str, Any]] = MappingProxyType({})
_TURN, _WRITE, _LOCKS_BYTES = 0, 1, 2  # bytes of the shared file that are locked; the number of forks comes after
_FORKS: Final = slice(_LOCKS_BYTES, _LOCKS_BYTES + 8)


class Channel:
    """One per agent, shared by its threads and by the processes it forks without exec."""

    def __init__(self, up: int, down: int) -> None:
        self._up = up
        self._down = down
        for descriptor in (up, down):
            os.set_inheritable(descriptor, False)
        os.set_blocking(down, False)  # a signal handler may have read what epoll announced
        self._broken: str | None = None
        self._shared: int | None = None  # a memory file that carries the locks, made at the first fork
        self._begin(0)
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork_in_parent, after_in_child=self._after_fork
        )

    def _begin(self, generation: int) -> None:
        """Set up what belongs to one process. Ids of different generations never meet."""
        self._ids = itertools.count((generation << 32) + 1)
        self._turn = _Lock(_TURN)
        self._write = _Lock(_WRITE)
        self._decoder = wire.Decoder(wire.TO_AGENT_VERDICTS)
        self._early: dict[int, wire.Verdict | None] = {}  # actions under way; verdicts another reader found
        self._poller = select.epoll()
        self._poller.register(self._down, select.EPOLLIN)

    # --- actions ---------------------------------------------------------------------------------------------------

    def act(
        self,
        operation: str,
        resource: str,
        *,
        resolved: str | None = None,
        argv: Sequence[str] | None = None,
        claims: Mapping[str, Any] = _NO_CLAIMS,
        source: str = "sdk",
    ) -> wire.Verdict:
        """Ask the kernel and wait for its verdict; only `effect == "allow"` allows.

        Raises KernelUnavailable when no verdict can be had, ProtocolError when `claims` cannot be encoded.
        """
        act_id = next(self._ids)
        frame = wire.Act(
            act_id, operation, resource, resolved, None if argv is None else list(argv), _cwd(), dict(claims), source
        )
        data = wire.encode(frame)
        if len(resource) > RESOURCE_BYTES_MAX or len(data) > wire.ACTION_BYTES_MAX:
            return wire.Verdict(act_id, "deny", TOO_LARGE, None, None, None, resource[:256], 0, False, None)
        with self._turn:
            if self._broken:
                raise KernelUnavailable(self._broken)
            self._early[act_id] = None
            try:
                self.write(data)
                return self._await(act_id)
            finally:
                self._early.pop(act_id, None)

    def _await(self, act_id: int) -> wire.Verdict:
        """Read verdicts until ours is there. Those of a killed sibling process are nobody's and are dropped."""
        early = self._early
        while True:
            self._poller.poll(RECHECK_S)
            if early[act_id] is None:
                self._read_verdicts()
            verdict = early[act_id]
            if verdict is not None:
                return verdict

    def _read_verdicts(self) -> None:
        try:
            data = os.read(self._down, READ_BYTES)
            for verdict in self._decoder.feed(data):
                if verdict.id in self._early:
                    self._early[verdict.id] = verdict
        except BlockingIOError:
            return
        except ProtocolError as error:
            raise self._break(f"the kernel sent what is no verdict: {error}") from error
        except OSError as error:
            raise self._break(f"the verdict pipe cannot be read ({error.strerror})") from error
        if not data:
            raise self._break("the kernel is gone")

    def _break(self, why: str) -> KernelUnavailable:
        self._broken = self._broken or f"{why}; nothing is allowed any more"
        return KernelUnavailable(self._broken)

    # --- frames ----------------------------------------------------------------------------------------------------

    def send(self, frame: Any) -> None:
        """Send a frame that expects no verdict. Raises ProtocolError or KernelUnavailable."""
        self.write(wire.encode(frame))

    def write(self, data: bytes) -> None:
        """Write one encoded frame, undivided by those of other threads, handlers and processes."""
        if len(data) > PIPE_BUF and threading.current_thread() is threading.main_thread():
            self._write_aside(data)
            return
        with self._write:
            self._write_all(data)

    def _write_aside(self, data: bytes) -> None:
        """Write a large frame in a thread of its own: signal handlers, which run in the main thread, cannot cut it."""
        failures: list[KernelUnavailable] = []

        def write() -> None:
            try:
                with self._write:
                    self._write_all(data)
            except KernelUnavailable as error:
                failures.append(error)

        thread = threading.Thread(target=write, name="agentos-write", daemon=True)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    def _write_all(self, data: bytes) -> None:
        try:
            sent = os.write(self._up, data)  # whole, when it fits PIPE_BUF
            while sent < len(data):
                sent += os.write(self._up, data[sent : sent + READ_BYTES])
        except OSError as error:
            raise self._break(f"the kernel is gone ({error.strerror})") from error

    def flush(self) -> None:
        """Wait until no other thread is in the middle of a frame; at exit, lest the stream ends in one."""
        if self._write.threads.acquire(timeout=FLUSH_LIMIT_S):
            self._write.threads.release()

    # --- fork ------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """Let the action under way finish, and have a lock that both processes will know."""
        self._turn.threads.acquire()
        self._write.threads.acquire()
        if self._shared is None:
            self._shared = os.memfd_create("agentos-turn")  # close-on-exec by default
            os.ftruncate(self._shared, _FORKS.stop)

    def _after_fork_in_parent(self) -> None:
        self._turn.file = self._write.file = self._shared
        self._write.threads.release()
        self._turn.threads.release()

    def _after_fork(self) -> None:
        """In the child: new locks, no threads, ids of its own. An action the fork interrupted is not ours to await."""
        assert self._shared is not None
        self._poller.close()
        with _Lock(_WRITE, self._shared):
            generation = int.from_bytes(os.pread(self._shared, 8, _FORKS.start)) + 1
            os.pwrite(self._shared, generation.to_bytes(8), _FORKS.start)
        self._begin(generation)
        self._turn.file = self._write.file = self._shared


class _Lock:
    """A re-entrant lock between threads and, once `file` is set, between processes.

    A handler may interrupt at any point: taking the file's lock twice is harmless, and only the outermost holder
    gives it back.
    """

    __slots__ = ("_byte", "_count", "file", "threads")

    def __init__(self, byte: int, file: int | None = None) -> None:
        self.threads = threading.RLock()
        self.file = file
        self._byte = byte
        self._count = 0

    def __enter__(self) -> None:
        self.threads.acquire()
        self._count += 1
        if self.file is not None:
            fcntl.lockf(self.file, fcntl.LOCK_EX, 1, self._byte)

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self.file is not None and self._count == 0:
            with contextlib.suppress(OSError):  # the agent closed it: its next action fails, and closed
                fcntl.lockf(self.file, fcntl.LOCK_UN, 1, self._byte)
        self.threads.release()


def frames(descriptor: int, accept: frozenset[Any]) -> Iterator[Any]:
    """Yield the frames that arrive on a blocking descriptor until its end. Raises ProtocolError or OSError."""
    decoder = wire.Decoder(accept)
    while data := os.read(descriptor, READ_BYTES):
        yield from decoder.feed(data)


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory was removed; relative names mean nothing then, and the kernel is told so
        return ""
