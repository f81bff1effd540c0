"""The examples run as they stand; the one with a policy is the main job, tested by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from world import PROJECT


def test_the_host_program_runs_pauses_and_tells(tmp_path: Path) -> None:
    place = {"AGENTOS_RUNTIME_DIR": str(tmp_path / "run"), "AGENTOS_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "examples/embedded.py"], cwd=PROJECT, env={**os.environ, **place, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert "'refused': 'not_permitted'" in told[0]
    assert told[1:] == [
        "the clock is stopped",
        "the clock ticked 10 times",
        "on record: analyst network https://example.org/upload",
    ]
