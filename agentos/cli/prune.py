"""`agentos prune`: the only verb that removes what was recorded, and only of runs that are over.

A run is over when nobody holds its lock, nor writes its record (a kernel's own lock may lie in a runtime directory that
this terminal does not know, and a FlightRecorder without a kernel has none); its age is that of the last thing written
for it. Whole runs go, never parts of one: a record is complete or gone. A record in a file elsewhere is not the run's
to take along: what only the journal of a crashed run holds is brought there first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from agentos.cli.options import Age
from agentos.cli.output import print_json, say
from agentos.clock import SystemClock, rfc3339
from agentos.runs import Run, is_held, locate, recorded_runs, runtime_dir


@click.command()
@click.option("--older-than", "age_s", type=Age(), required=True, metavar="DURATION", help="For example 90d.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def prune(age_s: float, dry_run: bool, as_json: bool) -> int:
    """Remove records and logs of runs that ended longer ago than DURATION."""
    before_ns = SystemClock().wall_ns() - int(age_s * 1_000_000_000)
    removed = []
    for run in list(recorded_runs()):
        if not run.state.is_dir() or run.state.is_symlink() or run.alive():
            continue
        last_ns, size = _last_written(run.state)
        if last_ns >= before_ns or _is_written(run) or not (dry_run or _is_home(run)):
            continue
        if not dry_run:
            shutil.rmtree(run.state)
            shutil.rmtree(run.runtime, ignore_errors=True)  # a crashed run's; most have none
        removed.append({"run": run.run_id, "bytes": size, "last_written": rfc3339(last_ns), "removed": not dry_run})
        if not as_json:
            word = "would remove" if dry_run else "removed"
            print(f"{word} {run.run_id}  {size / 1_048_576:.1f} MiB  last written {rfc3339(last_ns)}")
    if not dry_run:
        _sweep_leftovers(before_ns)
    if as_json:
        print_json(removed)
    elif not removed:
        say("nothing is that old")
    return 0


def _is_written(run: Run) -> bool:
    """Whether a recorder holds the record open for writing."""
    return is_held(Path(f"{os.path.realpath(run.database)}.lock"))


def _is_home(run: Run) -> bool:
    """Whether a record elsewhere, if there is one, has all that the journal of this run holds; else says why not."""
    if not run.database.is_symlink() or not run.database.is_file():
        return True  # it goes with the run, or went before it
    from agentos.errors import RecorderUnavailable  # noqa: PLC0415 - SQLite, for few
    from agentos.recorder.journal import JournalDamaged  # noqa: PLC0415 - as above
    from agentos.recorder.recover import recover  # noqa: PLC0415 - as above

    try:
        recover(run.state)
    except (JournalDamaged, RecorderUnavailable) as error:
        say(f"{run.run_id} is kept, its journal holds what {os.path.realpath(run.database)} does not: {error}")
        return False
    return True


def _last_written(root: Path) -> tuple[int, int]:
    """Return the newest change below `root` in wall nanoseconds, and the bytes that files take."""
    newest, size = root.lstat().st_mtime_ns, 0
    for folder, _, names in os.walk(root):
        for name in names:
            seen = os.lstat(os.path.join(folder, name))
            newest, size = max(newest, seen.st_mtime_ns), size + seen.st_size
    return newest, size


def _sweep_leftovers(before_ns: int) -> None:
    """Remove the runtime directories of crashed runs: no lock is held there and no record is left."""
    for run in _dead_runtimes():
        if not run.state.exists() and run.runtime.lstat().st_mtime_ns < before_ns:
            shutil.rmtree(run.runtime)


def _dead_runtimes() -> Iterator[Run]:
    root = runtime_dir() / "runs"
    for name in sorted(os.listdir(root)) if root.is_dir() else ():
        run = locate(name)
        if run.runtime.is_dir() and not run.alive():
            yield run
