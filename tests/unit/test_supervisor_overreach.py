"""What an agent may not ask in calls that are for agents, and what becomes of a function that it alone registered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentos.supervisor.calls import Caller, Calls
from agentos.supervisor.overreach import overreach

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("spawn", {"parent_id": "other"}, "parent_id='other' is not this agent"),
    ("spawn", {"parent_id": "x" * 1_000}, "xxx' is not this agent"),
    ("spawn", {"parent_id": ""}, "parent_id='' is not this agent"),
    ("spawn", {"inherit_permissions": False}, "inherit_permissions=False is for the host program"),
    ("spawn", {"inherit_permissions": 0}, "inherit_permissions=False is for the host program"),
    ("spawn", {"inherit_permissions": None}, "inherit_permissions=False is for the host program"),
    ("spawn", {"context": {"user_role": "admin"}}, "the context of a child is its parent's"),
    ("spawn", {"require": "none"}, "'require' is not an agent's to choose"),
    ("spawn", {1: 2}, "'1' is not an agent's to choose"),  # type: ignore[dict-item]
    ("save_state", {"id": "other"}, "'other' is not this agent"),
    ("save_state", {"agent_id": "other"}, "'other' is not this agent"),
]
GRANTED: list[tuple[str, dict[str, Any]]] = [
    ("spawn", {"name": "a", "target": None, "permissions": ["read"], "rate_limit": 1, "priority": 5, "timeout_s": 2.0}),
    ("spawn", {"parent_id": "me", "inherit_permissions": True, "context": {}, "restrictions": ["no_network"]}),
    ("spawn", {"parent_id": None, "args": b"", "kwargs": b""}),
    ("save_state", {"value": b""}),
    ("save_state", {"value": b"", "id": "me"}),
    ("send_signal", {"id": "other"}),  # whose agent that is, is asked where agents are known
]


@pytest.mark.parametrize(("method", "params", "why"), REFUSED)
def test_what_would_give_a_child_more_is_named(method: str, params: dict[str, Any], why: str) -> None:
    said = overreach("me", method, params)
    assert why in said
    assert len(said) < 250


@pytest.mark.parametrize(("method", "params"), GRANTED)
def test_what_gives_it_no_more_is_not(method: str, params: dict[str, Any]) -> None:
    assert overreach("me", method, params) == ""


@pytest.mark.parametrize(("asked", "own", "given"), [(5, 0, 0), (5, 7, 5), (-3, 0, -3), (None, 2, 0), (None, -2, -2)])
def test_no_agent_puts_its_child_before_others(asked: int | None, own: int, given: int) -> None:
    agent: Any = SimpleNamespace(priority=own)
    params = {"name": "child", "target": "module:function", "priority": asked, "rate_limit": 3}
    child = Calls(SimpleNamespace())._child(Caller("agent", agent), params)  # type: ignore[arg-type]
    assert (child["priority"], child["rate_limit"]) == (given, 3)
