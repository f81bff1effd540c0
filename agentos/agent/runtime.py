"""The agent's second thread: answers the kernel's queries and hands out the replies to kernel calls.

It runs no user code itself (clean-up functions get a thread of their own), takes no signals, and never keeps the
process alive. When the calls pipe ends, every waiting call fails with KernelUnavailable.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from agentos import wire
from agentos.agent.process import AgentProcess
from agentos.errors import AgentosError, KernelUnavailable, ProtocolError
from agentos.faults import rebuild

_GONE: Final = "the kernel is gone"


class Runtime:
    """Owns the calls pipe from the moment `start` returns."""

    def __init__(self, process: AgentProcess, incoming: Iterator[Any]) -> None:
        self._process = process
        self._incoming = incoming
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}  # no lock: a signal handler may interrupt a call and make one
        self._gone = False

    def start(self) -> None:
        """Start the thread. Every signal stays with the main thread."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._run, name="agentos-runtime", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def call(self, method: str, params: dict[str, Any]) -> Future[Any]:
        """Send one kernel call; the future holds its value or the error that the kernel named."""
        if not self._process.is_first:
            raise KernelUnavailable(f"{method}: kernel calls are made by the agent's first process, not by its forks")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        call = wire.Call(next(self._ids), method, params)
        self._waiting[call.id] = future
        try:
            if self._gone:  # looked at after the future is in: either `_end` finds it there, or we see the end here
                raise KernelUnavailable(_GONE)
            self._process.channel.send(call)
        except AgentosError:
            self._waiting.pop(call.id, None)
            raise
        return future

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
            self._waiting.popitem()[1].set_exception(KernelUnavailable(_GONE))

    def _dispatch(self, frame: Any) -> None:
        match frame:
            case wire.Reply():
                if future := self._waiting.pop(frame.id, None):
                    future.set_result(frame.value)
            case wire.Fault():
                if future := self._waiting.pop(frame.id, None):
                    future.set_exception(rebuild(frame))
            case wire.Query():
                self._query(frame)
            case _:
                raise ProtocolError(f"{type(frame).__name__} after the start")

    def _query(self, query: wire.Query) -> None:
        process = self._process
        match query.what:
            case "get_state":
                process.channel.send(wire.Answer(query.id, True, process.state, ""))
            case "save_state":
                process.channel.send(wire.Call(next(self._ids), "save_state", {"value": process.state}))
                process.channel.send(wire.Answer(query.id, True, process.state, ""))
            case "cleanup":
                threading.Thread(target=self._cleanup, args=(query.id,), name="agentos-cleanup", daemon=True).start()
            case _:
                process.channel.send(wire.Answer(query.id, False, b"", f"unknown query {query.what!r}"))

    def _cleanup(self, query_id: int) -> None:
        with ThreadPoolExecutor(1) as executor:  # it keeps what the functions raise
            error = executor.submit(self._process.cleanup).exception()
        text = "" if error is None else f"{type(error).__name__} in a clean-up function"
        with suppress(KernelUnavailable):
            self._process.channel.send(wire.Answer(query_id, error is None, self._process.state, text))
