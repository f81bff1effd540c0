"""The control socket: who is let in, who is not, and what a client can do to the others. And what lies in its place."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import Arena, arena
from world import HERE, PROJECT, SYSTEM_PYTHON, Client, Host, carriers, state_of, wait_until

from agentos import runs, wire
from agentos.client import link
from agentos.client.launch import start_kernel
from agentos.client.link import connect
from agentos.errors import HostError, KernelUnavailable, NotPermitted
from agentos.supervisor.control import GREETING_LIMIT_S, PEERS_MAX

REFUSED = "callers inside an agent's process tree may not use the control socket"
SLEEPER = [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena(tmp_path_factory.mktemp("arena")) as made:
        yield made


@pytest.fixture
def door(place: Arena) -> Iterator[socket.socket]:
    """A connection to the control socket on which nothing has been said yet."""
    with knock(place) as sock:
        yield sock
    place.assert_bystander_acts()


def run_of(place: Arena) -> runs.Run:
    assert place.kernel._connection is not None
    return place.kernel._connection.run


def knock(place: Arena) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(run_of(place).socket))
    return sock


HELLO = wire.encode(wire.Hello(wire.VERSION, "cli", 1))


# --- who is let in -------------------------------------------------------------------------------------------------


def request_a_death(agent_id: str) -> str:
    return (HELLO + wire.encode(wire.Call(1, "signal", {"id": agent_id, "signal": 9}))).hex()


@pytest.mark.parametrize("how", ["agent", "detached", "orphan"])
def test_an_agent_is_refused_at_the_door_from_wherever_it_comes(tmp_path: Path, how: str) -> None:
    """Also with its sentry dead and the zygote stopped, when nothing but the zygote is left above it."""
    host = Host(tmp_path, {"argv": SLEEPER})
    try:
        door = tmp_path / "run" / "runs" / host.facts["run"] / "sock"
        argv = [SYSTEM_PYTHON, str(HERE / "evasions.py"), "knock_from_everywhere", str(door), how]
        env = {"KNOCK": request_a_death(host.facts["id"])}
        agent = host.call("start", argv=argv, env=env, cwd=str(host.work), require="none")
        wait_until((host.work / "heard").exists, what="the knock to be answered")
        assert REFUSED in (host.work / "heard").read_text()
        assert state_of(host.facts["pid"]) == "S"  # whose death was asked for
        refusals = wait_until(lambda: host.events("control_refused"))
        assert refusals[0].data["reason"] == REFUSED
        if how != "orphan":  # then its sentry, by which it is known, is dead
            assert refusals[0].agent_id == agent["id"]
            assert host.call("inspect", id=agent["id"])["violations_count"] == 1
    finally:
        host.close()


def test_an_agent_is_refused_by_the_kernels_of_other_runs_too(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    victim, host = Host(tmp_path, {"argv": SLEEPER}), Host(tmp_path / "other", {"argv": SLEEPER})
    try:
        door = tmp_path / "run" / "runs" / victim.facts["run"] / "sock"
        argv = [SYSTEM_PYTHON, str(HERE / "evasions.py"), "knock_from_everywhere", str(door), "detached"]
        env = {"KNOCK": request_a_death(victim.facts["id"])}
        host.call("start", argv=argv, env=env, cwd=str(host.work), require="none")
        wait_until((host.work / "heard").exists, what="the knock to be answered")
        assert REFUSED in (host.work / "heard").read_text()
        assert state_of(victim.facts["pid"]) == "S"
        assert victim.events("control_refused")[0].data["reason"] == REFUSED
    finally:
        host.close()
        victim.close()


@pytest.mark.parametrize("verb", [["kill", "-KILL", "prey"], ["stop", "prey"], ["ps"]])
def test_an_agent_gets_nowhere_with_the_command_line(tmp_path: Path, verb: list[str]) -> None:
    host = Host(tmp_path, {"argv": SLEEPER})
    try:
        env = {"PYTHONPATH": str(PROJECT), **{name: str(tmp_path / path) for name, path in
               [("AGENTOS_RUNTIME_DIR", "run"), ("AGENTOS_STATE_DIR", "state")]}}  # fmt: skip
        script = f'"$@" > {host.work}/said 2>&1; echo $? > {host.work}/code'
        argv = ["/bin/sh", "-c", script, "sh", sys.executable, "-m", "agentos", *verb]
        agent = host.call("start", argv=argv, env=env, cwd=str(host.work), require="none")
        assert host.call("wait", id=agent["id"], timeout_s=30)["exit_code"] == 0
        assert (host.work / "code").read_text().strip() != "0"
        assert "may not use the control socket" in (host.work / "said").read_text()
        assert state_of(host.facts["pid"]) == "S"
        assert host.events("control_refused")[0].agent_id == agent["id"]
    finally:
        host.close()


def test_a_kernel_inside_an_agent_serves_that_agent(tmp_path: Path) -> None:
    """It descends from a zygote itself: that one is not held against those who share it."""
    code = (
        "from agentos.client.launch import start_kernel\n"
        "from agentos.client.link import connect\n"
        "started = start_kernel(policy='permissive')\n"
        "print(len(connect(started.run).call('ps')['agents']), file=open('seen', 'w'))\n"
        "started.link.call('shutdown')\n"
        "started.guard.wait()\n"
    )
    env = {"PYTHONPATH": str(PROJECT), "AGENTOS_RUNTIME_DIR": str(tmp_path / "inner"),
           "AGENTOS_STATE_DIR": str(tmp_path / "inner-state")}  # fmt: skip
    host = Host(tmp_path, {"argv": [sys.executable, "-c", code], "env": env})
    try:
        assert host.call("wait", timeout_s=30)["exit_code"] == 0
        assert (host.work / "seen").read_text() == "0\n"
    finally:
        host.close()


if os.getuid() == 0:  # only root can be somebody else

    def test_another_user_is_refused_even_where_the_door_stands_open(tmp_path: Path) -> None:
        host = Host(tmp_path, {"argv": SLEEPER})
        try:
            door = tmp_path / "run" / "runs" / host.facts["run"] / "sock"
            door.chmod(0o666)
            door.parent.chmod(0o711)
            handle = os.open(door.parent, os.O_PATH)
            code = (
                f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/proc/self/fd/{handle}/sock')\n"
                "print(s.recv(4096))"
            )
            said = subprocess.run(
                [SYSTEM_PYTHON, "-c", code], pass_fds=[handle], user=65534, group=65534, extra_groups=[], cwd="/",
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            os.close(handle)
            assert "uid 65534 is not the owner of this run" in said
            assert host.events("control_refused")[0].data["uid"] == 65534
        finally:
            host.close()


# --- what a client may say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 100_000,
        b"\x00\x00\x00\x00",
        wire.encode(wire.Call(1, "ps", {})),
        wire.encode(wire.Hello(wire.VERSION + 1, "cli", 1)) + wire.encode(wire.Call(1, "ps", {})),
        HELLO + b"\x00\x00\x00\x04\x93\x14\x01\x02",
        HELLO + wire.encode(wire.Reap(1)),
        HELLO + wire.encode(wire.Returned(1, {"veto": True}, None)),
    ],
    ids=[
        "http",
        "garbage",
        "empty frame",
        "no greeting",
        "another version",
        "a verdict",
        "a frame of the kernel's",
        "an answer",
    ],
)
def test_who_speaks_nonsense_is_hung_up_on(door: socket.socket, said: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        door.sendall(said)
    with contextlib.suppress(ConnectionResetError):
        while door.recv(65_536):
            pass


def test_who_says_nothing_is_hung_up_on(door: socket.socket) -> None:
    begin = time.monotonic()
    door.sendall(HELLO[:3])
    assert door.recv(1) == b""
    assert GREETING_LIMIT_S - 1 < time.monotonic() - begin < GREETING_LIMIT_S + 10


def test_descriptors_without_an_end_are_not_collected(place: Arena, door: socket.socket) -> None:
    before = place.descriptors()
    null = os.open(os.devnull, os.O_RDONLY)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 10))]
    door.sendall(HELLO + (16 * MIB - 1).to_bytes(4) + b"\x93\x1e")  # a call, as it seems
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while sent < 1_000:
            sent += door.sendmsg([b"x"], rights)
            time.sleep(0.0005)
    os.close(null)
    assert sent < 50
    wait_until(lambda: place.descriptors() <= before, what="them to be closed")


def test_descriptors_belong_to_the_frame_they_came_with(place: Arena, tmp_path: Path) -> None:
    """Two calls in one breath, the second with a file for the agent's standard input."""
    (tmp_path / "input").write_text("from the file")
    code = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    argv = [SYSTEM_PYTHON, "-c", code, str(tmp_path / "output")]
    started = start_kernel(policy="permissive")
    with open(tmp_path / "input") as file:
        os.kill(_kernel_pid(started), signal.SIGSTOP)  # both will be read at once
        started.link.send(wire.Call(101, "ps", {}))
        started.link.send(wire.Call(102, "start", {"argv": argv, "require": "none"}), [file.fileno()])
        os.kill(_kernel_pid(started), signal.SIGCONT)
    wait_until(lambda: (tmp_path / "output").exists() and (tmp_path / "output").read_text() == "from the file")
    started.link.close()
    started.guard.wait(20)


