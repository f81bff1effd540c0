"""A kernel to measure: started, warm, its processes known by pid, and gone with everything below it at the end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import cloudpickle

from agentos import KernelSpace
from agentos.client import launch, link
from agentos.policies import Policy
from benchmarks import agents

AGENTS_MAX: Final = 2_000
STARTS_AT_ONCE: Final = 8  # starting is not what the rows with many agents are about

T = TypeVar("T")

# The functions travel as values, so that no agent imports a module of ours before its first line.
cloudpickle.register_pickle_by_value(agents)


class Live:
    """A running kernel. `space` is what users hold; `control` is the socket that the command line uses."""

    def __init__(self, space: KernelSpace, runner: asyncio.Runner) -> None:
        self.space = space
        self._runner = runner
        for function in agents.ALL:
            space.register(function)
        self.run(space.execute(agents.nothing))
        connection = space._connection  # noqa: SLF001 - of all the runs that live here, its own
        assert connection is not None
        self.control = link.connect(connection.run)
        facts = self.control.call("inspect", {"id": space.current_agent_id})
        self.kernel_pid: int = facts["kernel_pid"]
        self.recorder_pid: int = facts["recorder_pid"]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine in the loop of this host program."""
        return self._runner.run(coroutine)

    def execute(self, function: Any, *args: Any) -> Any:
        return self.run(self.space.execute(function, *args))

    def spawn_many(self, function: Any, count: int) -> list[str]:
        """Start `count` agents, wait until each has done its one action, and return their ids."""
        ids = self.run(self._spawn_many(function, count))
        while not all(row["actions_count"] for row in self.rows(ids)):
            time.sleep(0.1)
        return ids

    async def _spawn_many(self, function: Any, count: int) -> list[str]:
        room = asyncio.Semaphore(STARTS_AT_ONCE)

        async def start() -> str:
            async with room:
                return await self.space.spawn(function)

        return await asyncio.gather(*(start() for _ in range(count)))

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the `ps` rows of these agents."""
        wanted = set(ids)
        return [row for row in self.control.call("ps")["agents"] if row["id"] in wanted]


@contextmanager
def kernel(policy: str | Policy = "permissive") -> Iterator[Live]:
    """Start a kernel, yield it warm, and end it with all its agents."""
    space = KernelSpace(policy=policy, max_concurrent_agents=AGENTS_MAX, timeout=3600.0)
    with asyncio.Runner() as runner:
        try:
            yield Live(space, runner)
        finally:
            runner.run(space.shutdown())


@contextmanager
def readable_sentries() -> Iterator[None]:
    """Let kernels that start in here be read by their own user.

    Kernel, zygote and sentry hide their memory from processes of the same uid (PR_SET_DUMPABLE 0), so only root can
    read their PSS. For anybody else they are started without that one prctl; their memory is the same.
    """
    if os.geteuid() == 0:
        yield
        return
    before = launch._BOOT_CODE  # noqa: SLF001 - a user must have no such switch, so there is none
    hidden = "from agentos.supervisor import linux; linux.set_dumpable = lambda _: None; "
    launch._BOOT_CODE = before.replace("from agentos", hidden + "from agentos", 1)  # type: ignore[misc]  # noqa: SLF001
    try:
        yield
    finally:
        launch._BOOT_CODE = before  # type: ignore[misc]  # noqa: SLF001


def two_places() -> tuple[int, set[int]]:
    """Return the CPU for the processes that wait for each other, and the CPUs for all others.

    Waking a process on another CPU costs several times what waking it on one's own does, so that an unpinned ratio
    says where Linux put the processes and not what they do. With a single CPU both are that one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[-1], set(cpus[:-1]) or {cpus[-1]}
