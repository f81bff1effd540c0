"""Hostile agents against one real kernel, and a ledger: one answer for each action, one event for each answer.

Five sixths of AGENTOS_FUZZ_S (60 s; 600 for a long run). The seed stands in the name of the test; AGENTOS_FUZZ_SEED=n
brings the same dice back, though not the same moments. Meanwhile signals arrive, and the journal finds no room.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzzer
import psutil
import pytest
from arena import Arena, arena
from ledger import Account, read_book
from mutants import SECONDS, SEED, dice_of, report
from world import wait_until

from agentos.errors import AgentosError
from agentos.supervisor.calls import METHODS
from agentos.supervisor.queries import ASKED
from agentos.supervisor.requests import _TAKES

SHARE_S = SECONDS * 5 / 6
AT_ONCE = 4
AGENTS_WITHOUT_FAULTS_MAX = 40  # a quarter of them break the protocol in the end
PS_LIMIT_S = 10.0
BYSTANDER_LIMIT_S = 10.0  # loosely: the machine may have other things to do
SETTLE_LIMIT_S = 90.0
POLICY = """
name: fuzz
version: 1.0.0
default_action: allow
rules:
  - {name: few, action: allow, operation: "*", resource: data/limited, rate_limit: 20}
  - {name: frozen, action: deny, operation: write, resource: data/stopping, on_violation: SIGSTOP}
  - {name: third, action: deny, operation: "*", resource: data/3}
  - {name: unwritten, action: deny, operation: write, resource: [data/5, data/6, data/7, data/8]}
  - {name: safe, action: allow, operation: read, resource: data/4, audit: durable}
"""

pytestmark = pytest.mark.timeout(240 + 3 * SECONDS)


class Round:
    """Hostile agents that come and go, and what is done to them."""

    def __init__(self, place: Arena, base: Path) -> None:
        self.place = place
        self.base = base
        self.dice = dice_of("kernel")
        self.living: dict[str, tuple[int, bool]] = {}  # id → its number, whether the recorder was hindered meanwhile
        self.started = 0
        self.met: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.slowest_ps_s = 0.0
        self.kernel_pid = int(place.inspect()["kernel_pid"])

    def go_on(self) -> None:
        """Start, disturb and look, until the time is over; then let all of them end."""
        deadline = time.monotonic() + SHARE_S
        while time.monotonic() < deadline and not self.complaints:
            if len(self.living) < AT_ONCE:
                self.start()
            self.disturb()
            time.sleep(0.03)
            self.look()
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while self.living and not self.complaints:
            assert time.monotonic() < deadline, f"still there: {[self.status(one) for one in self.living]}"
            self.signal_all("SIGCONT")
            time.sleep(0.1)
            self.look()

    def start(self) -> None:
        self.started += 1
        number = self.started
        words = {name: [kind.__name__ for kind in kinds] for name, kinds in _TAKES.items()}
        options = self.dice.choice(({}, {}, {"permissions": ["read", "write"]}))
        seed = f"{SEED}/{number}"
        with contextlib.suppress(AgentosError):  # its start cannot be put on record now
            ids = [self.place.bystander_id, *self.living]
            book = str(self.base / f"book-{number}")
            agent_id = self.place.start(fuzzer.hostile, seed, book, sorted(METHODS), words, ids, **options)
            self.living[agent_id] = number, False

    def disturb(self) -> None:
        """Do what a host program or the machine may do at any time."""
        kind = self.dice.random()
        if kind < 0.10:
            self.signal_all(self.dice.choice(("SIGSTOP", "SIGUSR1", "SIGCONT")), 0.4)
        elif kind < 0.102:
            os.kill(int(self.place.inspect()["recorder_pid"]), signal.SIGKILL)  # another is forked; nothing is lost
            self.met["recorders killed"] += 1
        elif kind < 0.11:
            self.living = {agent_id: (number, True) for agent_id, (number, _) in self.living.items()}
            with no_room(self.kernel_pid):
                time.sleep(self.dice.choice((0.01, 0.1)))
            self.met["moments without room"] += 1
        elif kind < 0.14 and self.living:
            agent_id, what = self.dice.choice(list(self.living)), self.dice.choice(ASKED)
            with contextlib.suppress(AgentosError):
                self.place.call("query", id=agent_id, what=what)
                self.met["questions answered"] += 1
        elif kind < 0.16:
            began = time.monotonic()
            assert self.place.call("ps")["agents"]
            self.slowest_ps_s = max(self.slowest_ps_s, time.monotonic() - began)
        self.signal_all("SIGCONT", 0.3)

    def signal_all(self, name: str, share: float = 1.0) -> None:
        for agent_id in list(self.living):
            if self.dice.random() < share:
                with contextlib.suppress(AgentosError):
                    self.place.call("signal", id=agent_id, signal=name)

    def status(self, agent_id: str) -> dict[str, Any]:
        return dict(self.place.call("status", id=agent_id))

    def look(self) -> None:
        """Settle the accounts of those that have ended."""
        for agent_id, (number, hindered) in list(self.living.items()):
            row = self.status(agent_id)
            if row["phase"] == "terminated":
                del self.living[agent_id]
                self.settle(agent_id, number, hindered, row)

    def settle(self, agent_id: str, number: int, hindered: bool, row: dict[str, Any]) -> None:
        path = self.base / f"book-{number}"
        book = read_book(path)
        account = Account(book, self.place.events(agent_id=agent_id), hindered)
        found = account.complaints()
        if not path.exists() and row["exit_signal"] is None and not hindered:  # nor did a signal come too early
            found.append("it kept no book")
        if found:
            how = f"agent {number}, ended_by={row['ended_by']!r}, broke={book.broke!r}, finished={book.finished}"
            self.complaints += [f"AGENTOS_FUZZ_SEED={SEED}, {how}: {one}" for one in found[:10]]
        self.met.update(
            {
                "agents": 1, "frames": sum(book.sent.values()) + len(book.calls), "answers": len(book.answers),
                "calls answered": len(book.replies), "events": len(account.events), "exact": account.is_exact,
                "refused for want of a record": sum(one.seq == 0 for one in book.answers),
                "protocol faults": any(one.event_type == "protocol_error" for one in account.events),
                f"ended by {row['ended_by'] or 'itself'}": 1,
            }
        )  # fmt: skip


@contextlib.contextmanager
def no_room(pid: int) -> Iterator[None]:
    """The kernel cannot make any file larger than a page meanwhile: EFBIG (setrlimit(2))."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def processes(place: Arena) -> set[int]:
    """Every process of this run but the guard, and the recorder, which may be another one by now."""
    facts = place.inspect()
    return {one.pid for one in psutil.Process(facts["guard_pid"]).children(recursive=True)} - {facts["recorder_pid"]}


