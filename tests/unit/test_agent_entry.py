"""How an agent's life ends: what its function did is told, truly and once, and the process ends the way it says."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from agent_world import agent

import agentos
from agentos import wire


def say(place: str, word: str) -> None:
    with open(place, "a") as file:
        file.write(word + " ")


def said(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


# --- results ---------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, -1, 2**80, 1.5, "text \u2713", b"bytes", [1, [2]], {"a": {"b": 1}}, (1, "two"), {1, 2}, frozenset({3}),
    datetime(2026, 1, 2, tzinfo=UTC), date(2026, 1, 2), timedelta(days=-1, seconds=3), Decimal("1.10"), UUID(int=7),
]  # fmt: skip


def test_arguments_and_results_come_out_as_they_went_in() -> None:
    def echo(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    with agent(echo, *VALUES, keyword=VALUES) as one:
        assert one.result() == [VALUES, {"keyword": VALUES}]


def test_plain_and_async_functions_closures_and_callable_objects() -> None:
    base = 40

    async def add(number: int) -> int:
        return base + number

    class Adder:
        def __call__(self, number: int) -> int:
            return base + number

    for function in (add, Adder(), lambda number: base + number):
        with agent(function, 2) as one:
            assert one.result() == 42


def test_an_agent_is_like_a_fresh_interpreter(tmp_path: Path) -> None:
    def function() -> dict[str, Any]:
        import random
        import tempfile

        main = sys.modules["__main__"]
        return {
            "main": [main.__name__, hasattr(main, "pytest")],
            "argv": sys.argv,
            "name": agentos.agent.sdk.current_agent_id(),  # type: ignore[attr-defined]
            "tmp": tempfile.gettempdir(),
            "zone": time.strftime("%H", time.gmtime(0)) != time.strftime("%H", time.localtime(0)),
            "threads": [thread.name for thread in threading.enumerate()],
            "dice": random.getrandbits(64),
        }

    seen = []
    for _ in range(2):
        with agent(function, env={"TMPDIR": str(tmp_path), "TZ": "Pacific/Auckland"}) as one:
            seen.append(one.result())
    assert seen[0]["main"] == ["__main__", False]
    assert seen[0]["argv"] == ["an-agent"]
    assert seen[0]["name"] == "agent-1"
    assert seen[0]["tmp"] == str(tmp_path)
    assert seen[0]["zone"]
    assert seen[0]["threads"] == ["MainThread"]
    assert seen[0]["dice"] != seen[1]["dice"]


def test_output_is_flushed_and_the_error_is_in_the_log(tmp_path: Path) -> None:
    def function() -> None:
        sys.stdout.write("no newline")
        raise KeyError("gone")

    with agent(function, log=tmp_path / "log") as one:
        one.raised()
    text = (tmp_path / "log").read_text()
    assert "no newline" in text
    assert "KeyError: 'gone'" in text
    assert "agentos/agent/entry.py" not in text


UNSENDABLE = {
    "_thread.lock": threading.Lock,
    "builtins.object": object,
    "builtins.generator": lambda: iter(x for x in ()),
}


@pytest.mark.parametrize("kind", UNSENDABLE)
def test_what_cannot_cross_is_named(kind: str) -> None:
    make = UNSENDABLE[kind]

    def function() -> Any:
        return {"deep": [make()]}

    with agent(function) as one:
        raised = one.raised()
    assert raised.type == "NotSerialisable"
    assert raised.message.startswith(f"the result of an-agent: a value of type {kind} cannot cross")


def test_a_result_too_large_for_a_frame_is_an_error_not_a_broken_pipe() -> None:
    with agent(lambda: "x" * (17 * 1024 * 1024)) as one:
        raised = one.raised()
    assert raised.type == "ProtocolError"
    assert "the limit is" in raised.message


# --- exceptions and exit codes ---------------------------------------------------------------------------------------


def test_an_exception_is_told_with_the_lines_of_its_own_code_only() -> None:
    def inner() -> None:
        raise ValueError("bad \udcff thing")

    def function() -> None:
        try:
            inner()
        except ValueError as error:
            raise RuntimeError("outer") from error

    with agent(function) as one:
        raised = one.raised()
    assert (raised.type, raised.message, raised.violation) == ("RuntimeError", "outer", None)
    assert "ValueError: bad \\udcff thing" in raised.traceback
    assert "in inner" in raised.traceback
    assert "entry.py" not in raised.traceback


def test_an_uncaught_refusal_is_told_with_its_fields() -> None:
    async def function() -> None:
        import asyncio

        async with asyncio.TaskGroup() as group:
            group.create_task(refused())

    async def refused() -> None:
        agentos.act("write", "data/x")

    from agent_world import refuse

    with agent(function, judge=refuse("write")) as one:
        raised = one.raised()
    assert raised.type == "ExceptionGroup"
    assert raised.violation is not None
    assert raised.violation["operation"] == "write"
    assert raised.violation["reason"] == "said the test"
    assert raised.violation["event_id"] == "run-1-7"


@pytest.mark.parametrize(("code", "status"), [(3, 3), (-1, 255), (True, 1), ("text", 1), (300, 44)])
def test_system_exit_ends_with_its_code(code: Any, status: int) -> None:
    def function() -> None:
        raise SystemExit(code)

    with agent(function) as one:
        raised = one.raised(status)
    assert (raised.type, raised.message) == ("SystemExit", str(code))


@pytest.mark.parametrize("code", [None, 0])
def test_system_exit_without_a_code_is_a_result(code: Any) -> None:
    with agent(lambda: sys.exit(code)) as one:
        assert one.result() is None


def test_exit_and_kill_by_itself_tell_nothing() -> None:
    for function, status in ((lambda: os._exit(9), 9), (lambda: os.kill(os.getpid(), 9), -9)):
        with agent(function) as one:
            assert one.wait() == status
            one.wait_for_all()
            assert [type(frame) for frame in one.seen] == [wire.Hello]


# --- signals ---------------------------------------------------------------------------------------------------------


def busy(out: str) -> None:
    agentos.on_cleanup(lambda: say(out, "cleanup"))
    try:
        say(out, "ready")
        time.sleep(60)
    finally:
        say(out, "finally")


async def busy_async(out: str) -> None:
    import asyncio

    agentos.on_cleanup(lambda: say(out, "cleanup"))
    try:
        say(out, "ready")
        await asyncio.sleep(60)
    finally:
        say(out, "finally")


def asks(out: str) -> None:
    agentos.on_cleanup(lambda: say(out, "cleanup"))
    try:
        say(out, "ready")
        agentos.act("read", "never answered")
    finally:
        say(out, "finally")


def until_ready(one: Any, out: Path) -> None:
    while "ready" not in said(out):
        assert one.pid
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
@pytest.mark.parametrize("function", [busy, busy_async, asks])
def test_an_ending_signal_unwinds_cleans_up_and_is_the_true_end(tmp_path: Path, number: int, function: Any) -> None:
    out = tmp_path / "out"
    with agent(function, str(out), judge=lambda _: None) as one:
        until_ready(one, out)
        os.kill(one.pid, number)
        assert one.wait() == -number
        one.wait_for_all()
        assert said(out) == ["ready", "finally", "cleanup"]
        assert not one.of(wire.Result)
        assert not one.of(wire.Raised)


def test_except_exception_does_not_swallow_the_end(tmp_path: Path) -> None:
    def function(out: str) -> None:
        while True:
            try:
                say(out, "ready")
                time.sleep(60)
            except Exception:
                say(out, "swallowed")

    out = tmp_path / "out"
    with agent(function, str(out)) as one:
        until_ready(one, out)
        os.kill(one.pid, signal.SIGTERM)
        assert one.wait() == -signal.SIGTERM
    assert said(out) == ["ready"]


def test_clean_up_is_not_disturbed_by_who_asks_twice(tmp_path: Path) -> None:
    def function(out: str) -> None:
        def slow() -> None:
            say(out, "cleaning")
            time.sleep(0.4)
            say(out, "cleaned")

        agentos.on_cleanup(slow)
        say(out, "ready")
        time.sleep(60)

    out = tmp_path / "out"
    with agent(function, str(out)) as one:
        until_ready(one, out)
        os.kill(one.pid, signal.SIGTERM)
        while "cleaning" not in said(out):
            time.sleep(0.005)
        os.kill(one.pid, signal.SIGTERM)
        os.kill(one.pid, signal.SIGALRM)
        assert one.wait() == -signal.SIGTERM
    assert said(out) == ["ready", "cleaning", "cleaned"]


def test_a_handler_of_its_own_replaces_ours(tmp_path: Path) -> None:
    def function(out: str) -> str:
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        say(out, "ready")
        while not asked:
            time.sleep(0.005)
        return "in my own time"

    out = tmp_path / "out"
    with agent(function, str(out)) as one:
        until_ready(one, out)
        os.kill(one.pid, signal.SIGTERM)
        assert one.result() == "in my own time"


# --- clean-up --------------------------------------------------------------------------------------------------------


def test_clean_up_functions_run_last_first_each_once_whatever_fails(tmp_path: Path) -> None:
    def function(out: str) -> str:
        import atexit

        @agentos.on_cleanup
        def first() -> None:
            say(out, "first")

        @agentos.on_cleanup
        async def second() -> None:
            say(out, "second")
            raise OSError("second failed")

        agentos.on_cleanup(lambda: say(out, "third"))
        atexit.register(say, out, "atexit")
        return "the result"

    with agent(function, str(tmp_path / "out"), log=tmp_path / "log") as one:
        assert one.result() == "the result"  # told before anything could fail
    assert said(tmp_path / "out") == ["third", "second", "first", "atexit"]
    assert "second failed" in (tmp_path / "log").read_text()


def test_clean_up_may_act_and_runs_after_a_failure_too(tmp_path: Path) -> None:
    def function(out: str) -> None:
        agentos.on_cleanup(lambda: say(out, agentos.act("write", "db/closed").reason.replace(" ", "-")))
        raise ValueError

    with agent(function, str(tmp_path / "out")) as one:
        assert one.raised().type == "ValueError"
        assert one.asked == ["db/closed"]
    assert said(tmp_path / "out") == ["said-the-test"]


def test_threads_that_still_run_are_not_waited_for() -> None:
    def function() -> str:
        threading.Thread(target=time.sleep, args=(60,)).start()
        return "done"

    with agent(function) as one:
        assert one.result() == "done"


def test_a_forked_child_that_falls_out_of_the_function_tells_nothing(tmp_path: Path) -> None:
    def function(out: str) -> str:
        agentos.on_cleanup(lambda: say(out, "cleanup"))
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    with agent(function, str(tmp_path / "out")) as one:
        assert one.result() == "parent"
    assert said(tmp_path / "out") == ["cleanup"]


# --- a kernel that begins wrongly ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"garbage!", wire.encode(wire.Hello(99, "kernel", 1)) * 2])
def test_an_agent_that_is_not_told_what_it_is_runs_nothing(tmp_path: Path, first: bytes) -> None:
    from agentos.agent import entry

    pipes = [os.pipe() for _ in range(3)]
    os.write(pipes[2][1], first)
    os.close(pipes[2][1])
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), 2)
        entry.main(pipes[0][1], pipes[1][0], pipes[2][0])
    for descriptor in {end for pair in pipes for end in pair} - {pipes[2][1]}:
        os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == entry.EXIT_NO_KERNEL
    assert "ProtocolError" in (tmp_path / "log").read_text()
