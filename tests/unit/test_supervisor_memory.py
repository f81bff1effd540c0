"""What agents and clients can make the kernel keep has limits, and what nobody waits for any more is let go."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentos import wire
from agentos.actions import Action
from agentos.errors import HostError
from agentos.policies import EffectivePolicy, Policy
from agentos.supervisor import agents, control, starting
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.requests import Request
from agentos.supervisor.starting import Starting


def an_agent(number: int, parent_id: str | None = None) -> Agent:
    return Agent(
        id=f"a{number}", name="a", execution_id="a", kind="python", command=[], level="hooks", cwd="/",
        policy=EffectivePolicy(Policy.builtin("permissive"), workspace="/"), policy_name="permissive", context={},
        grace_s=1.0, parent_id=parent_id,
    )  # fmt: skip


def test_neither_all_agents_nor_one_agents_children_are_more_than_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "LIVING_MAX", 5)
    monkeypatch.setattr(agents, "CHILDREN_MAX", 2)
    known = Agents()
    for number, parent in enumerate((None, "a0", "a0")):
        known.check_room(parent)
        known.add(an_agent(number, parent))
    with pytest.raises(HostError, match="a0 has 2 living children already"):
        known.check_room("a0")
    known.check_room("a1")
    for number in (3, 4):
        known.add(an_agent(number))
    with pytest.raises(HostError, match="5 agents run or wait for a slot already"):
        known.check_room(None)
    ended = known.get("a1")
    assert ended is not None
    ended.gone.set()
    known.check_room("a0")


def test_those_in_line_hold_no_more_than_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "LINE_BYTES_MAX", 1_000)
    place = Starting.__new__(Starting)
    place._agents, place._line_bytes = Agents(), 500
    request: Any = SimpleNamespace(parent=None, pickle=bytes(400), args=bytes(90), kwargs=bytes(10), state=None)
    place._check_room(cast("Request", request))
    request.kwargs = bytes(11)
    with pytest.raises(HostError, match="hold 500 bytes"):
        place._check_room(cast("Request", request))
    place._leave_line(1)
    place._check_room(cast("Request", request))


def test_an_agent_that_is_gone_keeps_no_decisions() -> None:
    async def story() -> None:
        agent = an_agent(1)
        for number in range(50):
            agent.policy.decide(Action("read", f"data/{number}"), cwd="/", context={}, name="a", now_s=0.0,
                                at=datetime.now(UTC))  # fmt: skip
        cached: Any = agent.policy._cached
        assert cached.cache_info().currsize == 50
        agent.close(asyncio.get_running_loop())
        cached = agent.policy._cached
        assert cached.cache_info().currsize == 0
        assert agent.policy.hash == Policy.builtin("permissive").hash

    asyncio.run(story())


def test_what_a_client_only_waited_for_ends_when_it_hangs_up() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        door = control.Control(
            loop,
            on_call=lambda *_: None,
            on_returned=lambda _: None,
            on_host_gone=lambda: None,
            agent_of=lambda _: "",
            on_refused=lambda _: None,
            on_nonsense=lambda _: None,
        )
        ours, theirs = socket.socketpair()
        peer = door.adopt_host(ours.detach())
        peer.is_host = False
        waiting = loop.create_task(asyncio.Event().wait())
        peer.waiting.add(waiting)
        theirs.sendall(wire.encode(wire.Hello(wire.VERSION, "cli", 1)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        theirs.close()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 10)

    asyncio.run(story())
