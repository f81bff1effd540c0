"""The broker and its intake when something of the kernel's own fails: refused, on record, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from broker_bench import ACT, Bench, play, until

from agentos import wire
from agentos.policies import EffectivePolicy, Pattern, Policy
from agentos.supervisor import decide, recording
from agentos.supervisor.policy_source import parse_rule


def test_an_action_over_which_the_kernel_fails_is_denied_and_on_record(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.be_faulty()
        bench.send(ACT, ACT._replace(id=2))
        for number, verdict in enumerate(await bench.verdicts(2), 1):
            assert (verdict.id, verdict.effect, verdict.reason) == (number, "deny", decide.KERNEL_FAULT)
        faults = bench.recorded("kernel_fault")
        assert [(one.severity, one.agent_id, one.data["frame"]) for one in faults] == [("critical", "a", "Act")] * 2
        assert "planted" in faults[0].data["error"]

    play(story, tmp_path)


def test_a_fault_in_the_last_words_of_a_process_does_not_hide_its_end(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.be_faulty()
        assert bench.agent.intake is not None
        ended: asyncio.Future[int] = bench.loop.create_future()
        bench.send(ACT, wire.Result(b"the result"))
        bench.agent.intake.drain(ended.set_result)
        async with asyncio.timeout(10):
            assert await ended == 0
        assert bench.agent.result == b"the result"  # what came behind the fault is not lost

    play(story, tmp_path)


def test_a_stream_that_cannot_be_read_does_not_hide_the_end(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        seen: list[Any] = []
        bench.loop.set_exception_handler(lambda _, context: seen.append(context["exception"]))
        assert bench.agent.intake is not None
        bench.send(ACT)
        ended: asyncio.Future[int] = bench.loop.create_future()
        bench.agent.intake._left = 1
        bench.agent.intake._pause()
        os.dup2(os.open("/", os.O_RDONLY), bench.up_read)  # reading it fails: EISDIR
        with contextlib.suppress(IsADirectoryError):
            bench.agent.intake._drain_on(ended.set_result)
        assert ended.done()

    play(story, tmp_path)


def test_what_cannot_be_recorded_counts_as_denied_and_is_told_not_too_often(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        told: list[Any] = []
        bench.broker._notify = lambda _, topic, data: told.append((topic, data["resource"], data["reason"]))
        bench.recording.close()  # the journal takes nothing any more
        bench.send(*[ACT._replace(id=number) for number in range(1, 51)])
        verdicts = await bench.verdicts(50)
        assert {(verdict.effect, verdict.reason) for verdict in verdicts} == {("deny", decide.RECORDER_UNAVAILABLE)}
        assert bench.agent.violations == 50
        assert told[0] == ("denied", verdicts[0].resource, decide.RECORDER_UNAVAILABLE)
        assert len(told) < 25

    play(story, tmp_path)


def test_a_fault_behind_the_record_denies_and_lets_the_others_be_answered(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        deny = parse_rule("deny", "read:data/*")
        bench.agent.policy = EffectivePolicy(Policy.builtin("permissive"), workspace="/", extra_rules=(deny,))
        failing = [True]

        def notify(*_: Any) -> None:
            if failing:
                failing.pop()
                raise ZeroDivisionError("planted")

        bench.broker._notify = notify
        bench.send(ACT, ACT._replace(id=2, resource="data/y"), ACT._replace(id=3, resource="data/z"))
        await until(lambda: bench.agent.undecided == 3)
        bench.recording.acknowledged(bench.recording.last_seq)
        assert {one.id for one in await bench.verdicts(4)} == {1, 2, 3}
        assert len(bench.recorded("kernel_fault")) == 1
        assert bench.agent.undecided == 0

    play(story, tmp_path)


def test_a_denial_that_is_counted_keeps_no_large_fields(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        deny = parse_rule("deny", "execute:*")
        bench.agent.policy = EffectivePolicy(Policy.builtin("permissive"), workspace="/", extra_rules=(deny,))
        bench.send(ACT._replace(operation="execute", argv=["x", "y" * 10_000], claims={"c": "z" * 10_000}))
        await until(lambda: bench.agent.undecided == 1)
        bench.recording.acknowledged(bench.recording.last_seq)
        ((_, known),) = bench.agent.denials.items()
        assert len(json.dumps(known.data)) < 1_000
        assert known.data["resource"]
        assert len(bench.recorded("policy_violation")[0].data["claims"]["c"]) == 10_000

    play(story, tmp_path)


def test_no_repetition_is_lost_when_two_identical_denials_become_durable_one_after_the_other(tmp_path: Path) -> None:
    """Found by tests/fuzz: the second of them began a new count and forgot what had been counted since the first."""

    async def story(bench: Bench) -> None:
        bench.agent.policy = EffectivePolicy(Policy.builtin("strict"), workspace="/", permissions=[])
        bench.send(ACT, ACT._replace(id=2))
        await until(lambda: len(bench.recorded("policy_violation")) == 2)
        first, second = bench.recorded("policy_violation")
        bench.recording.acknowledged(first.seq)
        bench.send(*(ACT._replace(id=number) for number in range(3, 8)))
        assert [verdict.id for verdict in await bench.verdicts(6)] == [1, 3, 4, 5, 6, 7]
        bench.recording.acknowledged(second.seq)
        assert [verdict.id for verdict in await bench.verdicts(1)] == [2]
        bench.send(ACT._replace(id=8))
        await bench.verdicts(1)
        bench.broker.flush_denials(bench.agent)
        assert sum(event.data["repeats"] for event in bench.recorded("policy_violation_repeated")) == 6

    play(story, tmp_path)


def test_whatever_an_agent_sends_waits_while_the_recorder_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "BACKLOG_BYTES_MAX", 40_000)
    outcomes = [wire.Outcome(number, True, "x" * 50) for number in range(600)]

    async def story(bench: Bench) -> None:
        bench.send(*outcomes)
        await until(lambda: bench.recording.is_behind)
        await asyncio.sleep(0.1)  # in which it would be read to its end
        assert bench.recording.last_seq < 300
        async with asyncio.timeout(10):
            while bench.recording.last_seq < len(outcomes):
                bench.recording.acknowledged(bench.recording.last_seq)
                await asyncio.sleep(0.01)
        assert bench.recording.lost == 0

    play(story, tmp_path)


def test_while_there_is_no_recorder_nobody_fills_the_disk_and_all_hear_why_they_may_not_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "BACKLOG_BYTES_MAX", 40_000)

    async def story(bench: Bench) -> None:
        bench.send(*[wire.Outcome(number, True, "x" * 50) for number in range(600)], ACT)
        await until(lambda: bench.recording.is_behind)
        for _ in range(recording.PATIENT_BEATS + 1):
            bench.recording.beat()
        (verdict,) = await bench.verdicts(1)
        assert (verdict.effect, verdict.reason) == ("deny", decide.RECORDER_UNAVAILABLE)
        assert bench.recording.lost > 100
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 100_000

    play(story, tmp_path)


def test_what_waits_for_its_record_is_answered_as_it_was_decided_and_the_next_by_the_new_policy(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        policy = Policy("p", runtime=False)
        bench.agent.policy = EffectivePolicy(policy, workspace="/")
        bench.send(ACT)
        await until(lambda: len(bench.recorded("policy_violation")) == 1)
        policy.add_rule("allow", Pattern("read", "*"))
        bench.agent.policy.adopt(policy)
        bench.send(ACT._replace(id=2))
        (second,) = await bench.verdicts(1)
        assert (second.id, second.effect) == (2, "allow")
        bench.recording.acknowledged(bench.recording.last_seq)
        (first,) = await bench.verdicts(1)
        assert (first.id, first.effect) == (1, "deny")

    play(story, tmp_path)


def test_a_denial_by_another_policy_is_no_repetition(tmp_path: Path) -> None:
    """Same action, same reason: but the record must not say that the old policy denied it."""

    async def story(bench: Bench) -> None:
        policy = Policy("p", runtime=False)
        bench.agent.policy = EffectivePolicy(policy, workspace="/")
        hashes = [policy.hash]
        for number, repeats in ((1, 2), (10, 3)):
            bench.send(ACT._replace(id=number))
            await until(lambda number=number: bench.recording.last_seq > bench.recording.durable_seq)  # type: ignore[misc]
            bench.recording.acknowledged(bench.recording.last_seq)
            await bench.verdicts(1)
            bench.send(*(ACT._replace(id=number + one) for one in range(1, repeats + 1)))
            await bench.verdicts(repeats)
            policy.add_rule("allow", Pattern("read", "other"))
            bench.agent.policy.adopt(policy)
            hashes.append(policy.hash)
        bench.broker.flush_denials(bench.agent)
        assert [event.data["policy_hash"] for event in bench.recorded("policy_violation")] == hashes[:2]
        counted = bench.recorded("policy_violation_repeated")
        assert [(event.data["policy_hash"], event.data["repeats"]) for event in counted] == [
            (hashes[0], 2),
            (hashes[1], 3),
        ]

    play(story, tmp_path)
