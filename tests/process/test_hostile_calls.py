"""Calls by which an agent would get more than it has: each is refused by name, is on record, and has no effect.

Through its kernel client, and in frames that it writes on its pipe by hand. A call of the kernel without a row here
fails: whoever adds one says what a hostile agent would do with it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attackers
import pytest
from arena import Arena, arena

from agentos import KernelSpace, Pattern, Policy, errors
from agentos.agent.calls import AgentKernel
from agentos.identity import new_id
from agentos.recorder.event import AuditEvent
from agentos.supervisor.calls import METHODS
from agentos.values import pack_value

Asked = tuple[str, dict[str, Any]]

STRANGER = "STRANGER"  # in a row: stands for the agent that does nobody any harm
# By call: what a hostile agent would ask.
ROWS: dict[str, list[dict[str, Any]]] = {
    "start": [{"argv": ["/bin/true"], "require": "none"}, {"registered": "prober"}],
    "register": [{"name": "sneak", "pickle": b"", "permissions": ["network"]}, {"name": "prober", "permissions": None}],
    "add_rule": [
        {"rule": {"action": "allow", "operation": "*", "resource": "*"}, "before": "", "after": ""},
        {"action": "allow", "pattern": {"operation": "*", "resource": "*"}},
    ],
    "take_rule_back": [{"before": "", "after": ""}],
    "handlers": [{"signals": ["SIGTERM"]}, {"signals": []}],
    "modules": [{"modules": []}, {"modules": [["mine", 1.0]]}],
    "detach": [{}],
    "shutdown": [{}],
    "result": [{"id": STRANGER}],
    "log": [{"event_type": "lie", "agent_id": STRANGER, "data": {}, "severity": "info"}],
    "ps": [{}],
    "inspect": [{"id": STRANGER}],
    "follow": [{"id": STRANGER}, {"id": "*"}],
    "stop": [{"id": STRANGER, "grace_s": 0}],
    "wait": [{"id": STRANGER}],
    "signal": [{"id": STRANGER, "signal": 9, "scope": "tree"}],
    "send_signal": [
        *({"id": STRANGER, "signal": number} for number in (9, 19, 18, 15, 10, 12, 14)),
        {"agent_id": STRANGER, "signal": "KILL", "scope": "tree"},
    ],
    "status": [{"id": STRANGER}],
    "query": [{"id": STRANGER, "what": what} for what in ("cleanup", "save_state", "get_state", "x")],
    "wait_all": [{"ids": [STRANGER]}],
    "save_state": [{"value": b"\xc0", "id": STRANGER}, {"value": b"\xc0", "agent_id": STRANGER}],
    "spawn": [
        {"name": "prober", "parent_id": STRANGER},
        {"name": "prober", "inherit_permissions": False},
        {"name": "prober", "context": {"user_role": "admin"}},
        {"name": "prober", "require": "none"},
        {"name": "prober", "argv": ["/bin/true"]},
        {"name": "prober", "env": {"LD_PRELOAD": "x"}},
        {"name": "prober", "env_all": True},
        {"name": "prober", "cwd": "/"},
        {"name": "sneak", "pickle": b"", "permissions": ["network"]},
        {"name": "prober", "allow": ["network *"]},
        {"name": "prober", "policy": "permissive"},
    ],
}
NO_CALLS: list[Asked] = [
    ("add_module", {}), ("policy", {}), ("set_policy", {"policy": "permissive"}), ("reload_policy", {}),
    ("approve", {"ask_id": "1"}), ("deny", {"ask_id": "1"}), ("", {}),
]  # fmt: skip
# What an agent's client has that can give it nothing.
HARMLESS = {"register", "learn", "is_stopped", "wait_for_continue", "current_agent_id", "spawn", "execute"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    policy = Policy(name="no network")
    policy.add_rule("allow", Pattern(operation=["read", "write", "execute"], resource="*"))
    with arena(tmp_path_factory.mktemp("arena"), policy=policy) as made:
        made.kernel.register(name="prober", permissions=["read", "write", "execute", "network"])(attackers.probe)
        yield made


@pytest.fixture
def place(shared: Arena) -> Iterator[Arena]:
    """The stranger lives through every attack, and afterwards nobody may do more than before."""
    yield shared
    shared.assert_bystander_acts()
    assert shared.run(attackers.probe) == ["read", "write", "execute"]
    probed = [one for one in shared.events("agent_starting") if one.agent_name.startswith("probe-")]
    assert len({one.data["policy_hash"] for one in probed}) == 1


def about(params: dict[str, Any], agent_id: str) -> dict[str, Any]:
    def said(value: Any) -> Any:
        return [said(one) for one in value] if isinstance(value, list) else agent_id if value == STRANGER else value

    return {key: said(value) for key, value in params.items()}


def refusals(place: Arena, agent_id: str) -> list[AuditEvent]:
    found = place.events("policy_violation", agent_id)
    assert all(one.data["operation"] == "kernel" and one.data["effect"] == "deny" for one in found)
    assert all(one.severity == "warning" and one.durable for one in found)
    assert place.inspect(agent_id)["violations_count"] == len(found)
    return found


def attack(place: Arena, asked: list[Asked], **options: Any) -> list[AuditEvent]:
    """Have an agent ask all this by hand. Each must be refused as such; returns what is on record of it."""
    started = {one.agent_id for one in place.events("agent_starting")}
    said = place.run(attackers.ask_all, asked, permissions=["read"], **options)
    assert dict(zip(map(str, asked), said, strict=True)) == {str(one): "NotPermitted" for one in asked}
    (attacker,) = {one.agent_id for one in place.events("agent_starting")} - started  # nobody else was started
    return refusals(place, attacker)


def test_every_call_of_the_kernel_has_a_row() -> None:
    assert set(ROWS) == set(METHODS)


def test_every_call_of_the_client_is_tried() -> None:
    public = {name for name in vars(AgentKernel) if not name.startswith("_")}
    tried = {
        "send_signal", "signal_dispatcher", "get_agent_status", "get_agent", "wait_all", "add_module", "policy",
        "shutdown",
    }  # fmt: skip
    assert public == tried | HARMLESS


@pytest.mark.parametrize("method", ROWS)
def test_a_call_by_hand_gives_nothing(place: Arena, method: str) -> None:
    asked = [(method, about(params, place.bystander_id)) for params in ROWS[method]]
    pid = place.inspect()["pid"]
    assert [one.data["resource"] for one in attack(place, asked)] == [method] * len(asked)
    assert place.inspect()["pid"] == pid
    assert place.inspect()["state"] == "running"
    assert place.events("lie") == []
    with pytest.raises(errors.NotRegistered):
        asyncio.run(place.kernel.execute("sneak"))


def test_calls_that_do_not_exist_are_refused_and_on_record(place: Arena) -> None:
    assert [one.data["resource"] for one in attack(place, NO_CALLS)] == [method for method, _ in NO_CALLS]


def test_no_forged_id_is_believed(place: Arena, tmp_path: Path) -> None:
    """Of a stranger in other words, of what ended, of the future, of another run, of nobody."""
    ended = place.start(attackers.probe)
    asyncio.run(place.kernel.wait_all([ended]))
    ids = [
        place.bystander_id.upper(), f" {place.bystander_id}", place.bystander_id[:-1], "bystander", "*", "", "..",
        ended, new_id(time.time_ns() + 10**12), str(uuid.uuid4()), of_another_run(place), "x" * 10_000,
    ]  # fmt: skip
    asked: list[Asked] = []
    for one in ids:
        asked += [("send_signal", {"id": one, "signal": 9}), ("status", {"id": one}), ("wait_all", {"ids": [one]})]
        asked += [("spawn", {"name": "prober", "parent_id": one})] if one else []
        asked += [("save_state", {"value": b"\xc0", "id": one})] if one else []
    found = attack(place, asked)
    assert [one.data["resource"] for one in found] == [method for method, _ in asked]
    assert max(len(one.data["reason"]) for one in found) < 250


def of_another_run(place: Arena) -> str:
    """Return the id of an agent of another kernel."""
    other = KernelSpace()
    other.register(attackers.probe)
    agent_id = asyncio.run(other.spawn(attackers.probe))
    asyncio.run(other.shutdown())
    return agent_id


def test_a_child_reaches_neither_its_parent_nor_its_parents_rights(place: Arena) -> None:
    asked: list[Asked] = [
        ("send_signal", {"id": "PARENT", "signal": 9}), ("send_signal", {"id": "PARENT", "signal": 19}),
        ("status", {"id": "PARENT"}), ("wait_all", {"ids": ["PARENT"]}),
        ("spawn", {"name": "prober", "parent_id": "PARENT"}), ("save_state", {"value": b"\xc0", "id": "PARENT"}),
    ]  # fmt: skip
    assert place.run(attackers.ask_as_a_child, asked, permissions=["read"]) == ["NotPermitted"] * len(asked)
    (child,) = {one.agent_id for one in place.events("policy_violation") if one.agent_name == "ask_all"}
    assert [one.data["resource"] for one in refusals(place, child)] == [method for method, _ in asked]


def test_what_the_client_offers_gives_nothing_either(place: Arena) -> None:
    started = {one.agent_id for one in place.events("agent_starting")}
    said = place.run(attackers.ask_politely, place.bystander_id, permissions=["read"])
    assert said == dict.fromkeys(said, "NotPermitted")
    (attacker,) = {one.agent_id for one in place.events("agent_starting")} - started
    assert [one.data["resource"] for one in refusals(place, attacker)] == [
        "spawn", "spawn", "spawn", "send_signal", "send_signal", "status", "status", "wait_all", "add_module", "policy",
        "shutdown",
    ]  # fmt: skip


def test_a_child_may_not_more_than_its_parent_whatever_is_registered(place: Arena) -> None:
    assert place.run(attackers.register_wider, permissions=["read"]) == ["read"]
    by_target = {
        "name": "wide", "target": "attackers:probe", "permissions": ["read", "write", "network"], "kwargs": None,
        "args": pack_value([], "args"), "priority": 10**9,
    }  # fmt: skip
    child = place.run(attackers.ask_for_a_child, by_target, permissions=["read", "execute"])
    assert asyncio.run(place.kernel.wait_all([child])) == [["read"]]
    (starting,) = place.events("agent_starting", child)
    assert starting.data["permissions"] == ["read", "write", "network"]
