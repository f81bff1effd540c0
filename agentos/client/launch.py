"""Start a kernel: exec the guard fresh, hand it a socketpair and the boot message, wait for Hello.

Used by KernelSpace and by `agentos run`; afterwards both speak over the same kind of link as every CLI verb.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentos import errors, runs
from agentos.client.link import Link
from agentos.clock import SystemClock
from agentos.identity import new_run_id
from agentos.supervisor.guard import pack_boot

START_LIMIT_S: Final = 60.0
GIVE_UP_S: Final = 5.0  # for a run that did not start to end by itself
SLOTS: Final = 100  # agents that run at once; the others are in line
PROJECT_DIR: Final = Path(__file__).resolve().parent.parent.parent
# -I: no PYTHON* variable and no current directory may decide what the guard imports
_BOOT_CODE: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from agentos.supervisor.guard import main; main(int(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class Started:
    """A kernel that said Hello. `guard` is our child; it ends when nothing of the run lives any more."""

    link: Link
    run: runs.Run
    guard: subprocess.Popen[bytes]


def start_kernel(
    *,
    policy: str = "strict",
    policy_text: str | None = None,
    policy_files: tuple[str, ...] = (),
    workspace: str | None = None,
    attached: bool = True,
    debug: bool = False,
    database: str | None = None,
    keep_record: bool = True,
    slots: int = SLOTS,
    timeout_s: float | None = None,
    preload: Sequence[str] = (),
) -> Started:
    """Start a kernel and return the link to it. Raises PolicyLoadError, BadRequest, HostError or KernelUnavailable."""
    run_id = new_run_id(SystemClock().wall_ns())
    run = runs.locate(run_id)
    if not keep_record:
        run = runs.Run(run_id, run.runtime, run.runtime / "record")
    where = os.path.realpath(workspace or os.getcwd())
    if not os.path.isdir(where):
        raise errors.BadRequest(f"workspace {workspace!r} does not exist; pass --workspace DIR")
    boot: dict[str, Any] = {
        "run_id": run_id, "runtime": str(run.runtime), "state": str(run.state), "logs": str(run.logs),
        "tmp": str(run.runtime / "tmp"), "database": database or str(run.database),
        "storage": "sqlite" if keep_record else "memory",
        "policy": policy, "policy_text": policy_text, "policy_files": list(policy_files), "workspace": where,
        "cwd": os.getcwd(), "attached": attached, "debug": debug,
        "places": [str(runs.state_dir()), str(runs.runtime_dir())],  # of every run, not of this one alone
        "slots": slots, "timeout_s": timeout_s, "preload": list(preload),
        "sys_path": [path or os.getcwd() for path in _with_project(sys.path)],
        "env": dict(os.environ), "host_pid": os.getpid(),
    }  # fmt: skip
    ours, theirs = socket.socketpair()
    with theirs:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT_CODE, str(PROJECT_DIR), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if debug else subprocess.DEVNULL,
            start_new_session=True,  # the terminal's Ctrl-C is for the client, which decides what it means
            cwd="/",
        )
    boot["guard_pid"] = guard.pid
    return _greet(ours, boot, run, guard)


def _greet(ours: socket.socket, boot: dict[str, Any], run: runs.Run, guard: subprocess.Popen[bytes]) -> Started:
    link = Link(ours)
    ours.settimeout(START_LIMIT_S)
    try:
        ours.sendall(pack_boot(boot))
        link.greet("host")
    except (OSError, errors.KernelUnavailable) as error:
        _give_up(ours, guard)
        raise errors.KernelUnavailable(f"the kernel did not start ({error}); `agentos doctor` may tell why") from error
    except errors.AgentosError:
        _give_up(ours, guard)
        raise
    ours.settimeout(None)
    return Started(link, run, guard)


def _give_up(ours: socket.socket, guard: subprocess.Popen[bytes]) -> None:
    ours.close()
    try:
        guard.wait(timeout=GIVE_UP_S)
    except subprocess.TimeoutExpired:
        guard.kill()  # whatever hangs below it sees that, and ends
        guard.wait()


def _with_project(paths: list[str]) -> list[str]:
    project = str(PROJECT_DIR)
    return paths if project in paths else [*paths, project]
