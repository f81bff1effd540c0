"""The agent's end of its pipes to the kernel: one write and one read per action, and frames that expect no answer.

Blocking and fail-closed: whatever is not a well-formed verdict for this very action is KernelUnavailable, and stays
so. Safe between threads, between processes once the agent has forked, and inside signal handlers, which may interrupt
an action anywhere, act themselves, and raise. Holds no policy; knows nothing of hooks.

Facts: a write of at most PIPE_BUF bytes is atomic (pipe(7)). POSIX record locks belong to a process, not to a thread,
and die with it (fcntl(2)). CPython runs signal handlers in the main thread only, between two bytecodes: after a call
and when a loop turns, never inside a function of C that does not wait, nor between `with` and its first line.
"""

from __future__ import annotations

import _thread
import fcntl
import itertools
import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar

from agentos import wire
from agentos.actions import RESOURCE_BYTES_MAX
from agentos.errors import KernelUnavailable, ProtocolError
from agentos.shape import ITEMS_MAX

READ_BYTES: Final = 65_536
PIPE_BUF: Final = select.PIPE_BUF
RECHECK_S: Final = 0.02  # for a verdict that was read by the handler which interrupted us, and for a pipe closed here
FLUSH_LIMIT_S: Final = 5.0  # for a large frame of another thread, at exit
TOO_LARGE: Final = "the action is too large to be decided"

_OURS: Final = frozenset({wire.Act})
_NO_CLAIMS: Final[Mapping[str, Any]] = MappingProxyType({})
_TURN, _BIRTH = 0, 1  # bytes of the shared file that are locked; what they guard: the pipes, and the number below
_FORKS: Final = 8  # where the shared file holds how many processes were forked

T = TypeVar("T")


