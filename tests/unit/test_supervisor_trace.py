"""What debug=True says: headers and decisions in a line each, nothing that anybody chose gets at the terminal."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agentos import wire
from agentos.clock import SystemClock
from agentos.supervisor import trace
from agentos.supervisor.trace import Trace, shown
from agentos.supervisor.traced import decision_line, header

F_SETPIPE_SZ = 1031  # fcntl(2)


@contextmanager
def a_pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def read_to_the_end(descriptor: int) -> str:
    data = b""
    while piece := os.read(descriptor, 65_536):
        data += piece
    return data.decode()


def test_a_frame_is_its_type_and_id_and_a_call_its_method_whatever_they_hold() -> None:
    secret = "s3cret"
    act = wire.Act(7, "read", secret, secret, [secret], "/" + secret, {"c": secret}, "sdk")
    call = wire.Call(8, "spawn\x1b[2J", {"name": secret, "args": secret.encode()})
    for frame, said in (
        (act, "Act 7"),
        (call, "Call spawn\\x1b[2J 8"),
        (wire.Result(secret.encode()), "Result"),
        (wire.Raised(secret, secret, secret, None), "Raised"),
        (wire.Hello(wire.VERSION, secret, 1), "Hello"),
    ):
        assert header(frame) == said


def test_a_decision_is_effect_operation_name_rule_and_latency() -> None:
    allowed = wire.Verdict(1, "allow", "allowed_by_rule", 3, "db\n", None, "db/1", 9, False, None)
    assert decision_line("read", allowed, 0.123) == "allow read db/1: rule 3 'db\\\\n', 0.12 ms"
    denied = wire.Verdict(1, "deny", "default_deny", None, None, None, "a\u202eb", 9, False, None)
    assert decision_line("write", denied, 20.0) == "deny write a\\u202eb: default_deny, 20.00 ms"
    url = denied._replace(resource="https://me:hunter2@host/?token=hunter2&page=2", reason="invalid_resource")
    line = decision_line("network", url, 1.0)
    assert line == "deny network https://[redacted]@host/?token=[redacted]&page=2: invalid_resource, 1.00 ms"
    assert len(shown("x" * 10_000)) == trace.SHOWN_CHARS_MAX + 1


def test_lines_come_in_order_and_all_of_them_before_the_end() -> None:
    with a_pipe() as (reading, writing):
        made = Trace(SystemClock(), os.dup(writing))
        for number in range(20):
            made.line("kernel", f"line {number}")
        made.close()
        lines = os.read(reading, 65_536).decode().splitlines()
    assert [line.split()[-1] for line in lines] == [str(number) for number in range(20)]
    assert all(len(line.split()[0]) == len("12:34:56.789") for line in lines)


def test_a_reader_who_does_not_read_holds_nothing_up_and_is_told_what_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace, "LINES_MAX", 100)
    with a_pipe() as (reading, writing):
        mine = os.dup(writing)
        made = Trace(SystemClock(), mine)
        given = threading.Thread(
            target=lambda: [made.line("kernel", f"line {number} {'x' * 100}") for number in range(5_000)]
        )
        given.start()
        given.join(30)
        assert not given.is_alive()  # the pipe has been full for long
        os.set_blocking(reading, False)
        seen = ""
        for number in range(1_000):
            try:
                seen += os.read(reading, 65_536).decode()
            except BlockingIOError:
                if "lines are missing" in seen:
                    break
                made.line("kernel", f"later {number}")
                made._thread.join(0.005)
    (told,) = [line for line in seen.splitlines() if "lines are missing" in line]
    count = int(told.split()[2])
    assert 4_000 < count < 5_000
    before = seen.partition("lines are missing")[0]
    assert sum("kernel" in line for line in before.splitlines()) + count >= 5_000  # each is here or counted


def test_when_nobody_reads_any_more_the_kernel_goes_on() -> None:
    reading, writing = os.pipe()
    made = Trace(SystemClock(), writing)
    os.close(reading)
    made.line("kernel", "into the void")  # EPIPE: Python ignores SIGPIPE, and so does the kernel
    made._thread.join(30)
    made.line("kernel", "and again")
    made.close()
    os.close(writing)
