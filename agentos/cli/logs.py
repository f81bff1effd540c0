"""`agentos logs`: what an agent printed, with every gap said.

What the agent wrote goes through byte for byte when stdout is no terminal. On a terminal its control characters are
shown as escapes, because a log is read by somebody who did not choose to run that program there; `--raw` passes them.
The agent's stdout goes to stdout, its stderr to stderr, gaps and drops to stderr.
"""

from __future__ import annotations

import codecs
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import click

from agentos import wire
from agentos.cli.calls import Conversation, open_link
from agentos.cli.output import is_terminal, say
from agentos.cli.past import find_agents
from agentos.cli.targets import Agent
from agentos.clock import rfc3339
from agentos.errors import KernelUnavailable, UnknownAgent
from agentos.logfile import NOTE, STDERR, STDOUT, Gap, LogReader, Record
from agentos.printable import escape

STREAMS: Final = {STDOUT: 1, STDERR: 2}  # where each stream of a log goes
LINE_BYTES_MAX: Final = 1024 * 1024  # a program that never ends its line is shown in pieces, not kept in memory
_KEPT_ON_A_TERMINAL: Final = frozenset("\n\t")


class Lines:
    """Puts records together to whole lines, each stream by itself; a line has the time of its first byte."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, bytearray]] = {}

    def feed(self, entries: Iterable[Record | Gap]) -> Iterator[Record | Gap]:
        for entry in entries:
            if isinstance(entry, Gap) or entry.stream == NOTE:
                yield entry
            else:
                yield from self._split(entry)

    def flush(self) -> Iterator[Record]:
        """Yield the lines that were never ended."""
        for stream, (wall_ns, data) in sorted(self._open.items()):
            yield Record(wall_ns, stream, bytes(data) + b"\n")
        self._open.clear()

    def _split(self, record: Record) -> Iterator[Record]:
        wall_ns, held = self._open.pop(record.stream, (record.wall_ns, bytearray()))
        for piece in _split_at_lf(record.data):
            held += piece
            if piece.endswith(b"\n") or len(held) >= LINE_BYTES_MAX:
                yield Record(wall_ns, record.stream, bytes(held))
                wall_ns, held = record.wall_ns, bytearray()
        if held:
            self._open[record.stream] = (wall_ns, held)


def _split_at_lf(data: bytes) -> list[bytes]:
    """Split at line feeds only: a carriage return redraws a line, it does not end it."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def merge_notes(entries: Iterable[Record | Gap]) -> Iterator[Record | Gap]:
    """Say the drops that follow each other once, with their sum: a full disk drops every few kilobytes."""
    held: Record | None = None
    for entry in entries:
        if held is not None and isinstance(entry, Record) and entry.stream == NOTE:
            held = _sum(held, entry)
            continue
        if held is not None:
            yield held
        held = entry if isinstance(entry, Record) and entry.stream == NOTE else None
        if held is None:
            yield entry
    if held is not None:
        yield held


def _sum(one: Record, other: Record) -> Record:
    """Add up `7 bytes dropped: disk`; what a note of another make says is kept beside it."""
    (first, _, rest), (second, _, what) = one.data.partition(b" "), other.data.partition(b" ")
    if first.isdigit() and second.isdigit() and rest == what:
        return Record(one.wall_ns, NOTE, b"%d %b" % (int(first) + int(second), rest))
    return Record(one.wall_ns, NOTE, one.data.rstrip() + b"; " + other.data)


def remark(entry: Record | Gap) -> str:
    """Return what is to be said between the lines, because the log itself cannot."""
    if isinstance(entry, Gap):
        return f"… {entry.missed_bytes} bytes missed: the log was rotated before they were read …"
    return f"… {entry.data.decode('utf-8', 'replace').strip()} …"


def unkept(row: Mapping[str, Any], reader: LogReader) -> str:
    """Return what is to be said when the disk had no room even for the notes of what it refused; "" when it had."""
    missing = int(row.get("log_dropped_bytes") or 0) - reader.dropped
    tense = "was" if row.get("source") == "record" else "is"
    return f"… {missing} bytes of output could not be kept: the disk {tense} full …" if missing > 0 else ""


class Printer:
    """Writes records to our own stdout and stderr, in the order of the log even where both are the same file."""

    def __init__(
        self, *, escaped: Collection[int] = (), times: bool = False, only_stderr: bool = False
    ) -> None:  # `escaped`: the descriptors behind which a terminal is
        self._escaped = escaped
        self._times = times
        self._only_stderr = only_stderr
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}
        self._last = sys.stdout.buffer

    def show(self, entries: Iterable[Record | Gap]) -> None:
        """Write what there is and flush. Raises BrokenPipeError when the reader has left."""
        for entry in merge_notes(entries):
            if isinstance(entry, Gap) or entry.stream == NOTE:
                self._last.flush()
                say(remark(entry))
            elif entry.stream == STDERR or not self._only_stderr:
                self._write(entry)
        self._last.flush()

    def _write(self, record: Record) -> None:
        number = 1 if self._only_stderr else STREAMS[record.stream]
        out = (sys.stdout if number == 1 else sys.stderr).buffer
        if out is not self._last:
            self._last.flush()
            self._last = out
        data = self._escape(record) if number in self._escaped else record.data
        stamp = f"{rfc3339(record.wall_ns)} ".encode() if self._times else b""
        out.write(stamp + data)

    def _escape(self, record: Record) -> bytes:
        decoder = self._decoders.get(record.stream)
        if decoder is None:
            decoder = self._decoders[record.stream] = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        text = decoder.decode(record.data).replace("\r\n", "\n")
        shown = (char if char.isprintable() or char in _KEPT_ON_A_TERMINAL else escape(char) for char in text)
        return "".join(shown).encode("utf-8", "backslashreplace")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until the agent ends.")
