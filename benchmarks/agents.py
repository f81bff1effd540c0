"""What runs inside the agents of the benchmarks. Each function is sent as a value: it imports what it needs itself."""

from __future__ import annotations

from typing import Any, Final


def nothing() -> None:
    """End at once."""


def first_line() -> int:
    """Return when the first line ran; CLOCK_MONOTONIC is one clock for all processes."""
    import time  # noqa: PLC0415 - see above; it is loaded already

    return time.monotonic_ns()


def act_often(cpu: int, names: list[str], warm_up: int) -> list[int]:
    """Act once for each name, on one CPU; return the nanoseconds of each but the first `warm_up`."""
    import os  # noqa: PLC0415
    import time  # noqa: PLC0415

    from agentos import act  # noqa: PLC0415

    os.sched_setaffinity(0, {cpu})
    clock = time.perf_counter_ns
    spent = []
    for name in names:
        start = clock()
        act("read", name)
        spent.append(clock() - start)
    return spent[warm_up:]


def act_durably(begin_ns: int, end_ns: int) -> int:
    """Act from `begin_ns` to `end_ns`, one action after the other; return how many were allowed in that time.

    `execute` is of the durable class: the verdict waits until the record is on disk.
    """
    import time  # noqa: PLC0415

    from agentos import act  # noqa: PLC0415

    late_ns = time.monotonic_ns() - begin_ns
    if late_ns > 0:
        raise RuntimeError(f"started {late_ns / 1e6:.0f} ms after the measuring began")
    time.sleep(-late_ns / 1e9)
    count = 0
    while time.monotonic_ns() < end_ns:
        act("execute", "tools/search")
        count += 1
    return count


def act_once_and_idle() -> None:
    """Do one action, then wait to be ended."""
    import signal  # noqa: PLC0415

    from agentos import act  # noqa: PLC0415

    act("read", "data/one")
    while True:
        signal.pause()


def act_once_and_compute() -> None:
    """Do one action, then compute until ended."""
    from agentos import act  # noqa: PLC0415

    act("read", "data/one")
    number = 1
    while True:
        number = number * 1_103_515_245 % 2_147_483_647


ALL: Final[tuple[Any, ...]] = (
    nothing, first_line, act_often, act_durably, act_once_and_idle, act_once_and_compute,
)  # fmt: skip
