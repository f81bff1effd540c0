"""Journal and recorder without the rest: a kernel's Recording with clients that wait, and the process that commits.

A client is what an agent's durable action is inside the kernel: append to the journal, wait for the acknowledgement.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import uvloop

from agentos.clock import SystemClock
from agentos.recorder import writer
from agentos.recorder.journal import JournalWriter
from agentos.supervisor import linux
from agentos.supervisor.recorder_link import RecorderLink
from agentos.supervisor.recording import Recording
from agentos.supervisor.zygote_link import ZygoteLink

_ID: Final = "01a20f96-7c69-7d51-8a3f-b2fb3fe00df3"
_DATA: Final = {
    "operation": "execute", "resource": "tools/search", "effect": "allow", "rule": None, "rule_name": None,
    "reason": "default_allow", "layer": "default", "policy_hash": "0" * 64, "level": "hooks", "mechanism": "sdk",
    "action_id": 1234,
}  # fmt: skip


class _Forks:
    """Forks the recorder as the zygote does."""

    async def fork(self, _: str, params: dict[str, Any], descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            _record(params, descriptors)
        return pid


def _record(params: dict[str, Any], descriptors: list[int]) -> NoReturn:
    try:
        linux.close_all_but({2, *descriptors})
        writer.main(descriptors[0], params["journal"], params["database"])
    finally:
        os._exit(0)


@contextmanager
def recorder(directory: str) -> Iterator[Callable[..., float]]:
    """Yield a call that returns how many durable events a second `clients` get together, for some seconds."""
    loop = uvloop.new_event_loop()
    journal = Path(directory, "pair", "journal")
    journal.mkdir(parents=True)
    recording = Recording(loop, JournalWriter(journal, run_id="pair"), SystemClock())
    boot = {"state": str(journal.parent), "database": str(journal.parent / "flight.db")}
    link = RecorderLink(loop, boot, recording, cast("ZygoteLink", _Forks()))
    loop.run_until_complete(link.open())

    def handler(clients: int, seconds: float) -> float:
        return loop.run_until_complete(_events_per_s(recording, clients, seconds))

    yield handler
    loop.run_until_complete(link.stop())
    os.waitpid(link.pid, 0)


async def _events_per_s(recording: Recording, clients: int, seconds: float) -> float:
    begin = time.monotonic()

    async def client() -> int:
        count = 0
        while time.monotonic() < begin + seconds:
            seq = recording.append(
                "action_allowed", _DATA, agent_id=_ID, agent_name="agent", execution_id=_ID, durable=True
            )
            await recording.durable(seq)
            count += 1
        return count

    done = sum(await asyncio.gather(*(client() for _ in range(clients))))
    return done / (time.monotonic() - begin)
