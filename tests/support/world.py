"""Tools for tests on real processes: they ask Linux, not the code, what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
SYSTEM_PYTHON = "/usr/bin/python3"


def wait_until(condition: Callable[[], Any], limit_s: float = 10.0, what: str = "") -> Any:
    """Return the first true value of `condition`; fail after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what or condition}"
        time.sleep(0.01)


def state_of(pid: int) -> str:
    """Return the letter of /proc/PID/stat, "" when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def ticks_of(pid: int) -> int:
    """Return utime + stime of a process in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def carriers(cookie: str) -> list[int]:
    """Return every living process on this machine whose environment holds `cookie`."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        if cookie.encode() in environment and state_of(int(name)) not in ("", "Z", "X"):
            found.append(int(name))
    return found


@contextmanager
def directories(base: Path) -> Iterator[dict[str, str]]:
    """An environment with state and runtime directories of its own."""
    environment = {**os.environ, "AGENTOS_RUNTIME_DIR": str(base / "run"), "AGENTOS_STATE_DIR": str(base / "state")}
    environment["PYTHONPATH"] = str(PROJECT)
    yield environment


class Host:
    """A host program in a process of its own, with one agent (see host.py)."""

    def __init__(self, base: Path, start: dict[str, Any], **kernel: Any) -> None:
        self.base = base
        self.cookie = f"agentos-test-{uuid.uuid4().hex}"
        self.work = base / "work"
        self.work.mkdir(exist_ok=True)
        start.setdefault("env", {})["COOKIE"] = self.cookie
        spec = {"cwd": str(self.work), "start": start, "kernel": kernel}
        with directories(base) as environment:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "host.py"), json.dumps(spec)],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        self.facts = self._read()

    def call(self, method: str, **params: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": method, "params": {"id": self.facts["id"], **params}}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the host program ended without an answer"
        return json.loads(line)

    def tick_files(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.base / "ticks").iterdir()}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        for pid in carriers(self.cookie):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def hostile_host(base: Path, count: int = 12, **start: Any) -> Iterator[Host]:
    """A host whose agent is tests/process/hostile.py with `count` descendants, all seen alive."""
    ticks = base / "ticks"
    ticks.mkdir()
    argv = [SYSTEM_PYTHON, str(HERE / "hostile.py"), str(ticks), str(count)]
    host = Host(base, {"argv": argv, **start})
    try:
        if not start.get("start_paused"):
            wait_until(lambda: len(carriers(host.cookie)) >= count, what="the hostile tree to grow")
        yield host
    finally:
        host.close()
