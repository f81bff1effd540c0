"""The life of a Python agent, from the forked child's first instruction to its exit. Never returns to its caller.

Order: channel, identity, hooks, the runtime thread, and only then the first byte of the user's code. The result goes
up before clean-up functions run, so that a clean-up that fails cannot lose it. SIGTERM and SIGALRM unwind the
function like SystemExit does, clean up, and then end the process by that very signal, so that its status is true;
a handler of the agent's own replaces this. Threads that still run are not waited for.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any, Final, NoReturn

from agentos import wire
from agentos.agent import hooks, loading, process, report, sdk  # noqa: F401 - sdk: every agent is born with it
from agentos.agent.channel import Channel, frames
from agentos.agent.process import AgentProcess
from agentos.agent.runtime import Runtime
from agentos.errors import ProtocolError
from agentos.values import pack_value, unpack_value

EXIT_RAISED: Final = 1
EXIT_NO_KERNEL: Final = 70  # EX_SOFTWARE: no start, or nobody to tell the result
_ZYGOTES_FINDERS: Final = sys.path_importer_cache  # held, since taking it apart would write to all of its memory
_ENDING: Final = (signal.SIGTERM, signal.SIGALRM)


class Terminated(SystemExit):
    """A signal asks this agent to end. Like SystemExit, it is for `finally`, not for `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def main(up_fd: int, down_fd: int, calls_fd: int) -> NoReturn:
    """Run the one agent that Start names and end the process: 0, 1 after an exception, or its own exit code."""
    code, number = EXIT_NO_KERNEL, 0
    try:
        code = _live(up_fd, down_fd, calls_fd)
    except Terminated as ending:
        number = ending.number
    except BaseException:  # a forked agent must never unwind into the sentry's code
        _complain(traceback.format_exc())
    finally:
        _exit(code, number)


def _live(up_fd: int, down_fd: int, calls_fd: int) -> int:
    """Become the agent, run it, clean up. Returns the exit code; raises Terminated when a signal asked for the end."""
    _renew_interpreter()
    incoming = frames(calls_fd, wire.TO_AGENT_CALLS)
    saved, start = _receive_start(incoming)
    channel = Channel(up_fd, down_fd)
    channel.send(wire.Hello(wire.VERSION, "agent", os.getpid()))
    agent = AgentProcess(start, channel, saved)
    process.enter(agent)
    agent.runtime = Runtime(agent, incoming)
    agent.runtime.start()
    sys.path[:] = start.sys_path
    sys.argv[:] = [start.target or start.name]
    if start.level == "hooks":
        hooks.install(agent)
    for ending in _ENDING:
        signal.signal(ending, _terminate)
    try:
        return _run(agent, start)
    finally:
        if agent.is_first:
            _clean_up(agent)
        channel.flush()


def _receive_start(incoming: Iterator[Any]) -> tuple[bytes | None, wire.Start]:
    """Return what the previous life of this agent saved, and what shall be run. Raises ProtocolError."""
    hello, start = next(incoming, None), next(incoming, None)
    saved = start.state if isinstance(start, wire.Saved) else None
    if saved is not None:
        start = next(incoming, None)
    if not isinstance(hello, wire.Hello) or hello.version != wire.VERSION or not isinstance(start, wire.Start):
        raise ProtocolError(f"the kernel began with {hello!r} and {type(start).__name__}, not with Hello and Start")
    return saved, start


def _run(agent: AgentProcess, start: wire.Start) -> int:
    frame, code = _outcome(start)
    if isinstance(frame, wire.Raised):
        _complain(frame.traceback)
    if agent.is_first:  # a forked child that fell out of the function is not the one to tell its end
        agent.channel.send(frame)
    return code


def _outcome(start: wire.Start) -> tuple[wire.Result | wire.Raised, int]:
    """Load and run the function. The frame that says how it ended fits the wire; the number is the exit code."""
    try:
        function = loading.load(start)
        value = function(*unpack_value(start.args), **unpack_value(start.kwargs))
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        result = wire.Result(pack_value(value, f"the result of {start.name}"))
        wire.encode(result)  # too large for a frame is an error of the agent, not the end of its channel
        return result, 0
    except Terminated:
        raise
    except SystemExit as error:
        if error.code is None or error.code == 0:
            return wire.Result(pack_value(None, "the result")), 0
        return _told(error), error.code & 0xFF if isinstance(error.code, int) else EXIT_RAISED
    except BaseException as error:  # the top loop of somebody else's code
        return _told(error), EXIT_RAISED


def _told(error: BaseException) -> wire.Raised:
    """Return the frame for `error`, whose own code may run when it is shown, and fail."""
    if isinstance(error, loading.BadTarget):  # a mistake in what was typed: nothing of theirs was called
        return wire.Raised(report.type_name(error), str(error), f"agentos: {error}\n", None)
    try:
        return report.raised(error)
    except Terminated:
        raise
    except BaseException as second:
        names = report.type_name(error), report.type_name(second)
        return wire.Raised(names[0], f"it cannot be shown: showing it raised {names[1]}", "", None)


# --- the process -----------------------------------------------------------------------------------------------------


def _renew_interpreter() -> None:
    """Give the forked image what a fresh interpreter has: stdio, an empty __main__, the environment's time zone."""
    sys.dont_write_bytecode = True
    signal.set_wakeup_fd(-1)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115 - for life
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.modules["__main__"] = ModuleType("__main__")
    sys.path_importer_cache = {}  # as invalidate_caches(), which costs each agent half a megabyte of its own
    tempfile.tempdir = None  # TMPDIR is this agent's own
    time.tzset()


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(number)


def _clean_up(agent: AgentProcess) -> None:
    """Run the clean-up functions undisturbed: who asks a second time gets SIGKILL after the grace."""
    for ending in _ENDING:
        while signal.getsignal(ending) is _terminate:
            with contextlib.suppress(Terminated):  # in the last moment: the function has ended anyway
                signal.signal(ending, signal.SIG_IGN)
    try:
        agent.cleanup()
    except BaseException:  # it is the user's code; the result is told already
        _complain(traceback.format_exc())


def _complain(text: str) -> None:
    """Write to the agent's log."""
    try:
        sys.stderr.write(text)
    except (OSError, ValueError):  # closed or full: nowhere left to say so
        return


def _exit(code: int, number: int) -> NoReturn:
    """Run what atexit holds, flush, and end with `code` or by signal `number`."""
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 - os._exit would skip it
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # a broken stdout is no reason to stay
        code = code or EXIT_RAISED
    if number:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(code)
