"""The zygote: a single-threaded process with everything imported, from which all others are forked in about 1 ms.

It never runs an event loop, opens SQLite or loads a user's function. It reaps what it forked, ends the orphans of a
dead sentry, and ends everything when the kernel or the guard is gone (docs/ARCHITECTURE.md, "Processes").
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from agentos import wire
from agentos.agent import entry  # noqa: F401 - imported here so that every agent is born with it
from agentos.errors import AgentosError
from agentos.faults import to_fault
from agentos.recorder import writer
from agentos.supervisor import kernel, linux, pipes, sentry, tree
from agentos.supervisor.preload import preload

ORPHAN_LIMIT_S: Final = 30.0
ORPHANS_GO_S: Final = 0.5  # of ending orphans in one go: who asks for a fork waits meanwhile
ORPHANS_AGAIN_MS: Final = 10
STRAYS_EVERY_MS: Final = 1_000
SENTRY_GRACE_S: Final = 0.5  # after the kernel is gone a sentry ends its own tree; then we do
RECORDER_GRACE_S: Final = 10.0  # it drains the journal; what it cannot is recovered at the next open


def main(socket_fd: int, boot: dict[str, Any], lifeline: int) -> NoReturn:
    """Fork the kernel and serve it until it or the guard is gone. Never returns."""
    linux.set_subreaper()
    linux.set_dumpable(False)
    linux.set_name(linux.ZYGOTE_NAME)
    try:
        preload(boot.get("preload", ()), boot["cwd"])
    except AgentosError as error:  # the host waits for Hello: it is told why there will be none
        with contextlib.suppress(OSError):
            os.write(socket_fd, wire.encode(to_fault(0, error)))
        os._exit(1)
    zygote = Zygote(boot, lifeline)
    zygote.start_kernel(socket_fd)
    os.close(socket_fd)
    zygote.serve()
    zygote.end_everything()
    os._exit(0)


class Zygote:
    def __init__(self, boot: dict[str, Any], lifeline: int) -> None:
        self._boot = boot
        self._lifeline = lifeline
        self._kinds: dict[int, str] = {}  # what we forked and have not reaped
        self._lost: list[tuple[int, int, float]] = []  # dead sentries, told of once nothing of theirs lives: and since
        self._orphans = 0  # that they left
        self._orphans_left = False
        self._beyond: dict[int, int] = {}  # orphans that became another user, and when they were started
        ours, self._kernels_end = socket.socketpair()
        self._kernel = ours
        self._reader = pipes.RightsReader(ours, wire.TO_ZYGOTE)
        self._wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        wire.prepare()
        gc.collect()
        gc.freeze()  # forked children touch no page of ours when they collect: 5.5 → 2.4 MB each

    def start_kernel(self, socket_fd: int) -> None:
        end = self._kernels_end.fileno()
        self._fork("kernel", lambda: kernel.main(self._boot, socket_fd, end), keep={socket_fd, end})
        self._kernels_end.close()

    def serve(self) -> None:
        """Answer the kernel until it, or the guard, is gone."""
        poller = select.poll()
        for descriptor in (self._kernel.fileno(), self._lifeline, self._wakeup_read):
            poller.register(descriptor, select.POLLIN)
        while True:
            pause_ms = ORPHANS_AGAIN_MS if self._orphans_left else STRAYS_EVERY_MS
            ready = {descriptor for descriptor, _ in poller.poll(pause_ms)}
            if not ready or self._orphans_left:
                self._end_orphans()  # Linux does not tell who was adopted, nor of a dead sentry that somebody traces
            if self._wakeup_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup_read, 4096)
            if self._lifeline in ready or not self._reap():
                return
            if self._kernel.fileno() in ready and not self._read_kernel():
                return

    def _read_kernel(self) -> bool:
        try:
            pairs = self._reader.read()
        except ConnectionResetError:
            return False
        for frame, descriptors in pairs or ():
            if isinstance(frame, wire.Fork):
                self._serve_fork(frame, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        return pairs is not None

    def _serve_fork(self, frame: wire.Fork, descriptors: list[int]) -> None:
        programs: dict[str, Callable[[], None]] = {
            "sentry": lambda: sentry.main(frame.params, descriptors),
            "recorder": lambda: writer.main(descriptors[0], frame.params["journal"], frame.params["database"]),
        }
        try:
            pid = self._fork(frame.kind, programs[frame.kind], keep=set(descriptors))
            self._tell(wire.Forked(frame.id, pid, 0))
        except OSError as error:  # EAGAIN: the pids limit; the kernel reports it, nothing was started
            self._tell(wire.Forked(frame.id, 0, error.errno or 1))

    def _fork(self, kind: str, program: Callable[[], None], keep: set[int]) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._kinds[pid] = kind
            return pid
        code = 70  # EX_SOFTWARE
        try:
            linux.die_with(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            linux.close_all_but(keep | {0, 1, 2})  # the null device and what --debug shows: never free for our pipes
            linux.set_name(f"agentos-{kind}")
            program()
            code = 0
        except BaseException:  # the top loop of every process we fork: report, then never return into the zygote
            import traceback  # noqa: PLC0415 - only on the way down

            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> bool:
        """Reap every dead child. False when the kernel is among them."""
        kernel_lives = True
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                break
            kind = self._kinds.pop(pid, "orphan")
            if kind == "sentry":
                self._lost.append((pid, status, time.monotonic()))
            elif kind == "recorder":
                self._tell(wire.Died(pid, status, 0))
            kernel_lives = kernel_lives and kind != "kernel"
        if self._lost and kernel_lives:
            self._end_orphans()
        return kernel_lives

    def _end_orphans(self) -> None:
        """End whatever dead sentries left, every child that we did not fork and all below it, and tell of them.

        What has not ended in this go is for the next one. What does not end at all is told of in the end.
        """
        result = self._kill(frozenset(self._kinds), ORPHANS_GO_S)
        self._orphans = max(self._orphans, result.processes)
        self._orphans_left = bool(set(result.remaining) - self._beyond.keys())
        late = time.monotonic() - ORPHAN_LIMIT_S
        told = [one for one in self._lost if not self._orphans_left or one[2] < late]
        for one in told:
            self._lost.remove(one)
            self._tell(wire.Died(one[0], one[1], self._orphans))
        if not self._lost:
            self._orphans = 0

    def _kill(self, but: frozenset[int], limit_s: float) -> tree.TreeResult:
        """Kill our descendants, without those that we found not to be ours to signal; each is tried once."""
        starts = {pid: found.start_ticks for pid in self._beyond if (found := linux.read_stat(str(pid))) is not None}
        self._beyond = {pid: ticks for pid, ticks in self._beyond.items() if starts.get(pid) == ticks}
        result = tree.kill(os.getpid(), limit_s=limit_s, but=but | self._beyond.keys(), reap=_reap_orphan)
        for pid in result.remaining:
            found = linux.read_stat(str(pid))
            if found is not None and not _may_signal(pid):
                self._beyond[pid] = found.start_ticks
        return result

    def _tell(self, frame: Any) -> None:
        with contextlib.suppress(OSError):  # the kernel is gone: `serve` sees it next
            self._kernel.sendall(wire.encode(frame))

    def end_everything(self) -> None:
        """Give sentries and recorder their graces, then leave nothing alive."""
        self._kernel.close()
        self._wait_for("sentry", SENTRY_GRACE_S)
        recorders = frozenset(pid for pid, kind in self._kinds.items() if kind == "recorder")
        self._kill(recorders, ORPHANS_GO_S)  # who may not be signalled does not take the time of those that may
        self._kill(recorders, ORPHAN_LIMIT_S)
        self._wait_for("recorder", RECORDER_GRACE_S)
        self._kill(frozenset(), ORPHAN_LIMIT_S)

    def _wait_for(self, kind: str, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while kind in self._kinds.values() and time.monotonic() < deadline:
            time.sleep(0.005)
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    self._kinds.pop(found[0], None)


def _may_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def _reap_orphan(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid
