"""One agent as the kernel knows it: identity, policy, links, counters. Decides nothing.

Asks Linux nothing, and does nothing to it but close the descriptors of an agent that is gone.
`state` moves only through agentos.lifecycle. Ended agents stay for `ps` and `wait` until `ENDED_KEPT` newer ones did.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentos import lifecycle, wire
from agentos.clock import RunningTime, rfc3339
from agentos.errors import HostError
from agentos.lifecycle import State
from agentos.policies import EffectivePolicy
from agentos.signals import describe_exit
from agentos.supervisor.intake import Intake
from agentos.supervisor.outbox import Outbox
from agentos.supervisor.repeats import Repeats

if TYPE_CHECKING:
    from agentos.supervisor.lineage import Lineage

ENDED_KEPT: Final = 2_000
COMMAND_CHARS_MAX: Final = 1_000  # of a row: thousands of rows are one answer
DENIAL_WINDOW_S: Final = 1.0  # identical denials inside it are one durable event and a count
DENIALS_TRACKED_MAX: Final = 256
UNDECIDED_MAX: Final = 256  # actions of one agent whose denials are not durable yet; its library sends one at a time
VERDICT_BYTES_MAX: Final = 64 * 1024  # verdicts it does not read: it is not read either until it does
CALLS_MAX: Final = 1_024  # calls of one agent that wait for their answers
CALL_BYTES_MAX: Final = 32 * 1024 * 1024
LIVING_MAX: Final = 4_096  # agents of one kernel, those in line for a slot with them
CHILDREN_MAX: Final = 1_024  # living ones of one agent: nobody shall fill the line for all others
RESULT_BYTES_MAX: Final = 256 * 1024 * 1024  # of results and states of ended agents, together


@dataclass(slots=True)
class RepeatedDenial:
    """A denial on record and how often it was repeated since."""

    until_s: float
    verdict: wire.Verdict
    data: dict[str, Any]
    count: int = 0


@dataclass(slots=True, eq=False)
class Agent:
    """Mutable shell state of one process run."""

    id: str
    name: str
    execution_id: str
    kind: str  # program | python
    command: list[str]
    level: str
    cwd: str
    policy: EffectivePolicy
    policy_name: str
    context: dict[str, Any]
    grace_s: float
    parent_id: str | None = None
    priority: int = 0
    environment_names: list[str] = field(default_factory=list)
    timeout_s: float | None = None
    clock: RunningTime | None = None
    timed_out: bool = False

    state: State = State.STARTING
    mechanism: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    pid: int = 0
    start_ticks: int = 0
    sentry_pid: int = 0
    sentry_ticks: int = 0  # when Linux started it: with its pid, it and no other
    exit_code: int | None = None
    exit_signal: int | None = None
    exited: wire.Exited | None = None  # told by the sentry; on record a moment later
    exit_on_record: bool = False
    in_line: bool = False  # not forked yet: it waits for a slot, or to be restarted
    waited: bool = False  # it was in line: whoever asked for it had its answer before it was born
    lineage: Lineage | None = None  # of an agent that may be restarted
    previous_id: str | None = None  # the life before this one
    predecessor: Agent | None = None  # that life itself, until this one begins
    successor: Agent | None = None  # the life after it
    restarts: int = 0  # how many lives came before it
    restart_at_ns: int = 0  # when it will be started again; 0 when it waits for no such time
    commanded: bool = False  # somebody told it to end: it is not restarted
    failed: str = ""  # why it is not restarted, although its policy asks for it
    start_error: str = ""  # why it could not be started when its turn came
    lost: bool = False  # its sentry died: how the agent ended is not known
    # the last STOP or CONT that was commanded was a STOP: its clocks stand still while it is stopped
    held: bool = False
    stops: int = 0  # STOPs that were commanded
    spawn_error: wire.SpawnFailed | None = None
    actions: int = 0
    violations: int = 0
    last_seq: int = 0
    log_offset: int = 0
    log_dropped: int = 0
    unrecorded_due_s: float = 0.0  # when its followers may next be told that an action could not be recorded
    ended_by: str = ""  # why the kernel ended it: "policy", "protocol", "timeout", "stop"

    result: bytes | None = None
    collected: bool = False  # somebody was given the result
    result_dropped: bool = False
    verification: asyncio.Task[Any] | None = None  # of its result, by modules of the host program
    raised: wire.Raised | None = None
    saved_state: bytes | None = None

    to_sentry: Outbox | None = None
    verdicts: Outbox | None = None
    calls: Outbox | None = None
    up: int | None = None
    from_sentry: int | None = None
    descriptors: list[int] = field(default_factory=list)  # all of ours, closed when the agent is gone
    intake: Intake | None = None
    hear_sentry: Callable[[], bool] | None = None  # read what its sentry said; None once that stream has ended
    silent_beats: int = 0
    undecided: int = 0
    blocked: int = 0  # calls under way in which it waits for others
    calls_waiting: int = 0
    calls_bytes: int = 0
    deliveries: dict[int, asyncio.Future[wire.Delivered]] = field(default_factory=dict)  # the sentry answers these
    queries: dict[int, asyncio.Future[wire.Answer]] = field(default_factory=dict)  # and the agent itself these
    denials: dict[tuple[str, str, str], RepeatedDenial] = field(default_factory=dict)
    repeats: Repeats = field(default_factory=Repeats)
    traced: Callable[[Agent, State, lifecycle.Event], None] | None = None  # told of every change of state
    changed: list[Callable[[], None]] = field(default_factory=list)  # called after every change of state
    first_seen: asyncio.Event = field(default_factory=asyncio.Event)  # exec succeeded or failed
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def move(self, event: lifecycle.Event) -> bool:
        """Apply one lifecycle event; True when the state changed. Raises IllegalTransition."""
        before, self.state = self.state, lifecycle.after(self.state, event)
        if self.state is before:
            return False
        if self.traced is not None:
            self.traced(self, before, event)
        for notify in list(self.changed):
            notify()
        return True

    @property
    def why_not_started(self) -> str:
        """What hindered exec, or what came before it; "" when nothing did."""
        if self.spawn_error is not None:
            return f"{os.strerror(self.spawn_error.errno)} ({self.spawn_error.what})"
        return self.start_error

    @property
    def came_to_be(self) -> bool:
        """Whether there was a process that ran the program."""
        return bool(self.pid) and not self.why_not_started

    @property
    def withdrawn(self) -> bool:
        """Whether it was told to end before it began; or, while it lives, whether that is still possible."""
        return not self.pid and not self.lost and not self.why_not_started

    @property
    def how_it_ended(self) -> str:
        """Say how, and on whose account, in a few words."""
        if self.why_not_started:
            return f"it could not be started: {self.why_not_started}"
        if self.withdrawn:
            return "it had not started, and will not"
        if self.exit_code is None and self.exit_signal is None:
            return "its end was not seen"
        how = describe_exit(self.exit_code, self.exit_signal)
        return f"{how}, {self.ended_by}" if self.ended_by not in ("", "stop") else how

    @property
    def ended(self) -> bool:
        return self.state in lifecycle.ENDED

    @property
    def is_full(self) -> bool:
        """Whether so much of what it sent is unanswered that it must wait before it sends more."""
        unread = self.verdicts.pending_bytes if self.verdicts is not None else 0
        return self.undecided >= UNDECIDED_MAX or unread > VERDICT_BYTES_MAX

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close every descriptor of an agent that is gone, and keep no more of it than may still be asked for."""
        self.policy.forget()
        self.repeats = Repeats()
        if self.intake is not None:
            self.intake.close()
        if self.from_sentry is not None:
            loop.remove_reader(self.from_sentry)
        for outbox in (self.to_sentry, self.verdicts, self.calls):
            if outbox is not None:
                outbox.close()
        self.to_sentry = self.verdicts = self.calls = self.intake = self.hear_sentry = None
        self.up = self.from_sentry = None
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []

    def row(self, run_id: str) -> dict[str, Any]:
        """Return the `ps` row."""
        return {
            "id": self.id,
            "name": self.name,
            "run": run_id,
            "pid": self.pid,
            "sentry_pid": self.sentry_pid,
            "state": lifecycle.public_state(self.state),
            "phase": self.state.value,
            "mechanism": self.mechanism,
            "level": self.level,
            "policy": self.policy_name,
            "command": _clipped(self.command),
            "parent_id": self.parent_id,
            "started_at": rfc3339(self.started_ns),
            "ended_at": rfc3339(self.ended_ns) if self.ended_ns else None,
            "actions_count": self.actions,
            "violations_count": self.violations,
            "log_dropped_bytes": self.log_dropped,
            "exit_code": self.exit_code,
            "exit_signal": self.exit_signal,
            "ended_by": self.ended_by,
            "restart": str(self.lineage.policy) if self.lineage is not None else "never",
            "restarts": self.restarts,
            "restart_at": rfc3339(self.restart_at_ns) if self.restart_at_ns and not self.ended else None,
            "previous_id": self.previous_id,
            "next_id": self.successor.id if self.successor is not None else None,
            "failed": self.failed,
        }


