"""The sentry: parent, subreaper and guard of one agent's process tree. One per agent; decides nothing.

It starts the agent, delivers signals and says only what Linux confirmed, copies the agent's output to its log, reports
the exit before it reaps (WNOWAIT), and ends the tree when told to or when the kernel is gone (end of its pipe).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any, Final, NoReturn

from agentos import wire
from agentos.logfile import RECORD_BYTES_MAX, STDERR, STDOUT, LogWriter
from agentos.supervisor import linux, pipes, tree
from agentos.supervisor.spawn import Stdio, fork_agent

STOP_LIMIT_S: Final = 5.0  # a runaway fork bomb without a pids limit may take longer; the answer then says so
KILL_LIMIT_S: Final = 60.0
BEAT_S: Final = 0.2  # the kernel counts in seconds
DOORBELL_S: Final = 0.02  # followers of the log are told at most fifty times a second


def main(params: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Run as the sentry. `descriptors`: from kernel, to kernel, stdin, then up, down, calls for a Python agent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    linux.set_subreaper()
    Sentry(params, descriptors).run()


class Sentry:
    def __init__(self, params: dict[str, Any], descriptors: list[int]) -> None:
        self._from_kernel, self._to_kernel, stdin, *channel = descriptors
        self._decoder = wire.Decoder(wire.TO_SENTRY)
        self._log = LogWriter(params["logs"], params["id"])
        self._log_told = (0, 0)  # offset and dropped bytes, as the kernel knows them
        self._log_bell_at = 0.0
        self._exit_told = self._kernel_gone = False
        self._heard_of_children = False  # since they were last looked at,
        self._state_is_told = False  # and its state was told since we last heard
        self._beat_at = 0.0
        self._wakeup, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poller = select.poll()
        self._start(params, stdin, tuple(channel))

    # --- start -----------------------------------------------------------------------------------------------------

    def _start(self, params: dict[str, Any], stdin: int, channel: tuple[int, ...]) -> None:
        try:
            out_read, out_write = os.pipe2(os.O_CLOEXEC)
            err_read, err_write = os.pipe2(os.O_CLOEXEC)
            self.leader, self._status = fork_agent(params, Stdio(stdin, out_write, err_write), channel)
        except OSError as error:  # a limit on descriptors or processes: nothing was started, and it is said
            self._tell(wire.SpawnFailed(error.errno or 1, "fork"))
            self._tell(wire.TreeGone(0))
            os._exit(0)
        for descriptor in (stdin, out_write, err_write, *channel):
            os.close(descriptor)
        found = linux.read_stat(str(self.leader))
        self._tell(wire.Spawned(self.leader, found.start_ticks if found else 0))
        self._outputs = {out_read: STDOUT, err_read: STDERR}
        for descriptor in (*self._outputs, self._from_kernel, self._wakeup, self._status):
            if descriptor in self._outputs:
                os.set_blocking(descriptor, False)
            self._poller.register(descriptor, select.POLLIN)

    def _read_status(self) -> None:
        """End of the status pipe: exec succeeded. Text first: it did not."""
        self._poller.unregister(self._status)
        text = os.read(self._status, 4096).decode(errors="replace")
        os.close(self._status)
        self._status = -1
        if text:
            code, _, what = text.partition(" ")
            self._tell(wire.SpawnFailed(int(code), what))
        else:
            self._tell(wire.StateSeen("running", "exec"))

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        while True:
            for descriptor, _ in self._poller.poll(self._poll_ms()):
                if descriptor == self._from_kernel:
                    self._read_kernel()
                elif descriptor == self._status:
                    self._read_status()
                elif descriptor in self._outputs:
                    self._copy_output(descriptor)
                elif descriptor == self._wakeup:
                    self._wait(0)
            while self._heard_of_children:
                self._heard_of_children = False
                self._look_at_children()
            self._ring_log_bell()

    def _poll_ms(self) -> float | None:
        if self._log_told == (self._log.offset, self._log.dropped):
            return None
        return max(0.0, (self._log_bell_at - time.monotonic()) * 1000)

    def _wait(self, limit_s: float) -> None:
        """Wait, but not beyond the next SIGCHLD; what it is about is looked at later."""
        if select.select([self._wakeup], [], [], limit_s)[0]:
            self._heard_of_children, self._state_is_told = True, False
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)

    def _read_kernel(self) -> None:
        frames = pipes.read_frames(self._from_kernel, self._decoder)
        if frames is None:
            self._end(told=False)
        for frame in frames or ():
            match frame:
                case wire.Deliver():
                    self._deliver(frame)
                case wire.Ping():
                    self._tell(wire.Pong(frame.id))
                case wire.Reap():
                    self._end(told=True)

    def _look_at_children(self) -> None:
        """SIGCHLD coalesces, so look at everything: the leader without reaping, adopted orphans to the end."""
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):  # else nobody died: the tree need not be read
            self._reap_orphans()
        flags = os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT
        seen = None if self._exit_told else os.waitid(os.P_PID, self.leader, flags)
        if seen is None:
            return
        if seen.si_code in (os.CLD_STOPPED, os.CLD_CONTINUED, os.CLD_TRAPPED):
            os.waitid(os.P_PID, self.leader, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
            if not self._state_is_told:  # SIGCHLD comes for our own signals, too
                self._tell(*self._state("job control"))
        else:
            self._tell_exit(seen)

    def _reap_orphans(self) -> None:
        for member in tree.members(os.getpid()):
            if member.state == "Z" and member.parent == os.getpid():
                self._reap(member.pid)

    def _state(self, mechanism: str) -> list[wire.StateSeen]:
        """Say what /proc shows now, not what the last event said: events of the past may already be untrue."""
        self._wait(0)  # what SIGCHLD has told of so far is told with this
        seen = tree.look(self.leader, os.getpid())
        if seen is None or seen.state in "ZX":
            return []
        self._state_is_told = True
        return [wire.StateSeen("running" if tree.runs(seen) else "stopped", mechanism)]  # as STOP itself confirms it

    def _tell_exit(self, seen: os.waitid_result) -> None:
        self._exit_told = True
        if self._status >= 0:  # it died before we read how it began: that comes first
            self._read_status()
        self._drain_outputs()
        code = seen.si_status if seen.si_code == os.CLD_EXITED else None
        number = None if code is not None else seen.si_status
        self._ring_log_bell(now=True)
        self._tell(wire.Exited(code, number, self._cpu_ms()))

    def _cpu_ms(self) -> int:
        """Return its CPU time so far. Not its peak of memory: what Linux keeps of that goes back to before its exec."""
        try:
            with open(f"/proc/{self.leader}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return (int(fields[11]) + int(fields[12])) * 1000 // linux.TICKS_PER_S

    # --- signals ---------------------------------------------------------------------------------------------------

    def _deliver(self, frame: wire.Deliver) -> None:
        number = signal.Signals(frame.signal)
        self._beat_at = time.monotonic() + BEAT_S
        if frame.scope == "leader":
            ok = self._signal_leader(number)
            done = wire.Delivered(frame.id, ok, int(ok), "signal(leader)", "" if ok else self._why_not())
            self._tell(*self._state("signal(leader)"), done)
            return
        result = self._signal_tree(number)
        detail = f"not confirmed for {', '.join(map(str, result.remaining))}" if result.remaining else ""
        done = wire.Delivered(frame.id, result.ok, result.processes, "signal(tree)", detail)
        if number == signal.SIGSTOP and self.leader in result.alive:  # Linux was asked a moment ago
            self._state_is_told = True
            self._tell(wire.StateSeen("stopped", "signal(tree)"), done)  # in one write: the kernel wakes once
        else:
            self._tell(*self._state("signal(tree)"), done)

    def _signal_tree(self, number: signal.Signals) -> tree.TreeResult:
        me = os.getpid()
        if number == signal.SIGSTOP:
            return tree.stop(me, limit_s=STOP_LIMIT_S, beat=self._beat, reap=self._reap, wait=self._wait)
        if number == signal.SIGCONT:
            return tree.resume(me)
        if number == signal.SIGKILL:
            return self._kill_tree()
        reached = [tree.send(member, number) for member in tree.members(me) if member.state not in "ZX"]
        return tree.TreeResult(sum(reached), ())

    def _signal_leader(self, number: signal.Signals) -> bool:
        """Signal the leader. It may have executed a program that became another user: then it is not ours to signal."""
        leader = tree.look(self.leader, os.getpid())
        if leader is None or leader.state in "ZX":
            return False
        reached = tree.send(leader, number)
        if number == signal.SIGSTOP:
            return reached and self._wait_until_stopped()
        return self._kill_tree().ok if number == signal.SIGKILL else reached

    def _why_not(self) -> str:
        found = linux.read_stat(str(self.leader))
        return "already ended" if found is None or found.state in "ZX" else f"not confirmed for {self.leader}"

    def _wait_until_stopped(self) -> bool:
        deadline = time.monotonic() + STOP_LIMIT_S
        while time.monotonic() < deadline:
            if not tree.runs(tree.Member(self.leader, os.getpid())):
                return True
            self._beat()
            self._wait(tree.PASS_PAUSE_S)
        return False

    def _kill_tree(self) -> tree.TreeResult:
        """Stop first, then kill: what is stopped cannot fork away from the list."""
        tree.stop(os.getpid(), limit_s=STOP_LIMIT_S, beat=self._beat, reap=self._reap, wait=self._wait)
        return tree.kill(os.getpid(), limit_s=KILL_LIMIT_S, beat=self._beat, reap=self._reap, wait=self._wait)

    def _reap(self, pid: int) -> bool:
        """Reap an adopted orphan. The leader waits until its exit is on record."""
        return pid != self.leader and os.waitpid(pid, os.WNOHANG)[0] == pid

    def _beat(self) -> None:
        """A long tree operation must not look like a hung sentry; and a hung kernel must not hold it up."""
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + BEAT_S
        writable = select.poll()
        writable.register(self._to_kernel, select.POLLOUT)
        if writable.poll(0) == [(self._to_kernel, select.POLLOUT)]:
            self._tell(wire.Pong(0))

    # --- output ----------------------------------------------------------------------------------------------------

    def _copy_output(self, descriptor: int) -> bool:
        """Copy one read to the log; False when there was nothing. At the end of the stream it is forgotten."""
        try:
            data = os.read(descriptor, RECORD_BYTES_MAX)
        except BlockingIOError:
            return False
        if not data:
            self._poller.unregister(descriptor)
            del self._outputs[descriptor]
            os.close(descriptor)
            return False
        self._log.append(self._outputs[descriptor], data, time.time_ns())
        return True

    def _drain_outputs(self) -> None:
        """Copy what lies in the pipes now, and no more: a descendant may write on for ever."""
        for descriptor in list(self._outputs):
            left = pipes.bytes_inside(descriptor)
            while left > 0 and self._copy_output(descriptor):
                left -= RECORD_BYTES_MAX

    def _ring_log_bell(self, *, now: bool = False) -> None:
        if now:
            self._log.say_drops(time.time_ns())
        reached = (self._log.offset, self._log.dropped)
        if self._log_told == reached or (not now and time.monotonic() < self._log_bell_at):
            return
        self._log_told = reached
        self._log_bell_at = time.monotonic() + DOORBELL_S
        self._tell(wire.LogGrew(*reached))

    # --- the end ---------------------------------------------------------------------------------------------------

    def _end(self, *, told: bool) -> NoReturn:
        """End the tree. `told`: the kernel has the exit on record and waits for TreeGone; else it is gone itself.

        What does not die (a task in uninterruptible sleep) is not said to be gone: we stay, and try on.
        """
        self._kernel_gone = not told
        leftover = self._kill_tree()
        while told and not leftover.ok:
            leftover = self._kill_tree()
        self._drain_outputs()
        self._ring_log_bell(now=True)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if told:
            self._tell(wire.TreeGone(leftover.processes))
        os._exit(0 if leftover.ok else 1)

    def _tell(self, *frames: Any) -> None:
        """Say it, waiting for a kernel that does not read: while it is hung nothing is freed. End when it is gone."""
        if self._kernel_gone:
            return
        try:
            pipes.write_all(self._to_kernel, b"".join(map(wire.encode, frames)))
        except BrokenPipeError:
            self._end(told=False)
