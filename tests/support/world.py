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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from records import recorded

from agentos.client.link import connect
from agentos.recorder.event import AuditEvent
from agentos.runs import locate

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
    """Return every living process on this machine whose environment holds `cookie`.

    Thread by thread: a process whose first thread has ended looks like a zombie and has no environment of its own.
    """
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and _carries(name, cookie.encode()))


def _carries(pid: str, cookie: bytes) -> bool:
    try:
        threads = [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    for thread in threads:
        try:
            state = Path(f"{thread}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in ("Z", "X") and cookie in Path(f"{thread}/environ").read_bytes():
                return True
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return False


@contextmanager
def directories(base: Path) -> Iterator[dict[str, str]]:
    """An environment with state and runtime directories of its own."""
    environment = {**os.environ, "AGENTOS_RUNTIME_DIR": str(base / "run"), "AGENTOS_STATE_DIR": str(base / "state")}
    environment["PYTHONPATH"] = str(PROJECT)
    yield environment


class Host:
    """A host program in a process of its own, with one agent (see host.py). Root may have it run as another user."""

    def __init__(
        self,
        base: Path,
        start: dict[str, Any],
        *,
        limits: dict[str, int] | None = None,
        user: int | None = None,
        **kernel: Any,
    ) -> None:
        self.base = base
        self.cookie = f"agentos-test-{uuid.uuid4().hex}"
        self.work = base / "work"
        self.work.mkdir(exist_ok=True)
        start.setdefault("env", {})["COOKIE"] = self.cookie
        spec = {"cwd": str(self.work), "start": start, "kernel": kernel, "limits": limits or {}}
        as_user = {} if user in (None, os.getuid()) else {"user": user, "group": user, "extra_groups": []}
        if as_user:
            for path in (base, self.work):
                os.chown(path, user or 0, user or 0)
        with directories(base) as environment:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "host.py"), json.dumps(spec)],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **as_user,
            )  # fmt: skip
        self.facts = self._read()

    def call(self, method: str, **params: Any) -> Any:
        self.ask(method, **params)
        return self.answer()

    def ask(self, method: str, **params: Any) -> None:
        """Make a call whose answer is for `answer` to wait for."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": method, "params": {"id": self.facts["id"], **params}}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        return self._read()

    def events(self, kind: str = "") -> list[AuditEvent]:
        """Return what is on record of this run, of one type or all, oldest first."""
        return recorded(self.base / "state" / "runs" / self.facts["run"], kind)

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
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Client:
    """A second client of a host's kernel, over the control socket of the run."""

    def __init__(self, host: Host) -> None:
        self.host = host
        runtime = host.base / "run"
        self.link = connect(locate(host.facts["run"], runtime=runtime, state=host.base / "state"))

    def call(self, method: str, **params: Any) -> Any:
        return self.link.call(method, {"id": self.host.facts["id"], **params})

    def close(self) -> None:
        self.link.close()


@contextmanager
def hostile_host(base: Path, count: int = 12, **start: Any) -> Iterator[Host]:
    """A host whose agent is tests/support/hostile.py with `count` descendants, all seen alive."""
    ticks = base / "ticks"
    ticks.mkdir()
    argv = [SYSTEM_PYTHON, str(HERE / "hostile.py"), str(ticks), str(count)]
    host = Host(base, {"argv": argv, **start})
    try:
        if not start.get("start_paused"):
            wait_until(lambda: len(host.tick_files()) > count, what="the hostile tree to grow")
        yield host
    finally:
        host.close()
