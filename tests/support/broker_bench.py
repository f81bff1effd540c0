"""A broker over a real journal, one agent with real pipes, and no sentry and no recorder."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import uvloop
from records import RUN

from agentos import wire
from agentos.clock import SystemClock
from agentos.policies import EffectivePolicy, Policy
from agentos.recorder.event import AuditEvent
from agentos.recorder.journal import JournalReader, JournalWriter
from agentos.supervisor.agents import Agent
from agentos.supervisor.broker import Broker
from agentos.supervisor.outbox import Outbox
from agentos.supervisor.recording import Recording

ACT = wire.Act(1, "read", "data/x", None, None, "/", {}, "sdk")


class FaultyPolicy:
    """Fails where a bug of ours would: while it decides."""

    hash = "0"

    def forget(self) -> None:
        pass

    def decide(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("planted")


class Bench:
    """A broker over a real journal, one agent with real pipes, and no sentry and no recorder."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.directory = directory
        self.recording = Recording(self.loop, JournalWriter(directory, run_id=RUN), SystemClock())
        self.delivered: list[str] = []
        self.calls: list[wire.Call] = []
        self.broker = Broker(
            self.loop, self.recording, SystemClock(),
            deliver=lambda _, signal, __: self.delivered.append(signal.name),
            on_call=lambda _, call: self.calls.append(call), notify=lambda *_: None,
        )  # fmt: skip
        self.agent = Agent(
            id="a", name="a", execution_id="a", kind="python", command=[], level="hooks", cwd="/",
            policy=EffectivePolicy(Policy.builtin("permissive"), workspace="/"), policy_name="permissive", context={},
            grace_s=1.0,
        )  # fmt: skip
        self.up_read, self.up = os.pipe()
        self.down, down_write = os.pipe()
        self.agent.descriptors = [self.up_read, down_write]
        self.agent.verdicts = Outbox(self.loop, down_write, lambda _: None)
        self.broker.watch_agent(self.agent, self.up_read)
        self._decoder = wire.Decoder(wire.TO_AGENT_VERDICTS)

    def be_faulty(self) -> None:
        self.agent.policy = cast("EffectivePolicy", FaultyPolicy())

    def send(self, *frames: Any) -> None:
        os.write(self.up, b"".join(map(wire.encode, frames)))

    async def verdicts(self, count: int) -> list[wire.Verdict]:
        os.set_blocking(self.down, False)
        found: list[wire.Verdict] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                with contextlib.suppress(BlockingIOError):
                    found.extend(self._decoder.feed(os.read(self.down, 65_536)))
                await asyncio.sleep(0.002)
        return found

    def recorded(self, kind: str) -> list[AuditEvent]:
        with contextlib.closing(JournalReader(self.directory)) as reader:
            return [event for event in reader.read() if event.event_type == kind]

    def close(self) -> None:
        self.agent.close(self.loop)
        os.close(self.up)
        os.close(self.down)
        self.recording.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came true")


def play(story: Callable[[Bench], Awaitable[None]], directory: Path) -> None:
    async def main() -> None:
        with _bench(directory) as bench:
            await story(bench)

    uvloop.run(main())


@contextlib.contextmanager
def _bench(directory: Path) -> Iterator[Bench]:
    bench = Bench(directory)
    try:
        yield bench
    finally:
        bench.close()
