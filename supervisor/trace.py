"""What a kernel says on stderr with debug=True: one line for each frame that comes in, decision, transition and signal.

Headers only: type, agent, id and size of a frame, what a decision says, never arguments, claims, context or values. A
thread of its own writes, so that a reader who does not read holds up nothing: what is too much is dropped and counted.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Final

from agentos import lifecycle
from agentos.clock import Clock, rfc3339
from agentos.lifecycle import State
from agentos.printable import printable
from agentos.supervisor.agents import Agent

LINES_MAX: Final = 4_096  # that wait to be written; the rest is counted
SHOWN_CHARS_MAX: Final = 200  # of a word that somebody else chose
ID_CHARS: Final = 13  # of an id: its milliseconds, enough for the command line to find the agent by
CLOSE_LIMIT_S: Final = 0.5  # for the last lines, when the kernel ends


class Trace:
    """The lines, and the thread that writes them to a descriptor."""

    def __init__(self, clock: Clock, descriptor: int = 2) -> None:
        self._clock = clock
        self._descriptor = descriptor
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closed = False
        self._some = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="trace", daemon=True)
        self._thread.start()

    def line(self, who: str, text: str) -> None:
        """Have one line written. Never waits for the reader, never raises."""
        with self._some:
            if len(self._lines) >= LINES_MAX:
                self._dropped += 1
                return
            self._tell_dropped()
            self._lines.append(self._line(who, text))
            self._some.notify()

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._lines.append(self._line("trace", f"{self._dropped} lines are missing: nobody read fast enough"))
            self._dropped = 0

    def _line(self, who: str, text: str) -> str:
        return f"{rfc3339(self._clock.wall_ns())[11:23]} {who:<24} {text}\n"

    def of(self, agent: Agent, text: str) -> None:
        """Have one line written about an agent."""
        self.line(f"{shown(agent.name)}/{agent.id[:ID_CHARS]}", text)

    def moved(self, agent: Agent, before: State, event: lifecycle.Event) -> None:
        self.of(agent, f"{before.value} → {agent.state.value} by {type(event).__name__}")

    def close(self) -> None:
        """Write what is left, but wait no longer than CLOSE_LIMIT_S for whoever reads."""
        with self._some:
            self._tell_dropped()
            self._closed = True
            self._some.notify()
        self._thread.join(CLOSE_LIMIT_S)

    def _write(self) -> None:
        while True:
            with self._some:
                while not self._lines and not self._closed:
                    self._some.wait()
                if not self._lines:
                    return
                lines, self._lines = self._lines, deque()
            data = "".join(lines).encode(errors="backslashreplace")
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:  # nobody reads any more
                return


def shown(text: str) -> str:
    """Return what somebody else chose, for a terminal: no longer than a line, and it moves no cursor."""
    return printable(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…")
