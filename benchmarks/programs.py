"""What benchmarks.beside starts: `python -m benchmarks.programs NAME ARGUMENT…`.

Each reads one JSON line a question from its standard input and prints one JSON line, until its input ends.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgpack

from agentos.supervisor import linux

READ_BYTES: Final = 65_536
SAME_IMPORTS: Final = "from agentos.supervisor import zygote"
FIRST_LINE: Final = "import time; print(time.monotonic_ns())"

Handler = Callable[..., Any]


def serve(handler: Handler) -> None:
    for line in sys.stdin:
        print(json.dumps(handler(**json.loads(line))), flush=True)


# --- echo: a message there and back through two pipes ----------------------------------------------------------------


@contextmanager
def echo(cpu: str) -> Iterator[Handler]:
    """Time round trips of one msgpack message between two processes on one CPU; both ends block, nothing is checked."""
    os.sched_setaffinity(0, {int(cpu)})
    there_read, there = os.pipe()
    back_read, back = os.pipe()
    pid = os.fork()
    if pid == 0:
        linux.close_all_but({2, there_read, back})
        _answer(there_read, back)
    os.close(there_read)
    os.close(back)

    def handler(message: list[Any], warm_up: int, count: int) -> list[int]:
        return [_round_trip_ns(there, back_read, message) for _ in range(warm_up + count)][warm_up:]

    yield handler
    os.close(there)  # the end of its input
    os.waitpid(pid, 0)


def _answer(source: int, sink: int) -> None:
    while data := os.read(source, READ_BYTES):
        os.write(sink, msgpack.packb(msgpack.unpackb(data)))
    os._exit(0)


def _round_trip_ns(there: int, back: int, message: list[Any]) -> int:
    start = time.perf_counter_ns()
    os.write(there, msgpack.packb(message))
    msgpack.unpackb(os.read(back, READ_BYTES))
    return time.perf_counter_ns() - start


# --- birth: a fork of the zygote's size, and an interpreter that starts from nothing ---------------------------------


@contextmanager
def birth() -> Iterator[Handler]:
    """Time fork, exit and wait in a process with the zygote's imports; and fresh interpreters with the same imports."""
    become_zygote()

    def handler(forks: int, fresh: int) -> dict[str, list[int]]:
        return {"fork_ns": [_fork_ns() for _ in range(forks)], "fresh_ns": [_fresh_ns() for _ in range(fresh)]}

    yield handler


def become_zygote() -> None:
    """Import what the zygote imports, and freeze it as the zygote does."""
    from agentos.supervisor import zygote  # noqa: F401, PLC0415 - only for its size

    gc.collect()
    gc.freeze()


def _fork_ns() -> int:
    start = time.perf_counter_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return time.perf_counter_ns() - start


def _fresh_ns() -> int:
    """Return the time to the first line of a new interpreter; CLOCK_MONOTONIC is one clock for all processes."""
    start = time.monotonic_ns()
    command = [sys.executable, "-P", "-c", f"{SAME_IMPORTS}; {FIRST_LINE}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return int(done.stdout) - start


# --- crowd: plain children that wait ---------------------------------------------------------------------------------


@contextmanager
def crowd(count: str, size: str) -> Iterator[Handler]:
    """Keep children that only wait, of a small process or (`size` is zygote) one of the zygote's size.

    Time SIGSTOP by pidfd to all and waitid for all of them; or say what memory they take each.
    """
    if size == "zygote":
        become_zygote()
    children = [_wait_for_ever(os.getpid()) for _ in range(int(count))]
    pidfds = [os.pidfd_open(pid) for pid in children]

    def handler(what: str) -> int | float:
        return _stop_all_ns(pidfds) if what == "stop" else sum(map(pss_bytes, children)) / len(children)

    yield handler
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


def _wait_for_ever(parent: int) -> int:
    pid = os.fork()
    if pid == 0:
        linux.die_with(parent)
        linux.close_all_but({2})
        while True:
            signal.pause()
    return pid


def _stop_all_ns(pidfds: list[int]) -> int:
    start = time.perf_counter_ns()
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    for pidfd in pidfds:
        os.waitid(os.P_PIDFD, pidfd, os.WSTOPPED)
    spent = time.perf_counter_ns() - start
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        os.waitid(os.P_PIDFD, pidfd, os.WCONTINUED)
    return spent


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process: its own pages, and its share of the pages it shares (proc(5))."""
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) * 1024


# --- the subject of the recorder's row ------------------------------------------------------------------------------


@contextmanager
def recorder(directory: str) -> Iterator[Handler]:
    """Count durable events a second of journal and recorder, see benchmarks.pair."""
    from benchmarks import pair  # noqa: PLC0415 - the floors stay small

    with pair.recorder(directory) as handler:
        yield handler


PROGRAMS: Final[dict[str, Callable[..., Any]]] = {"echo": echo, "birth": birth, "crowd": crowd, "recorder": recorder}


def main() -> None:
    name, *arguments = sys.argv[1:]
    with PROGRAMS[name](*arguments) as handler:
        serve(handler)


if __name__ == "__main__":
    main()
