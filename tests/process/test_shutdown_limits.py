"""A shutdown that does not come to its end: how long it waits, what it says, and that it may be asked for again.

And what is still under way when it does: that starts nothing new.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from world import state_of

from agentos import AgentSignal, KernelSpace, SignalDispatcher, errors
from agentos.client import connection
from agentos.supervisor import endings, guard, recorder_link, recording, zygote


def test_it_waits_for_all_that_the_kernel_the_zygote_and_the_guard_allow_themselves() -> None:
    kernel_s = 2 * endings.CONFIRM_LIMIT_S + recording.DURABLE_LIMIT_S + recorder_link.STOP_LIMIT_S
    zygote_s = zygote.ORPHANS_GO_S + 2 * zygote.ORPHAN_LIMIT_S + zygote.RECORDER_GRACE_S
    assert kernel_s < connection.ANSWER_LIMIT_S
    assert kernel_s + zygote_s + guard.KILL_LIMIT_S < connection.END_LIMIT_S


def test_what_does_not_end_is_named_and_waited_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        kernel = KernelSpace(policy="strict")
        agent_id = await kernel.spawn(kernel.register(time.sleep), 600)
        facts = await kernel._call("inspect", {"id": agent_id})
        assert kernel._connection is not None
        guard_pid = kernel._connection._guard.pid
        os.kill(facts["kernel_pid"], signal.SIGSTOP)
        monkeypatch.setattr(connection, "ANSWER_LIMIT_S", 0.3)
        monkeypatch.setattr(connection, "END_LIMIT_S", 0.3)
        try:
            for _ in range(2):
                with pytest.raises(errors.StillAlive) as caught:
                    await kernel.shutdown()
                assert f"told to end and still lives: agentos-guard (pid {guard_pid}, state S), " in str(caught.value)
                assert f"(pid {facts['kernel_pid']}, state T)" in str(caught.value)
                assert f"(pid {facts['pid']}, state S)" in str(caught.value)
            with pytest.raises(errors.KernelUnavailable, match="was told to end"):
                await kernel.spawn("sleep", 1)
        finally:
            os.kill(facts["kernel_pid"], signal.SIGCONT)
            monkeypatch.undo()
        await kernel.shutdown()
        assert {state_of(pid) for pid in (guard_pid, facts["kernel_pid"], facts["pid"])} == {""}
        assert not any((tmp_path / "run" / "runs").iterdir())

    asyncio.run(main())


def test_what_waits_for_its_turn_or_comes_late_starts_no_other_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    kernel = KernelSpace(policy="strict")
    dispatcher = SignalDispatcher(kernel, async_delivery=False)

    async def main() -> list[Any]:
        begun = asyncio.Event()

        @dispatcher.register_handler(AgentSignal.SIGUSR1)
        async def waits(*_: Any) -> None:
            begun.set()
            await asyncio.sleep(60)

        agent_id = await kernel.spawn(kernel.register(time.sleep), 600)
        handle = kernel.get_agent(agent_id)
        sent = [asyncio.create_task(dispatcher.send(agent_id, AgentSignal.SIGUSR1)) for _ in range(3)]
        await begun.wait()
        await kernel.shutdown()
        return await asyncio.gather(*sent, handle.get_state(), return_exceptions=True)

    first, *others = asyncio.run(main())
    assert isinstance(first, errors.KernelUnavailable)
    assert [type(other) for other in others] == [errors.UnknownAgent] * 3
    assert kernel._connection is None
