"""An agent and the terminal that started it: its output, its keys, its end.

What a key press means stands in agentos.cli.keys; everything here carries it out. Output is read from the log; the
kernel only rings. When nobody reads us any more the agent is asked to end, as if its terminal had been closed.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Final

from agentos import wire
from agentos.cli.calls import Conversation, open_link
from agentos.cli.keys import DECISIONS, Keys, Order, Phase, Press
from agentos.cli.logs import unkept
from agentos.cli.outflow import Outflow
from agentos.cli.output import invocation, is_terminal, say
from agentos.client.launch import Started
from agentos.clock import SystemClock
from agentos.errors import UNDECIDED, AgentosError, KernelUnavailable, PolicyViolationError
from agentos.faults import rebuild
from agentos.logfile import LogReader
from agentos.signals import AgentSignal, describe_exit

DENIALS_SHOWN_A_SECOND: Final = 5  # a person reads no more; the record has them all
DENIALS_REMEMBERED: Final = 1000
STUCK_LIMIT_MS: Final = 2_000  # how long a reader may read nothing when we are wanted gone and the agent is
END_LIMIT_S: Final = 15.0  # how long the record may take to be closed after the agent's end
EXIT_TIMEOUT: Final = 124
EXIT_POLICY: Final = 4
EXIT_UNKNOWN: Final = 125
EXIT_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE, as any other program in a pipeline
EXIT_CANNOT_WRITE: Final = 125
STDIN: Final = 0  # open, if only to /dev/null, since this program started
STREAM_NAMES: Final = {1: "stdout", 2: "stderr"}


def start_agent(started: Started, params: dict[str, Any], descriptors: Sequence[int]) -> str:
    """Start the agent, say what its level does not hold, and return its id. Raises what hindered it."""
    agent = started.link.call("start", params, descriptors)
    for note in agent.get("notes", ()):
        say(str(note))
    return str(agent["id"])


def attend(started: Started, params: dict[str, Any], *, grace_s: float) -> int:
    """Start the agent, stay with it until it is gone, end its run and return the exit code."""
    with Keys() as keys:
        try:
            with contextlib.closing(_follow(started)) as conversation:
                agent_id = start_agent(started, params, [STDIN])
                keys.there_is_somebody()
                session = Session(started, agent_id, conversation, keys, grace_s=grace_s)
                row, unread = _all_lives(session)
            code = _ending(row)
            if params["kind"] == "python" and code not in {0, EXIT_TIMEOUT} and _was_refused(started, row):
                code = EXIT_POLICY
        finally:
            close_run(started)
    _explain_denials(row)
    return unread or code


def _all_lives(session: Session) -> tuple[dict[str, Any], int]:
    """Stay with the agent through all its lives; return the row of the last one that began, and what nobody read."""
    last, unread = _one_life(session)
    row = last
    while row.get("next_id"):
        say(f"{row.get('name')} {_how(row)}; it is restarted")
        session = session.next_life(str(row["next_id"]))
        row, code = _one_life(session)
        unread = unread or code
        if row.get("pid"):  # else it was told to end before it began: the one before was the last
            last = row
    return last, unread


def _one_life(session: Session) -> tuple[dict[str, Any], int]:
    row = session.run()
    if text := unkept(row, session.reader):
        say(text)
    return row, session.unread


def _follow(started: Started) -> Conversation:
    """Be told of everything in the run from before there is anybody: what is refused first must not be missed."""
    link = open_link(started.run)
    link.call("follow", {"id": "*"})
    return Conversation(link)


class Session:
    """The loop: keys and frames in, calls and output out."""

    def __init__(
        self, started: Started, agent_id: str, conversation: Conversation, keys: Keys, *, grace_s: float
    ) -> None:
        self._started = started
        self._agent_id = agent_id
        self._grace_s = grace_s
        self._keys = keys
        self._phase = Phase.RUNNING
        self._conversation = conversation
        self.reader = LogReader(started.run.logs, agent_id)
        self._outflow = Outflow(self.reader)
        self._denials = Denials()
        self._clock = SystemClock()
        self._on_reply: dict[int, Callable[[Any], None]] = {}
        self._pausing = False
        self._wanted_gone = False
        self._last_row: dict[str, Any] | None = None
        self._unwanted = False  # somebody wanted it gone when it had just ended by itself
        self.unread = 0  # the exit code that says that our reader left before the agent ended

    def next_life(self, agent_id: str) -> Session:
        """Return the session of the life that follows this one, which is over."""
        following = Session(self._started, agent_id, self._conversation, self._keys, grace_s=self._grace_s)
        if self._unwanted or self.unread:
            following._obey(Press.HANGUP)
        return following

    def run(self) -> dict[str, Any]:
        """Return the agent's last row once nothing of it lives and all it wrote is written.

        Raises KernelUnavailable when the kernel went first, after showing what there is of the output.
        """
        self._call("inspect", {}, self._look)  # its end may be in the past already
        lost: KernelUnavailable | None = None
        while (writing := self._outflow.next_descriptor()) is not None or (self._last_row is None and lost is None):
            try:
                self._turn(writing, listening=self._last_row is None and lost is None)
            except KernelUnavailable as error:
                lost, self._phase = error, Phase.OVER
                self._outflow.grew()
        if self._last_row is None and lost is not None:
            raise lost
        assert self._last_row is not None
        return self._last_row

    def _turn(self, writing: int | None, *, listening: bool) -> None:
        """Wait for whatever comes first and deal with it. `writing` is where the next piece of output goes."""
        poll = select.poll()
        poll.register(self._keys.fileno(), select.POLLIN)
        if listening:
            poll.register(self._conversation.fileno(), select.POLLIN)
        if writing is not None:
            poll.register(writing, select.POLLOUT)
        hurried = self._wanted_gone and self._phase is Phase.OVER
        ready = {descriptor for descriptor, _ in poll.poll(STUCK_LIMIT_MS if hurried else None)}
        if not ready:
            self._leave()
        if self._keys.fileno() in ready:
            for press in self._keys.pressed():
                self._obey(press)
        if writing in ready:
            self._write(writing)
        if self._conversation.fileno() in ready:
            for frame in self._conversation.receive():
                self._take(frame)
            self._outflow.grew()

    def _write(self, descriptor: int) -> None:
        """Write one piece. A reader that left is like a terminal that was closed: the agent is asked to end."""
        try:
            self._outflow.write()
        except BlockingIOError:  # somebody shares the descriptor and made it non-blocking
            return
        except OSError as error:
            self._outflow.close(descriptor)
            self.unread = EXIT_BROKEN_PIPE
            if not isinstance(error, BrokenPipeError):
                self.unread = EXIT_CANNOT_WRITE
                self._outflow.say(f"cannot write to {STREAM_NAMES[descriptor]}: {error.strerror}")
            if self._phase is not Phase.OVER:
                self._obey(Press.HANGUP)

    # --- keys ------------------------------------------------------------------------------------------------------

    def _obey(self, press: Press) -> None:
        self._wanted_gone = self._wanted_gone or press is Press.HANGUP
        self._unwanted = self._unwanted or press is not Press.SUSPEND
        self._phase, order = DECISIONS[self._phase, press]
        if order is Order.STOP:
            if press is Press.INTERRUPT:
                self._answer_key(f"stopping, grace {self._grace_s:g}s; Ctrl-C again kills")
            self._call("stop", {"grace_s": self._grace_s}, lambda _: None)
        elif order is Order.KILL:
            self._answer_key("killing")
            self._signal(AgentSignal.SIGKILL, lambda _: None)
        elif order is Order.PAUSE and not self._pausing:
            self._pausing = True
            self._signal(AgentSignal.SIGSTOP, self._suspend)
        elif order is Order.PAUSE_US:
            self._keys.sleep()
        elif order is Order.LEAVE:
            self._leave()

    def _leave(self) -> None:
        """Pass over what nobody reads."""
        for descriptor in (1, 2):
            self._outflow.close(descriptor)

    def _answer_key(self, text: str) -> None:
        """Say `text` on a line of its own: the terminal has just shown ^C."""
        self._outflow.say(text, fresh_line=is_terminal(2))

    def _suspend(self, answer: Any) -> None:
        """The tree is frozen, so now we are; what comes after the sleep happens when the shell continues us."""
        self._pausing = False
        if isinstance(answer, AgentosError) or not answer.get("ok"):
            self._outflow.say(f"cannot pause: {answer if isinstance(answer, AgentosError) else answer.get('detail')}")
            return
        self._keys.sleep()
        self._signal(AgentSignal.SIGCONT, lambda _: None)

    # --- frames ----------------------------------------------------------------------------------------------------

    def _signal(self, signal: AgentSignal, then: Callable[[Any], None]) -> None:
        self._call("signal", {"signal": signal.value, "scope": "tree"}, then)

    def _call(self, method: str, params: dict[str, Any], then: Callable[[Any], None]) -> None:
        call_id = self._conversation.start(method, {"id": self._agent_id, **params})
        self._on_reply[call_id] = then

    def _take(self, frame: Any) -> None:
        if isinstance(frame, wire.Reply):
            self._on_reply.pop(frame.id, lambda _: None)(frame.value)
        elif isinstance(frame, wire.Fault):
            error = rebuild(frame)
            self._outflow.say(str(error))
            self._on_reply.pop(frame.id, lambda _: None)(error)
        elif isinstance(frame, wire.Notice) and frame.data.get("id") == self._agent_id:
            if frame.topic == "agent":
                self._look(frame.data)
            elif frame.topic == "denied":
                line = self._denials.line(frame.data, self._clock.monotonic_ns())
                if line:
                    self._outflow.say(line)

    def _look(self, row: Any) -> None:
        if isinstance(row, AgentosError):
            raise row
        if row.get("ended_at"):
            self._last_row = row
            self._phase = Phase.OVER


class Denials:
    """Which denials deserve a line: each distinct one once, and not too many in a second. Pure."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, str]] = set()
        self._second = -1
        self._lines = 0

    def line(self, data: dict[str, Any], now_ns: int) -> str | None:
        """Return the line to show, or None."""
        operation, resource = str(data.get("operation")), str(data.get("resource"))
        key = (operation, resource, str(data.get("rule_name")))
        if key in self._seen or len(self._seen) >= DENIALS_REMEMBERED:
            return None
        second = now_ns // 1_000_000_000
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= DENIALS_SHOWN_A_SECOND:
            return None
        self._seen.add(key)
        self._lines += 1
        rule, reason = data.get("rule_name"), str(data.get("reason"))
        if reason in UNDECIDED:
            return f"denied {operation} {resource}: {reason}: {UNDECIDED[reason]}"
        rule = rule or ("the default" if data.get("rule") is None else f"rule {data['rule']}")
        by = "" if str(rule).lower() == reason.lower() else f" ({rule})"  # a rule may be called what it says
        return f"denied {operation} {resource}: {reason}{by}"