def _kernel_pid(started: Any) -> int:
    return int(started.run.read_meta()["kernel_pid"])


def test_six_hundred_clients_are_served_or_told_why_not(place: Arena) -> None:
    before = place.descriptors()
    clients, refused = [], 0
    for _ in range(600):
        try:
            clients.append(connect(run_of(place)))
        except NotPermitted as error:
            refused += 1
            assert f"{PEERS_MAX} clients are connected already" in str(error)
    assert len(clients) == PEERS_MAX - 1  # the host is one
    assert refused == 600 - len(clients)
    assert place.inspect()["state"] == "running"
    for client in clients[::50]:
        assert client.call("ps")["run"] == run_of(place).run_id
    for client in clients:
        client.close()
    wait_until(lambda: place.descriptors() <= before, what="their descriptors to be closed")
    last = connect(run_of(place))
    assert last.call("ps")["run"] == run_of(place).run_id
    last.close()
    place.assert_bystander_acts()


def test_who_asks_and_never_reads_is_hung_up_on_and_others_are_served(place: Arena, door: socket.socket) -> None:
    before = place.kernel_bytes()
    call = wire.encode(wire.Call(1, "log", {"event_type": "x"})) * 100
    door.sendall(HELLO)
    answer = wire.encode(wire.Call(1, "x" * 50_000, {}))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        door.settimeout(10)
        door.sendall(call)
        for _ in range(1_500):
            door.sendall(answer)  # the refusal repeats the name
    assert place.kernel_bytes() - before < 80 * MIB
    wait_until(lambda: place.kernel_bytes() - before < 24 * MIB, what="the memory to be given back")
    assert place.waits().worst_s < 2.0


