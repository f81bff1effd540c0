"""A kernel for many agents at once, and what there is of it to count."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from workers import idle, is_denied, work

from agentos import KernelSpace
from agentos.policies import Pattern, Policy, Rule
from agentos.runs import Run


def policy(rules: int) -> Policy:
    """Return a policy with a rule for each of so many tenants; every tenth denies."""
    patterns = [Pattern("read", f"data/tenant_{number}/**") for number in range(rules)]
    made = [Rule("deny" if is_denied(number) else "allow", pattern) for number, pattern in enumerate(patterns)]
    return Policy(name=f"{rules} tenants", rules=made, default_action="allow")


class Crowd:
    """A kernel with room for so many agents at once."""

    def __init__(self, kernel: KernelSpace, base: Path) -> None:
        self.kernel = kernel
        self.signal_file = base / "signal"
        kernel.register(name="work")(work)
        kernel.register(name="idle")(idle)

    async def call(self, method: str, **params: Any) -> Any:
        return await self.kernel._call(method, params)

    async def rows(self, ids: list[str]) -> list[dict[str, Any]]:
        """Return what `agentos ps` shows of these, in their order."""
        found = {row["id"]: row for row in (await self.call("ps"))["agents"]}
        return [found[one] for one in ids]

    @property
    def run(self) -> Run:
        """Where it keeps its record, and what else it has while it lives."""
        assert self.kernel._connection is not None
        return self.kernel._connection.run


@contextmanager
def crowd(base: Path, **kernel: Any) -> Iterator[Crowd]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTOS_RUNTIME_DIR", str(base / "run"))
        patch.setenv("AGENTOS_STATE_DIR", str(base / "state"))
        (base / "work").mkdir()
        patch.chdir(base / "work")
        yield Crowd(KernelSpace(**kernel), base)


def descendants(pid: int) -> set[int]:
    """Return every process below `pid` that lives."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] not in "ZX":
            parents[int(name)] = int(fields[1])
    found, new = set[int](), {pid}
    while new:
        found |= new
        new = {one for one, parent in parents.items() if parent in new} - found
    return found - {pid}


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def pss_bytes(pid: int) -> int:
    """Return the share of memory that is this process's own; 0 where only root may know it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def say(text: str) -> None:
    """For who measures: pytest shows it with -s, and of a test that failed."""
    sys.stdout.write(f"\n{text}\n")
