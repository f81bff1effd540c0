"""Nothing that an agent chose reaches a terminal as anything but text."""

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.cli.logs import Printer
from agentos.cli.output import Column, age, cell_width, cut, say, table
from agentos.logfile import STDOUT, Record
from agentos.printable import printable

SHOWN = [
    ("plain", "plain"),
    ("ä 漢 🙂", "ä 漢 🙂"),
    ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
    ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
    ("a\nb\rc\td", "a\\nb\\rc\\td"),
    ("\x9b31m", "\\x9b31m"),  # C1: an escape sequence in one byte
    ("\x7f\x00", "\\x7f\\x00"),
    ("\u202efdp.exe", "\\u202efdp.exe"),  # right-to-left override
    ("\u2066x\u2069", "\\u2066x\\u2069"),
    ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
    ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
    ("\udcff", "\\udcff"),  # an undecodable byte of a file name
    ("\U000e0041", "\\U000e0041"),  # an invisible tag
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def harmless(text: str) -> bool:
    """Asked of Unicode itself, not of our own code: no control, format, surrogate or separator character."""
    return all(char == " " or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in text)


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_no_control_character_survives(text: str) -> None:
    shown = printable(text)
    assert harmless(shown)
    shown.encode("utf-8", "strict")  # and it can be written anywhere
    assert printable(shown) == shown


ROWS = st.lists(st.fixed_dictionaries({"id": st.text(max_size=40), "name": st.text(max_size=60)}), max_size=5)
COLUMNS = (Column("ID", "id", cells_min=4), Column("NAME", "name", rank=1, cells_min=4))


@given(ROWS, st.integers(20, 200))
def test_a_table_fits_and_is_harmless(rows: list[dict[str, str]], width: int) -> None:
    lines = table(COLUMNS, rows, width)
    assert len(lines) == len(rows) + 1
    assert all(harmless(line) and cell_width(line) <= width for line in lines)


def test_a_narrow_table_keeps_what_matters() -> None:
    columns = (
        Column("ID", "id"),
        Column("NAME", "name", cells_min=6),
        Column("COMMAND", "command", rank=1, cells_min=5),
    )
    row = {"id": "01900000", "name": "a-rather-long-name", "command": "python -m something --with=options"}
    assert table(columns, [row], 40)[1] == "01900000  a-rather-long-name  python -m…"
    assert table(columns, [row], 20)[1] == "01900000  a-rather-…"
    assert table(columns, [row], None)[1].endswith("--with=options")


@given(st.text(), st.integers(0, 20))
def test_cutting_never_exceeds(text: str, cells: int) -> None:
    assert cell_width(cut(printable(text), cells)) <= cells


def test_what_is_said_is_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("denied read \x1b[2J\nagentos: all is well")
    assert capsys.readouterr().err == "agentos: denied read \\x1b[2J\\nagentos: all is well\n"


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_a_log_on_a_terminal_is_harmless_however_it_was_cut(chunks: list[bytes]) -> None:
    out = io.TextIOWrapper(io.BytesIO())
    before, sys.stdout = sys.stdout, out
    try:
        Printer(escaped=[1]).show(Record(0, STDOUT, chunk) for chunk in chunks)
    finally:
        sys.stdout = before
    shown = out.buffer.getvalue().decode()  # type: ignore[attr-defined]  # a BytesIO
    assert harmless(shown.replace("\n", "").replace("\t", ""))


@pytest.mark.parametrize(("seconds", "shown"), [(4, "4s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")])
def test_age(seconds: int, shown: str) -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert age((now - timedelta(seconds=seconds)).isoformat(), now) == shown


def test_age_of_nothing() -> None:
    assert age(None) == "-"
    assert age("yesterday") == "-"
