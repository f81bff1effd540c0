"""Restarts and the end of children with real processes: Linux says who lives, the record says what was done."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import LIMIT_S, UNMEDIATED, CommandLine
from world import state_of, wait_until

import agentos
from agentos import AgentFailed, AgentSignal, AgentTimeoutError, KernelSpace, PolicyViolationError
from agentos.errors import BadRequest
from agentos.policies import Pattern, Policy


@pytest.fixture
def kernel(home: Path) -> Iterator[KernelSpace]:
    kernel = KernelSpace(policy="permissive")
    yield kernel
    asyncio.run(kernel.shutdown())


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    yield world
    world.close()


def rows(kernel: KernelSpace, name: str) -> list[dict[str, Any]]:
    assert kernel._connection is not None
    return [row for row in kernel._connection.ask("ps", {})["agents"] if row["name"] == name]


def living(kernel: KernelSpace, name: str) -> list[dict[str, Any]]:
    return [row for row in rows(kernel, name) if row["ended_at"] is None]


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def test_execute_awaits_the_last_life_which_knows_what_the_others_saved(kernel: KernelSpace) -> None:
    @kernel.register(restart="on-failure:5")
    def flaky() -> tuple[int, int]:
        lives = (agentos.saved_state() or 0) + 1
        agentos.save_state(lives)
        if lives == 1:
            raise ValueError("not yet")
        if lives == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return lives, os.getpid()

    lives, pid = asyncio.run(kernel.execute(flaky))
    assert lives == 3
    found = rows(kernel, "flaky")
    assert [row["state"] for row in found] == ["terminated"] * 3
    assert [(row["exit_code"], row["exit_signal"]) for row in found] == [(1, None), (None, 9), (0, None)]
    assert [row["restarts"] for row in found] == [0, 1, 2]
    assert found[-1]["pid"] == pid
    assert len({row["pid"] for row in found}) == 3
    assert [row["next_id"] for row in found] == [found[1]["id"], found[2]["id"], None]
    assert kernel.get_agent_status(found[0]["id"]).state == "terminated"


def test_who_fails_too_often_fails_the_caller_with_the_last_failure_and_why(kernel: KernelSpace) -> None:
    @kernel.register(restart="on-failure:2")
    def hopeless() -> None:
        raise ValueError(f"pid {os.getpid()}")

    with pytest.raises(AgentFailed, match="it was restarted 2 times, as often as on-failure:2 allows") as caught:
        asyncio.run(kernel.execute(hopeless))
    assert f"pid {rows(kernel, 'hopeless')[-1]['pid']}" in str(caught.value)
    assert len(rows(kernel, "hopeless")) == 3


def test_a_time_out_is_a_failure_and_each_life_has_its_own(kernel: KernelSpace) -> None:
    @kernel.register(restart="on-failure:1")
    def slow() -> None:
        time.sleep(60)

    with pytest.raises(AgentTimeoutError):
        asyncio.run(kernel.execute(slow, timeout=0.3))
    assert [row["ended_by"] for row in rows(kernel, "slow")] == ["timeout"] * 2


def test_whose_hand_ended_it_decides_whether_it_is_restarted(kernel: KernelSpace) -> None:
    @kernel.register(restart="always")
    def server() -> None:
        time.sleep(60)

    async def main() -> None:
        first = await kernel.spawn(server)
        os.kill(rows(kernel, "server")[0]["pid"], signal.SIGKILL)  # nobody commanded that
        wait_until(lambda: len(rows(kernel, "server")) == 2 and rows(kernel, "server")[1]["state"] == "running")
        second = rows(kernel, "server")[1]
        assert await kernel.send_signal(second["id"], AgentSignal.SIGTERM)
        with pytest.raises(ExceptionGroup, match="1 of the agents failed"):
            await kernel.wait_all([first])
        assert [row["exit_signal"] for row in rows(kernel, "server")] == [9, 15]
        assert state_of(second["pid"]) == ""

    asyncio.run(main())


def test_what_its_policy_ended_is_not_restarted(home: Path) -> None:
    policy = Policy.builtin("permissive")
    policy.add_rule("deny", Pattern("write", "secret/*"), on_violation="SIGKILL")
    kernel = KernelSpace(policy=policy)

    @kernel.register(restart="always")
    def thief() -> None:
        agentos.act("write", "secret/x")

    try:
        with pytest.raises(PolicyViolationError):
            asyncio.run(kernel.execute(thief))
        assert len(rows(kernel, "thief")) == 1
    finally:
        asyncio.run(kernel.shutdown())


def test_a_caller_that_gives_up_ends_a_crash_loop(kernel: KernelSpace) -> None:
    @kernel.register(restart="always")
    def loop() -> None:
        os._exit(1)

    async def main() -> None:
        task = asyncio.create_task(kernel.execute(loop))
        while kernel._connection is None or len(rows(kernel, "loop")) < 4:  # noqa: ASYNC110 - the kernel is asked
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        wait_until(lambda: not living(kernel, "loop"))
        lives = len(rows(kernel, "loop"))
        await asyncio.sleep(1.0)
        assert len(rows(kernel, "loop")) == lives

    asyncio.run(main())


@pytest.mark.parametrize("word", ["allways", "on-failure:0", 3, None])
def test_a_word_that_is_none_is_refused_at_once(home: Path, word: Any) -> None:
    with pytest.raises(BadRequest, match=r"register\('agent'\): restart=.* is no restart policy"):

        @KernelSpace().register(restart=word)
        def agent() -> None: ...


def test_children_end_with_their_parent_and_what_it_was_restarted_for_starts_them_anew(
    kernel: KernelSpace, home: Path
) -> None:
    @kernel.register
    def child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(60)

    @kernel.register(restart="on-failure:1")
    async def parent() -> None:
        await kernel.spawn(child)
        await asyncio.to_thread(wait_for, str(home / "go"))
        os._exit(4)

    async def main() -> None:
        parent_id = await kernel.spawn(parent)
        wait_until(lambda: [row["state"] for row in rows(kernel, "child")] == ["running"])
        given = await kernel.spawn(child, parent_id=parent_id)
        (home / "go").touch()
        with pytest.raises(ExceptionGroup):
            await kernel.wait_all([parent_id, given])
        wait_until(lambda: not living(kernel, "child"))

    asyncio.run(main())
    found = rows(kernel, "child")
    assert len(found) == 3  # one of each life of the parent, and the host program's
    assert {row["ended_by"] for row in found} == {"parent ended"}
    assert [row["exit_code"] for row in rows(kernel, "parent")] == [4, 4]


# --- the command line ------------------------------------------------------------------------------------------------

FLAKY = "n=$(cat n 2>/dev/null || echo 0); n=$((n+1)); echo $n > n; echo life $n; exec {then}"


def test_run_stays_with_all_lives_and_exits_as_the_last(command_line: CommandLine) -> None:
    flaky = command_line.script("flaky", FLAKY.format(then="test $n -ge 3"))
    done = command_line("run", *UNMEDIATED, "--restart", "on-failure:5", "--", flaky)
    assert done.stdout == "life 1\nlife 2\nlife 3\n"
    assert done.stderr.count("flaky ended: exit code 1; it is restarted") == 2
    listed = command_line.json("ps", "-a")
    assert [row["exit_code"] for row in listed] == [1, 1, 0]
    assert len({row["id"] for row in listed}) == 3
    restarts = command_line.events("--type", "agent_restarting")
    assert [event["data"]["attempt"] for event in restarts] == [1, 2]
    assert [event["data"]["new_id"] for event in restarts] == [row["id"] for row in listed[1:]]
    assert len({event["execution_id"] for event in command_line.events("--type", "agent_exited")}) == 1


def test_run_says_why_it_is_not_restarted_any_more(command_line: CommandLine) -> None:
    done = command_line("run", *UNMEDIATED, "--restart", "on-failure:1", "--", "sh", "-c", "exit 7", code=7)
    assert "sh ended: exit code 7; it is restarted\n" in done.stderr
    assert "not restarted any more: it was restarted 1 times, as often as on-failure:1 allows" in done.stderr
    (failed,) = command_line.events("--type", "agent_failed")
    assert failed["data"]["restarts"] == 1
    command_line("run", *UNMEDIATED, "--restart", "onfailure", "--", "true", code=2)


def test_a_crash_loop_is_shown_and_ends_by_its_name(command_line: CommandLine) -> None:
    command_line.detached("--name", "loop", "--restart", "always", "sh", "-c", "exit 1")
    follower = command_line.start("wait", "loop")

    def waits() -> bool:
        (row,) = command_line.json("ps")  # one of its lives lives, or is to come
        return row["restarts"] >= 3 and row["state"] == "waiting" and row["restart_at"] is not None

    wait_until(waits, 30.0)
    assert "RESTARTS" in command_line.out("ps")
    assert command_line.out("stop", "loop").startswith("loop: ")
    code = follower.wait(LIMIT_S)
    assert command_line.json("ps") == []
    lives = [row for row in command_line.json("ps", "-a") if row["pid"]]  # the one that did not begin is none
    assert len(lives) >= 3
    assert code == (lives[-1]["exit_code"] or 128 + lives[-1]["exit_signal"])  # it waited for the last of them
    time.sleep(1.0)
    assert len([row for row in command_line.json("ps", "-a") if row["pid"]]) == len(lives)


def test_a_second_life_reads_on_where_the_first_one_left_its_input(command_line: CommandLine) -> None:
    one = command_line.script("one", "dd bs=2 count=1 2>/dev/null; test -e second && exit 0; : > second; exit 1")
    done = command_line("run", *UNMEDIATED, "--restart", "on-failure", "--", one, stdin="a\nb\nc\n")
    assert done.stdout == "a\nb\n"
