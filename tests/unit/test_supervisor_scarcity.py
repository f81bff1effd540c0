"""When descriptors run out: the watch goes on, strangers are refused, a start fails whole, and no process is two."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from world import PROJECT, SYSTEM_PYTHON, state_of

from agentos import wire
from agentos.errors import BadRequest, HostError
from agentos.supervisor import control, heartbeat, linux, starting
from agentos.supervisor.agents import Agents
from agentos.supervisor.broker import Broker
from agentos.supervisor.heartbeat import Heartbeat
from agentos.supervisor.requests import Request
from agentos.supervisor.starting import Prepared, Starting


def no_descriptors(*_: object) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Pings:
    """A pipe to a sentry, of which only counts how often it was written to."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, _: bytes) -> None:
        self.written += 1


@pytest.fixture
def sentry() -> Iterator[int]:
    with subprocess.Popen([SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]) as process:
        yield process.pid
        process.kill()


def watch(agent: Any, notes: list[str]) -> Heartbeat:
    agents = cast("Agents", SimpleNamespace(living=lambda: [agent]))
    broker = cast("Broker", SimpleNamespace(note=lambda _, kind, *__, **___: notes.append(kind)))
    return Heartbeat(agents, broker, ours=lambda: {"guard": os.getpid()}, record=lambda kind, _: notes.append(kind))


def silent(pid: int) -> Any:
    return SimpleNamespace(to_sentry=Pings(), sentry_pid=pid, sentry_ticks=0, silent_beats=0)


def test_the_watch_outlives_a_beat_without_descriptors(sentry: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(os, "getppid", os.getpid)
    agent, notes = silent(sentry), list[str]()

    async def story() -> None:
        watching = asyncio.ensure_future(watch(agent, notes).run())
        with monkeypatch.context() as scarce:
            scarce.setattr(linux, "read_stat", no_descriptors)
            await asyncio.sleep(0.1)
        os.kill(sentry, signal.SIGSTOP)
        async with asyncio.timeout(10):
            await asyncio.to_thread(os.waitid, os.P_PID, sentry, os.WEXITED | os.WNOWAIT)
        watching.cancel()

    asyncio.run(story())
    assert "sentry_hung" in notes


@pytest.mark.parametrize("taken", ["ticks", "parent"])
def test_who_has_the_pid_of_a_sentry_by_now_is_not_ended(
    sentry: int, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, notes = silent(sentry), list[str]()
    watching = watch(agent, notes)
    if taken == "ticks":
        monkeypatch.setattr(os, "getppid", os.getpid)
        agent.sentry_ticks = 1
    agent.silent_beats = heartbeat.HUNG_BEATS + 1
    watching._look()
    assert state_of(sentry) not in "ZX"
    assert notes == []
    assert agent.to_sentry.written == 1


def test_who_cannot_be_identified_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        refused: list[dict[str, Any]] = []
        door = control.Control(
            asyncio.get_running_loop(), on_call=lambda *_: None, on_returned=lambda _: None,
            on_host_gone=lambda: None, agent_of=lambda _: "", on_refused=refused.append, on_nonsense=lambda _: None,
        )  # fmt: skip
        door.listen(str(tmp_path))
        monkeypatch.setattr(linux, "read_stat", no_descriptors)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller, str(tmp_path / "sock"))
            data = await asyncio.wait_for(loop.sock_recv(caller, 4096), 10)
            (fault,) = wire.Decoder(wire.TO_CLIENT).feed(data)
            assert fault.error == "NotPermitted"
            assert "cannot be identified" in fault.message
            assert await asyncio.wait_for(loop.sock_recv(caller, 4096), 10) == b""
        assert len(refused) == 1
        door.close()

    asyncio.run(story())


def test_who_may_be_somebody_else_by_now_is_not_the_same() -> None:
    class Peer:
        def __init__(self, number: int) -> None:
            self.number = number

        def getsockopt(self, *_: int) -> int:
            raise OSError(self.number, os.strerror(self.number))

    def same(number: int) -> bool:
        return control._still_the_same(cast("socket.socket", Peer(number)))

    assert same(errno.ENOPROTOOPT)  # a Linux that cannot tell
    assert not any(map(same, (errno.EMFILE, errno.ESRCH, errno.EINVAL)))


def test_stdin_that_cannot_be_kept_fails_the_start_by_name() -> None:
    with contextlib.ExitStack() as held, pytest.raises(HostError, match="no descriptor for stdin"):
        starting._keep(-1, held)


def test_what_does_not_fit_the_first_frame_is_not_forked_for() -> None:
    forked: list[Any] = []
    place = Starting.__new__(Starting)
    place._boot = {"run_id": "r", "sys_path": []}
    place._fork_sentry = lambda params, _: forked.append(params)  # type: ignore[assignment, return-value]
    request = cast("Request", SimpleNamespace(
        kind="python", target=None, pickle=bytes(wire.FRAME_BYTES_MAX), args=b"", kwargs=b"", state=None
    ))  # fmt: skip
    agent: Any = SimpleNamespace(id="a", name="large", level="hooks")
    life = Prepared(agent, request, "", {}, orphan=False)
    with pytest.raises(BadRequest, match="large: its function and arguments do not fit"):
        asyncio.run(place._launch(life, None))
    assert forked == []


ZYGOTE = """
import os
from agentos.supervisor import linux
from agentos.supervisor.zygote import Zygote

def fail(*_):
    raise OSError(1, "planted")

linux.{where} = fail
zygote = Zygote({{}}, 0)
pid = zygote._fork("sentry", lambda: None, {{0, 1, 2}})
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("where", ["die_with", "set_name", "close_all_but"])
def test_a_child_that_cannot_begin_never_becomes_a_second_zygote(where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ZYGOTE.format(where=where)], cwd=PROJECT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=False,
    )  # fmt: skip
    assert done.stdout == "70\n", done.stderr
