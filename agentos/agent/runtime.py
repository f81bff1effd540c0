"""The agent's second thread: hands out the answers to kernel calls, and has the kernel's queries answered.

It runs no user code (queries get a thread each), takes no signals, never keeps the process alive, and never waits for
anybody: a signal handler may have interrupted the main thread anywhere and make a call itself. When the calls pipe
ends, every call that waits ends with KernelUnavailable.
"""

from __future__ import annotations

import _thread
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from agentos import wire
from agentos.agent.process import AgentProcess
from agentos.errors import AgentosError, KernelUnavailable, ProtocolError
from agentos.faults import rebuild

_GONE: Final = "the kernel is gone"

Done = Callable[[Any, Exception | None], None]  # called by this thread with the answer or the failure; must not wait


class Runtime:
    """Owns the calls pipe from the moment `start` returns."""

    def __init__(self, process: AgentProcess, incoming: Iterator[Any]) -> None:
        self._process = process
        self._incoming = incoming
        self._ids = itertools.count(1)
        self._waiting: dict[int, Done] = {}  # no lock: each use is one step of the interpreter
        self._gone = False

    def start(self) -> None:
        """Start the thread. Every signal stays with the main thread."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            _thread.start_new_thread(self._run, ())  # a Thread object costs each agent 200 kB of its own
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def call(self, method: str, params: dict[str, Any], done: Done) -> None:
        """Send one kernel call; `done` gets its value, or the error that the kernel named.

        Raises KernelUnavailable or ProtocolError when it cannot be sent; `done` may be called none the less.
        """
        if not self._process.is_first:
            raise KernelUnavailable(f"{method}: kernel calls are made by the agent's first process, not by its forks")
        call = wire.Call(next(self._ids), method, params)
        self._waiting[call.id] = done
        try:
            if self._gone:  # looked at after `done` is in: either `_end` finds it there, or we see the end here
                raise KernelUnavailable(_GONE)
            self._process.channel.send(call)
        except AgentosError:
            self._waiting.pop(call.id, None)
            raise

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with suppress(ProtocolError, OSError, KernelUnavailable):  # each means: nobody to talk to any more
                for frame in self._incoming:
                    self._dispatch(frame)
        finally:
            self._end()

    def _end(self) -> None:
        self._gone = True
        while self._waiting:
            self._waiting.popitem()[1](None, KernelUnavailable(_GONE))

    def _dispatch(self, frame: Any) -> None:
        match frame:
            case wire.Reply():
                self._waiting.pop(frame.id, _drop)(frame.value, None)
            case wire.Fault():
                self._waiting.pop(frame.id, _drop)(None, rebuild(frame))
            case wire.Query():
                with suppress(RuntimeError):  # no thread is left: no answer, which the kernel says to who asked
                    threading.Thread(target=self._answer, args=(frame,), name="agentos-query", daemon=True).start()
            case _:
                raise ProtocolError(f"{type(frame).__name__} after the start")

    # --- queries ---------------------------------------------------------------------------------------------------

    def _answer(self, query: wire.Query) -> None:
        process = self._process
        error = ""
        match query.what:
            case "get_state" | "save_state":
                pass
            case "cleanup":
                error = self._cleanup()
            case _:
                error = f"unknown query {query.what!r}"
        with suppress(KernelUnavailable):
            process.channel.send(wire.Answer(query.id, not error, b"" if error else process.state, error))

    def _cleanup(self) -> str:
        """Run the clean-up functions; what went wrong, or nothing."""
        with ThreadPoolExecutor(1) as executor:  # it keeps what the functions raise
            error = executor.submit(self._process.cleanup).exception()
        return "" if error is None else f"{type(error).__name__} in a clean-up function"


def _drop(_: Any, __: Exception | None) -> None:
    """Take the answer to a call that nobody made or waits for."""
