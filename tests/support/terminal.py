"""A terminal for tests: a program in a session of its own on a pseudo-terminal, with keys, a size and a hang-up."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

LIMIT_S = 30.0
_TIOCSCTTY = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """One program and the screen it writes to. `text` is everything shown so far, line ends as a program wrote them."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, columns: int = 80, lines: int = 24
    ) -> None:
        self._keyboard, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.text = ""
        self.cwd = cwd
        self.process = subprocess.Popen(
            # A shim makes the terminal its controlling one after setsid: preexec_fn is no place for that.
            ["/usr/bin/python3", "-I", "-c", _TIOCSCTTY, *argv],
            stdin=theirs, stdout=theirs, stderr=theirs, env=dict(env), cwd=cwd, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._keyboard >= 0:
            self.hang_up()
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def until(self, pattern: str, *, after: int = 0, limit_s: float = LIMIT_S) -> int:
        """Read until `pattern` is shown behind position `after`; return the position behind it."""
        deadline = time.monotonic() + limit_s
        while True:
            found = re.search(pattern, self.text[after:], re.MULTILINE)
            if found:
                return after + found.end()
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} was not shown behind {after}: {self.text!r}"
            assert self._read(left), f"{pattern!r} was not shown before the end: {self.text!r}"

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Read to the end and return the program's exit code, negative for a signal."""
        deadline = time.monotonic() + limit_s
        while self._read(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"it did not end: {self.text!r}"
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def modes(self) -> list[Any]:
        """Return the modes that the terminal has now (termios(3))."""
        return termios.tcgetattr(self._keyboard)

    def hang_up(self) -> None:
        """Close the terminal, as a window that is closed or a connection that is lost."""
        os.close(self._keyboard)
        self._keyboard = -1

    def _read(self, limit_s: float) -> bool:
        """Read once; False when nobody holds the terminal any more."""
        ready, _, _ = select.select([self._keyboard], [], [], min(limit_s, 0.2))
        if not ready:
            return self.process.poll() is None or limit_s > 0
        try:
            data = os.read(self._keyboard, 65536)
        except OSError:  # EIO: the last writer is gone (pty(7))
            return False
        self.text += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
