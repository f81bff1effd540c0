"""What must hold of a kernel's decisions whatever happens, each in one sentence, and the books that tell.

`Books` sees every input and every output of a simulated kernel. It keeps its own account, in the plainest way there
is, and fails with the name of the sentence that does not hold.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NoReturn

from agentos import wire
from agentos.lifecycle import State
from agentos.signals import AgentSignal
from agentos.supervisor.admission import Admission
from agentos.supervisor.agents import Agent

if TYPE_CHECKING:
    from multitude import Multitude
    from virtual import VirtualLoop

INVARIANTS: Final = {
    "recorded first": "an answer points to an event that came before it and says the same; nothing is allowed without",
    "durable first": "a denial, and what must be durable, is answered when the recorder has confirmed it",
    "one answer": "an action is answered once, and nothing is answered that was not asked",
    "everybody hears": "in a quiet time every action is answered, every command ends and every start is decided",
    "no way back": "an agent that ended stays so; it is gone exactly when it is terminated",
    "true states": "an agent is shown as stopped, or as not stopped, as Linux told last",
    "slots": "no more agents run than may, the first in line comes first, and none waits while a slot is free",
    "running time": "a time-out comes after its time of running, not sooner nor later; a commanded stop does not count",
    "quota": "a rule's rate limit lets so many pass in any minute, and refuses nobody sooner",
    "reasons": "the kernel sends no signal of its own without a reason on record, and none before that",
    "said first": "a signal is on record before it is delivered, an exit before it is reaped",
    "closed books": "when an agent is gone nothing waits for it, and how it ended was told once",
    "restarts": "an agent lives again as its policy says: not sooner, not too often, and not after it was told to end",
    "children": "nobody outlives the agent that started it for long",
    "commands end": "a command ends with its value or an error that has a name",
}  # fmt: skip
EVENTS_KEPT: Final = 20_000
ACTED: Final = ("action_allowed", "policy_violation")
SLACK_S: Final = 1e-6
WINDOW_S: Final = 60.0
STARTS_MAX, RESTART_WINDOW_S, BACKOFF_S_MAX = 10, 120.0, 30.0
BACKOFF_SLACK_S: Final = 0.001  # the record rounds to it
ENDED_KEPT: Final = 100
ORPHANS_GET: Final = ("SIGTERM", "SIGCONT", "SIGKILL")
ENDS: Final = ("agent_exited", "sentry_lost")


class Violated(AssertionError):
    """One of the sentences does not hold."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} ({INVARIANTS[name]}): {what}")
        self.name = name


