"""Handlers of signals in the host program, on real kernels: what they let pass, what they veto, and what hinders them.

What an agent got is read from the agent itself; that nothing waits for ever, from the clock.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records import recorded_by
from world import HERE, directories, wait_until

from agentos import AgentSignal, KernelSpace, Pattern, Policy, PolicyViolationError, SignalDispatcher, act
from agentos.errors import AgentFailed, SignalQueueFull

HANDLER_LIMIT_S = 5.0  # what is promised: after it a signal is delivered
TERM, USR1, USR2, ALRM = AgentSignal.SIGTERM, AgentSignal.SIGUSR1, AgentSignal.SIGUSR2, AgentSignal.SIGALRM


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def kernel(home: Path) -> Iterator[KernelSpace]:
    made = KernelSpace(policy="permissive")
    made.register(listener)
    yield made
    asyncio.run(made.shutdown())


def listener(path: str, ends: bool = True) -> str:
    """Write down every signal that comes; TERM ends it, unless told otherwise."""

    def note(number: int, _: Any) -> None:
        with open(path, "a") as file:
            file.write(f"{signal.Signals(number).name}\n")
        if number == signal.SIGTERM and ends:
            os._exit(7)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGALRM):
        signal.signal(number, note)
    open(f"{path}.ready", "w").close()
    while True:
        time.sleep(0.02)


async def listening(kernel: KernelSpace, path: Path, **options: Any) -> str:
    """Start a listener; returns when it listens."""
    agent_id = await kernel.spawn(listener, str(path), **options)
    await until(Path(f"{path}.ready").exists)
    return agent_id


async def until(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(wait_until, condition, 20.0)


def got(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_handlers_hear_a_signal_in_order_before_it_arrives_and_a_veto_keeps_it_away(
    kernel: KernelSpace, home: Path
) -> None:
    dispatcher = SignalDispatcher(kernel)
    heard: list[Any] = []
    path = home / "signals"

    @dispatcher.register_handler(USR1)
    async def first(agent_id: str, number: AgentSignal) -> None:
        await asyncio.sleep(0.1)
        heard.append((agent_id, number, got(path), threading.current_thread() is threading.main_thread()))

    @dispatcher.register_handler(USR1)
    def second(agent_id: str, number: AgentSignal) -> bool:
        heard.append("second")
        return heard.count("second") == 1

    async def main() -> str:
        agent_id = await listening(kernel, path)
        assert await dispatcher.send(agent_id=agent_id, signal=USR1)
        await until(lambda: got(path) == ["SIGUSR1"])
        assert not await kernel.send_signal(agent_id, USR1)
        assert await kernel.send_signal(agent_id, USR2)
        await until(lambda: got(path) == ["SIGUSR1", "SIGUSR2"])
        return agent_id

    agent_id = asyncio.run(main())
    assert heard == [
        (agent_id, USR1, [], True), "second", (agent_id, USR1, ["SIGUSR1"], True), "second",
    ]  # fmt: skip
    (veto,) = recorded_by(kernel, "signal_vetoed")
    assert veto.agent_id == agent_id
    assert veto.data["signal"] == "SIGUSR1"
    assert veto.data["sender"] == "host"
    assert veto.data["handler"].endswith("second")
    assert [event.data["signal"] for event in recorded_by(kernel, "signal_sent")] == ["SIGUSR1", "SIGUSR2"]


def test_an_exception_and_a_blocked_loop_are_on_record_and_the_signal_is_delivered(
    kernel: KernelSpace, home: Path
) -> None:
    dispatcher = kernel.signal_dispatcher
    asked: list[AgentSignal] = []
    path = home / "signals"

    @dispatcher.register_handler(USR1)
    def broken(agent_id: str, number: AgentSignal) -> bool:
        raise ValueError("not today")

    @dispatcher.register_handler(USR2)
    async def never_asked(agent_id: str, number: AgentSignal) -> bool:
        asked.append(number)
        return False

    async def main() -> float:
        agent_id = await listening(kernel, path)
        assert await kernel.send_signal(agent_id, USR1)
        sent = threading.Thread(target=lambda: asyncio.run(kernel.send_signal(agent_id, USR2)))
        sent.start()
        begin = time.monotonic()
        sent.join(60)  # the loop that started the agent runs nothing meanwhile
        assert not sent.is_alive()
        await asyncio.sleep(0.1)  # now it runs again, too late
        assert asked == []
        return time.monotonic() - begin

    took_s = asyncio.run(main())
    wait_until(lambda: got(path) == ["SIGUSR1", "SIGUSR2"])
    assert took_s >= HANDLER_LIMIT_S * 0.9
    raised, late = recorded_by(kernel, "signal_handler_failed")
    assert raised.data["reason"] == "raised"
    assert raised.data["error"] == "ValueError: not today"
    assert raised.data["handler"].endswith("broken")
    assert late.data["reason"] == "late"
    assert recorded_by(kernel, "signal_vetoed") == []


def test_commands_keep_their_order_behind_a_handler_and_kill_and_stop_do_not_wait(
    kernel: KernelSpace, home: Path
) -> None:
    """USR2 and CONT came after USR1, which is heard; STOP is there at once, and spends the CONT that came before it."""
    release = threading.Event()
    hearing = threading.Event()
    path = home / "signals"

    @kernel.signal_dispatcher.register_handler(USR1)
    async def slow(agent_id: str, number: AgentSignal) -> None:
        hearing.set()
        await asyncio.to_thread(release.wait, 30)

    async def main() -> None:
        agent_id = await listening(kernel, path)
        waiting = [
            asyncio.ensure_future(kernel.send_signal(agent_id, number)) for number in (USR1, USR2, AgentSignal.SIGCONT)
        ]
        await until(hearing.is_set)
        assert await kernel.send_signal(agent_id, AgentSignal.SIGSTOP)
        assert kernel.get_agent_status(agent_id).state == "stopped"
        assert got(path) == []
        release.set()
        assert await asyncio.gather(*waiting) == [True, True, False]
        assert kernel.get_agent_status(agent_id).state == "stopped"
        assert await kernel.send_signal(agent_id, AgentSignal.SIGCONT)
        await until(lambda: len(got(path)) == 3)
        release.clear()
        hearing.clear()
        late = asyncio.ensure_future(kernel.send_signal(agent_id, USR1))
        await until(hearing.is_set)
        begin = time.monotonic()
        assert await kernel.send_signal(agent_id, AgentSignal.SIGKILL)
        assert time.monotonic() - begin < HANDLER_LIMIT_S
        assert kernel.get_agent_status(agent_id).state == "terminated"
        release.set()
        assert not await late

    asyncio.run(main())
    assert [event.data["signal"] for event in recorded_by(kernel, "signal_sent")] == [
        "SIGSTOP", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGKILL", "SIGUSR1",
    ]  # fmt: skip


def test_a_handler_may_act_on_its_agent_and_never_hears_what_it_sends(kernel: KernelSpace, home: Path) -> None:
    """A TERM handler that sends USR1, whose handler sends TERM: each hears once, and all of it arrives."""
    heard: list[str] = []
    path = home / "signals"

    @kernel.signal_dispatcher.register_handler(TERM)
    async def ask_first(agent_id: str, number: AgentSignal) -> bool:
        heard.append("TERM")
        assert await kernel.send_signal(agent_id, USR1)
        assert await kernel.send_signal(agent_id, TERM)
        assert await SignalDispatcher(kernel, queue_size=1, async_delivery=False).send(agent_id, USR2)
        return False

    @kernel.signal_dispatcher.register_handler(USR1)
    async def and_back(agent_id: str, number: AgentSignal) -> None:
        heard.append("USR1")
        asyncio.get_running_loop().create_task(kernel.send_signal(agent_id, USR1)).add_done_callback(later.append)
        assert await kernel.send_signal(agent_id, TERM)

    later: list[Any] = []

    async def main() -> float:
        agent_id = await listening(kernel, path, ends=False)
        begin = time.monotonic()
        assert not await kernel.send_signal(agent_id, TERM)
        took_s = time.monotonic() - begin
        await until(lambda: later)
        await until(lambda: set(got(path)) == {"SIGTERM", "SIGUSR1", "SIGUSR2"})  # Linux merges what is pending twice
        return took_s

    assert asyncio.run(main()) < HANDLER_LIMIT_S
    assert heard == ["TERM", "USR1"]
    sent = sorted(event.data["signal"] for event in recorded_by(kernel, "signal_sent"))
    assert sent == ["SIGTERM", "SIGTERM", "SIGUSR1", "SIGUSR1", "SIGUSR2"]
    assert recorded_by(kernel, "signal_handler_failed") == []


def test_stop_and_a_timeout_spare_the_agent_the_vetoed_signal_and_end_it_all_the_same(
    kernel: KernelSpace, home: Path
) -> None:
    path = home / "signals"

    @kernel.signal_dispatcher.register_handler(TERM)
    @kernel.signal_dispatcher.register_handler(ALRM)
    def no(agent_id: str, number: AgentSignal) -> bool:
        return False

    @kernel.signal_dispatcher.register_handler(AgentSignal.SIGCONT)
    def hold(agent_id: str, number: AgentSignal) -> bool:
        return False

    async def main() -> None:
        agent_id = await listening(kernel, path)
        assert await kernel.send_signal(agent_id, AgentSignal.SIGSTOP)
        assert not await kernel.send_signal(agent_id, AgentSignal.SIGCONT)
        await kernel._call("stop", {"id": agent_id, "grace_s": 0.3})
        with pytest.raises(ExceptionGroup) as ended:
            await kernel.wait_all([agent_id])
        (failure,) = ended.value.exceptions
        assert isinstance(failure, AgentFailed)
        assert failure.signal == signal.SIGKILL
        params = {"kind": "program", "argv": ["sleep", "100"], "require": "none", "timeout_s": 0.2, "grace_s": 0.3}
        program = (await kernel._call("start", params))["id"]
        assert (await kernel._call("wait", {"id": program, "timeout_s": 60}))["ended_by"] == "timeout"

    asyncio.run(main())
    assert [event.data["signal"] for event in recorded_by(kernel, "signal_vetoed")] == ["SIGCONT", "SIGTERM", "SIGALRM"]
    assert got(path) == ["SIGCONT"]


def test_who_registered_sees_every_signal_whoever_sends_it_and_across_kernels(kernel: KernelSpace, home: Path) -> None:
    """From an agent to its child, and from the command line; by a dispatcher made for no kernel, and after shutdown."""
    dispatcher = SignalDispatcher(None, queue_size=2, async_delivery=False)
    heard: list[str] = []

    @dispatcher.register_handler(TERM)
    def no(agent_id: str, number: AgentSignal) -> bool:
        heard.append(agent_id)
        return False

    other = KernelSpace(policy="permissive", signal_dispatcher=dispatcher)
    assert other.signal_dispatcher is dispatcher
    other.register(listener)

    @other.register
    async def parent(path: str) -> None:
        child_id = await other.spawn("listener", path)
        await asyncio.to_thread(wait_until, lambda: os.path.exists(f"{path}.ready"), 20.0)
        inside = SignalDispatcher(other)
        inside.register_handler(TERM)(parent)
        delivered = await inside.send(child_id, TERM)
        Path(f"{path}.told").write_text(f"{child_id} {delivered}")
        await asyncio.sleep(100)  # its child ends with it

    async def main() -> None:
        await other.spawn(parent, str(home / "child"))
        await until(lambda: len(got(home / "child.told")) == 2)
        child_id, delivered = got(home / "child.told")
        assert delivered == "False"
        with directories(home) as environment:
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-m", "agentos", "kill", "-TERM", child_id],
                env=environment, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode == 125
        assert "SIGTERM was not delivered: vetoed by the handler" in done.stderr
        assert heard == [child_id, child_id]
        await other.shutdown()
        again = await listening(other, home / "again")
        assert not await dispatcher.send(again, TERM)
        assert heard[2:] == [again]

    try:
        asyncio.run(main())
    finally:
        asyncio.run(other.shutdown())


def test_a_loop_that_ended_hears_no_more_and_a_thread_of_ours_does(kernel: KernelSpace, home: Path) -> None:
    """Agents started by one asyncio.run and signalled from others, in threads, where plain handlers hang as well."""
    places: list[tuple[str, bool]] = []
    path = home / "signals"
    hang = threading.Event()

    @kernel.signal_dispatcher.register_handler(USR1)
    async def where(agent_id: str, number: AgentSignal) -> bool:
        places.append((threading.current_thread().name, asyncio.get_running_loop().is_running()))
        return kernel.get_agent_status(agent_id).state == "running"

    @kernel.signal_dispatcher.register_handler(USR2)
    def hangs(agent_id: str, number: AgentSignal) -> None:
        hang.wait(60)

    agent_id = asyncio.run(listening(kernel, path))
    stuck = threading.Thread(target=lambda: asyncio.run(kernel.send_signal(agent_id, USR2)))
    other_id = asyncio.run(listening(kernel, home / "other"))
    stuck.start()
    assert asyncio.run(kernel.send_signal(other_id, USR1))
    assert places == [("agentos-handlers", True)]
    stuck.join(60)
    hang.set()
    wait_until(lambda: got(path) == ["SIGUSR2"])
    assert [event.data["reason"] for event in recorded_by(kernel, "signal_handler_failed")] == ["late"]


def test_in_order_means_one_at_a_time_from_all_threads_and_a_rule_s_signal_is_heard_too(
    kernel: KernelSpace, home: Path
) -> None:
    """Deliveries are begun when the one before is confirmed; what a rule sends on a violation can be vetoed as well."""
    dispatcher = SignalDispatcher(kernel, queue_size=4, async_delivery=False)
    at_once: list[int] = []
    running: list[str] = []

    @kernel.signal_dispatcher.register_handler(USR1)
    async def count(agent_id: str, number: AgentSignal) -> None:
        running.append(agent_id)
        at_once.append(len(running))
        await asyncio.sleep(0.05)
        running.remove(agent_id)

    @dispatcher.register_handler(TERM)
    def spare(agent_id: str, number: AgentSignal) -> bool:
        return False

    async def main() -> None:
        first, second = await listening(kernel, home / "a"), await listening(kernel, home / "b")
        threads = [
            asyncio.to_thread(asyncio.run, dispatcher.send(agent_id, USR1)) for agent_id in (first, second, first)
        ]
        assert await asyncio.gather(*threads, dispatcher.send(second, USR1)) == [True] * 4
        sending = [asyncio.ensure_future(dispatcher.send(first, USR1)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(SignalQueueFull, match="SIGUSR2 was not sent: 4 deliveries are under way"):
            await dispatcher.send(second, USR2)
        sending[1].cancel()
        assert await dispatcher.send(second, AgentSignal.SIGKILL)
        assert await asyncio.gather(sending[0], *sending[2:]) == [True] * 3

    asyncio.run(main())
    assert set(at_once) == {1}

    policy = Policy(name="strict about secrets", default_action="allow")
    policy.add_rule("deny", Pattern(operation="read", resource="secret"), on_violation="SIGTERM")
    other = KernelSpace(policy=policy, signal_dispatcher=dispatcher)

    @other.register
    def curious() -> str:
        try:
            act("read", "secret")
        except PolicyViolationError:
            time.sleep(0.2)
        return "goes on"

    try:
        assert asyncio.run(other.execute(curious)) == "goes on"
        assert [event.data["sender"] for event in recorded_by(other, "signal_vetoed")] == ["kernel"]
    finally:
        asyncio.run(other.shutdown())


def test_the_end_of_the_host_ends_a_handler_that_is_waited_for(home: Path) -> None:
    """The kernel waits for no handler of a host that is gone; its agents are gone with it."""
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(HERE)!r})
from agentos import AgentSignal, KernelSpace
kernel = KernelSpace(policy="permissive")

@kernel.register
def sleeper():
    import time
    time.sleep(100)

@kernel.signal_dispatcher.register_handler(AgentSignal.SIGTERM)
async def forever(agent_id, signal):
    print((await kernel._call("inspect", {{"id": agent_id}}))["guard_pid"], flush=True)
    await asyncio.sleep(100)

async def main():
    agent_id = await kernel.spawn(sleeper)
    await kernel.send_signal(agent_id, AgentSignal.SIGTERM)

asyncio.run(main())
"""
    with directories(home) as environment:
        host = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    guard = int(host.stdout.readline())
    host.kill()
    host.wait()
    host.stdout.close()
    wait_until(lambda: not os.path.exists(f"/proc/{guard}"), HANDLER_LIMIT_S * 0.8, "the guard to end")