class Channel:
    """One per agent, shared by its threads and by the processes it forks without exec."""

    def __init__(self, up: int, down: int) -> None:
        self._up = Pipe(up)
        self._down = Pipe(down)
        os.set_blocking(down, False)  # what epoll announced, a signal handler may have read
        self._broken: str | None = None
        self._shared: int | None = None  # a memory file that carries the locks, made at the first fork
        self._begin(0)
        self._poller = self._new_poller()
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork_in_parent, after_in_child=self._after_fork
        )

    def _begin(self, generation: int) -> None:
        """Set up what belongs to one process. Ids of different generations never meet."""
        self._ids = itertools.count((generation << 32) + 1)
        self._turn = threading.RLock()  # for the reading of verdicts
        self._depth = 0  # how many actions this process is in: more than one when handlers act
        self._writing = threading.RLock()  # for the writing of one frame
        self._aside: set[Any] = set()  # a lock for each large frame that is on its way
        self._early: dict[int, wire.Verdict | None] = {}  # the actions under way and their verdicts, once read
        self._arrived: list[bytes] = []  # what was read and is not in `_early` yet
        self._version = 0  # of `_arrived`

    def _new_poller(self) -> select.epoll:
        poller = select.epoll()
        poller.register(self._down.descriptor, select.EPOLLIN)
        poller.register(self._up.descriptor, select.EPOLLET)  # not to wait for it: see `_check_up`
        return poller

    def _check_up(self) -> None:
        """Raise OSError unless the up pipe is still what it was: epoll(7) knows a file by its number and by itself.

        As Pipe.check, which takes a microsecond more.
        """
        self._poller.modify(self._up.descriptor, select.EPOLLET)

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
        words = None if argv is None else [text(word) for word in argv]
        names = text(resource), None if resolved is None else text(resolved)
        cwd = text(_cwd()) if source == "hook" else ""  # what the agent names itself is relative to no directory
        act = wire.Act(act_id, operation, *names, words, cwd, dict(claims), source)
        plain = not claims and words is None  # hot path: names only, and those are short
        data = wire.encode_plain(act) if plain else wire.encode(act)
        if len(names[0]) > RESOURCE_BYTES_MAX or len(data) > wire.ACTION_BYTES_MAX:
            return wire.Verdict(act_id, "deny", TOO_LARGE, None, None, None, names[0][:256], 0, False, None)
        if claims:
            _check(data)
        return self._in_turn(self._ask, act_id, data)

    def _in_turn(self, work: Callable[..., T], *args: Any) -> T:
        """Do `work` while no other thread and no other process of the agent reads, nor writes once there are several.

        A handler that interrupts may come in again; only the outermost gives the file's lock back.
        """
        with self._turn:
            depth = self._depth
            self._depth = depth + 1
            try:
                if self._shared is not None:
                    self._lock(self._shared, fcntl.LOCK_EX)
                return work(*args)
            finally:
                self._depth = depth
                if depth == 0 and self._shared is not None:
                    self._lock(self._shared, fcntl.LOCK_UN)

    def _lock(self, shared: int, how: int) -> None:
        try:
            fcntl.lockf(shared, how, 1, _TURN)
        except OSError as error:
            if not _is_ours(error):
                raise
            raise self._break(f"the lock of this agent's processes is lost ({error.strerror})") from error

    def _ask(self, act_id: int, data: bytes) -> wire.Verdict:
        early = self._early
        early[act_id] = None
        try:
            if len(data) <= PIPE_BUF:  # hot path
                self._write_here(data)
            else:
                self._write(data)
            while (verdict := early[act_id]) is None:
                self._read_verdicts(early)
            return verdict
        finally:
            early.pop(act_id, None)

    def _read_verdicts(self, early: dict[int, wire.Verdict | None]) -> None:
        """Wait a moment for verdicts and read them. Those that nobody waits for any more are dropped."""
        try:
            if self._poller.poll(RECHECK_S, 1):
                self._version += 1
                self._arrived.extend(map(os.read, (self._down.descriptor,), (READ_BYTES,)))  # read and kept in one call
            else:
                self._down.check()
        except OSError as error:
            if not _is_ours(error):
                raise
            if early is self._early and not isinstance(error, BlockingIOError):
                raise self._break(f"the verdict pipe cannot be read ({error.strerror})") from error
        if early is not self._early:
            raise KernelUnavailable("this process was forked while its parent waited for a verdict")
        self._hand_out()

    def _hand_out(self) -> None:
        """Move verdicts from `_arrived` to `_early`.

        A handler that acts may do the same in the middle of it: nothing is taken away that has not been handed out,
        and nothing that changed meanwhile is put back.
        """
        while True:
            version = self._version
            arrived = [*self._arrived]
            try:
                verdict = wire.decode_whole(arrived[0], wire.TO_AGENT_VERDICTS) if len(arrived) == 1 else None
                if verdict is None:
                    left = self._hand_out_all(arrived)
                else:  # hot path: one read is one verdict
                    left = []
                    if verdict.id in self._early:
                        self._early[verdict.id] = verdict
            except ProtocolError as error:
                raise self._break(f"the kernel sent what is no verdict: {error}") from error
            if self._version == version:
                self._version, self._arrived = version + 1, left
                return

    def _hand_out_all(self, arrived: list[bytes]) -> list[bytes]:
        """Do so with every whole verdict, and return what is left."""
        decoder = wire.Decoder(wire.TO_AGENT_VERDICTS, frame_bytes_max=wire.ACTION_BYTES_MAX)
        data = b"".join(arrived)
        for verdict in decoder.feed(data):
            if verdict.id in self._early:
                self._early[verdict.id] = verdict
        if arrived and not arrived[-1]:
            raise self._break("the kernel is gone")
        rest = data[len(data) - decoder.pending_bytes :]
        return [rest] if rest else []

    def _break(self, why: str) -> KernelUnavailable:
        self._broken = self._broken or f"{why}; nothing is allowed any more"
        return KernelUnavailable(self._broken)

    # --- frames ----------------------------------------------------------------------------------------------------

    def send(self, frame: Any) -> None:
        """Send a frame that expects no verdict. Raises ProtocolError or KernelUnavailable."""
        data = wire.encode(frame)
        if self._shared is None:
            self._write(data)
        else:
            self._in_turn(self._write, data)

    def _write(self, data: bytes) -> None:
        """Write one encoded frame, undivided by those of other threads, handlers and processes."""
        if len(data) > PIPE_BUF and threading.get_ident() == threading.main_thread().ident:
            self._write_aside(data)
        else:
            self._write_here(data)

    def _write_aside(self, data: bytes) -> None:
        """Write a large frame in a thread of its own: signal handlers, which run in the main thread, cannot cut it."""
        done = _thread.allocate_lock()
        done.acquire()
        failures: list[KernelUnavailable] = []

        def write() -> None:
            try:
                self._write_here(data)
            except KernelUnavailable as error:
                failures.append(error)
            finally:
                self._aside.discard(done)
                done.release()

        self._aside.add(done)
        try:
            _thread.start_new_thread(write, ())  # not threading's: a handler that raises would upset its books
        except RuntimeError as error:
            self._aside.discard(done)
            raise KernelUnavailable(f"a frame of {len(data)} bytes needs a thread, but {error}") from error
        done.acquire()
        if failures:
            raise failures[0]

    def _write_here(self, data: bytes) -> None:
        with self._writing:
            if self._broken:
                raise KernelUnavailable(self._broken)
            try:
                self._check_up()
                sent = os.write(self._up.descriptor, data)  # whole, when it fits PIPE_BUF
                while sent < len(data):
                    sent += os.write(self._up.descriptor, data[sent : sent + READ_BYTES])
            except OSError as error:
                if not _is_ours(error):
                    raise
                raise self._break(f"the kernel is gone ({error.strerror})") from error

    def flush(self) -> None:
        """Wait until no thread is in the middle of a frame; at exit, lest the stream ends in one."""
        for lock in (*self._aside, self._writing):
            if lock.acquire(timeout=FLUSH_LIMIT_S):
                lock.release()

    # --- fork ------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """Let the action under way finish, and have a lock that both processes will know."""
        self._turn.acquire()
        self._writing.acquire()
        if self._shared is None:
            self._shared = os.memfd_create("agentos-turn")  # close-on-exec by default

    def _after_fork_in_parent(self) -> None:
        self._writing.release()
        self._turn.release()

    def _after_fork(self) -> None:
        """In the child: new locks, no threads, ids of its own. An action the fork interrupted is not ours to await."""
        self._poller.close()
        self._begin(0)
        try:
            if self._shared is None:
                raise OSError(0, "no memory file could be made")
            self._begin(_new_generation(self._shared))
            self._poller = self._new_poller()
        except OSError as error:  # with its parent's ids it could take its parent's verdicts for its own
            self._break(f"this process was forked, but has no lock and no ids of its own ({error.strerror})")