class Account:
    """What is known of one agent from outside the kernel."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.asked: dict[int, wire.Act] = {}
        self.unanswered: set[int] = set()
        self.ended = False
        self.told_stopped: bool | None = None  # by its sentry, last
        self.born = False
        self.ran_s = 0.0
        self.signals_said = self.signals_sent = 0
        self.exit_said = False
        self.ends: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.exit_code: int | None = None
        self.told_to_end = False
        self.due_s = 0.0  # of a life that follows another


class Books:
    def __init__(self, loop: VirtualLoop, limit: int) -> None:
        self._loop = loop
        self.accounts: dict[str, Account] = {}
        self.events: dict[int, tuple[str, str, dict[str, Any], bool]] = {}
        self.confirmed_seq = 0
        self.checks = 0
        self.limit = limit
        self._charged: dict[str, deque[float]] = {}  # by the name of the agent: what rule `few` let pass
        self._births: dict[str, deque[float]] = {}  # of all lives of one agent, by the latest
        self._ended: dict[str, Account] = {}  # the latest
        self.violated: Violated | None = None

    def fail(self, name: str, what: str, cause: BaseException | None = None) -> NoReturn:
        """Fail, and keep it: what is raised inside the kernel may be caught there."""
        self.violated = self.violated or Violated(name, what)
        raise self.violated from cause

    # --- what goes in and comes out --------------------------------------------------------------------------------

    def on_start(self, agent: Agent) -> None:
        account = self.accounts[agent.id] = Account(agent)
        agent.changed.append(lambda: self.on_move(account))

    def on_born(self, agent: Agent) -> None:
        self.accounts[agent.id].born = True

        if agent.lineage is not None:
            births = self._births.pop(agent.previous_id or "", deque(maxlen=STARTS_MAX + 1))
            self._births[agent.id] = births
            births.append(self._loop.time())
            if len(births) > STARTS_MAX and births[-1] - births[0] < RESTART_WINDOW_S:
                self.fail("restarts", f"{agent.id} is the {len(births)}th within {births[-1] - births[0]} s")

    def on_due(self, agent: Agent) -> None:
        """A life that follows another is about to begin."""
        now_s, due_s = self._loop.time(), self.accounts[agent.id].due_s
        if now_s < due_s - BACKOFF_SLACK_S:
            self.fail("restarts", f"{agent.id} begins at {now_s}, it may from {due_s} on")

    def on_told_to_end(self, agent: Agent) -> None:
        account = self.accounts.get(agent.id)
        if account is not None:
            account.told_to_end = True

    def on_act(self, agent: Agent, act: wire.Act) -> None:
        account = self.accounts[agent.id]
        account.asked[act.id] = act
        account.unanswered.add(act.id)

    def on_attempt(self, event_type: str, agent_id: str, data: dict[str, Any]) -> None:
        """The kernel says something to its record, which may refuse it."""
        if event_type == "agent_restarting":
            self._check_restart(self._ended[agent_id], data)
        account = self.accounts.get(agent_id)
        if account is None:
            return
        agent = account.agent
        if event_type == "signal_sent":
            account.signals_said += 1
            if data["sender"] == "kernel":
                self._check_reason(account, data["signal"])
        elif event_type == "agent_timeout":
            account.reasons["SIGALRM"] += 1
            account.reasons["SIGKILL"] += 1
            if account.ran_s < (agent.timeout_s or 0.0) - SLACK_S:
                self.fail("running time", f"{agent.id} ran {account.ran_s} s of {agent.timeout_s}")
        elif event_type == "protocol_error":
            account.reasons["SIGKILL"] += 1
        elif event_type == "agent_exited":
            account.exit_said, account.exit_code = True, data["exit_code"]
        if event_type in ENDS:
            account.ends.append(event_type)
        if event_type in ACTED and data.get("rule_name") == "few":
            self._charge(agent, data)

    def on_event(self, seq: int, event_type: str, agent_id: str, data: dict[str, Any], *, durable: bool) -> None:
        self.events[seq] = event_type, agent_id, data, durable
        self.events.pop(seq - EVENTS_KEPT, None)
        account = self.accounts.get(agent_id)
        if account is not None and event_type == "policy_violation":
            signal = {"frozen": "SIGSTOP", "killed": "SIGKILL"}.get(data["rule_name"] or "")
            if signal is not None:
                account.reasons[signal] += 1

    def on_verdict(self, agent: Agent, verdict: wire.Verdict) -> None:
        account = self.accounts[agent.id]
        if verdict.id not in account.unanswered:
            self.fail("one answer", f"{verdict} for {agent.id}")
        account.unanswered.remove(verdict.id)
        act = account.asked.pop(verdict.id)
        if verdict.seq == 0:
            if verdict.effect != "deny":
                self.fail("recorded first", f"{verdict} has no event")
            return
        found = self.events.get(verdict.seq)
        if found is None:
            self.fail("recorded first", f"{verdict} points to no event")
        event_type, of, data, durable = found
        same = event_type in ACTED and of == agent.id and data["operation"] == act.operation
        allowed = data.get("effect") == "allow"
        if not same or allowed != (verdict.effect == "allow") or (allowed and data["action_id"] != act.id):
            self.fail("recorded first", f"{verdict} of {act} points to {found}")
        if (durable or verdict.effect == "deny" or act.resource == "data/safe") and verdict.seq > self.confirmed_seq:
            self.fail("durable first", f"{verdict}, confirmed is {self.confirmed_seq}")

    def on_sentry_frame(self, agent: Agent, frame: Any) -> None:
        if isinstance(frame, wire.StateSeen) and frame.mechanism != "exec":
            self.accounts[agent.id].told_stopped = frame.state == "stopped"

    def on_command(self, agent: Agent, frame: Any) -> None:
        """A frame reaches the sentry."""
        account = self.accounts[agent.id]
        if isinstance(frame, wire.Reap) and not account.exit_said:
            self.fail("said first", f"{agent.id} is reaped, and its exit is not on record")
        if isinstance(frame, wire.Deliver):
            account.signals_sent += 1
            if account.signals_sent > account.signals_said:
                self.fail("said first", f"{AgentSignal(frame.signal).name} to {agent.id} is not on record")

    def on_move(self, account: Account) -> None:
        agent = account.agent
        if (account.ended and not agent.ended) or (agent.state is State.TERMINATED) != agent.gone.is_set():
            self.fail("no way back", f"{agent.id} is {agent.state.value}, gone: {agent.gone.is_set()}")
        account.ended = agent.ended

    def on_time(self, seconds: float) -> None:
        """Time passes, and nothing else happens meanwhile."""
        for account in self.accounts.values():
            agent = account.agent
            if agent.clock is None or agent.ended:
                continue
            if not (agent.held and account.told_stopped):
                account.ran_s += seconds
            if (
                agent.timeout_s is not None
                and not agent.timed_out
                and account.ran_s - seconds > agent.timeout_s + SLACK_S
            ):
                self.fail("running time", f"{agent.id} ran {account.ran_s - seconds} s of {agent.timeout_s}")

    def on_gone(self, agent: Agent) -> None:
        account = self._ended[agent.id] = self.accounts.pop(agent.id)
        self._ended.pop(next(iter(self._ended)) if len(self._ended) > ENDED_KEPT else "", None)
        if agent.deliveries or agent.queries:
            self.fail("closed books", f"somebody waits for {agent.id}")
        if len(set(account.ends)) < len(account.ends) or bool(account.ends) != account.born:
            self.fail("closed books", f"it was told of {agent.id}, born: {account.born}: {account.ends}")

    # --- what must hold at any moment --------------------------------------------------------------------------------

    def check(self, world: Multitude) -> None:
        self.checks += 1
        if self.violated is not None:
            raise self.violated
        if world.loop.faults:
            self.fail("commands end", f"something failed in a callback: {world.loop.faults[0]}")
        running = 0
        for account in self.accounts.values():
            agent = account.agent
            if account.born and not agent.blocked and not world.slots._admission.is_waiting(agent.id):
                running += 1
            told = account.told_stopped
            if told is not None and not agent.ended and (agent.state is State.STOPPED) != told:
                self.fail("true states", f"{agent.id} is {agent.state.value}, stopped: {account.told_stopped}")
        admission = world.slots._admission
        assert isinstance(admission, WatchedAdmission)
        if running > admission.limit:
            self.fail("slots", f"{running} run, {admission.limit} may")
        if admission.wrong:
            self.fail("slots", admission.wrong)

    def check_quiet(self, world: Multitude) -> None:
        """Nothing new happened for long enough."""
        self.check(world)
        for account in self.accounts.values():
            if account.unanswered and account.agent.verdicts is not None:
                self.fail("everybody hears", f"{account.agent.id} waits for {sorted(account.unanswered)[:5]}")
            parent = account.agent.parent_id
            spared = account.told_to_end or account.agent.held  # stopped in its grace, which stands still meanwhile
            if parent is not None and parent not in self.accounts and not spared:
                self.fail("children", f"{account.agent.id} lives, {parent} does not")
        waiting = [task for task in world.commands if not _waits_for_agents(task)]
        if waiting:
            self.fail("everybody hears", f"{len(waiting)} commands have not ended: {waiting[0]}")

    def at_the_end(self, world: Multitude) -> None:
        if self.accounts or world.commands:
            self.fail("everybody hears", f"still there: {list(self.accounts)}, {world.commands}")
        if world.slots._admission.running or world.slots.in_line:
            self.fail("slots", "somebody who is gone holds a slot")

    def _check_restart(self, account: Account, data: dict[str, Any]) -> None:
        """The kernel says that another life follows; which its books know already."""
        agent = account.agent
        policy, _, limit = data["policy"].partition(":")
        succeeded = account.exit_code == 0 and not agent.timed_out and agent.raised is None
        wanted = policy == "always" or (policy == "on-failure" and not succeeded)
        if not wanted or account.told_to_end or agent.ended_by in {"policy", "protocol"}:
            self.fail("restarts", f"{agent.id}, {policy}, told to end: {account.told_to_end}, {agent.ended_by}: {data}")
        if limit and data["attempt"] > int(limit):
            self.fail("restarts", f"{data['attempt']} of {limit}")
        if data["delay_s"] > BACKOFF_S_MAX:
            self.fail("restarts", f"a delay of {data['delay_s']} s")
        self.accounts[data["new_id"]].due_s = self._loop.time() + data["delay_s"]

    def _check_reason(self, account: Account, signal: str) -> None:
        parent = account.agent.parent_id
        orphaned = parent is not None and parent not in self.accounts and signal in ORPHANS_GET
        if not account.reasons[signal] and not orphaned:
            self.fail("reasons", f"{signal} to {account.agent.id}, for which there is none")

    def _charge(self, agent: Agent, data: dict[str, Any]) -> None:
        """Rule `few` decided: it counts what it let pass, recorded or not."""
        now_s = self._loop.time()
        passed = self._charged.setdefault(agent.name, deque())
        while passed and passed[0] + WINDOW_S <= now_s:
            passed.popleft()
        if data["effect"] == "allow":
            if len(passed) >= self.limit:
                self.fail("quota", f"{len(passed)} passed in the minute before {now_s}, and one more")
            passed.append(now_s)
        elif len(passed) < self.limit:
            self.fail("quota", f"{len(passed)} passed in the minute before {now_s}, and it refuses: {data['reason']}")


def _waits_for_agents(task: Any) -> bool:
    return task.get_coro().__name__ in {"run", "bear_in_turn"}


class WatchedAdmission(Admission):
    """Beside the real one a list that is sorted anew each time: both must admit the same."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit
        self.wrong = ""
        self._line_of: list[tuple[float, int, str]] = []
        self._has: set[str] = set()
        self._lends: set[str] = set()
        self._came = 0

    def ask(self, key: str, priority: int = 0) -> list[str]:
        self._stand(key, -priority)
        return self._compare(super().ask(key, priority))

    def leave(self, key: str) -> list[str]:
        self._has.discard(key)
        self._lends.discard(key)
        self._step_out(key)
        return self._compare(super().leave(key))

    def lend(self, key: str) -> list[str]:
        if key in self._has or (-math.inf, key) in {(rank, one) for rank, _, one in self._line_of}:
            self._has.discard(key)
            self._step_out(key)
            self._lends.add(key)
        return self._compare(super().lend(key))

    def reclaim(self, key: str) -> list[str]:
        if key in self._lends:
            self._lends.remove(key)
            self._stand(key, -math.inf)
        return self._compare(super().reclaim(key))

    def _stand(self, key: str, rank: float) -> None:
        self._came += 1
        self._line_of.append((rank, self._came, key))

    def _step_out(self, key: str) -> None:
        self._line_of = [one for one in self._line_of if one[2] != key]

    def _compare(self, admitted: list[str]) -> list[str]:
        due = [key for _, _, key in sorted(self._line_of)][: max(0, self.limit - len(self._has))]
        for key in due:
            self._step_out(key)
            self._has.add(key)
        if admitted != due:
            self.wrong = self.wrong or f"{admitted} are admitted, it is the turn of {due}"
        return admitted
