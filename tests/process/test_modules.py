"""Results that modules of the host program verify, on real kernels: who waits gets a verified result, or an error."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import recorded_by
from world import directories, wait_until

from agentos import AgentFailed, KernelSpace
from agentos.client.modules import MODULES_MAX
from agentos.errors import BadRequest, ResultWithheld


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelSpace]:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    made = KernelSpace(policy="permissive")
    made.register(echo)
    yield made
    asyncio.run(made.shutdown())


def echo(value: Any) -> Any:
    if value == "fails":
        raise ValueError(value)
    return value


class Judge:
    """Notes what it is shown; `says` is its answer, or what makes one."""

    name: str | None = None  # that of the class, then

    def __init__(self, says: Any = True, timeout: float = 30.0) -> None:
        self.says = says
        self.timeout = timeout
        self.seen: list[Any] = []

    async def verify_result(self, agent_id: str, name: str, result: Any) -> Any:
        await asyncio.sleep(0)
        self.seen.append((agent_id, name, result))
        return self.says(result) if callable(self.says) else self.says


class PlainJudge(Judge):
    name = "plain"

    def verify_result(self, agent_id: str, name: str, result: Any) -> Any:
        self.seen.append((agent_id, name, result, threading.current_thread() is threading.main_thread()))
        return self.says


def test_a_result_is_released_once_all_modules_agreed_and_is_verified_once(kernel: KernelSpace) -> None:
    first, second = Judge({"verified": True, "confidence": 0.9}), PlainJudge()
    kernel.add_module(first)
    value = {"pair": (1, {2}), "text": "x" * 2_000_000}

    async def main() -> str:
        assert await kernel.execute(echo, 1) == 1
        kernel.add_module(second)  # while the kernel runs
        agent_id = await kernel.spawn(echo, value)
        assert await asyncio.gather(kernel.wait_all([agent_id]), kernel.wait_all([agent_id])) == [[value], [value]]
        with pytest.raises(AgentFailed, match="ValueError"):
            await kernel.execute(echo, "fails")
        return agent_id

    agent_id = asyncio.run(main())
    assert [(name, result) for _, name, result in first.seen] == [("echo", 1), ("echo", value)]
    assert second.seen == [(agent_id, "echo", value, True)]
    assert [event.data["modules"] for event in recorded_by(kernel, "result_verified")] == [
        ["Judge"],
        ["Judge", "plain"],
    ]
    assert recorded_by(kernel, "result_withheld") == []


def refuses(value: Any) -> Any:
    raise LookupError(f"cannot say of {value}")


NOT_VERIFIED: list[tuple[Any, str]] = [
    (False, "not verified"), (None, "not verified"), (1, "not verified"), ("yes", "not verified"),
    ({"verified": False, "reason": "two models disagree"}, "two models disagree"), ({}, "not verified"),
    (refuses, "LookupError: cannot say of 7"),
]  # fmt: skip


def test_what_is_not_verified_is_given_to_nobody(kernel: KernelSpace) -> None:
    judge, never = Judge(), Judge()
    kernel.add_module(judge)
    kernel.add_module(never)

    async def main() -> None:
        for says, reason in NOT_VERIFIED:
            judge.says = says
            agent_id = await kernel.spawn(echo, 7)
            for _ in range(2):
                with pytest.raises(ExceptionGroup) as failed:
                    await kernel.wait_all([agent_id])
                (error,) = failed.value.exceptions
                assert isinstance(error, ResultWithheld)
                assert (error.agent_id, error.module, error.reason) == (agent_id, "Judge", reason)
                assert str(error) == f"the result of echo is withheld by Judge: {reason}"
                judge.says = True  # too late

    asyncio.run(main())
    assert len(judge.seen) == len(NOT_VERIFIED)
    assert never.seen == []
    withheld = [event.data for event in recorded_by(kernel, "result_withheld")]
    assert withheld == [{"module": "Judge", "reason": reason} for _, reason in NOT_VERIFIED]
    assert recorded_by(kernel, "result_verified") == []


def test_a_module_that_hangs_withholds_after_its_time_also_from_a_parent_agent(kernel: KernelSpace) -> None:
    class Hangs(Judge):
        async def verify_result(self, agent_id: str, name: str, result: Any) -> Any:
            if result == "hang":
                await asyncio.sleep(100)
            return True

    kernel.add_module(Hangs(timeout=0.3))

    @kernel.register
    async def parent() -> str:
        try:
            return f"got {await kernel.execute('echo', 'hang')}"
        except ResultWithheld as error:
            return f"{error.module}: {error.reason}"

    assert asyncio.run(kernel.execute(parent)) == "Hangs: no answer within 0.3 s"


def test_a_plain_module_that_blocks_and_a_loop_that_ended_hold_up_nobody_for_ever(kernel: KernelSpace) -> None:
    release = threading.Event()

    class Blocks(Judge):
        def verify_result(self, agent_id: str, name: str, result: Any) -> Any:
            return result != "block" or release.wait(60)

    kernel.add_module(Blocks(timeout=1.0))
    blocked = asyncio.run(kernel.spawn(echo, "block"))
    good = asyncio.run(kernel.spawn(echo, "good"))
    with pytest.raises(ExceptionGroup, match="1 of the agents failed") as failed:
        asyncio.run(kernel.wait_all([blocked, good]))
    release.set()
    assert [type(error) for error in failed.value.exceptions] == [ResultWithheld]
    assert asyncio.run(kernel.wait_all([good])) == ["good"]


def test_modules_serve_the_next_kernel_and_what_is_none_is_refused(kernel: KernelSpace) -> None:
    judge = Judge(says=lambda result: result == "good")
    kernel.add_module(judge)
    with pytest.raises(BadRequest, match=r"add_module: .*Judge object .* was added already"):
        kernel.add_module(judge)
    for wrong in (object(), Judge, None):
        with pytest.raises(BadRequest, match=r"add_module: .* has no verify_result\(agent_id, name, result\)"):
            kernel.add_module(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="add_module: timeout=0 must be a positive number of seconds"):
        kernel.add_module(Judge(timeout=0))

    async def main() -> None:
        assert await kernel.execute(echo, "good") == "good"
        await kernel.shutdown()
        with pytest.raises(ResultWithheld):
            await kernel.execute(echo, "bad")

    asyncio.run(main())


def test_one_module_too_many_is_refused_and_a_name_can_be_anything(kernel: KernelSpace) -> None:
    """A list that the kernel refuses would leave it without any module, and results unverified."""
    judges = [Judge() for _ in range(MODULES_MAX)]
    judges[-1].name = "\udc80" + "x" * 2_000_000
    judges[-1].says = lambda _: False
    assert asyncio.run(kernel.execute(echo, "unseen")) == "unseen"
    for judge in judges:
        kernel.add_module(judge)
    with pytest.raises(BadRequest, match="add_module: 100 modules were added, which is the limit"):
        kernel.add_module(Judge())
    for _ in range(2):  # the kernel that runs, and the next
        with pytest.raises(ResultWithheld, match=r"by \\udc80xxx"):
            asyncio.run(kernel.execute(echo, "bad"))
        asyncio.run(kernel.shutdown())


def test_when_the_host_is_gone_nothing_is_released_and_nothing_waits(tmp_path: Path) -> None:
    """A parent agent waits for its child, whose result the host was verifying when it was killed."""
    code = """
import asyncio, os
from agentos import KernelSpace
kernel = KernelSpace(policy="permissive")

@kernel.register
def child():
    return "secret"

@kernel.register
async def parent():
    try:
        said = await kernel.execute("child")
    except Exception as error:
        said = type(error).__name__
    with open("said", "w") as file:
        file.write(said)

class Slow:
    async def verify_result(self, agent_id, name, result):
        print((await kernel._call("inspect", {"id": agent_id}))["guard_pid"], flush=True)
        await asyncio.sleep(100)

kernel.add_module(Slow())
asyncio.run(kernel.execute(parent))
"""
    with directories(tmp_path) as environment:
        host = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
    assert host.stdout is not None
    guard = int(host.stdout.readline())
    host.kill()
    host.wait()
    host.stdout.close()
    wait_until(lambda: not os.path.exists(f"/proc/{guard}"), 20.0, "the guard to end")
    said = tmp_path / "said"
    assert not said.exists() or said.read_text() != "secret"
