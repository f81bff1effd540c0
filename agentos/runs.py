"""Where runs live on disk and how they are found: runtime directory, state directory, run locks.

A run is one kernel. `<runtime>/runs/<run>/{sock,lock,meta.json}` lives as long as the kernel; its liveness is the
flock on `lock`, never a pid file, because Linux releases a flock at kill -9. `<state>/runs/<run>/` holds the record
and the logs and outlives it. Imports little of the standard library: `ps` and `kill` start through here.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agentos.errors import HostError

_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")  # as agentos.identity makes them
_OURS = frozenset({"runs", "state"})  # what a directory of ours may hold at its top


def runtime_dir() -> Path:
    """Return the directory of live runs, created 0700. Raises HostError when somebody else owns it.

    Never by TMPDIR: two shells of one user that differ in it must see the same runs.
    """
    explicit = os.environ.get("AGENTOS_RUNTIME_DIR")
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if explicit:
        return _private(Path(explicit), "AGENTOS_RUNTIME_DIR")
    if xdg and os.access(xdg, os.W_OK | os.X_OK):
        return _private(Path(xdg) / "agentos", "AGENTOS_RUNTIME_DIR")
    return _private(Path(f"/tmp/agentos-{os.getuid()}"), "AGENTOS_RUNTIME_DIR")  # noqa: S108 - private, and verified


def state_dir() -> Path:
    """Return the directory of records and logs, created 0700. Without a HOME it lies beside the runtime directory."""
    explicit = os.environ.get("AGENTOS_STATE_DIR")
    if explicit:
        return _private(Path(explicit), "AGENTOS_STATE_DIR")
    if is_homeless():
        return _private(runtime_dir() / "state", "AGENTOS_STATE_DIR")
    base = os.environ.get("XDG_STATE_HOME") or Path(os.environ["HOME"]) / ".local" / "state"
    return _private(Path(base) / "agentos", "AGENTOS_STATE_DIR")


def is_homeless() -> bool:
    """Whether the state directory lies beside the runtime directory, which may not outlive a reboot."""
    if os.environ.get("AGENTOS_STATE_DIR") or os.environ.get("XDG_STATE_HOME"):
        return False
    home = os.environ.get("HOME")
    return not home or not os.access(home, os.W_OK | os.X_OK)


def _private(path: Path, variable: str) -> Path:
    """Create `path` 0700 and verify owner, mode and that it is no symlink: a shared one would let others in.

    Returned absolute, because a kernel's working directory is `/`. A directory that holds other things is refused
    rather than closed: who names /tmp or a home by mistake must not find it locked for everybody else.
    """
    path = Path(os.path.abspath(path))
    elsewhere = f"set {variable} to a directory of your own"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        seen = path.lstat()
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid():
            raise HostError(f"{path} must be a directory owned by uid {os.getuid()}; {elsewhere}, or remove it")
        if seen.st_mode & 0o077:
            if not _OURS.issuperset(os.listdir(path)):
                raise HostError(f"{path} is open to others and holds other things; {elsewhere}, or chmod 700 it")
            path.chmod(0o700)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}; {elsewhere}") from error
    return path


class Run(NamedTuple):
    """The paths of one run."""

    run_id: str
    runtime: Path
    state: Path

    @property
    def socket(self) -> Path:
        return self.runtime / "sock"

    @property
    def lock(self) -> Path:
        return self.runtime / "lock"

    @property
    def meta(self) -> Path:
        return self.runtime / "meta.json"

    @property
    def database(self) -> Path:
        return self.state / "flight.db"

    @property
    def journal(self) -> Path:
        return self.state / "journal"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def alive(self) -> bool:
        """Whether the run's kernel holds its lock."""
        return is_held(self.lock)

    def read_meta(self) -> dict[str, Any]:
        """Return what the run says of itself; {} when it has not said anything yet, or nothing that can be read."""
        for place in (self.meta, self.state / "meta.json"):
            found = _read_json(place)
            if isinstance(found, dict):
                return found
        return {}


def is_held(lock: Path) -> bool:
    """Whether somebody alive holds the flock on this file. A link or a pipe in its place is held by nobody."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_json(path: Path) -> Any:
    """Return the content of a regular file, None when there is none. Never waits, whatever lies there."""
    import json  # noqa: PLC0415 - `ps` and `kill` read none

    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), encoding="utf-8") as file:
            return json.load(file) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError, RecursionError):
        return None


def locate(run_id: str, *, runtime: Path | None = None, state: Path | None = None) -> Run:
    """Return the paths of `run_id`; creates nothing."""
    return Run(run_id, (runtime or runtime_dir()) / "runs" / run_id, (state or state_dir()) / "runs" / run_id)


def live_runs() -> Iterator[Run]:
    """Yield the runs whose kernel is alive, oldest first (run ids are time-ordered)."""
    for run in _runs_in(runtime_dir()):
        if run.alive():
            yield run


def recorded_runs() -> Iterator[Run]:
    """Yield every run that left a record, oldest first, alive or not."""
    yield from _runs_in(state_dir())


def _runs_in(place: Path) -> Iterator[Run]:
    """Yield what has a directory below `place` and is called as a run is; what else lies there is none of ours."""
    root = place / "runs"
    for name in sorted(os.listdir(root)) if root.is_dir() else ():
        if _RUN_ID.fullmatch(name) and (root / name).is_dir():
            yield locate(name)
