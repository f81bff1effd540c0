"""An agent and the terminal that started it: its output, its keys, its end.

What a key press means stands in `DECISIONS`; everything else here carries it out. The agent lives in a session of its
own, so the terminal's signals reach only us: Ctrl-C stops it, a second one kills it, Ctrl-Z freezes its whole tree
and then us, and `fg` continues both. Output is read from the log; the kernel only rings.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal as posix
import subprocess
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final, Self

from agentos import wire
from agentos.cli.calls import Conversation, open_link
from agentos.cli.logs import Printer
from agentos.cli.output import say
from agentos.client.launch import Started
from agentos.clock import SystemClock
from agentos.errors import AgentFailed, AgentosError, AgentTimeoutError, KernelUnavailable
from agentos.faults import rebuild
from agentos.logfile import LogReader
from agentos.signals import AgentSignal

DENIALS_SHOWN_A_SECOND: Final = 5  # a person reads no more; the record has them all
DENIALS_REMEMBERED: Final = 1000
END_LIMIT_S: Final = 15.0  # how long the record may take to be closed after the agent's end
EXIT_TIMEOUT: Final = 124
EXIT_POLICY: Final = 4
EXIT_UNKNOWN: Final = 125


class Phase(Enum):
    RUNNING = "running"
    STOPPING = "stopping"  # asked to end, in its grace
    KILLING = "killing"


class Press(Enum):
    INTERRUPT = "Ctrl-C"
    SUSPEND = "Ctrl-Z"
    HANGUP = "the terminal or our starter wants us gone"


class Order(Enum):
    STOP = "stop"
    KILL = "kill"
    PAUSE = "pause"
    NOTHING = "nothing"


DECISIONS: Final[dict[tuple[Phase, Press], tuple[Phase, Order]]] = {
    (Phase.RUNNING, Press.INTERRUPT): (Phase.STOPPING, Order.STOP),
    (Phase.RUNNING, Press.SUSPEND): (Phase.RUNNING, Order.PAUSE),
    (Phase.RUNNING, Press.HANGUP): (Phase.STOPPING, Order.STOP),
    (Phase.STOPPING, Press.INTERRUPT): (Phase.KILLING, Order.KILL),
    (Phase.STOPPING, Press.SUSPEND): (Phase.STOPPING, Order.NOTHING),  # its grace would run on without it
    (Phase.STOPPING, Press.HANGUP): (Phase.STOPPING, Order.NOTHING),
    (Phase.KILLING, Press.INTERRUPT): (Phase.KILLING, Order.NOTHING),
    (Phase.KILLING, Press.SUSPEND): (Phase.KILLING, Order.NOTHING),
    (Phase.KILLING, Press.HANGUP): (Phase.KILLING, Order.NOTHING),
}

_PRESSES: Final = {
    posix.SIGINT: Press.INTERRUPT,
    posix.SIGTSTP: Press.SUSPEND,
    posix.SIGTERM: Press.HANGUP,
    posix.SIGHUP: Press.HANGUP,
}


def attend(started: Started, agent_id: str, *, grace_s: float) -> int:
    """Stay with the agent until it is gone and return the exit code. Raises BrokenPipeError when our reader left."""
    with _Keys() as keys:
        session = Session(started, agent_id, keys, grace_s=grace_s)
        try:
            row = session.run()
        finally:
            session.close()
        code = _ending(started, row)
        _close_run(started)
    _explain_denials(row)
    return code


class Session:
    """The loop: keys and frames in, calls and output out."""

    def __init__(self, started: Started, agent_id: str, keys: _Keys, *, grace_s: float) -> None:
        self._agent_id = agent_id
        self._grace_s = grace_s
        self._keys = keys
        self._phase = Phase.RUNNING
        self._conversation = Conversation(open_link(started.run))
        self._reader = LogReader(started.run.logs, agent_id)
        self._printer = Printer()
        self._denials = Denials()
        self._clock = SystemClock()
        self._on_reply: dict[int, Callable[[Any], None]] = {}
        self._pausing = False
        self._last_row: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        """Return the agent's last row once nothing of it lives. Raises KernelUnavailable when the kernel went first."""
        self._call("follow", {}, lambda _: None)
        self._call("inspect", {}, self._look)  # after follow: no end can slip between
        poll = select.poll()
        poll.register(self._conversation.fileno(), select.POLLIN)
        poll.register(self._keys.fileno(), select.POLLIN)
        try:
            while self._last_row is None:
                self._turn({descriptor for descriptor, _ in poll.poll()})
        finally:
            self._printer.show(self._reader.read())
        return self._last_row

    def close(self) -> None:
        self._conversation.close()

    def _turn(self, ready: set[int]) -> None:
        if self._keys.fileno() in ready:
            for press in self._keys.pressed():
                self._obey(press)
        if self._conversation.fileno() in ready:
            for frame in self._conversation.receive():
                self._take(frame)
            self._printer.show(self._reader.read())

    # --- keys ------------------------------------------------------------------------------------------------------

    def _obey(self, press: Press) -> None:
        self._phase, order = DECISIONS[self._phase, press]
        if order is Order.STOP:
            if press is Press.INTERRUPT:
                say(f"stopping, grace {self._grace_s:g}s; Ctrl-C again kills")
            self._call("stop", {"grace_s": self._grace_s}, lambda _: None)
        elif order is Order.KILL:
            self._signal(AgentSignal.SIGKILL, lambda _: None)
        elif order is Order.PAUSE and not self._pausing:
            self._pausing = True
            self._signal(AgentSignal.SIGSTOP, self._suspend)

    def _suspend(self, answer: Any) -> None:
        """The tree is frozen, so now we are; what comes after the kill happens when the shell continues us."""
        self._pausing = False
        if isinstance(answer, AgentosError) or not answer.get("ok"):
            say(f"cannot pause: {answer if isinstance(answer, AgentosError) else answer.get('detail')}")
            return
        os.kill(os.getpid(), posix.SIGSTOP)
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
            say(str(error))
            self._on_reply.pop(frame.id, lambda _: None)(error)
        elif isinstance(frame, wire.Notice) and frame.data.get("id") == self._agent_id:
            if frame.topic == "agent":
                self._look(frame.data)
            elif frame.topic == "denied":
                line = self._denials.line(frame.data, self._clock.monotonic_ns())
                if line:
                    say(line)

    def _look(self, row: Any) -> None:
        if isinstance(row, AgentosError):
            raise row
        if row.get("ended_at"):
            self._last_row = row


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
        rule = data.get("rule_name") or ("the default" if data.get("rule") is None else f"rule {data['rule']}")
        return f"denied {operation} {resource}: {data.get('reason')} ({rule})"


