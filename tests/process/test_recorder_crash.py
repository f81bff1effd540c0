"""kill -9 of the kernel and of the recorder at random moments: what was acknowledged is on record, once, in order.

An agent and its host program note outside the run what was acknowledged to them: a verdict received means that the
action is in the journal; a denial received, or a logged event's id, that it is in the database. Both are held to that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import DURABLE, CrashHost, Note, complaints, crash_host, kill, planted, replace, rows_of, tell
from world import state_of, wait_until

ROUNDS = 50
PAUSE_S_MAX = 0.06  # a few hundred events and several commits: every stage of the pipeline is hit by some kill
PLANTED_ROUNDS_MAX = 20


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    seed = time.time_ns() & 0xFFFFFFFF
    tell(f"seed of {request.node.name}: {seed}")
    return random.Random(seed)


def kill_kernel(host: CrashHost, chance: random.Random, name: str) -> list[str]:
    """One round: the recorder lives on and brings the journal home. Returns what is wrong afterwards."""
    pids = host.start(name)
    time.sleep(chance.uniform(0, PAUSE_S_MAX))
    kill(pids["kernel_pid"])
    wait_until(lambda: state_of(pids["pid"]) in ("", "Z"), what="the agent to be gone")
    return complaints(host.recovered(), host.notes())


def kill_both(host: CrashHost, chance: random.Random, name: str) -> list[str]:
    """One round: nobody brings anything home. What was to be durable must be in the database already."""
    pids = host.start(name)
    time.sleep(chance.uniform(0, PAUSE_S_MAX))
    kill(pids["recorder_pid"], pids["kernel_pid"])
    wait_until(lambda: state_of(pids["pid"]) in ("", "Z"), what="the agent to be gone")
    wait_until(lambda: state_of(pids["recorder_pid"]) in ("", "Z"), what="the recorder to be gone")
    stored = {row.seq for row in rows_of(host.run_dir / "flight.db")}
    early = [note for note in host.notes() if note.kind in DURABLE and note.seq not in stored]
    return [f"{note} was said to be durable" for note in early] + complaints(host.recovered(), host.notes())


def test_what_a_killed_kernel_acknowledged_is_on_record(tmp_path: Path, chance: random.Random) -> None:
    acknowledged = []
    with crash_host(tmp_path) as host:
        for number in range(ROUNDS):
            attack = kill_both if number % 2 else kill_kernel
            assert attack(host, chance, f"round-{number}") == []
            acknowledged.append(len(host.notes()))
    tell(f"{ROUNDS} kernels killed, {sum(acknowledged)} acknowledged events, at least {min(acknowledged)} a round")
    assert min(acknowledged) > 0


def test_what_killed_recorders_acknowledged_is_on_record_and_the_agent_lives_on(
    tmp_path: Path, chance: random.Random
) -> None:
    with crash_host(tmp_path) as host:
        first = pids = host.start("notes")
        victims = set()
        for _ in range(ROUNDS):
            seen = len(durable(host.notes()))
            wait_until(lambda seen=seen: len(durable(host.notes())) > seen, 30, "a durable acknowledgement")
            pids = host.pids()
            time.sleep(chance.uniform(0, PAUSE_S_MAX))
            kill(pids["recorder_pid"])
            victims.add(pids["recorder_pid"])
            wait_until(
                lambda old=pids: host.pids()["recorder_pid"] not in {0, old["recorder_pid"]}, 30, "another recorder"
            )
        seen = len(durable(host.notes()))
        wait_until(lambda: len(durable(host.notes())) > seen, 30, "a durable acknowledgement")
        last = host.pids()
        assert (last["kernel_pid"], last["pid"]) == (first["kernel_pid"], first["pid"])
        kill(last["kernel_pid"])
        rows, notes = host.recovered(), host.notes()
    tell(f"{len(victims)} recorders killed, {len(notes)} acknowledged events of {len(rows)} on record")
    assert len(victims) == ROUNDS
    assert complaints(rows, notes) == []
    assert [row.event_type for row in rows].count("recorder_restarted") == ROUNDS


def durable(notes: list[Note]) -> list[Note]:
    return [note for note in notes if note.kind in DURABLE]


ANSWER_FIRST = """

import threading

_held = []

def _answer_first(descriptor, record):
    _held.append(record)
    if len(_held) == 1:
        threading.Timer(0.015, _write, (descriptor,)).start()
    return len(record)

def _write(descriptor):
    records = list(_held)
    os.write(descriptor, b"".join(records))
    del _held[: len(records)]
    if _held:
        threading.Timer(0.015, _write, (descriptor,)).start()
"""


def first_complaint(host: CrashHost, chance: random.Random, attack: Callable[..., list[str]]) -> str:
    """Return what the check says first, of as many rounds as it takes it."""
    found = (attack(host, chance, f"round-{number}") for number in range(PLANTED_ROUNDS_MAX))
    return next((complaint for complaints in found for complaint in complaints), "")


def test_a_journal_that_acknowledges_before_it_writes_is_caught(tmp_path: Path, chance: random.Random) -> None:
    """Planted twice: in the journal, and in the recorder, which would not go on with a journal that lacks something."""
    sound, faulty = "written = os.write(self._descriptor, record)", "written = _answer_first(self._descriptor, record)"
    project = planted(tmp_path, "agentos/recorder/journal.py", sound, faulty, ANSWER_FIRST)
    replace(project / "agentos/recorder/writer.py", "if self._committed < self._announced:", "if False:")
    with crash_host(tmp_path, project) as host:
        assert "was acknowledged, on record is None" in first_complaint(host, chance, kill_kernel)


def test_a_recorder_that_acknowledges_before_it_commits_is_caught(tmp_path: Path, chance: random.Random) -> None:
    sound = "            self._storage.insert_many(events)\n"
    faulty = "            self.acknowledge(events[-1].seq)\n            time.sleep(0.003)\n" + sound
    project = planted(tmp_path, "agentos/recorder/writer.py", sound, faulty, "\nimport time\n")
    with crash_host(tmp_path, project) as host:
        assert "was said to be durable" in first_complaint(host, chance, kill_both)
