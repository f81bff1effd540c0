"""A scripted kernel for one really forked agent: three pipes, agentos.agent.entry in the child, frames in the test."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import inspect
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle

from agentos import wire
from agentos.agent import entry
from agentos.values import pack_value, unpack_value

LIMIT_S = 20.0
Judge = Callable[..., "wire.Verdict | bytes | None"]  # takes the Act, and the Agent if it wants it


def verdict(act: wire.Act, effect: str = "allow", **fields: Any) -> wire.Verdict:
    plain = wire.Verdict(act.id, effect, "said the test", 3, "a-rule", None, act.resource, 7, False, None)
    return plain._replace(**fields)


def allow_all(act: wire.Act) -> wire.Verdict:
    return verdict(act)


def refuse(*words: str) -> Judge:
    """Deny every action whose operation and resource hold all of `words`."""
    return lambda act: verdict(act, "deny" if all(w in f"{act.operation} {act.resource}" for w in words) else "allow")


class Agent:
    """One agent under test. Frames arrive in `seen`; every Act is answered by `judge`, every Call by `on_call`.

    Both take the frame, and this object if they have a second parameter: they may be called before the test has it.
    What they return is written as it is, None is no answer. `log` takes the agent's output;
    `saved` is the state of its previous life, packed or not.
    """

    def __init__(
        self,
        function: Callable[..., Any] | str,
        *args: Any,
        judge: Judge = allow_all,
        level: str = "none",
        sys_path: list[str] | None = None,
        env: dict[str, str] | None = None,
        on_call: Callable[..., Any] | None = None,
        log: Path | None = None,
        pipe_bytes: int | None = None,
        saved: Any = None,
        **kwargs: Any,
    ) -> None:
        self.seen: list[Any] = []
        self.judge = self._with_us(judge)
        self.on_call = self._with_us(on_call or (lambda call: wire.Reply(call.id, None)))
        (self.up, up), (down, self.down), (calls, self.calls) = os.pipe(), os.pipe(), os.pipe()
        for descriptor in (up, down, calls):
            if pipe_bytes is not None:
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, pipe_bytes)
        self.pid = os.fork()
        if self.pid == 0:
            self._become((up, down, calls), env or {}, log)
        for theirs in (up, down, calls):
            os.close(theirs)
        target = function if isinstance(function, str) else None
        pickle = None if target else cloudpickle.dumps(function)
        packed = pack_value(list(args), "args"), pack_value(kwargs, "kwargs")
        path = list(sys.path) if sys_path is None else sys_path
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.tell(wire.Hello(wire.VERSION, "kernel", os.getpid()))
        if saved is not None:
            self.tell(wire.Saved(saved if isinstance(saved, bytes) else pack_value(saved, "saved")))
        self.tell(wire.Start("agent-1", "an-agent", "run-1", target, pickle, *packed, path, level))

    def _become(self, channel: tuple[int, int, int], env: dict[str, str], log: Path | None) -> None:
        """In the child: leave the test behind and be what the zygote's child is."""
        try:
            for number in map(int, os.listdir("/proc/self/fd")):
                if number not in (0, 1, 2, *channel):
                    with contextlib.suppress(OSError):  # the listing's own is closed already
                        os.close(number)
            if log is not None:
                for target in (1, 2):
                    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
            os.environ.update(env)
            atexit._clear()
        finally:
            entry.main(*channel)

    def _with_us(self, callback: Callable[..., Any]) -> Callable[[Any], Any]:
        if len(inspect.signature(callback).parameters) == 1:
            return callback
        return lambda frame: callback(frame, self)

    def tell(self, frame: Any) -> None:
        self._write(self.calls, wire.encode(frame))

    def say(self, data: bytes) -> None:
        """Write to the pipe of the verdicts."""
        self._write(self.down, data)

    def _write(self, descriptor: int, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            while data and descriptor >= 0:
                data = data[os.write(descriptor, data) :]

    def _serve(self) -> None:
        decoder = wire.Decoder(wire.FROM_AGENT)
        while data := os.read(self.up, 65536):
            for frame in decoder.feed(data):
                self.seen.append(frame)
                if isinstance(frame, wire.Act):
                    answer = self.judge(frame)
                    if answer is not None:
                        self.say(answer if isinstance(answer, bytes) else wire.encode(answer))
                elif isinstance(frame, wire.Call):
                    answer = self.on_call(frame)
                    if answer is not None:
                        self.tell(answer)
        self.truncated = decoder.pending_bytes
        self.ended.set()

    def close_down(self) -> None:
        """End the pipe of the verdicts."""
        os.close(self.down)
        self.down = -1

    def close_calls(self) -> None:
        """End the pipe of the calls."""
        os.close(self.calls)
        self.calls = -1

    def of(self, kind: type[Any]) -> list[Any]:
        return [frame for frame in list(self.seen) if isinstance(frame, kind)]

    @property
    def asked(self) -> list[str]:
        """The resources of all actions so far."""
        return [act.resource for act in self.of(wire.Act)]

    def until(self, kind: type[Any], count: int = 1) -> Any:
        """Return the `count`-th frame of a kind, when it is there."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            found = self.of(kind)
            if len(found) >= count:
                return found[count - 1]
            time.sleep(0.002)
        raise AssertionError(f"no {kind.__name__} among {self.seen}")

    def wait(self) -> int:
        """Wait for the end of the process; its exit code, negative for a signal (as subprocess has it)."""
        pidfd = os.pidfd_open(self.pid)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        try:
            assert poller.poll(LIMIT_S * 1000), f"the agent still runs; it said last {self.seen[-5:]}"
        finally:
            os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return code

    def wait_for_all(self) -> None:
        """Wait until no process of the agent holds its pipe any more."""
        assert self.ended.wait(LIMIT_S), f"somebody still holds the pipe; last it said {self.seen[-5:]}"

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._thread.join(LIMIT_S)
        for descriptor in (self.up, self.down, self.calls):
            if descriptor >= 0:
                os.close(descriptor)

    def result(self) -> Any:
        """Wait for the end and return the value that the function returned."""
        code = self.wait()
        self.wait_for_all()
        assert not self.of(wire.Raised), self.of(wire.Raised)[0].traceback
        assert code == 0, f"exit code {code}; last it said {self.seen[-5:]}"
        assert not self.truncated
        (frame,) = self.of(wire.Result)
        return unpack_value(frame.value)

    def raised(self, code: int = 1) -> wire.Raised:
        """Wait for the end and return how the function failed."""
        ended = self.wait()
        self.wait_for_all()
        assert ended == code
        assert not self.of(wire.Result)
        (frame,) = self.of(wire.Raised)
        assert isinstance(frame, wire.Raised)
        return frame


@contextlib.contextmanager
def agent(function: Callable[..., Any] | str, *args: Any, **options: Any) -> Iterator[Agent]:
    one = Agent(function, *args, **options)
    try:
        yield one
    finally:
        one.end()