class _Keys:
    """Signals as readable bytes, for the time of a with block. What was ignored (nohup) stays ignored."""

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._before = {
            number: posix.signal(number, lambda *_: None)
            for number in _PRESSES
            if posix.getsignal(number) is not posix.SIG_IGN
        }
        self._wakeup_before = posix.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        posix.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            posix.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        return self._reader

    def pressed(self) -> Iterator[Press]:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._reader, 64):
                if number in _PRESSES:
                    yield _PRESSES[posix.Signals(number)]


def exit_code(row: dict[str, Any]) -> int:
    """Return what `agentos run` exits with: 124 and 4 say who ended the agent, else its own code or 128 + signal."""
    if row.get("ended_by") == "timeout":
        return EXIT_TIMEOUT
    if row.get("ended_by") == "policy":
        return EXIT_POLICY
    if row.get("exit_signal") is not None:
        return 128 + int(row["exit_signal"])
    return EXIT_UNKNOWN if row.get("exit_code") is None else int(row["exit_code"])


def _ending(started: Started, row: dict[str, Any]) -> int:
    """Say what the agent's output did not, and return the exit code."""
    code = exit_code(row)
    number = row.get("exit_signal")
    if row.get("ended_by") not in (None, "", "stop"):
        say(f"{row.get('name')} was ended: {row['ended_by']}")
    elif number is not None and row.get("ended_by") != "stop":
        say(f"{row.get('name')} was killed by signal {number}")
    if ":" not in str((row.get("command") or [""])[0]) or code in {EXIT_TIMEOUT, EXIT_POLICY} or number is not None:
        return code
    try:  # a Python agent: what its function raised
        started.link.call("result", {"id": row["id"]})
    except AgentFailed as error:
        if error.remote_type is not None:
            say(str(error))
        return code
    except AgentTimeoutError:
        return EXIT_TIMEOUT
    except AgentosError as error:
        say(str(error))
        return error.exit_code
    return code


def _close_run(started: Started) -> None:
    """End the kernel and wait for it: when we return, the record is closed and `agentos audit` shows all of it."""
    with contextlib.suppress(KernelUnavailable):
        started.link.call("shutdown")
    started.link.close()
    try:
        started.guard.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        say(f"the kernel of run {started.run.run_id} is still closing its record")


def _explain_denials(row: dict[str, Any]) -> None:
    count = int(row.get("violations_count") or 0)
    if count:
        name = str(row.get("name") or "")
        plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum() and name != "show"
        target = name if plain else row["id"]
        say(f"{count} action{'' if count == 1 else 's'} denied; see: agentos audit {target} --type policy_violation")
