"""Whether what a kernel shows is what Linux says: a sampler that asks both all the time, and a judge of what it saw.

The judge is pure. A lie is a disagreement that lasts longer than LIMIT_S of the time in which those who would have to
end it had a processor: Linux says of each process how long it was ready to run and was not let (/proc/PID/schedstat).
What a sampler that was itself late cannot know it does not claim: a disagreement is counted anew after such a gap.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from agentos.client.link import Link
from agentos.supervisor import tree

LIMIT_S = 0.05
LATE_S = 0.01  # between two samples, or in one
LOOKS_MIN = 12  # in a row: fewer may all have fallen into moments of a change, of which a storm has a thousand a second
PAUSE_S_MAX = 0.001  # drawn anew each time: a sampler in step with what it watches sees one side of it only


class Sample(NamedTuple):
    """One look at both, in this order: Linux, the kernel's answer, Linux again. True stands for stopped."""

    begin_s: float
    before: bool
    asked_s: float
    shown: bool
    answered_s: float
    after: bool
    end_s: float
    held_up_s: float = 0.0  # so far, those who work for this agent waited for a processor

    @property
    def disagrees(self) -> bool:
        return self.before == self.after != self.shown


class Lie(NamedTuple):
    shown: bool
    since_s: float
    lasted_s: float


def lies(samples: Sequence[Sample]) -> list[Lie]:
    """Return every disagreement without a gap that lasted longer than LIMIT_S; `samples` are of one agent, in order."""
    found, run = [], list[Sample]()
    for index, one in enumerate(samples):
        goes_on = bool(run) and one.shown == run[-1].shown and one.disagrees and not is_late(one, run[-1])
        if not goes_on:
            found += _judged(run, ended_by=one)
            run = []
        if one.disagrees:
            run.append(one)
        if index == len(samples) - 1:
            found += _judged(run, ended_by=one)
    return found


def _judged(run: list[Sample], ended_by: Sample) -> list[Lie]:
    if len(run) < LOOKS_MIN:
        return []
    lasted_s = run[-1].asked_s - run[0].answered_s
    held_up_s = ended_by.held_up_s - run[0].held_up_s  # Linux adds it up when the waiting ends
    return [Lie(run[0].shown, run[0].answered_s, lasted_s)] if lasted_s - held_up_s > LIMIT_S else []


def is_late(one: Sample, before: Sample) -> bool:
    return one.begin_s - before.end_s > LATE_S or one.end_s - one.begin_s > LATE_S


def seen_s(samples: Sequence[Sample]) -> float:
    """Return for how many seconds the sampler was there in time."""
    return sum(one.end_s - before.end_s for before, one in itertools.pairwise(samples) if not is_late(one, before))


class Sampler(threading.Thread):
    """Samples several agents in turn, over a link of its own, from `start` until `finish`."""

    def __init__(self, link: Link, agents: Iterable[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self.samples: dict[str, list[Sample]] = {}
        self._link = link
        self._chance = random.Random()
        self._done = threading.Event()
        self._watched = {one["id"]: _Watched(one) for one in agents}

    def run(self) -> None:
        while not self._done.is_set():
            for agent_id, watched in self._watched.items():
                self.samples.setdefault(agent_id, []).append(self._sample(agent_id, watched))
                time.sleep(self._chance.random() * PAUSE_S_MAX)

    def _sample(self, agent_id: str, watched: _Watched) -> Sample:
        held_up_s = watched.held_up_s()
        begin_s, before = time.monotonic(), watched.is_stopped()
        asked_s = time.monotonic()
        shown = self._shown(agent_id) == "stopped"
        answered_s, after = time.monotonic(), watched.is_stopped()
        return Sample(begin_s, before, asked_s, shown, answered_s, after, time.monotonic(), held_up_s)

    def _shown(self, agent_id: str) -> str:
        """Ask as `get_agent_status` does, or as `agentos ps` does."""
        if self._chance.random() < 0.5:
            return str(self._link.call("status", {"id": agent_id})["state"])
        return next(str(row["state"]) for row in self._link.call("ps")["agents"] if row["id"] == agent_id)

    def finish(self) -> dict[str, list[Sample]]:
        """Stop sampling; returns the samples of each agent."""
        self._done.set()
        self.join(30)
        assert not self.is_alive(), "the kernel does not answer the sampler"
        for watched in self._watched.values():
            watched.close()
        self._link.close()
        return self.samples


class _Watched:
    """The files of /proc that are read a thousand times a second, kept open."""

    def __init__(self, agent: dict[str, Any]) -> None:
        tree_pids = (one.pid for one in tree.members(agent["sentry_pid"]))  # each of it must run to become stopped
        self._stat = os.open(f"/proc/{agent['pid']}/stat", os.O_RDONLY)
        self._schedules = [
            os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
            for pid in (agent["kernel_pid"], agent["sentry_pid"], *tree_pids)
        ]

    def is_stopped(self) -> bool:
        return os.pread(self._stat, 4_096, 0).rpartition(b")")[2].split()[0] in (b"T", b"t")

    def held_up_s(self) -> float:
        return sum(int(os.pread(one, 100, 0).split()[1]) for one in self._schedules) / 1e9

    def close(self) -> None:
        for descriptor in (self._stat, *self._schedules):
            os.close(descriptor)
