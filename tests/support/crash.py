"""Killing kernels and recorders under load, and the check that nothing acknowledged is lost, doubled or out of order.

The check asks the database through the standard library's SQLite and the notes that lie outside the run directory;
of the code under test it uses only `recover`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world import HERE, PROJECT, directories, wait_until

from agentos.errors import RecorderUnavailable
from agentos.recorder.recover import recover

DURABLE = ("denied", "logged")


@dataclass(frozen=True)
class Note:
    """One acknowledgement that arrived: of the agent's or the host's event `number`, on record as `seq`."""

    kind: str  # allowed | denied | logged
    number: int
    seq: int


def read_notes(path: Path) -> list[Note]:
    """Return the whole lines that say that something was acknowledged; the last may be half written."""
    if not path.exists():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    assert "end" not in lines, "the load ended before the kill"
    words = (line.split() for line in lines if not line.startswith("refused"))
    return [Note(kind, int(number), int(seq)) for kind, number, seq in words]


@dataclass(frozen=True)
class Row:
    seq: int
    event_type: str
    agent_id: str
    data: dict[str, Any]


def rows_of(database: Path) -> list[Row]:
    """Return every event of a database of one run, in the order of its keys."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT seq, event_type, agent_id, data FROM events ORDER BY id").fetchall()
    return [Row(seq, event_type, agent_id, json.loads(data)) for seq, event_type, agent_id, data in found]


def complaints(rows: list[Row], notes: list[Note], refused: Collection[int] = ()) -> list[str]:
    """Return what is wrong with a record, given what was acknowledged: gaps, doubles, losses, disorder.

    Of the agent's actions only those may be missing that were `refused`.
    """
    found = []
    seqs = [row.seq for row in rows]
    if seqs != list(range(1, len(rows) + 1)):
        found.append(f"the numbers are not 1 to {len(rows)}, each once, in order")
    actions = [int(row.data["resource"].removeprefix("data/")) for row in rows if is_action(row)]
    expected = set(range(max(actions, default=-1) + 1)) - (set(refused) - set(actions))
    if actions != sorted(expected):
        found.append("the agent's actions are not on record each once, in order")
    by_seq = {row.seq: row for row in rows}
    for note in notes:
        row = by_seq.get(note.seq)
        if row is None or not says(row, note):
            found.append(f"{note} was acknowledged, on record is {row}")
    return found


def is_action(row: Row) -> bool:
    return row.event_type in ("action_allowed", "policy_violation") and row.data["resource"].startswith("data/")


def says(row: Row, note: Note) -> bool:
    if note.kind == "logged":
        return row.event_type == "mark" and row.data == {"number": note.number}
    expected = "policy_violation" if note.kind == "denied" else "action_allowed"
    return row.event_type == expected and row.data["resource"] == f"data/{note.number}"


class CrashHost:
    """The host program of crash_host.py, out of `project`: this checkout, or a copy with a fault planted in it."""

    def __init__(self, base: Path, project: Path = PROJECT) -> None:
        self.base = self.notes_path = base
        (base / "work").mkdir()
        with directories(base) as environment:
            environment["PYTHONPATH"] = str(project)
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "crash_host.py"), str(base)],
                env=environment, cwd=base / "work", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        self.run_dir = Path()

    def start(self, name: str, database: Path | None = None) -> dict[str, Any]:
        """Start a kernel under load; returns once the agent and the host both have an acknowledgement each."""
        self.notes_path = self.base / name
        pids = self._ask({"start": name, "database": None if database is None else str(database)})
        self.run_dir = Path(pids["run_dir"])
        wait_until(lambda: {note.kind for note in self.notes()} >= {"allowed", *DURABLE}, 30, "acknowledgements")
        return pids

    def pids(self) -> dict[str, Any]:
        return self._ask({"pids": True})

    def notes(self) -> list[Note]:
        return read_notes(self.notes_path)

    def refusals(self) -> dict[int, str]:
        """The agent's actions that were refused without a record of their own, and why."""
        lines = [line.split(" ", 2) for line in self.notes_path.read_text().splitlines() if line.startswith("refused")]
        return {int(number): reason for _, number, reason in lines}

    def recovered(self) -> list[Row]:
        """The record at the next open, once every writer is gone."""
        wait_until(self._recover, 30, "the recorder to leave the database")
        assert recover(self.run_dir) == 0
        return rows_of(self.run_dir / "flight.db")

    def _recover(self) -> bool:
        try:
            recover(self.run_dir)
        except RecorderUnavailable:
            return False
        return True

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the host program ended without an answer"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def crash_host(base: Path, project: Path = PROJECT) -> Iterator[CrashHost]:
    host = CrashHost(base, project)
    try:
        yield host
    finally:
        host.close()


def tell(what: str) -> None:
    """Say it to whoever reads the test's output: seeds and counts."""
    print(what)


def kill(*pids: int) -> None:
    for pid in pids:
        assert pid > 1, "0 would be our own process group"
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def planted(base: Path, file: str, sound: str, faulty: str, extra: str = "") -> Path:
    """Return a copy of the product in which `file` says `faulty` instead of `sound`, and `extra` at its end."""
    copy = base / "planted"
    for name in ("agentos", "agent_os", "supervisor", "sandbox", "policies"):
        shutil.copytree(PROJECT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    replace(copy / file, sound, faulty, extra)
    return copy


def replace(path: Path, sound: str, faulty: str, extra: str = "") -> None:
    text = path.read_text()
    assert text.count(sound) == 1, f"{path.name} has changed: plant the fault anew"
    path.write_text(text.replace(sound, faulty) + extra)