@pytest.mark.parametrize("share", [pytest.param(None, id=f"seed-{SEED}")])
def test_every_action_is_answered_once_and_is_on_record(
    share: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "fuzz.yaml"
    policy.write_text(POLICY)
    with arena(tmp_path, fuzzer.steady, policy=str(policy), timeout=600 + 3 * SECONDS) as place:
        family, descriptors = processes(place), place.descriptors()
        place.waits()
        play = Round(place, tmp_path)
        play.go_on()
        waits = place.waits()
        bystander = {"bystander's actions": waits.actions, "s at worst for one": waits.worst_s}
        report(capsys, f"kernel, {SHARE_S:g} s", {**play.met, **bystander, "s for ps at worst": play.slowest_ps_s})
        assert play.complaints == []
        assert place.events("kernel_fault") == []
        assert waits.actions > SHARE_S
        assert waits.worst_s < BYSTANDER_LIMIT_S
        place.assert_bystander_acts()
        began = time.monotonic()
        assert place.call("ps")["agents"]
        assert max(play.slowest_ps_s, time.monotonic() - began) < PS_LIMIT_S
        wait_until(lambda: set(phases(place)) <= {"terminated"}, SETTLE_LIMIT_S, "what the agents spawned to end")
        wait_until(lambda: processes(place) == family, 30, "every process to be gone")
        wait_until(lambda: place.descriptors() <= descriptors, 30, "every descriptor to be closed")
        assert play.met["exact"] > 0
        assert play.met["protocol faults"] > 0 or play.met["agents"] < AGENTS_WITHOUT_FAULTS_MAX


def phases(place: Arena) -> list[str]:
    return [row["phase"] for row in place.call("ps")["agents"] if row["id"] != place.bystander_id]
