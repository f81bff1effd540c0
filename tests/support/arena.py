"""One kernel, one agent that acts all the while, and room for others that behave badly beside it.

The bystander writes down how often it acted and how long it waited for the slowest verdict since it was last asked, so
that a test can say that others were untouched, and how much.
"""

from __future__ import annotations

import asyncio
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from attackers import NOTES, bystander
from records import recorded
from world import wait_until

from agentos import KernelSpace, errors
from agentos.recorder.event import AuditEvent


class Waits(NamedTuple):
    """What the bystander lived through since it was last asked."""

    actions: int
    worst_s: float
    mean_s: float


class Arena:
    def __init__(self, kernel: KernelSpace, notes: mmap.mmap) -> None:
        self.kernel = kernel
        self._notes = notes
        self._seen = (0, 0.0)
        self.bystander_id = ""

    @property
    def state_dir(self) -> Path:
        assert self.kernel._connection is not None
        return self.kernel._connection.run.state

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 60.0, **options: Any) -> Any:
        """Execute `function` as an agent of its own kind and return what it returns, or raise what it failed with."""
        name = f"{function.__name__}-{time.monotonic_ns()}"
        self.kernel.register(name=name, **options)(function)
        return asyncio.run(self.kernel.execute(name, *args, timeout=timeout))  # type: ignore[arg-type]

    def start(self, function: Callable[..., Any], *args: Any, **options: Any) -> str:
        """Start `function` as an agent and return its id."""
        name = f"{function.__name__}-{time.monotonic_ns()}"
        self.kernel.register(name=name, **options)(function)
        return asyncio.run(self.kernel.spawn(name, *args))  # type: ignore[arg-type]

    def fails(self, function: Callable[..., Any], *args: Any, **options: Any) -> errors.AgentFailed:
        """Run an agent that must end without a result; returns how it ended."""
        with pytest.raises(errors.AgentFailed) as caught:
            self.run(function, *args, **options)
        return caught.value

    def call(self, method: str, **params: Any) -> Any:
        return asyncio.run(self.kernel._call(method, params))

    def inspect(self, agent_id: str = "") -> dict[str, Any]:
        return dict(self.call("inspect", id=agent_id or self.bystander_id))

    def events(self, kind: str = "", agent_id: str = "") -> list[AuditEvent]:
        """Return what is on record, of one type or of one agent."""
        return recorded(self.state_dir, kind, agent_id)

    def kernel_bytes(self) -> int:
        """Return the resident memory of the kernel process."""
        pages = int(Path(f"/proc/{self.inspect()['kernel_pid']}/statm").read_text().split()[1])
        return pages * mmap.PAGESIZE

    def descriptors(self) -> int:
        """Return how many descriptors the kernel keeps; for a moment it has one more, to remove a directory."""
        samples = []
        for _ in range(5):
            samples.append(int(self.inspect()["kernel_descriptors"]))
            time.sleep(0.01)
        return min(samples)

    def waits(self) -> Waits:
        """Return how the bystander fared since the last call."""
        actions, worst_s, sum_s = NOTES.unpack_from(self._notes)
        before, sum_before = self._seen
        self._seen = actions, sum_s
        NOTES.pack_into(self._notes, NOTES.size, 1, 0.0, 0.0)  # asks it to begin anew with the worst
        mean_s = (sum_s - sum_before) / max(1, actions - before)
        return Waits(actions - before, worst_s, mean_s)

    def assert_bystander_acts(self, actions: int = 20) -> None:
        """The one agent that did nothing wrong lives, is the same process, and is answered."""
        before = self.inspect()
        assert before["state"] == "running", (before, self.events(agent_id=self.bystander_id)[-5:])
        begin = NOTES.unpack_from(self._notes)[0]
        wait_until(lambda: NOTES.unpack_from(self._notes)[0] >= begin + actions, what="the bystander to act")
        assert self.inspect()["pid"] == before["pid"]


@contextmanager
def arena(base: Path, witness: Callable[[str], int] = bystander, **kernel: Any) -> Iterator[Arena]:
    """A kernel with its bystander; both must have been well to the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTOS_RUNTIME_DIR", str(base / "run"))
        patch.setenv("AGENTOS_STATE_DIR", str(base / "state"))
        (base / "work").mkdir()
        patch.chdir(base / "work")
        path = base / "bystander"
        path.write_bytes(bytes(2 * NOTES.size))
        with open(path, "r+b") as file:
            notes = mmap.mmap(file.fileno(), 2 * NOTES.size)
        kernel = {"policy": "permissive", "max_concurrent_agents": 400, **kernel}
        made = Arena(KernelSpace(**kernel), notes)
        try:
            made.bystander_id = made.start(witness, str(path))
            wait_until(lambda: made.waits().actions > 0, what="the bystander to act")
            yield made
            path.unlink()
            assert asyncio.run(made.kernel.wait_all([made.bystander_id]))[0] > 0
            assert [one.data for one in made.events("kernel_fault")] == []
        finally:
            asyncio.run(made.kernel.shutdown())


def beside(work: Callable[[], Any]) -> threading.Thread:
    """Run `work` in a thread of the test."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
