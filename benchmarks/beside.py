"""What runs beside the real thing: floors, which nothing could be cheaper than, and parts taken out of the whole.

A program waits for one JSON line of parameters, answers with one, and ends with its standard input, so that it
goes when we go, however we go. Between two questions it sleeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent
END_LIMIT_S: Final = 30.0  # a crowd of a thousand takes a second


class Beside:
    """One of benchmarks.programs, in a process of its own."""

    def __init__(self, name: str, *arguments: object) -> None:
        command = [sys.executable, "-P", "-m", "benchmarks.programs", name, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **parameters: Any) -> Any:
        """Have it measure once; returns what it measured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(parameters) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_LIMIT_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def durable_appends_per_s(directory: Path, size: int, seconds: float) -> float:
    """Return how often a second `size` bytes can be appended to a file and synced, one after the other."""
    path = directory / "appends"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    data = os.urandom(size)
    try:
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            os.write(descriptor, data)
            os.fdatasync(descriptor)
            count += 1
    finally:
        os.close(descriptor)
        path.unlink()
    return count / spent


def process_ms(command: list[str]) -> float:
    """Return the milliseconds from starting a program to having waited for it. Raises when it fails."""
    start = time.perf_counter_ns()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter_ns() - start) / 1e6