def _clipped(words: list[str]) -> list[str]:
    """Return as many of the words as a list of agents can bear; the record has them all."""
    kept, left = [], COMMAND_CHARS_MAX
    for word in words:
        kept.append(word if len(word) <= left else word[:left] + "…")
        left -= len(word)
        if left <= 0:
            break
    return kept


class Agents:
    """All agents of one kernel, by id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Agent] = {}
        self.traced: Callable[[Agent, State, lifecycle.Event], None] | None = None
        self._parents: set[str] = set()  # who has children: nobody else's end has to look for them

    def add(self, agent: Agent) -> None:
        agent.traced = self.traced
        self._by_id[agent.id] = agent
        parent = self.get(agent.parent_id) if agent.parent_id is not None else None
        if parent is not None and not parent.gone.is_set():
            self._parents.add(parent.id)
        if len(self._by_id) > ENDED_KEPT:
            for old in [one for one in self._by_id.values() if one.gone.is_set()][: len(self._by_id) - ENDED_KEPT]:
                del self._by_id[old.id]

    def check_room(self, parent_id: str | None) -> None:
        """Raise HostError when one more agent, or one more child of this parent, would be too many."""
        living = self.living()
        if len(living) >= LIVING_MAX:
            raise HostError(f"{LIVING_MAX} agents run or wait for a slot already; wait for some of them to end")
        if parent_id is not None and sum(one.parent_id == parent_id for one in living) >= CHILDREN_MAX:
            raise HostError(f"{parent_id} has {CHILDREN_MAX} living children already; wait for some of them to end")

    def forget_results(self) -> None:
        """Keep what ended agents left within RESULT_BYTES_MAX: what was collected goes first, then the oldest."""
        holding = [one for one in self._by_id.values() if one.gone.is_set() and (one.result or one.saved_state)]
        held = sum(len(one.result or b"") + len(one.saved_state or b"") for one in holding)
        for agent in sorted(holding, key=lambda one: not one.collected):  # stable: otherwise oldest first
            if held <= RESULT_BYTES_MAX:
                return
            held -= len(agent.result or b"") + len(agent.saved_state or b"")
            agent.result_dropped = agent.result is not None
            agent.result = agent.saved_state = None

    def get(self, agent_id: str) -> Agent | None:
        return self._by_id.get(agent_id)

    def by_sentry(self, pid: int) -> Agent | None:
        return next((one for one in self._by_id.values() if one.sentry_pid == pid and not one.gone.is_set()), None)

    def all(self) -> list[Agent]:
        return list(self._by_id.values())

    def living(self) -> list[Agent]:
        return [one for one in self._by_id.values() if not one.gone.is_set()]

    def children(self, agent: Agent) -> list[Agent]:
        """Return the living ones of an agent that is gone."""
        if agent.id not in self._parents:
            return []
        self._parents.discard(agent.id)
        return [one for one in self.living() if one.parent_id == agent.id]

    def is_descendant(self, agent: Agent, ancestor_id: str) -> bool:
        """Whether `agent` is `ancestor_id` or was spawned below it."""
        seen: Agent | None = agent
        while seen is not None:
            if seen.id == ancestor_id:
                return True
            seen = self.get(seen.parent_id) if seen.parent_id else None
        return False
