"""A scripted kernel for one really forked agent: three pipes, agentos.agent.entry in the child, frames in the test."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from agentos import wire
from agentos.agent import entry
from agentos.values import pack_value, unpack_value

LIMIT_S = 20.0
Judge = Callable[[wire.Act], "wire.Verdict | bytes | None"]


def verdict(act: wire.Act, effect: str = "allow", **fields: Any) -> wire.Verdict:
    plain = wire.Verdict(act.id, effect, "said the test", 3, "a-rule", None, act.resource, 7, False, None)
    return plain._replace(**fields)


def allow_all(act: wire.Act) -> wire.Verdict:
    return verdict(act)


def refuse(*words: str) -> Judge:
    """Deny every action whose operation and resource hold all of `words`."""
    return lambda act: verdict(act, "deny" if all(w in f"{act.operation} {act.resource}" for w in words) else "allow")


class Agent:
    """One agent under test. Frames arrive in `seen`; every Act is answered by `judge`."""

    def __init__(
        self,
        function: Callable[..., Any] | str,
        *args: Any,
        judge: Judge = allow_all,
        level: str = "none",
        sys_path: list[str] | None = None,
        env: dict[str, str] | None = None,
        on_call: Callable[[wire.Call], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.seen: list[Any] = []
        self.judge = judge
        self.on_call = on_call or (lambda call: wire.Reply(call.id, None))
        up_read, up = os.pipe()
        down, down_write = os.pipe()
        calls, calls_write = os.pipe()
        self.up, self.down, self.calls = up_read, down_write, calls_write
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for ours in (up_read, down_write, calls_write):
                    os.close(ours)
                os.environ.update(env or {})
                signal.set_wakeup_fd(-1)
            finally:
                entry.main(up, down, calls)
        for theirs in (up, down, calls):
            os.close(theirs)
        target = function if isinstance(function, str) else None
        pickle = None if target else cloudpickle.dumps(function)
        import sys

        path = list(sys.path) if sys_path is None else sys_path
        packed = pack_value(list(args), "args"), pack_value(kwargs, "kwargs")
        self.tell(wire.Hello(wire.VERSION, "kernel", os.getpid()))
        self.tell(wire.Start("agent-1", "an-agent", "run-1", target, pickle, *packed, path, level))
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def tell(self, frame: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            data = wire.encode(frame)
            while data:
                data = data[os.write(self.calls, data) :]

    def _serve(self) -> None:
        decoder = wire.Decoder(wire.FROM_AGENT)
        while data := os.read(self.up, 65536):
            for frame in decoder.feed(data):
                self.seen.append(frame)
                if isinstance(frame, wire.Act):
                    answer = self.judge(frame)
                    if answer is not None and self.down >= 0:
                        with contextlib.suppress(BrokenPipeError):
                            os.write(self.down, answer if isinstance(answer, bytes) else wire.encode(answer))
                elif isinstance(frame, wire.Call):
                    self.tell(self.on_call(frame))
        self.ended.set()

    def close_down(self) -> None:
        os.close(self.down)
        self.down = -1

    def of(self, kind: type[Any]) -> list[Any]:
        return [frame for frame in list(self.seen) if isinstance(frame, kind)]

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
            assert poller.poll(LIMIT_S * 1000), f"the agent still runs; it said {self.seen}"
        finally:
            os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        assert self.ended.wait(LIMIT_S)
        return code

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.ended.wait(LIMIT_S)
        for descriptor in (self.up, self.down, self.calls):
            if descriptor >= 0:
                os.close(descriptor)

    def result(self) -> Any:
        """Wait for the end and return the value that the function returned."""
        code = self.wait()
        assert not self.of(wire.Raised), self.of(wire.Raised)[0].traceback
        assert code == 0
        (frame,) = self.of(wire.Result)
        return unpack_value(frame.value)

    def raised(self) -> wire.Raised:
        """Wait for the end and return how the function failed."""
        assert self.wait() == 1
        assert not self.of(wire.Result)
        (frame,) = self.of(wire.Raised)
        return frame


@contextlib.contextmanager
def agent(function: Callable[..., Any] | str, *args: Any, **options: Any) -> Iterator[Agent]:
    one = Agent(function, *args, **options)
    try:
        yield one
    finally:
        one.end()
