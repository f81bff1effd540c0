"""What a host program passes wrongly is named, with what would be right, and starts nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from wrong_arguments import WRONG_CALLS, WRONG_REGISTRATIONS

from agentos import FlightRecorder, KernelSpace
from agentos.errors import BadRequest

WRONG_CONSTRUCTIONS: list[tuple[dict[str, Any], str]] = [
    ({"policy": 5}, r"policy=5 must be the name of a built-in policy, a YAML file or a Policy"),
    ({"policy": None}, r"policy=None must be"),
    ({"flight_recorder": 5}, r"flight_recorder=5 must be a FlightRecorder"),
    ({"signal_dispatcher": object()}, r"signal_dispatcher=<object .* must be a SignalDispatcher"),
    ({"max_concurrent_agents": "q"}, r"max_concurrent_agents='q' must be a whole number of at least 1"),
    ({"max_concurrent_agents": 0}, r"max_concurrent_agents=0 must be a whole number of at least 1"),
    ({"max_concurrent_agents": True}, r"max_concurrent_agents=True must be"),
    ({"timeout": "a"}, r"timeout='a' must be a positive number of seconds"),
    ({"timeout": 0}, r"timeout=0 must be a positive"),
    ({"timeout": float("nan")}, r"timeout=nan must be a positive"),
    ({"timeout": None}, r"timeout=None must be a positive"),
    ({"require": "bogus"}, r"require='bogus' is no level; known: none, hooks, syscalls, full"),
    ({"require": "hook"}, r"require='hook' is no level \(did you mean 'hooks'\?\)"),
    ({"require": 5}, r"require=5 is no level"),
    ({"workspace": 5}, r"workspace=5 must be the path of a directory"),
    ({"workspace": b"x" * 500}, r"workspace=b'x{98}… must be"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.mark.parametrize(("given", "text"), WRONG_CONSTRUCTIONS)
def test_a_wrong_argument_of_the_constructor_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        KernelSpace(**given)


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    KernelSpace(
        policy=tmp_path / "p.yaml", flight_recorder=FlightRecorder(), signal_dispatcher=None, max_concurrent_agents=1,
        timeout=1, require="none", workspace=tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize(("given", "text"), WRONG_REGISTRATIONS)
def test_a_wrong_argument_of_register_is_named(given: dict[str, Any], text: str) -> None:
    kernel = KernelSpace()
    with pytest.raises(BadRequest, match=text):
        kernel.register(name="a", **given)(lambda: None)
    kernel.register(name="a", rate_limit=1, priority=-3, permissions=[])(lambda: None)


@pytest.mark.parametrize(("call", "args", "given", "text"), WRONG_CALLS)
def test_a_wrong_argument_of_a_call_is_named_and_starts_nothing(
    home: Path, call: str, args: tuple[Any, ...], given: dict[str, Any], text: str
) -> None:
    kernel = KernelSpace()
    kernel.register(name="known")(lambda: None)
    with pytest.raises(BadRequest, match=text):
        asyncio.run(getattr(kernel, call)(*args, **given))
    assert list(home.iterdir()) == []


def test_the_status_of_no_id_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"get_agent_status: agent_id=None must be the id"):
        KernelSpace().get_agent_status(None)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"get_agent: agent_id=5 must be the id"):
        KernelSpace().get_agent(5)  # type: ignore[arg-type]
