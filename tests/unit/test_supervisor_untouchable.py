"""A process that became another user is not ours to signal: whoever tries says so, and serves all others meanwhile.

That Linux refuses is the one thing played here: only root could make such a process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from world import PROJECT, SYSTEM_PYTHON, state_of

from agentos.supervisor.sentry import Sentry


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSTOP, signal.SIGUSR1])
def test_a_sentry_says_that_its_leader_was_not_reached(
    child: subprocess.Popen[bytes], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentry = Sentry.__new__(Sentry)
    sentry.leader = child.pid
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    monkeypatch.setattr(os, "kill", refuse)
    assert not sentry._signal_leader(number)
    assert sentry._why_not() == f"not confirmed for {child.pid}"
    assert state_of(child.pid) not in "TZ"


ZYGOTE = """
import os, signal, subprocess, sys, time
from agentos import wire
from agentos.supervisor import linux
from agentos.supervisor.zygote import Zygote

linux.set_subreaper()
real_send, real_kill = signal.pidfd_send_signal, os.kill
sleeper = ["/bin/sleep", "60"]
untouchable, orphan, sentry = (subprocess.Popen(sleeper).pid for _ in range(3))
zygote = Zygote({}, 0)
zygote._kinds[sentry] = "sentry"

def send(descriptor, number, *rest):
    pid = int(open(f"/proc/self/fdinfo/{descriptor}").read().split("Pid:")[1].split()[0])
    if pid == untouchable:
        raise PermissionError(1, "no")
    real_send(descriptor, number, *rest)

def kill(pid, number):
    if pid == untouchable:
        raise PermissionError(1, "no")
    real_kill(pid, number)

signal.pidfd_send_signal, os.kill = send, kill
real_kill(sentry, signal.SIGKILL)
os.waitid(os.P_PID, sentry, os.WEXITED | os.WNOWAIT)
begin = time.monotonic()
zygote._reap()
first = time.monotonic() - begin
(died,) = wire.Decoder(wire.FROM_ZYGOTE).feed(zygote._kernels_end.recv(4096))
assert died.pid == sentry, died
assert linux.read_stat(str(orphan)) is None
assert linux.read_stat(str(untouchable)).state != "Z"
assert first < 10, first
assert set(zygote._beyond) == {untouchable} and not zygote._orphans_left
begin = time.monotonic()
zygote._end_orphans()
assert time.monotonic() - begin < 0.4, "it was waited for again"
another = subprocess.Popen(sleeper).pid
zygote._end_orphans()
assert linux.read_stat(str(another)) is None
real_kill(untouchable, signal.SIGKILL)
os.waitid(os.P_PID, untouchable, os.WEXITED | os.WNOWAIT)
zygote._reap()
zygote._end_orphans()
assert not zygote._beyond
print("well")
"""


def test_a_zygote_waits_for_an_untouchable_orphan_once_and_shortly() -> None:
    done = subprocess.run([sys.executable, "-c", ZYGOTE], cwd=PROJECT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=False)  # fmt: skip
    assert done.stdout == "well\n", done.stderr