def exit_code(row: dict[str, Any]) -> int:
    """Return what `agentos run` exits with: 124 and 4 say who ended the agent, else its own code or 128 + signal."""
    if row.get("ended_by") == "timeout":
        return EXIT_TIMEOUT
    if row.get("ended_by") == "policy":
        return EXIT_POLICY
    if row.get("exit_signal") is not None:
        return 128 + int(row["exit_signal"])
    return EXIT_UNKNOWN if row.get("exit_code") is None else int(row["exit_code"])


def _ending(row: dict[str, Any]) -> int:
    """Say what the agent's output did not, and return the exit code."""
    code = exit_code(row)
    number = row.get("exit_signal")
    how = describe_exit(row.get("exit_code"), number) if number is not None else ""
    if row.get("failed"):
        say(f"{row.get('name')} {_how(row)}; it is not restarted any more: {row['failed']}")
    elif row.get("ended_by") not in (None, "", "stop"):
        say(f"{row.get('name')} was ended: {row['ended_by']}{how and f', {how}'}")
    elif number is not None and row.get("ended_by") != "stop":
        say(f"{row.get('name')} was {how}")
    return code


def _how(row: dict[str, Any]) -> str:
    """Say how one of several lives ended."""
    code, number = row.get("exit_code"), row.get("exit_signal")
    how = "could not be started" if code is None and number is None else f"ended: {describe_exit(code, number)}"
    return f"{how}, {row['ended_by']}" if row.get("ended_by") else how


def _was_refused(started: Started, row: dict[str, Any]) -> bool:
    """Whether a refusal that it did not handle ended a Python agent. What else it raised stands in its output."""
    try:
        started.link.call("result", {"id": row["id"]})
    except PolicyViolationError:
        return True
    except AgentosError:
        return False
    return False


def close_run(started: Started) -> None:
    """End the kernel and wait for it: when we return, the record is closed and `agentos audit` shows all of it."""
    with contextlib.suppress(KernelUnavailable, TimeoutError):
        started.link.socket.settimeout(END_LIMIT_S)
        started.link.call("shutdown")
    started.link.close()
    try:
        started.guard.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        say(f"the kernel of run {started.run.run_id} is still closing its record")


def _explain_denials(row: dict[str, Any]) -> None:
    """End with the command that explains the denials. By id: another agent of this name may live by then."""
    count = int(row.get("violations_count") or 0)
    if count:
        what = f"{count} action{'' if count == 1 else 's'} denied"
        say(f"{what}; see: {invocation()} audit {row['id']} --type policy_violation")
