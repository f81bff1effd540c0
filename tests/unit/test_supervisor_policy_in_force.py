"""A rule is added to the policy in force: on record first, for everybody at once, and by its hashes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from records import RUN

from agentos import wire
from agentos.actions import Action
from agentos.clock import SystemClock, to_datetime
from agentos.errors import BadRequest, PolicyLoadError, RecorderUnavailable
from agentos.policies import EffectivePolicy, Pattern, Policy, Rule
from agentos.recorder.event import AuditEvent
from agentos.recorder.journal import JournalReader, JournalWriter
from agentos.supervisor import recording
from agentos.supervisor.policy_in_force import PolicyInForce
from agentos.supervisor.recording import Recording

A, B = (Rule("allow", Pattern("read", name)) for name in "ab")


class Bench:
    """The policy in force over a real journal, and a recorder that confirms when the test says so."""

    def __init__(self, directory: Path, policy: Policy) -> None:
        self.directory = directory
        self.recording = Recording(asyncio.get_running_loop(), JournalWriter(directory, run_id=RUN), SystemClock())
        self.confirms = True
        self.recording.send = self._hear
        self.in_force = PolicyInForce(policy, self.recording)

    def _hear(self, frame: Any) -> None:
        if self.confirms and isinstance(frame, wire.TailTo):
            asyncio.get_running_loop().call_soon(self.recording.acknowledged, frame.seq)

    def bind(self, **fields: Any) -> EffectivePolicy:
        return self.in_force.bind(EffectivePolicy(self.in_force.policy, workspace="/w", **fields))

    async def add(self, rule: Rule) -> None:
        before = self.in_force.policy
        await self.in_force.add_rule(rule.as_dict(), before.hash, before.with_rules([rule]).hash)

    def recorded(self) -> list[AuditEvent]:
        with contextlib.closing(JournalReader(self.directory)) as reader:
            return [event for event in reader.read() if event.event_type == "policy_changed"]


def play(story: Callable[[Bench], Awaitable[None]], directory: Path, policy: Policy | None = None) -> None:
    async def main() -> None:
        bench = Bench(directory, policy or Policy("p"))
        await story(bench)
        bench.recording.close()

    uvloop.run(main())


def effect(agent: EffectivePolicy, resource: str, name: str = "x") -> str:
    at = to_datetime(0)
    action = Action(operation="read", resource=resource)
    return agent.decide(action, cwd="/", context={}, name=name, now_s=0.0, at=at).effect


def test_everybody_that_is_bound_obeys_the_new_rule_and_so_does_who_comes_later(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        ended_parent = bench.bind(name="parent")
        child = bench.bind(name="child", parent=ended_parent, permissions=["read"])
        grandchild = bench.bind(name="grandchild", parent=child)
        bound = bench.bind(name="bound", permissions=["write"])
        everybody = (ended_parent, child, grandchild)
        assert [effect(one, "a") for one in everybody] == ["deny"] * 3
        await bench.add(A)
        assert [effect(one, "a") for one in everybody] == ["allow"] * 3
        assert grandchild.link.parent is child.link
        assert child.link.parent is ended_parent.link
        assert effect(bound, "a") == "deny"  # its permissions are what they were
        assert effect(bench.bind(name="later"), "a") == "allow"

    play(story, tmp_path)


def test_it_is_on_record_before_it_counts(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        agent = bench.bind()
        old = bench.in_force.policy.hash
        bench.confirms = False
        adding = asyncio.ensure_future(bench.add(A))
        await asyncio.sleep(0.05)
        (event,) = bench.recorded()
        meanwhile = bench.bind()
        assert (effect(agent, "a"), effect(meanwhile, "a"), adding.done()) == ("deny", "deny", False)
        bench.recording.acknowledged(event.seq)
        await adding
        assert (effect(agent, "a"), effect(meanwhile, "a")) == ("allow", "allow")
        new = bench.in_force.policy.hash
        assert event.data == {
            "change": "rule_added", "policy": "p", "index": 0, "rule": A.as_dict(), "old_hash": old, "new_hash": new,
        }  # fmt: skip

    play(story, tmp_path)


def test_without_a_recorder_nothing_changes_and_the_record_does_not_claim_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "DURABLE_LIMIT_S", 0.05)

    async def story(bench: Bench) -> None:
        agent = bench.bind()
        old = bench.in_force.policy.hash
        bench.confirms = False
        with pytest.raises(RecorderUnavailable):
            await bench.add(A)
        assert effect(agent, "a") == "deny"
        assert bench.in_force.policy.hash == old
        added, undone = bench.recorded()
        assert (undone.data["change"], undone.data["new_hash"]) == ("not_in_force", old)
        assert added.data["new_hash"] == undone.data["old_hash"]
        bench.confirms = True
        await bench.add(B)  # and the next one finds its way
        assert (effect(agent, "a"), effect(agent, "b")) == ("deny", "allow")

    play(story, tmp_path)


def test_changes_come_one_after_the_other_and_none_is_lost(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        rules = [Rule("allow", Pattern("read", f"r{number}")) for number in range(10)]
        policies = [bench.in_force.policy]
        for rule in rules:
            policies.append(policies[-1].with_rules([rule]))
        await asyncio.gather(*(
            bench.in_force.add_rule(rule.as_dict(), policies[number].hash, policies[number + 1].hash)
            for number, rule in enumerate(rules)
        ))  # fmt: skip
        assert bench.in_force.policy.rules == tuple(rules)
        assert [event.data["index"] for event in bench.recorded()] == list(range(10))

    play(story, tmp_path)


def test_a_change_that_starts_from_elsewhere_is_refused_and_a_known_one_is_nothing(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        first = bench.in_force.policy
        with_a, with_b = first.with_rules([A]), first.with_rules([B])
        await bench.in_force.add_rule(A.as_dict(), first.hash, with_a.hash)
        await bench.in_force.add_rule(A.as_dict(), first.hash, with_a.hash)
        with pytest.raises(BadRequest, match="the policy in force has the hash"):
            await bench.in_force.add_rule(B.as_dict(), first.hash, with_b.hash)
        with pytest.raises(BadRequest, match="with this rule"):
            await bench.in_force.add_rule(B.as_dict(), with_a.hash, with_b.hash)
        with pytest.raises(PolicyLoadError, match="did you mean 'allow'"):
            await bench.in_force.add_rule({**B.as_dict(), "action": "alow"}, with_a.hash, with_b.hash)
        assert bench.in_force.policy.hash == with_a.hash
        assert len(bench.recorded()) == 1

    play(story, tmp_path)


def test_a_rule_is_taken_back_once_and_only_where_it_came_through(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        agent, first = bench.bind(), bench.in_force.policy
        with_a = first.with_rules([A])
        await bench.in_force.take_rule_back(first.hash, with_a.hash)  # it never came through
        assert bench.recorded() == []
        await bench.add(A)
        await bench.add(B)
        with_both = bench.in_force.policy
        with pytest.raises(BadRequest, match="take_rule_back"):
            await bench.in_force.take_rule_back(first.hash, with_a.hash)
        await bench.in_force.take_rule_back(with_a.hash, with_both.hash)
        await bench.in_force.take_rule_back(with_a.hash, with_both.hash)
        assert (effect(agent, "a"), effect(agent, "b")) == ("allow", "deny")
        assert [event.data["change"] for event in bench.recorded()] == ["rule_added", "rule_added", "rule_taken_back"]

    play(story, tmp_path)


def test_whoever_nobody_holds_any_more_is_forgotten(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        kept = [bench.bind()]
        bench.bind()
        gc.collect()  # it refers to itself, by the cache of its own method
        assert len(bench.in_force._bound) == 1
        del kept[0]
        gc.collect()
        assert len(bench.in_force._bound) == 0

    play(story, tmp_path)
