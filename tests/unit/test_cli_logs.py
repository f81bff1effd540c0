"""A log as a person sees it: lines put together, streams apart, every gap said."""

from pathlib import Path

import pytest

from agentos.cli import logs
from agentos.cli.logs import Lines, Printer
from agentos.logfile import NOTE, STDERR, STDOUT, Gap, LogReader, LogWriter, Record

AGENT = "01900000-aaaa-7000-8000-000000000001"


def test_lines_are_put_together_each_stream_by_itself() -> None:
    lines = Lines()
    entries = [Record(1, STDOUT, b"one\ntw"), Record(2, STDERR, b"err"), Record(3, STDOUT, b"o\n\nthree"), Gap(5)]
    assert list(lines.feed(entries)) == [
        Record(1, STDOUT, b"one\n"),
        Record(1, STDOUT, b"two\n"),  # its first byte came with the first record
        Record(3, STDOUT, b"\n"),
        Gap(5),
    ]
    assert list(lines.flush()) == [Record(3, STDOUT, b"three\n"), Record(2, STDERR, b"err\n")]
    assert list(lines.flush()) == []


def test_a_carriage_return_ends_no_line() -> None:
    assert list(Lines().feed([Record(1, STDOUT, b"10%\r20%\r\n")])) == [Record(1, STDOUT, b"10%\r20%\r\n")]


def test_a_line_without_end_is_shown_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINE_BYTES_MAX", 4)
    assert list(Lines().feed([Record(1, STDOUT, b"abcdef")])) == [Record(1, STDOUT, b"abcdef")]


def test_streams_gaps_and_drops_go_where_they_belong(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Printer().show(
        [
            Record(1, STDOUT, b"out\x1b[31m\n"),
            Gap(1234),
            Record(2, STDERR, b"err\n"),
            Record(3, NOTE, b"7 bytes dropped: disk\n"),
        ]
    )
    out, err = capfdbinary.readouterr()
    assert out == b"out\x1b[31m\n"  # no terminal: byte for byte
    missed = "1234 bytes missed: the log was rotated before they were read"
    assert err.decode() == f"agentos: … {missed} …\nerr\nagentos: … 7 bytes dropped: disk …\n"


def test_only_stderr_goes_to_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Printer(only_stderr=True).show([Record(1, STDOUT, b"out\n"), Record(2, STDERR, b"err\n")])
    assert capfdbinary.readouterr() == (b"err\n", b"")


def test_times_begin_the_lines(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Printer(times=True).show(Lines().feed([Record(1_000_000_000, STDOUT, b"a\nb\n")]))
    stamp = b"1970-01-01T00:00:01.000000Z "
    assert capfdbinary.readouterr().out == stamp + b"a\n" + stamp + b"b\n"


def test_a_character_cut_by_a_record_is_whole_on_a_terminal(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    whole = "ä\x1b!\n".encode()
    Printer(escaped=[1]).show([Record(1, STDOUT, whole[:1]), Record(2, STDOUT, whole[1:])])
    assert capfdbinary.readouterr().out.decode() == "ä\\x1b!\n"


@pytest.mark.parametrize(
    ("last", "only_stderr", "shown"),
    [
        (2, False, (b"4\npart", b"")),
        (3, False, (b"4\npart", b"3\n")),
        (0, False, (b"", b"")),
        (9, True, (b"3\n", b"")),
        (None, False, (b"1\n2\n4\npart", b"3\n")),
    ],
)
def test_the_last_lines(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    last: int | None,
    only_stderr: bool,
    shown: tuple[bytes, bytes],
) -> None:
    writer = LogWriter(str(tmp_path), AGENT)
    for stream, data in ((STDOUT, b"1\n2\n"), (STDERR, b"3\n"), (STDOUT, b"4\npart")):
        writer.append(stream, data, 1)
    writer.close()
    printer = Printer(only_stderr=only_stderr)
    logs._show_present(LogReader(tmp_path, AGENT), printer, None, last, only_stderr=only_stderr)
    assert capfdbinary.readouterr() == shown


def test_what_not_even_a_note_could_say_is_said_from_the_kernels_count(tmp_path: Path) -> None:
    reader = LogReader(tmp_path, AGENT)
    text = "… 7 bytes of output could not be kept: the disk {} full …"
    assert logs.unkept({"log_dropped_bytes": 7}, reader) == text.format("is")
    assert logs.unkept({"log_dropped_bytes": 7, "source": "record"}, reader) == text.format("was")
    reader.dropped = 7  # a note said it
    assert logs.unkept({"log_dropped_bytes": 7}, reader) == ""
    assert logs.unkept({}, reader) == ""
