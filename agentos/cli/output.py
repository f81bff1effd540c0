"""How the command line speaks: data on stdout, talk on stderr, tables that fit, JSON that never lies.

Not a terminal: no colour, no truncation. Imports the standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from agentos.printable import printable

SEPARATOR: Final = "  "
LAUNCHER: Final = "AGENTOS_LAUNCHER"  # bin/agentos says in it by what name it was called
_COLOURS: Final = {"red": "31", "yellow": "33"}


def ensure_standard_streams() -> None:
    """Open /dev/null in the place of a standard stream that is closed.

    Else the next thing opened would take its number: a socket to the kernel as an agent's stdin, or the record of
    somebody's run as the place where output goes. What is printed to a stdout that was closed is an error all the same,
    found when it is flushed: nobody may take silence for an empty table.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        unwritable = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        sys.stdout = open(unwritable, "w", encoding="utf-8")  # noqa: SIM115  # for life
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # for life


def take_launcher() -> None:
    """Believe bin/agentos about its name; nobody below us needs to know."""
    sys.argv[0] = os.environ.pop(LAUNCHER, sys.argv[0])


def say(text: str) -> None:
    """Print one line of talk on stderr; a stderr that is gone or full is no reason to fail."""
    try:
        sys.stderr.write(talk(text))
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def talk(text: str) -> str:
    """Return `text` as the line that `say` prints."""
    return f"agentos: {printable(text)}\n"


def invocation() -> str:
    """Return what was typed to start this command line, so that a command that we print works as printed."""
    import shlex  # noqa: PLC0415  # only a denial needs it

    launcher = sys.argv[0]
    if os.path.basename(launcher) == "__main__.py":
        return shlex.join(sys.orig_argv[: sys.orig_argv.index("-m") + 2])
    import shutil  # noqa: PLC0415

    name = os.path.basename(launcher)
    found = shutil.which(name)
    return shlex.quote(name if found and os.path.realpath(found) == os.path.realpath(launcher) else launcher)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document. ASCII only, so that what an agent chose cannot reach the terminal as control."""
    import json  # noqa: PLC0415  # `ps` and `kill` without --json start sooner

    print(json.dumps(value, indent=indent, ensure_ascii=True, default=str))


def is_terminal(descriptor: int = 1) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def terminal_width() -> int | None:
    """Return the columns of the terminal on stdout, COLUMNS first; None when stdout is none: then nothing is cut."""
    if not is_terminal():
        return None
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


def coloured(text: str, colour: str) -> str:
    """Return `text` in colour on a terminal, unless NO_COLOR is set (no-color.org)."""
    if not is_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


class Column(NamedTuple):
    """One column. The highest `rank` goes first when the terminal is narrow; `cells_min` is how far it may shrink."""

    title: str
    key: str
    rank: int = 0
    cells_min: int | None = None  # None: whole or not at all
    right: bool = False


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, str]], width: int | None) -> list[str]:
    """Return the lines of a table at most `width` cells wide; None: as wide as its content.

    Shrinkable columns shrink first, then whole columns go, by rank; rank 0 columns always stay.
    """
    cells = [{column.key: printable(row.get(column.key, "")) for column in columns} for row in rows]
    natural = {
        column.key: max([len(column.title), *(cell_width(row[column.key]) for row in cells)]) for column in columns
    }
    kept = list(columns)
    widths = dict(natural)
    if width is not None:
        kept, widths = _fit(kept, natural, width)
    lines = [_line(kept, widths, {column.key: column.title for column in kept})]
    lines += [_line(kept, widths, row) for row in cells]
    return lines if width is None else [cut(line, width) for line in lines]


def _fit(columns: list[Column], natural: Mapping[str, int], width: int) -> tuple[list[Column], dict[str, int]]:
    kept = list(columns)
    while True:
        room = width - len(SEPARATOR) * (len(kept) - 1)
        widths = {column.key: natural[column.key] for column in kept}
        spare = sum(widths.values()) - room
        for column in sorted(kept, key=lambda column: -column.rank):
            if spare > 0 and column.cells_min is not None:
                taken = min(spare, max(0, widths[column.key] - column.cells_min))
                widths[column.key] -= taken
                spare -= taken
        droppable = [column for column in kept if column.rank > 0]
        if spare <= 0 or not droppable:
            return kept, widths
        kept.remove(max(droppable, key=lambda column: column.rank))


def _line(columns: Sequence[Column], widths: Mapping[str, int], row: Mapping[str, str]) -> str:
    parts = []
    for column in columns:
        text = cut(row[column.key], widths[column.key])
        parts.append(padded(text, widths[column.key], right=column.right))
    return SEPARATOR.join(parts).rstrip()


def cut(text: str, cells: int) -> str:
    """Return `text` in at most `cells` terminal cells, with `…` where something is missing."""
    if cell_width(text) <= cells:
        return text
    kept = ""
    for char in text:
        if cell_width(kept + char) > cells - 1:
            break
        kept += char
    return kept + "…" if cells > 0 else ""


def padded(text: str, cells: int, *, right: bool = False) -> str:
    """Return `text` with spaces to at least `cells` terminal cells; to the `right` edge, the spaces come first."""
    padding = " " * (cells - cell_width(text))
    return padding + text if right else text + padding


def cell_width(text: str) -> int:
    """Return how many terminal cells `text` takes (Unicode UAX 11: wide is two, combining is none)."""
    if text.isascii():
        return len(text)
    import unicodedata  # noqa: PLC0415  # only where a name is not ASCII

    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def age(started_at: str | None, now: datetime | None = None) -> str:
    """Return `4s`, `12m`, `3h` or `2d` since an RFC 3339 time; `-` when there is none."""
    try:
        started = datetime.fromisoformat(started_at or "")
    except ValueError:
        return "-"
    seconds = max(0, int(((now or datetime.now(UTC)) - started).total_seconds()))
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86_400}d"
