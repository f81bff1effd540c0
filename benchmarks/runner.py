"""Runs benches: a place of their own, rounds into series into outcomes, and nothing left alive behind them."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agentos import __version__
from agentos.supervisor import linux
from benchmarks.method import ROUNDS, ROUNDS_QUICK, Line, Outcome, Reading, judge, settled

Round = Callable[[], Mapping[str, Reading]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured, and where. `directory` is on a disk: the recorder's row is about one."""

    directory: Path
    quick: bool = False

    @property
    def rounds(self) -> int:
        return ROUNDS_QUICK if self.quick else ROUNDS


class Bench(NamedTuple):
    """Lines that are measured together. `rounds` sets everything up and yields the call that measures one round."""

    name: str
    lines: tuple[Line, ...]
    rounds: Callable[[Settings], AbstractContextManager[Round]]


class LeftAlive(RuntimeError):
    """A bench left processes behind; what comes after it would be measured beside them."""


def measure(bench: Bench, settings: Settings, lines: Sequence[Line], say: Callable[[str], None]) -> list[Outcome]:
    """Measure `lines` of one bench until their verdicts are settled. Raises LeftAlive."""
    series: dict[str, list[list[Reading]]] = {line.name: [] for line in lines}
    others = set(linux.children_of(os.getpid()))  # of whoever calls us; they are not the bench's to end
    with bench.rounds(settings) as read:
        while True:
            for of_line in series.values():
                of_line.append([])
            for number in range(settings.rounds):
                say(f"{bench.name}: series {len(series[lines[0].name])}, round {number + 1} of {settings.rounds}")
                for name, reading in read().items():
                    if name in series:
                        series[name][-1].append(reading)
            if settled(lines, series):
                break
    left = [pid for pid in linux.children_of(os.getpid()) if pid not in others]
    if left:
        raise LeftAlive(f"{bench.name} left the processes {', '.join(map(str, left))} behind")
    return [judge(line, series[line.name]) for line in lines]


@contextlib.contextmanager
def place(parent: str | None) -> Iterator[Path]:
    """Enter a private directory for records, logs and workspace, where kernels of nobody else are found."""
    directory = Path(tempfile.mkdtemp(prefix="agentos-benchmarks-", dir=parent or default_parent()))
    work = directory / "work"
    work.mkdir()
    os.environ.update(AGENTOS_RUNTIME_DIR=str(directory / "run"), AGENTOS_STATE_DIR=str(directory / "state"))
    before = os.getcwd()
    os.chdir(work)
    try:
        yield directory
    finally:
        os.chdir(before)
        shutil.rmtree(directory)


def default_parent() -> str:
    """Return /var/tmp where it can be written: unlike /tmp it is never in memory (file-hierarchy(7))."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # noqa: S108 - mkdtemp is private


def host() -> dict[str, Any]:
    """Return what a reader must know to judge the figures."""
    return {
        "agentos": __version__,
        "python": platform.python_version(),
        "linux": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "uid": os.getuid(),
        "load_1m": round(os.getloadavg()[0], 2),
    }
