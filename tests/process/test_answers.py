"""Every call has an answer, however large or wrong what it failed with."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import arena
from world import SYSTEM_PYTHON, Client, Host, wait_until

from agentos import errors, wire
from agentos.agent.process import current

LIMIT_S = 30.0


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]})
    try:
        client = Client(host)
        yield client
        client.close()
    finally:
        host.close()


def answered(client: Client, method: str, **params: Any) -> BaseException | None:
    """Return what the call raised; fail when there is no answer."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            client.call(method, **params)
        except errors.AgentosError as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "no answer"
    return raised[0] if raised else None


def test_an_error_that_fits_no_frame_is_answered_in_short(client: Client) -> None:
    error = answered(client, "\x01" * 5_000_000)  # of which the text of the error shows four characters for each
    assert type(error) is errors.AgentosError
    assert "failed with BadRequest, which cannot be sent" in str(error)
    assert answered(client, "ps") is None


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("wait_all", {}),
    ("wait_all", {"ids": 5}),
    ("wait_all", {"ids": [["x"]]}),
    ("signal", {}),
    ("signal", {"signal": "9" * 5_000}),
    ("signal", {"signal": ["STOP"]}),
    ("signal", {"signal": 19, "scope": {}}),
    ("signal", {"signal": 19, "scope": "all"}),
    ("send_signal", {}),
    ("wait", {"timeout_s": "1"}),
    ("wait", {"timeout_s": float("nan")}),
    ("wait", {"timeout_s": float("inf")}),
    ("wait", {"state": ["stopped"]}),
    ("stop", {"grace_s": "soon"}),
    ("spawn", {"name": 7}),
    ("start", {"restrictions": 5}),
    ("start", {"restrictions": [5]}),
    ("start", {"permissions": [5]}),
    ("start", {"allow": [5]}),
    ("start", {"target": "os:getpid", "args": 5}),
    ("start", {"target": "os:getpid", "kwargs": []}),
    ("start", {"argv": ["/bin/true"], "cwd": 5}),
    ("start", {"argv": ["/bin/true"], "env": ["A"]}),
    ("start", {"argv": ["/bin/true"], "env_passed": [["A"]]}),
    ("start", {"argv": ["/bin/true"], "priority": "high"}),
    ("register", {}),
]


def test_a_call_that_means_nothing_is_the_callers_mistake_and_no_fault_of_the_kernel(tmp_path: Path) -> None:
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]})
    try:
        for method, params in WRONG:
            answer = host.call(method, **params)
            kinds = ("BadRequest", "NotPermitted") if method in {"spawn", "send_signal"} else ("BadRequest",)
            assert answer.get("error") in kinds, (method, params, answer)
        assert host.call("status")["state"] == "running"
        assert host.events("kernel_fault") == []
    finally:
        host.close()


def ask_nonsense() -> list[str]:
    """What an agent that makes its own calls is told; run as an agent."""
    process = current()
    assert process is not None
    said: list[str] = []
    for method, params in (
        ("wait_all", {}), ("send_signal", {}), ("spawn", {"name": "x", "target": "os:getpid", "restrictions": 5}),
        ("spawn", {"name": "x", "target": "os:getpid", "kwargs": 5}), ("status", {"id": 5}),
    ):  # fmt: skip
        answered = threading.Event()

        def take(_: Any, error: Exception | None, answered: threading.Event = answered) -> None:
            said.append(type(error).__name__)
            answered.set()

        process.runtime.call(method, params, take)
        assert answered.wait(LIMIT_S)
    return said


def test_an_agent_cannot_make_the_kernel_call_itself_faulty(tmp_path: Path) -> None:
    with arena(tmp_path) as place:  # which looks at its end that there was no kernel_fault
        assert place.run(ask_nonsense) == ["BadRequest"] * 5


def test_a_start_that_fails_leaves_no_directory_and_one_without_a_directory_fails_by_name(tmp_path: Path) -> None:
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]})
    try:
        (private,) = [found.parent for found in tmp_path.glob(f"run/**/tmp/{host.facts['id']}")]
        assert os.listdir(private) == [host.facts["id"]]
        no_program = tmp_path / "no-program"
        no_program.write_bytes(b"\x7fELF and nothing more")
        no_program.chmod(0o755)
        assert host.call("start", argv=[str(no_program)], require="none")["error"] == "ProgramNotRunnable"
        wait_until(lambda: os.listdir(private) == [host.facts["id"]], what="the directory of a failed start to go")
        private.rename(private.with_name("away"))
        private.write_text("no directory any more")
        answer = host.call("start", argv=["/bin/true"], require="none")
        assert answer["error"] == "HostError"
        assert "no temporary directory for true" in answer["message"]
        private.unlink()
        private.with_name("away").rename(private)
        assert host.call("start", argv=["/bin/true"], require="none")["id"]
        assert host.events("kernel_fault") == []
    finally:
        host.close()


@pytest.mark.parametrize("behind", [b"", b"\xff" * 8], ids=["the end", "nonsense"])
def test_a_wait_ends_with_the_client_that_asked(client: Client, behind: bytes) -> None:
    host = client.host
    before = client.call("inspect")["kernel_descriptors"]
    leaving = Client(host)
    with open(os.devnull, "rb") as file:
        for method in ("wait", "wait"):  # what came with a call is held until it ends
            leaving.link.send(wire.Call(5, method, {"id": host.facts["id"]}), [file.fileno()])
    wait_until(lambda: client.call("inspect")["kernel_descriptors"] == before + 3, what="the calls to be taken in")
    with open(os.devnull, "rb") as file:
        data = wire.encode(wire.Call(6, "wait", {"id": host.facts["id"]})) + behind
        socket.send_fds(leaving.link.socket, [data], [file.fileno()])
    leaving.close()
    wait_until(lambda: client.call("inspect")["kernel_descriptors"] == before, what="the calls to end")
