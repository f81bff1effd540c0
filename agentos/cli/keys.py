"""What key presses mean to an attached run, and how they reach it: signals as readable bytes.

The agent lives in a session of its own, so the terminal's signals reach only us: Ctrl-C stops the agent, a second one
kills it, Ctrl-Z freezes its whole tree and then us. `DECISIONS` is the whole meaning. An agent may have changed the
modes of our terminal (no echo, raw); whoever leaves or pauses gives it back as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal as posix
import termios
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final, Self


class Phase(Enum):
    RUNNING = "running"
    STOPPING = "stopping"  # asked to end, in its grace
    KILLING = "killing"
    OVER = "over"  # nothing of it lives; only its last output is on its way


class Press(Enum):
    INTERRUPT = "Ctrl-C"
    SUSPEND = "Ctrl-Z"
    HANGUP = "the terminal or our starter wants us gone"


class Order(Enum):
    STOP = "stop"
    KILL = "kill"
    PAUSE = "pause"
    PAUSE_US = "pause agentos alone"
    LEAVE = "leave the rest unread"
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
    (Phase.OVER, Press.INTERRUPT): (Phase.OVER, Order.LEAVE),
    (Phase.OVER, Press.SUSPEND): (Phase.OVER, Order.PAUSE_US),
    (Phase.OVER, Press.HANGUP): (Phase.OVER, Order.LEAVE),
}

_PRESSES: Final = {
    posix.SIGINT: Press.INTERRUPT,
    posix.SIGTSTP: Press.SUSPEND,
    posix.SIGTERM: Press.HANGUP,
    posix.SIGHUP: Press.HANGUP,
}


class Keys:
    """Signals as readable bytes, for the time of a with block. What was ignored (nohup) stays ignored.

    Before there is an agent, nobody can be asked to end: whoever wants us gone then raises KeyboardInterrupt. A pause
    that early is kept until there is somebody to pause.
    """

    _somebody = False

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._before = {
            number: posix.signal(number, self._on_signal)
            for number in _PRESSES
            if posix.getsignal(number) is not posix.SIG_IGN
        }
        self._ours = terminal_modes()
        self._wakeup_before = posix.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        set_terminal_modes(self._ours)
        posix.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            posix.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def there_is_somebody(self) -> None:
        """From now on every press is read from here."""
        self._somebody = True

    def _on_signal(self, number: int, _: object) -> None:
        if not self._somebody and _PRESSES[posix.Signals(number)] is not Press.SUSPEND:
            raise KeyboardInterrupt

    def fileno(self) -> int:
        return self._reader

    def pressed(self) -> Iterator[Press]:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._reader, 64):
                if number in _PRESSES:
                    yield _PRESSES[posix.Signals(number)]

    def sleep(self) -> None:
        """Stop this process until somebody continues it. The terminal has its own modes meanwhile."""
        theirs = terminal_modes()
        set_terminal_modes(self._ours)
        os.kill(os.getpid(), posix.SIGSTOP)  # what follows happens when the shell continues us
        set_terminal_modes(theirs)


def terminal_modes() -> list[Any] | None:
    """Return the modes of a terminal that is the agent's to change: one that we hold at both ends, else None.

    With stdout in a pipe the modes may be those of a pager, which are not ours to give back.
    """
    try:
        return termios.tcgetattr(0) if os.isatty(1) else None
    except termios.error:
        return None


def set_terminal_modes(modes: list[Any] | None) -> None:
    """Set them where they differ, unless we were put into the background: the terminal is somebody else's then."""
    try:
        if modes is not None and os.tcgetpgrp(0) == os.getpgrp() and termios.tcgetattr(0) != modes:
            termios.tcsetattr(0, termios.TCSANOW, modes)
    except (OSError, termios.error):  # the terminal is gone
        return