def test_a_stopped_kernel_is_said_to_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_TIMEOUT_S", 0.5)
    host = Host(tmp_path, {"argv": SLEEPER})
    try:
        os.kill(host.facts["kernel_pid"], signal.SIGSTOP)
        with pytest.raises(KernelUnavailable, match="hangs or is stopped"):
            Client(host)
        os.kill(host.facts["kernel_pid"], signal.SIGCONT)
        client = Client(host)
        assert client.call("status")["state"] == "running"
        client.close()
    finally:
        host.close()


# --- what lies there -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def test_a_run_that_was_killed_is_not_listed_and_its_door_is_shut(home: Path) -> None:
    host = Host(home, {"argv": SLEEPER})
    try:
        (run,) = runs.live_runs()
        assert run.read_meta()["kernel_pid"] == host.facts["kernel_pid"]
        os.kill(host.facts["guard_pid"], signal.SIGKILL)
        wait_until(lambda: not carriers(host.cookie), what="the run to be gone")
        wait_until(lambda: not run.alive(), what="the lock to be free")
        assert run.lock.exists()
        assert list(runs.live_runs()) == []
        with pytest.raises(KernelUnavailable, match=run.run_id):
            connect(run)
    finally:
        host.close()


@pytest.mark.parametrize("content", ["", "{", '{"run": ', "[]", "5", "\udcff", "[" * 100_000])
def test_half_a_meta_file_is_none(home: Path, content: str) -> None:
    run = runs.locate("20260102T030405-abcdef")
    run.runtime.mkdir(parents=True)
    run.meta.write_bytes(os.fsencode(content))
    assert run.read_meta() == {}
    run.state.mkdir(parents=True)
    (run.state / "meta.json").write_text(json.dumps({"run": "x"}))
    assert run.read_meta() == {"run": "x"}


def test_what_is_no_lock_and_no_file_keeps_nobody_waiting(home: Path) -> None:
    """An agent without a wall may put anything there."""
    kinds = ("fifo", "link", "folder", "nothing")
    made = {kind: runs.locate(f"20260102T030405-00000{number}") for number, kind in enumerate(kinds)}
    for run in made.values():
        run.runtime.mkdir(parents=True)
    os.mkfifo(made["fifo"].lock)
    os.mkfifo(made["fifo"].meta)
    made["link"].lock.symlink_to("/etc/passwd")
    made["folder"].lock.mkdir()
    begin = time.monotonic()
    assert list(runs.live_runs()) == []
    assert [run.read_meta() for run in made.values()] == [{}] * 4
    assert time.monotonic() - begin < 5


def test_a_place_that_is_not_ours_alone_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "real").mkdir()
    (home / "link").symlink_to(home / "real")
    (home / "file").write_text("")
    for place, says in [("link", "must be a directory owned by"), ("file", "File exists"), ("file/x", "Not a dir")]:
        monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(home / place))
        with pytest.raises(HostError, match=says):
            start_kernel()
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", "/proc/1" if os.getuid() else str(home / "theirs"))
    if os.getuid() == 0:
        (home / "theirs").mkdir()
        os.chown(home / "theirs", 65534, 65534)
    with pytest.raises(HostError, match="must be a directory owned by"):
        start_kernel()
