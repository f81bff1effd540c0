"""What an agent does again and again is decided, recorded and answered each time as if it were the first."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broker_bench import ACT, Bench, play, until

from agentos import wire
from agentos.mould import Mould
from agentos.policies import EffectivePolicy, Pattern, Policy, Rule
from agentos.supervisor import decide, repeats
from agentos.supervisor.policy_source import parse_rule

Story = Callable[[Bench], Awaitable[None]]


def policy(*rules: Rule) -> EffectivePolicy:
    return EffectivePolicy(Policy.builtin("permissive"), workspace="/", extra_rules=rules)


async def ask(bench: Bench, *acts: wire.Act) -> list[wire.Verdict]:
    """Send one after the other, each when the one before is answered."""
    found = []
    for act in acts:
        bench.send(act)
        found += await bench.verdicts(1)
    return found


def casts(bench: Bench) -> list[int]:
    """Have a list that gets the id of each action whose record is cast from now on."""
    seen: list[int] = []
    before = bench.recording.append_cast

    def append_cast(mould: Any, number: int) -> int:
        seen.append(number)
        return before(mould, number)

    bench.recording.append_cast = append_cast  # type: ignore[method-assign]
    return seen


def unfinished(bench: Bench) -> int:
    return 0 if bench.agent.intake is None else bench.agent.intake._decoder.pending_bytes


ACTS = [
    ACT,
    ACT._replace(cwd="/srv", source="hook", resource="../etc/x", resolved="/etc/y"),
    ACT._replace(resource="docs/\u00fc \u2028.md"),
]


@pytest.mark.parametrize("act", ACTS)
def test_the_record_and_the_verdict_are_those_of_the_first_time(tmp_path: Path, act: wire.Act) -> None:
    async def story(bench: Bench) -> None:
        bench.agent.context = {"tenant": "x", "n": [1, None]}
        seen = casts(bench)
        bench.recording.mould, mould = (lambda *_: None), bench.recording.mould  # type: ignore[method-assign]
        (usual,) = await ask(bench, act)  # without a mould: as it is done for what cannot have one
        assert seen == []
        bench.recording.mould = mould  # type: ignore[method-assign]
        ids = [2, 127, 128, 70_000, 2**40, 2**64 - 1]
        verdicts = await ask(bench, *(act._replace(id=number) for number in ids))
        assert seen == ids
        expected = [usual._replace(id=number, seq=place) for place, number in enumerate(ids, usual.seq + 1)]
        assert verdicts == expected
        assert bench.agent.actions == len(ids) + 1
        first, *others = bench.recorded("action_allowed")
        for event, verdict in zip(others, verdicts, strict=True):
            assert event.data == {**first.data, "action_id": verdict.id}
            same = replace(event, seq=first.seq, ts_ns=first.ts_ns, mono_ns=first.mono_ns, data=first.data)
            assert (same, event.seq) == (first, verdict.seq)

    play(story, tmp_path)


def test_a_known_action_is_not_even_decoded(tmp_path: Path) -> None:
    """Else the tests below would say nothing of the short way."""

    async def story(bench: Bench) -> None:
        await ask(bench, ACT)
        bench.broker._on_act = None  # type: ignore[method-assign,assignment]
        (verdict,) = await ask(bench, ACT._replace(id=2))
        assert verdict.effect == "allow"

    play(story, tmp_path)


def test_a_policy_that_changed_decides_anew(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await ask(bench, ACT, ACT._replace(id=2))
        bench.agent.policy = policy(parse_rule("deny", "read:data/*"))
        bench.send(ACT._replace(id=3))
        await until(lambda: bench.agent.undecided == 1)
        bench.recording.acknowledged(bench.recording.last_seq)
        (verdict,) = await bench.verdicts(1)
        assert (verdict.id, verdict.effect) == (3, "deny")
        assert [event.data["action_id"] for event in bench.recorded("policy_violation")] == [3]

    play(story, tmp_path)


def test_what_the_moment_decides_is_never_prepared(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        seen = casts(bench)
        bench.agent.policy = policy(Rule("allow", Pattern("read", "data/*"), rate_limit=3))
        allowed = await ask(bench, *(ACT._replace(id=number) for number in (1, 2, 3)))
        assert [verdict.effect for verdict in allowed] == ["allow"] * 3
        bench.send(ACT._replace(id=4))
        await until(lambda: bench.agent.undecided == 1)
        bench.recording.acknowledged(bench.recording.last_seq)
        (verdict,) = await bench.verdicts(1)
        assert (verdict.effect, verdict.reason) == ("deny", "rate_limited")
        assert seen == []

    play(story, tmp_path)


def test_what_must_be_durable_waits_each_time(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        seen = casts(bench)
        for number in (1, 2, 3):
            bench.send(ACT._replace(id=number, operation="execute", resource="tools/x"))
            await until(lambda: bench.agent.undecided == 1)
            bench.recording.acknowledged(bench.recording.last_seq)
            assert [verdict.id for verdict in await bench.verdicts(1)] == [number]
        assert seen == []

    play(story, tmp_path)


def test_claims_and_arguments_are_on_record_each_time(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await ask(bench, ACT, *(ACT._replace(id=number, claims={"n": number}) for number in (2, 3)))
        assert [event.data.get("claims") for event in bench.recorded("action_allowed")] == [None, {"n": 2}, {"n": 3}]

    play(story, tmp_path)


def test_without_a_record_it_is_denied_and_counted_once(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await ask(bench, ACT, ACT._replace(id=2))
        bench.recording.close()
        verdicts = await ask(bench, ACT._replace(id=3), ACT._replace(id=4))
        assert {(one.effect, one.reason) for one in verdicts} == {("deny", decide.RECORDER_UNAVAILABLE)}
        assert (bench.agent.actions, bench.agent.violations) == (4, 2)
        assert bench.recording._untold == {"refused": 2}

    play(story, tmp_path)


def test_a_fault_of_ours_over_a_known_action_denies_it(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await ask(bench, ACT, ACT._replace(id=2))
        bench.be_faulty()
        (verdict,) = await ask(bench, ACT._replace(id=3))
        assert (verdict.id, verdict.effect, verdict.reason) == (3, "deny", decide.KERNEL_FAULT)
        assert len(bench.recorded("kernel_fault")) == 1

    play(story, tmp_path)


def test_a_fault_of_ours_behind_the_record_denies_it_and_records_it_once(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await ask(bench, ACT, ACT._replace(id=2))
        real = bench.recording.append_cast

        def append_cast(mould: Mould, number: int) -> int:
            real(mould, number)
            raise LookupError("ours")

        bench.recording.append_cast = append_cast  # type: ignore[method-assign]
        (verdict,) = await ask(bench, ACT._replace(id=3))
        assert (verdict.id, verdict.effect, verdict.reason) == (3, "deny", decide.KERNEL_FAULT)
        assert [event.data["action_id"] for event in bench.recorded("action_allowed")] == [1, 2, 3]
        assert len(bench.recorded("kernel_fault")) == 1

    play(story, tmp_path)


def test_names_do_not_fill_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "KEPT_MAX", 10)

    async def story(bench: Bench) -> None:
        many = [ACT._replace(id=number, resource=f"data/{number}") for number in range(1, 40)]
        await ask(bench, *many, ACT._replace(id=40, resource="x" * 2_000))
        assert 0 < len(bench.agent.repeats._known) <= 10
        assert max(map(len, bench.agent.repeats._known)) < repeats.ACTION_BYTES_MAX
        bench.agent.close(bench.loop)
        assert not bench.agent.repeats._known
        bench.agent.descriptors = []

    play(story, tmp_path)


def test_two_actions_in_one_read_and_one_in_two_are_answered(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await ask(bench, ACT)
        bench.send(ACT._replace(id=2), ACT._replace(id=3))
        assert [verdict.id for verdict in await bench.verdicts(2)] == [2, 3]
        data = wire.encode(ACT._replace(id=4))
        os.write(bench.up, data[:9])
        await until(lambda: unfinished(bench) > 0)
        os.write(bench.up, data[9:])
        assert [verdict.id for verdict in await bench.verdicts(1)] == [4]

    play(story, tmp_path)


def test_bytes_of_a_known_action_inside_another_frame_are_no_action(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await ask(bench, ACT)
        inner = wire.encode(ACT._replace(id=2))
        begun = wire.encode(wire.Result(inner)).removesuffix(inner)
        os.write(bench.up, begun)
        await until(lambda: unfinished(bench) > 0)
        os.write(bench.up, inner)
        await until(lambda: bench.agent.result is not None or bench.agent.actions > 1)
        assert (bench.agent.result, bench.agent.actions) == (inner, 1)

    play(story, tmp_path)


def test_no_action_is_taken_for_another_however_they_arrive(tmp_path: Path) -> None:
    """A denied one, then an allowed one whose frame comes in two reads, or beside another: the former stays denied."""

    async def story(bench: Bench) -> None:
        bench.agent.policy = policy(parse_rule("deny", "read:data/secret"))
        secret = ACT._replace(resource="data/secret")

        async def is_denied(number: int) -> None:
            bench.send(secret._replace(id=number))
            await until(lambda: bench.agent.actions == number)
            bench.recording.acknowledged(bench.recording.last_seq)
            (verdict,) = await bench.verdicts(1)
            assert (verdict.id, verdict.effect) == (number, "deny")

        await is_denied(1)
        data = wire.encode(ACT._replace(id=2))
        os.write(bench.up, data[:9])
        await until(lambda: unfinished(bench) > 0)
        os.write(bench.up, data[9:])
        assert [verdict.effect for verdict in await bench.verdicts(1)] == ["allow"]
        await is_denied(3)
        bench.send(ACT._replace(id=4, resource="data/y"), ACT._replace(id=5, resource="data/z"))
        assert [verdict.effect for verdict in await bench.verdicts(2)] == ["allow"] * 2
        await is_denied(6)

    play(story, tmp_path)
