"""The books of a hostile agent against the flight record: one answer for each action, and one event for each answer.

Pure but for reading the book. What is promised to an agent that keeps the protocol is exact; to one that ended in the
middle of things it is a bound: it may not have heard everything.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzzer import NEVER_ANSWERED

from agentos.recorder.event import AuditEvent
from agentos.supervisor.decide import RECORDER_UNAVAILABLE

ACTED = ("action_allowed", "policy_violation")
LIMITED = "HostError"  # a call too many, answered without being looked at


@dataclass(frozen=True, slots=True)
class Answer:
    id: int
    effect: str
    seq: int
    reason: str


@dataclass(slots=True)
class Book:
    """What one agent wrote down."""

    asked: dict[int, tuple[str, str]] = field(default_factory=dict)
    sent: Counter[int] = field(default_factory=Counter)
    written: Counter[int] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)
    calls: dict[int, str] = field(default_factory=dict)
    replies: list[tuple[int, str]] = field(default_factory=list)
    broke: str = ""
    finished: bool = False
    faults: list[str] = field(default_factory=list)


def read_book(path: Path) -> Book:
    book = Book()
    for line in path.read_text().splitlines() if path.exists() else ():
        kind, _, rest = line.partition(" ")
        match kind:
            case "S":
                number, operation, resource = rest.split(" ", 2)
                book.asked[int(number)] = operation.replace("-", ""), ast.literal_eval(resource)
                book.sent[int(number)] += 1
            case "W":
                book.written[int(rest)] += 1
            case "A":
                number, effect, seq, reason = rest.split(" ", 3)
                book.answers.append(Answer(int(number), effect, int(seq), ast.literal_eval(reason)))
            case "C":
                number, method = rest.split(" ", 1)
                book.calls[int(number)] = method
            case "R":
                number, error = rest.split(" ", 1)
                book.replies.append((int(number), error))
            case "B":
                book.broke = book.broke or rest
            case "E":
                book.finished = True
            case "X" | "T":
                book.faults.append(line)
    return book


@dataclass(slots=True)
class Account:
    """A book, the events of its agent, and whether the recorder was hindered while it lived."""

    book: Book
    events: list[AuditEvent]
    hindered: bool
    acted: list[AuditEvent] = field(init=False)

    def __post_init__(self) -> None:
        self.acted = [
            one for one in self.events if one.event_type in ACTED and one.data.get("action_id") in self.book.sent
        ]

    @property
    def is_exact(self) -> bool:
        return self.book.finished and not self.book.broke and not self.hindered

    def complaints(self) -> list[str]:
        return [*self.book.faults, *self._answers(), *self._calls(), *self._record(), *self._totals()]

    def _answers(self) -> Iterator[str]:
        """Exactly one answer for each action of one that ended well; for nobody more, or to what was not sent."""
        got = Counter(answer.id for answer in self.book.answers)
        for number, count in got.items():
            if count > self.book.sent[number]:
                yield f"action {number} was sent {self.book.sent[number]} times and answered {count} times"
        if self.book.finished:
            yield from (
                f"action {number} was sent {count} times and answered {got[number]} times"
                for number, count in self.book.sent.items() if got[number] < count
            )  # fmt: skip

    def _calls(self) -> Iterator[str]:
        got = Counter(number for number, _ in self.book.replies)
        for number, count in got.items():
            if count > 1 or number not in self.book.calls:
                yield f"call {number} ({self.book.calls.get(number)}) was answered {count} times"
        if self.book.finished:
            yield from (
                f"call {number} ({method}) was not answered"
                for number, method in self.book.calls.items() if not got[number] and method not in NEVER_ANSWERED
            )  # fmt: skip
        noted = sum(event.event_type == "kernel_call" for event in self.events)
        looked_at = sum(error != LIMITED for _, error in self.book.replies)
        if not self.hindered and noted < looked_at:
            yield f"{looked_at} calls were answered, {noted} are on record"

    def _record(self) -> Iterator[str]:
        """Each answer points to its event, which says the same of the same action."""
        by_seq = {event.seq: event for event in self.acted}
        for answer in self.book.answers:
            event = by_seq.get(answer.seq)
            if answer.seq == 0:
                if (answer.effect, answer.reason) != ("deny", RECORDER_UNAVAILABLE):
                    yield f"{answer} has no event"
                continue
            if event is None:
                yield f"{answer} points to an event that is none"
            elif (event.data["effect"] == "allow") != (answer.effect == "allow"):
                yield f"{answer} and event {event.seq} say different things: {event.data['effect']}"
            elif not self._is_of(event, answer):
                yield f"{answer} is on record as action {event.data['action_id']}: {event.data}"

    def _is_of(self, event: AuditEvent, answer: Answer) -> bool:
        operation, resource = self.book.asked[answer.id]
        if operation == "?":  # of a frame that was found in what is none
            return True
        known = event.data["operation"] == operation
        raw = event.data.get("raw", event.data["resource"])
        same = not resource.isascii() or not resource.isprintable() or str(raw)[:100] == resource
        repeats = answer.effect == "deny"  # the answer of an identical denial points to the first of them
        return known and same and (repeats or event.data["action_id"] == answer.id)

    def _totals(self) -> Iterator[str]:
        """As many events, and counted repetitions, as answers; allowed ones one by one."""
        allowed = Counter(answer.seq for answer in self.book.answers if answer.effect == "allow")
        yield from (f"event {seq} answers {count} allowed actions" for seq, count in allowed.items() if count > 1)
        repeats = sum(event.data["repeats"] for event in self.events if event.event_type == "policy_violation_repeated")
        refused = sum(event.event_type == "action_refused" for event in self.events)
        answered = sum(answer.seq > 0 for answer in self.book.answers)
        recorded = len(self.acted) + repeats - refused
        if self.is_exact and answered != recorded:
            yield f"{answered} answers, but {recorded} events and repetitions on record"
        elif not self.hindered and answered > recorded:
            yield f"{answered} answers, and only {recorded} events and repetitions on record"