@click.option(
    "-n",
    "--lines",
    "--tail",
    "last",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only the last N lines of what is there.",
)
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time (RFC 3339, UTC).")
@click.option("--stderr", "only_stderr", is_flag=True, help="Only the agent's stderr, on stdout.")
@click.option("--raw", is_flag=True, help="Pass control characters to the terminal.")
@click.argument("target")
def logs(follow: bool, last: int | None, timestamps: bool, only_stderr: bool, raw: bool, target: str) -> int:
    """Show what an agent printed: its stdout on stdout, its stderr on stderr; with -f also what its next lives print."""
    found, unknown = find_agents([target])
    if unknown:
        raise unknown[0]
    if len(found) > 1:
        raise UnknownAgent(target, matches=[f"{agent.id} ({agent.name})" for agent in found])
    agent = found[0]
    reader = LogReader(agent.run.logs, agent.id)
    escaped = () if raw else [number for number in (1, 2) if is_terminal(number)]
    printer = Printer(escaped=escaped, times=timestamps, only_stderr=only_stderr)
    lines = Lines() if timestamps else None
    _show_present(reader, printer, lines, last, only_stderr=only_stderr)
    last_row = _follow(agent, reader, printer, lines) if follow and agent.living else agent.row
    while follow and last_row.get("next_id"):  # it was restarted: each life has a log of its own
        if text := unkept(last_row, reader):
            say(text)
        agent = Agent({"id": last_row["next_id"], "name": agent.name, "ended_at": None}, agent.run)
        reader = LogReader(agent.run.logs, agent.id)
        last_row = _follow(agent, reader, printer, lines)
    if lines is not None:
        printer.show(lines.flush())
    if text := unkept(last_row, reader):
        say(text)
    return 0


def _show_present(
    reader: LogReader, printer: Printer, lines: Lines | None, last: int | None, *, only_stderr: bool
) -> None:
    entries: Iterable[Record | Gap] = reader.read()
    if last is not None:
        whole = lines or Lines()
        wanted = (entry for entry in whole.feed(entries) if not only_stderr or _is_stderr(entry))
        kept = deque(wanted, maxlen=last)
        unfinished = [
            _without_newline(record)
            for record in (() if lines else whole.flush())
            if not only_stderr or _is_stderr(record)
        ]
        printer.show([*kept, *unfinished][-last:] if last else [])
        return
    printer.show(entries if lines is None else lines.feed(entries))


def _is_stderr(entry: Record | Gap) -> bool:
    return isinstance(entry, Gap) or entry.stream in {STDERR, NOTE}


def _without_newline(record: Record) -> Record:
    """Undo flush's newline: what follows may still belong to this line."""
    return Record(record.wall_ns, record.stream, record.data.removesuffix(b"\n"))


def _follow(agent: Agent, reader: LogReader, printer: Printer, lines: Lines | None) -> Mapping[str, Any]:
    """Show what comes until the agent ends; returns the last that is known of it. The kernel rings, the log is read."""
    row: Mapping[str, Any] | None = None
    try:
        conversation = Conversation(open_link(agent.run))
    except KernelUnavailable:
        printer.show(_as_lines(reader, lines))  # it ended since we looked
        return agent.row
    try:
        conversation.start("follow", {"id": agent.id})
        state_id = conversation.start("inspect", {"id": agent.id})  # after follow: no end can slip between
        while row is None:
            told = (_end_told(frame, agent.id, state_id) for frame in conversation.receive())
            row = next((one for one in told if one is not None), None)
            printer.show(_as_lines(reader, lines))
    except KernelUnavailable as error:
        printer.show(_as_lines(reader, lines))
        if agent.run.alive():
            say(str(error))
    finally:
        conversation.close()
    return row or agent.row


def _as_lines(reader: LogReader, lines: Lines | None) -> Iterable[Record | Gap]:
    return reader.read() if lines is None else lines.feed(reader.read())


def _end_told(frame: Any, agent_id: str, state_id: int) -> Mapping[str, Any] | None:
    """Return the agent's last row when `frame` says that it ended, an empty one when there is no such agent."""
    if isinstance(frame, wire.Fault):
        return {}
    row: Any = None
    if isinstance(frame, wire.Reply) and frame.id == state_id:
        row = frame.value
    elif isinstance(frame, wire.Notice) and frame.topic == "agent" and frame.data.get("id") == agent_id:
        row = frame.data
    return row if row and row.get("ended_at") else None
