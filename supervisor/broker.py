"""The broker: frames from agents and sentries in, records, verdicts and signals out. The hot path of the project.

The way of one action: Intake → wire.Decoder → `_on_act` → policy.decide → decide.react → [Record → journal,
Respond → verdict pipe, Send → sentry]; of one that was allowed before: Intake → Repeating.again. It runs in the
kernel's one loop and must never block it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

from agentos import lifecycle, wire
from agentos.actions import RESOURCE_BYTES_MAX, Action
from agentos.clock import Clock, to_datetime
from agentos.errors import ProtocolError, RecorderUnavailable
from agentos.policies import Decision
from agentos.recorder.redact import redact_argv, redact_claims
from agentos.signals import AgentSignal, describe_exit
from agentos.supervisor import decide
from agentos.supervisor.agents import DENIAL_WINDOW_S, DENIALS_TRACKED_MAX, Agent, RepeatedDenial
from agentos.supervisor.intake import Intake
from agentos.supervisor.recording import Recording
from agentos.supervisor.repeating import Repeating

TEXT_MAX: Final = 2_000  # of an agent's own words in the record of its end
METHOD_MAX: Final = 100
UNRECORDED_EVERY_S: Final = 0.2  # an agent that tries on and on must not have us tell of nothing else
RAISED_MAX: Final = 40_000  # characters of a message or a traceback
LARGE_FIELDS: Final = ("argv", "claims", "context")  # of a denial: on record once, not kept for its repetitions
VIOLATION_FIELDS: Final = ("operation", "resource", "reason", "rule", "rule_name", "event_id", "on_violation")


class Broker:
    """One per kernel. `deliver` sends a signal through the agent's sentry; `on_call` answers wire.Call of an agent."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        recording: Recording,
        clock: Clock,
        *,
        deliver: Callable[[Agent, AgentSignal, str], None],
        on_call: Callable[[Agent, wire.Call], None],
        notify: Callable[[Agent, str, dict[str, Any]], None],
    ) -> None:
        self._loop = loop
        self._recording = recording
        self._repeating = Repeating(recording, self._on_fault)
        self._clock = clock
        self._moment_s, self._now = loop.time(), to_datetime(clock.wall_ns())
        self._held_up: dict[str, Agent] = {}  # not read while the recorder is behind
        recording.on_room = self._go_on
        self._deliver = deliver
        self._on_call = on_call
        self._notify = notify

    def watch_agent(self, agent: Agent, descriptor: int) -> None:
        """Read the agent's up pipe from now on."""
        agent.intake = Intake(
            self._loop, descriptor,
            take=partial(self._take, agent),
            again=partial(self._repeating.again, agent),
            fault=partial(self.protocol_fault, agent),
            is_full=partial(self._is_full, agent),
        )  # fmt: skip

    def _is_full(self, agent: Agent) -> bool:
        if self._recording.is_behind:
            self._held_up[agent.id] = agent
            return True
        return agent.is_full

    def _go_on(self) -> None:
        """The recorder may have caught up: read on from those that were not read because it had not."""
        if not self._held_up or self._recording.is_behind:
            return
        held_up, self._held_up = self._held_up, {}
        for agent in held_up.values():
            if agent.intake is not None:
                agent.intake.go_on()

    def _take(self, agent: Agent, frame: Any) -> None:
        try:
            if type(frame) is wire.Act:
                self._on_act(agent, frame)
            else:
                self._on_frame(agent, frame)
        except ProtocolError:
            raise
        except Exception as error:
            self._on_fault(agent, frame, error)

    def _on_fault(self, agent: Agent, frame: Any, error: Exception) -> None:
        """Something of ours failed over one frame: say so, and refuse it; its sender must not wait for ever."""
        data = {"frame": type(frame).__name__, "error": repr(error)[:TEXT_MAX]}
        self.note(agent, "kernel_fault", data, severity="critical")
        if isinstance(frame, wire.Act):
            self._respond(agent, decide.refuse(frame, decide.KERNEL_FAULT))

    # --- one action ------------------------------------------------------------------------------------------------

    def _on_act(self, agent: Agent, act: wire.Act) -> None:
        if len(act.resource) > RESOURCE_BYTES_MAX:
            raise ProtocolError(f"Act.resource has {len(act.resource)} characters, the limit is {RESOURCE_BYTES_MAX}")
        agent.actions += 1
        now_s = self._loop.time()
        argv = None if act.argv is None else tuple(map(str, act.argv))
        source: Literal["hook", "sdk"] = "hook" if act.source == "hook" else "sdk"
        action = Action(act.operation, act.resource, act.resolved, argv, act.claims, source)
        decision = agent.policy.decide(
            action,
            cwd=act.cwd or agent.cwd,
            context=agent.context,
            name=agent.name,
            now_s=now_s,
            at=self._moment(now_s),
        )
        if decision.effect != "allow":
            agent.violations += 1
            if self._is_repeat(agent, act, decision, now_s):
                return
        if act.argv is None and not act.claims:  # most actions are names only
            if self._repeating.first(agent, act, action, decision):
                return
        else:
            act = act._replace(argv=redact_argv(act.argv) if act.argv else act.argv, claims=redact_claims(act.claims))
        self._perform(agent, act, decide.react(act, decision, agent.level, agent.context))

    def _moment(self, now_s: float) -> datetime:
        """Return the time of day, read once for all actions of one millisecond of the loop."""
        if self._moment_s != now_s:
            self._moment_s, self._now = now_s, to_datetime(self._clock.wall_ns())
        return self._now

    def _perform(self, agent: Agent, act: wire.Act, commands: tuple[decide.Command, ...]) -> None:
        record = commands[0]
        assert isinstance(record, decide.Record)
        try:
            seq = agent.last_seq = self._recording.append(
                record.event_type, record.data, severity=record.severity, agent_id=agent.id, agent_name=agent.name,
                execution_id=agent.execution_id, durable=record.durable,
            )  # fmt: skip
        except RecorderUnavailable:
            self._refuse_unrecorded(agent, act, record)
            return
        if record.durable:
            agent.undecided += 1
            finish = partial(self._finish, agent, act, commands[1:], seq, record)
            self._recording.when_durable(seq, partial(self._finish_durable, agent, act, finish))
        else:
            self._finish(agent, act, commands[1:], seq, record, durable=True)

    def _finish_durable(self, agent: Agent, act: wire.Act, finish: Callable[..., None], durable: bool) -> None:
        agent.undecided -= 1
        try:
            finish(durable=durable)
        except Exception as error:  # others wait for the same acknowledgement
            self._on_fault(agent, act, error)
        if agent.intake is not None:
            agent.intake.go_on()

    def _finish(
        self,
        agent: Agent,
        act: wire.Act,
        commands: tuple[decide.Command, ...],
        seq: int,
        record: decide.Record,
        durable: bool,
    ) -> None:
        """Answer, now that the record is as durable as it must be; without that, deny, and say so behind it."""
        if not durable:
            data = {"action_id": act.id, "reason": decide.RECORDER_UNAVAILABLE, "first_seq": seq}
            self.note(agent, "action_refused", data, severity="warning")
            self._refuse_unrecorded(agent, act, record)
            return
        for command in commands:
            if isinstance(command, decide.Respond):
                verdict = command.verdict._replace(seq=seq)
                self._respond(agent, verdict)
                if verdict.effect == "deny":
                    self._remember_denial(agent, act, verdict, record)
            elif isinstance(command, decide.Send):
                self._deliver(agent, AgentSignal[command.signal], "tree")

    def _refuse_unrecorded(self, agent: Agent, act: wire.Act, record: decide.Record) -> None:
        """Deny it for want of a record. It counts as any denial, and whoever watches is told: the record cannot."""
        if record.data["effect"] == "allow":  # anything else was counted when it was decided
            agent.violations += 1
        self._respond(agent, decide.refuse(act, decide.RECORDER_UNAVAILABLE))
        if self._loop.time() >= agent.unrecorded_due_s:
            agent.unrecorded_due_s = self._loop.time() + UNRECORDED_EVERY_S
            why = {"reason": decide.RECORDER_UNAVAILABLE, "rule": None, "rule_name": None}
            self._notify(agent, "denied", {**record.data, **why})

    def _respond(self, agent: Agent, verdict: wire.Verdict) -> None:
        if agent.verdicts is not None:
            agent.verdicts.write(wire.encode_plain(verdict))

    def note(self, agent: Agent, event_type: str, data: dict[str, Any], **fields: Any) -> None:
        """Record something that already happened to this agent."""
        self._recording.try_append(
            event_type, data, agent_id=agent.id, agent_name=agent.name, execution_id=agent.execution_id, **fields
        )

    # --- repeated denials ------------------------------------------------------------------------------------------

    def _is_repeat(self, agent: Agent, act: wire.Act, decision: Decision, now_s: float) -> bool:
        """Answer a denial that is already on record and count it; a rule with a signal is never a mere repeat."""
        key = (act.operation, decision.resource, decision.reason)
        known = agent.denials.get(key)
        if known is None or decision.on_violation or decision.retry_after_s is not None:
            return False
        if now_s >= known.until_s or known.data["policy_hash"] != decision.policy_hash:  # its policy has changed since
            self._flush_denial(agent, key)
            return False
        known.count += 1
        self._respond(agent, known.verdict._replace(id=act.id))
        return True

    def _remember_denial(self, agent: Agent, act: wire.Act, verdict: wire.Verdict, record: decide.Record) -> None:
        key = (act.operation, verdict.resource, verdict.reason)
        self._flush_denial(agent, key)  # several of them may have become durable one after the other, and counted since
        if len(agent.denials) >= DENIALS_TRACKED_MAX:
            self._flush_denial(agent, next(iter(agent.denials)))
        agent.denials[key] = RepeatedDenial(
            self._loop.time() + DENIAL_WINDOW_S,
            verdict,
            {k: v for k, v in record.data.items() if k not in LARGE_FIELDS},
        )
        self._loop.call_later(DENIAL_WINDOW_S, self._flush_denial, agent, key)
        self._notify(agent, "denied", {**record.data, "seq": verdict.seq})

    def _flush_denial(self, agent: Agent, key: tuple[str, str, str]) -> None:
        known = agent.denials.pop(key, None)
        if known is not None and known.count:
            data = {**known.data, "repeats": known.count, "first_seq": known.verdict.seq}
            self.note(agent, "policy_violation_repeated", data, severity="warning")

    def flush_denials(self, agent: Agent) -> None:
        for key in list(agent.denials):
            self._flush_denial(agent, key)

    # --- everything else an agent may say --------------------------------------------------------------------------

    def _on_frame(self, agent: Agent, frame: Any) -> None:
        match frame:
            case wire.Hello():
                if frame.version != wire.VERSION:
                    raise ProtocolError(f"version {frame.version}, ours is {wire.VERSION}")
            case wire.Outcome():
                data = {"action_id": frame.id, "ok": frame.ok, "detail": frame.detail[:TEXT_MAX]}
                self.note(agent, "action_outcome", data)
            case wire.Result():
                agent.result = frame.value
            case wire.Raised():
                agent.raised = _clipped(frame)
                self.note(
                    agent, "agent_raised", {"type": frame.type, "message": frame.message[:TEXT_MAX]}, severity="error"
                )
            case wire.Answer():
                waiting = agent.queries.pop(frame.id, None)
                if waiting is None:
                    raise ProtocolError(f"Answer {frame.id} to no question that is open")
                if not waiting.done():  # nobody waits any more for an answer that comes late
                    waiting.set_result(frame)
            case wire.Call():
                if len(frame.method) > METHOD_MAX:
                    raise ProtocolError(f"Call.method has {len(frame.method)} characters, the limit is {METHOD_MAX}")
                self._on_call(agent, frame)

    def protocol_fault(self, agent: Agent, error: Exception) -> None:
        """Record what was wrong with the stream and end that agent; nobody else notices."""
        if agent.ended:
            return
        agent.ended_by = agent.ended_by or "protocol"
        agent.violations += 1
        self.note(agent, "protocol_error", {"error": str(error)[:TEXT_MAX]}, severity="error", durable=True)
        self._deliver(agent, AgentSignal.SIGKILL, "tree")

    # --- what a sentry says ----------------------------------------------------------------------------------------

    def on_sentry_frame(self, agent: Agent, frame: Any) -> None:
        """Take in one frame of the (trusted) sentry; Exited and TreeGone belong to `endings`."""
        match frame:
            case wire.Spawned():
                agent.pid, agent.start_ticks = frame.pid, frame.start_ticks
            case wire.SpawnFailed():
                agent.spawn_error = frame
                data = {"errno": frame.errno, "error": os.strerror(frame.errno), "what": frame.what}
                self.note(agent, "agent_start_failed", data, severity="warning")
                agent.move(lifecycle.StartFailed())
                agent.first_seen.set()
            case wire.StateSeen():
                self._on_state(agent, frame)
            case wire.Delivered():
                waiting = agent.deliveries.pop(frame.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)
            case wire.LogGrew():
                agent.log_offset, agent.log_dropped = frame.offset, frame.dropped
                self._notify(agent, "log", {"offset": frame.offset, "dropped": frame.dropped})
            case _:
                pass  # Hello and Pong: arriving is all they do

    def _on_state(self, agent: Agent, frame: wire.StateSeen) -> None:
        if frame.mechanism == "exec":
            agent.move(lifecycle.Began())
        else:
            stopped = frame.state == "stopped"
            changed = agent.move(lifecycle.Paused() if stopped else lifecycle.Resumed())
            if changed or frame.mechanism.startswith("signal"):  # SIGCHLD tells of our own signals once more
                agent.mechanism = frame.mechanism if stopped else ""
            if changed:
                if agent.blocked and not stopped:
                    agent.move(lifecycle.Blocked())
                event = "agent_stopped" if stopped else "agent_continued"
                self.note(agent, event, {"mechanism": frame.mechanism})
                self._notify(agent, "agent", {})
        agent.first_seen.set()

    def on_exit(self, agent: Agent, frame: wire.Exited, unfinished_bytes: int) -> None:
        """Put the exit on record before the sentry may reap. It may have died inside a frame: that is said too."""
        agent.exit_code, agent.exit_signal = frame.code, frame.signal
        agent.exit_on_record = True
        self.flush_denials(agent)
        if unfinished_bytes:
            text = f"the agent ended inside a frame, after {unfinished_bytes} bytes of it"
            self.note(agent, "protocol_error", {"error": text}, severity="warning")
        data = {
            "exit_code": frame.code,
            "exit_signal": frame.signal,
            "how": describe_exit(frame.code, frame.signal),
            "ended_by": agent.ended_by,
            "cpu_ms": frame.cpu_ms,
            "actions": agent.actions,
            "violations": agent.violations,
        }
        if agent.log_dropped:
            data["log_dropped_bytes"] = agent.log_dropped
        severity = "info" if frame.code == 0 else "warning"
        self.note(agent, "agent_exited", data, severity=severity, durable=True)
        agent.move(lifecycle.Exited())


def _clipped(raised: wire.Raised) -> wire.Raised:
    """An agent's last words are kept as long as its row is: no longer than its own library would make them."""
    return wire.Raised(
        raised.type[:TEXT_MAX], raised.message[:RAISED_MAX], raised.traceback[:RAISED_MAX], _plain(raised.violation)
    )


def _plain(violation: dict[str, Any] | None) -> dict[str, Any] | None:
    if violation is None:
        return None
    fields = ((name, violation.get(name)) for name in VIOLATION_FIELDS)
    return {name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in fields
            if isinstance(value, str | int)}  # fmt: skip