class Pipe:
    """One end of a pipe, by number; `check` sees when the agent closed it and the number now means something else."""

    __slots__ = ("_identity", "descriptor")

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self.descriptor = descriptor
        self._identity = os.fstat(descriptor).st_ino

    def check(self) -> None:
        """Raise OSError unless the descriptor is still the pipe that it was."""
        if os.fstat(self.descriptor).st_ino != self._identity:
            raise OSError(0, "the agent closed its pipe")


def frames(descriptor: int, accept: frozenset[Any]) -> Iterator[Any]:
    """Yield the frames that arrive on a blocking descriptor until its end. Raises ProtocolError or OSError."""
    pipe = Pipe(descriptor)
    decoder = wire.Decoder(accept)
    while data := os.read(descriptor, READ_BYTES):
        yield from decoder.feed(data)
        pipe.check()


def _is_ours(error: OSError) -> bool:
    """Whether a system call of this module failed; a signal handler that ran meanwhile may raise OSErrors of its own.

    Many do: TimeoutError is one. A handler has a frame of its own, and a system call has none.
    """
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code.co_filename == __file__


def _new_generation(shared: int) -> int:
    """Count this process among the forked ones and return its number, which no other has."""
    fcntl.lockf(shared, fcntl.LOCK_EX, 1, _BIRTH)
    try:
        generation = int.from_bytes(os.pread(shared, 8, _FORKS)) + 1
        os.pwrite(shared, generation.to_bytes(8), _FORKS)
    finally:
        fcntl.lockf(shared, fcntl.LOCK_UN, 1, _BIRTH)
    return generation


def text(name: str) -> str:
    r"""Return a name as it can be sent: bytes that are no UTF-8, half characters to Python, read as `\xNN`.

    Raises ProtocolError for half a character that stands for no byte.
    """
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{name!r} holds half a character") from error


def _check(data: bytes) -> None:
    """Raise ProtocolError for what the kernel would end this agent for: it is a mistake here, not an attack."""
    for _ in wire.Decoder(_OURS, items_max=ITEMS_MAX).feed(data):
        pass


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory was removed; relative names mean nothing then, and the kernel is told so
        return ""
