"""Where the host program's own functions run when the kernel asks for them: in a loop of the program, else in ours.

The thread that reads from the kernel hands over and goes on; it runs nothing of the program's and waits for nothing.
Our loop is one daemon thread a process, begun when it is needed. What is no coroutine function blocks the program's own
loop, as it would if the program called it there; in ours it gets a thread of its own, so that it holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agentos.clock import SystemClock

ERROR_CHARS_MAX: Final = 500  # of an exception's text: it goes on record
THREADS_MAX: Final = 64  # of functions that have not returned: a 65th is an error and not another thread

_CLOCK: Final = SystemClock()
_tasks: Final[set[asyncio.Task[None]]] = set()

Answer = Callable[[Any, str | None], None]
Work = Callable[[bool], Coroutine[Any, Any, Any]]


def run(work: Work, home: asyncio.AbstractEventLoop | None, limit_s: float, answer: Answer) -> None:
    """Have the coroutine that `work` makes run in `home`, else in our own loop, and `answer` called with what came.

    `work` is told whether it runs in our own loop. Called by any thread; answers once, unless `home` ends meanwhile.
    After `limit_s` nobody waits: what runs is cancelled, and what has not begun does not.
    """
    due_s = _now_s() + limit_s
    if home is not None:
        with contextlib.suppress(RuntimeError):  # closed since we looked
            home.call_soon_threadsafe(_begin, work, False, due_s, answer)
            return
    _our_loop(os.getpid()).call_soon_threadsafe(_begin, work, True, due_s, answer)


def _now_s() -> float:
    return _CLOCK.monotonic_ns() / 1e9


def _begin(work: Work, ours: bool, due_s: float, answer: Answer) -> None:
    limit_s = due_s - _now_s()
    if limit_s > 0:
        task = asyncio.get_running_loop().create_task(_answered(work, ours, limit_s, answer))
        _tasks.add(task)  # a loop keeps only weak references
        task.add_done_callback(_tasks.discard)


async def _answered(work: Work, ours: bool, limit_s: float, answer: Answer) -> None:
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            value = await work(ours)
    except asyncio.CancelledError:
        answer(None, "cancelled: its event loop ended")
        raise
    except BaseException as error:
        if not limit.expired():  # the kernel's own clock says that it was late
            answer(None, describe(error))
        if not ours and not isinstance(error, Exception):
            raise  # the program wants to end; our own loop goes on for others
    else:
        answer(value, None)


def describe(error: BaseException) -> str:
    """Return type and text of what a function raised, bounded."""
    return f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]


async def call(function: Callable[..., Any], *args: Any, apart: bool) -> Any:
    """Call a function of the program, plain or async; a plain one in a thread of its own if it shall be `apart`."""
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    value = await _in_thread(function, *args) if apart and not is_async else function(*args)
    return await value if inspect.isawaitable(value) else value


async def attempt(function: Callable[..., Any], *args: Any, apart: bool) -> tuple[Any, str]:
    """Call a function and return its value, or what it raised as text."""
    try:
        return await call(function, *args, apart=apart), ""
    except Exception as error:
        return None, describe(error)


_threads = threading.BoundedSemaphore(THREADS_MAX)


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Await a plain function in a daemon thread: unlike an executor's, it does not hold up the end of the program."""
    if not _threads.acquire(blocking=False):
        raise RuntimeError(
            f"{THREADS_MAX} functions that the kernel had called have not returned; make them async, or let them end"
        )
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Any, Exception | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: Exception | None) -> None:
        if not future.done():
            future.set_result((value, error))

    def target() -> None:
        value, error = None, None
        try:
            value = context.run(function, *args)
        except BaseException as raised:
            error = raised if isinstance(raised, Exception) else RuntimeError(describe(raised))
        finally:
            _threads.release()
        loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=target, name="agentos-handler", daemon=True).start()
    value, error = await future
    if error is not None:
        raise error
    return value


@functools.cache
def _our_loop(_: int) -> asyncio.AbstractEventLoop:
    """Return the loop of this process (a forked one has none of its parent's threads)."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="agentos-handlers", daemon=True).start()
    return loop
