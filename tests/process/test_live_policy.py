"""Rules added to a policy that agents run under: from the next action on, for all of them, and on record."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import recorded_by
from world import wait_until

from agentos import KernelSpace, Pattern, Policy, PolicyViolationError, act, errors
from agentos.client import connection
from agentos.policies import Rule

DB = Pattern(operation="read", resource="db/*")


@contextlib.contextmanager
def kernel_with(policy: Any, **options: Any) -> Iterator[KernelSpace]:
    kernel = KernelSpace(policy=policy, **options)
    kernel.register(name="asker")(ask_on)
    kernel.register(name="parent")(parent)
    try:
        yield kernel
    finally:
        asyncio.run(kernel.shutdown())


async def ask_on(effect: str, resource: str = "db/1") -> list[str]:
    """Ask until the answer is `effect`; returns all the answers."""
    seen: list[str] = []
    while not seen or seen[-1] != effect:
        try:
            act("read", resource)
            seen.append("allow")
        except PolicyViolationError as refused:
            seen.append("deny" if not isinstance(refused, errors.RateLimitedError) else "limited")
        await asyncio.sleep(0.005)
    return seen


async def parent() -> list[str]:
    kernel = KernelSpace()
    return await kernel.execute("asker", "allow")  # type: ignore[no-any-return]


def refused(kernel: KernelSpace) -> set[str]:
    """Return the agents that were refused the database."""
    return {event.agent_id for event in recorded_by(kernel, "policy_violation") if event.data["resource"] == "db/1"}


def test_a_running_agent_its_child_and_one_in_line_obey_a_rule_that_is_added(home: Path) -> None:
    async def story(kernel: KernelSpace) -> None:
        ids = [await kernel.spawn("asker", "allow"), await kernel.spawn("parent")]
        await asyncio.to_thread(wait_until, lambda: len(refused(kernel)) == 2, 30)
        line = [await kernel.spawn("asker", "allow")]  # both slots are taken, the child's is its parent's
        old = kernel.policy.hash
        kernel.policy.add_rule(action="allow", pattern=DB, name="the database")
        first, second, waited = await kernel.wait_all([*ids, *line])
        assert (set(first), set(second), waited) == ({"deny", "allow"}, {"deny", "allow"}, ["allow"])
        (changed,) = recorded_by(kernel, "policy_changed")
        assert (changed.data["old_hash"], changed.data["new_hash"]) == (old, kernel.policy.hash)
        assert changed.data["rule"]["name"] == "the database"
        for event in (*recorded_by(kernel, "policy_violation"), *recorded_by(kernel, "action_allowed")):
            if event.data["resource"] == "db/1":  # what was denied before it names the old policy, what was allowed
                new = event.seq > changed.seq  # after it the new one, without exception
                assert event.data["policy_hash"] == (kernel.policy.hash if new else old)
                assert (event.data["effect"] == "allow") is new

    with kernel_with("custom", max_concurrent_agents=2) as kernel:
        asyncio.run(story(kernel))


def test_what_was_allowed_is_denied_from_the_next_action_on_and_first_match_still_wins(home: Path) -> None:
    policy = Policy("open", default_action="allow")
    policy.add_rule("allow", Pattern("read", "db/9"))

    async def story(kernel: KernelSpace) -> None:
        denied = asyncio.create_task(kernel.execute("asker", "deny"))
        await asyncio.to_thread(wait_until, lambda: allowed(kernel), 30)
        policy.add_rule("deny", DB, reason="closed")  # the object that the program gave, not kernel.policy
        answers = await denied
        assert answers[0] == "allow"
        assert answers.count("deny") == 1
        assert await kernel.execute("asker", "allow", "db/9") == ["allow"]
        policy.add_rule("allow", DB)  # too late: an earlier rule decides
        assert await kernel.execute("asker", "deny") == ["deny"]

    with kernel_with(policy) as kernel:
        assert kernel.policy is policy
        asyncio.run(story(kernel))


def allowed(kernel: KernelSpace) -> bool:
    started = kernel._connection is not None
    return started and any(event.data["resource"] == "db/1" for event in recorded_by(kernel, "action_allowed"))


def test_what_a_rate_limit_counted_stays_counted(home: Path) -> None:
    policy = Policy("few")
    policy.add_rule("allow", DB, rate_limit=5)

    async def story(kernel: KernelSpace) -> None:
        assert (await kernel.execute("asker", "limited")).count("allow") == 5
        policy.add_rule("allow", Pattern("read", "other/*"), rate_limit=1)
        assert await kernel.execute("asker", "limited") == ["limited"]
        assert await kernel.execute("asker", "limited", "other/1") == ["allow", "limited"]

    with kernel_with(policy) as kernel:
        asyncio.run(story(kernel))


def test_rules_added_before_the_first_call_and_between_two_kernels_are_there(home: Path) -> None:
    (home / "mine.yaml").write_text(Policy("mine").to_yaml())
    with kernel_with("mine.yaml") as kernel:
        kernel.policy.add_rule("allow", DB)
        assert asyncio.run(kernel.execute("asker", "allow")) == ["allow"]
        asyncio.run(kernel.shutdown())
        kernel.policy.add_rule("allow", Pattern("read", "other/*"))
        assert asyncio.run(kernel.execute("asker", "allow", "db/1")) == ["allow"]
        assert asyncio.run(kernel.execute("asker", "allow", "other/1")) == ["allow"]
        kernel.policy.add_rule("allow", Pattern("read", "third/*"))
        assert asyncio.run(kernel.execute("asker", "allow", "third/1")) == ["allow"]


def test_what_a_program_and_its_kernel_go_by_is_one_reading_of_the_file(home: Path) -> None:
    """Whatever becomes of the file: a kernel whose rules are others than kernel.policy says would refuse the next."""
    path = home / "mine.yaml"
    path.write_text(Policy("mine").to_yaml())
    with kernel_with(str(path)) as kernel:
        known = kernel.policy.hash
        path.write_text(Policy("mine", default_action="allow").to_yaml())
        assert asyncio.run(kernel.execute("asker", "deny")) == ["deny"]
        assert recorded_by(kernel, "kernel_started")[0].data["policy_hash"] == known
        kernel.policy.add_rule("allow", DB)
        assert asyncio.run(kernel.execute("asker", "allow")) == ["allow"]


def test_a_wrong_rule_changes_nothing_and_the_next_right_one_does(home: Path) -> None:
    with kernel_with("custom") as kernel:
        assert asyncio.run(kernel.execute("asker", "deny")) == ["deny"]
        before = kernel.policy.hash
        with pytest.raises(errors.PolicyLoadError, match="did you mean 'allow'"):
            kernel.policy.add_rule("allwo", DB)
        assert kernel.policy.hash == before
        kernel.policy.add_rule("allow", DB)
        assert asyncio.run(kernel.execute("asker", "allow")) == ["allow"]
        assert len(recorded_by(kernel, "policy_changed")) == 1


def test_a_name_or_a_file_that_holds_no_policy_is_said_where_it_is_asked_for(home: Path) -> None:
    with pytest.raises(errors.PolicyLoadError, match="did you mean 'custom'"):
        KernelSpace(policy="costum").policy.add_rule("allow", DB)
    with pytest.raises(errors.PolicyLoadError, match=r"nowhere\.yaml"):
        KernelSpace(policy="nowhere.yaml").policy.add_rule("allow", DB)


def test_two_kernels_of_one_policy_follow_it_both_and_a_dead_one_hinders_nobody(home: Path) -> None:
    policy = Policy("shared")
    with kernel_with(policy) as one, kernel_with(policy) as two:
        for kernel in (one, two):
            assert asyncio.run(kernel.execute("asker", "deny")) == ["deny"]
        policy.add_rule("allow", DB)
        for kernel in (one, two):
            assert asyncio.run(kernel.execute("asker", "allow")) == ["allow"]
        assert two._connection is not None
        os.kill(two._connection._guard.pid, signal.SIGKILL)
        wait_until(lambda: two._connection is not None and two._connection.ended, 30)
        policy.add_rule("allow", Pattern("read", "other/*"))
        for kernel in (one, two):  # the second starts anew, with both rules
            assert asyncio.run(kernel.execute("asker", "allow", "other/1")) == ["allow"]
            assert asyncio.run(kernel.execute("asker", "allow", "db/1")) == ["allow"]


def test_when_one_kernel_hangs_the_other_takes_the_rule_back_and_so_does_it_once_it_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALL_LIMIT_S", 0.5)
    policy = Policy("shared")
    with kernel_with(policy) as willing, kernel_with(policy) as stuck:
        for kernel in (willing, stuck):
            assert asyncio.run(kernel.execute("asker", "deny")) == ["deny"]
        before = policy.hash
        pid = inspect_any(stuck)["kernel_pid"]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(errors.KernelUnavailable) as caught:
            policy.add_rule("allow", DB)
        assert "a kernel may still act by the rule" in caught.value.__notes__[0]
        assert (policy.hash, policy.rules) == (before, ())
        assert changes(willing) == ["rule_added", "rule_taken_back"]
        assert asyncio.run(willing.execute("asker", "deny")) == ["deny"]
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: changes(stuck) == ["rule_added", "rule_taken_back"], 30)
        assert asyncio.run(stuck.execute("asker", "deny")) == ["deny"]
        monkeypatch.setattr(connection, "CALL_LIMIT_S", 30.0)
        policy.add_rule("allow", DB)
        for kernel in (willing, stuck):
            assert asyncio.run(kernel.execute("asker", "allow")) == ["allow"]


def changes(kernel: KernelSpace) -> list[str]:
    return [event.data["change"] for event in recorded_by(kernel, "policy_changed")]


def test_a_recorder_that_died_delays_a_rule_and_loses_none(home: Path) -> None:
    with kernel_with("custom") as kernel:
        assert asyncio.run(kernel.execute("asker", "deny")) == ["deny"]
        os.kill(inspect_any(kernel)["recorder_pid"], signal.SIGKILL)
        kernel.policy.add_rule("allow", DB)
        assert changes(kernel) == ["rule_added"]
        assert asyncio.run(kernel.execute("asker", "allow")) == ["allow"]


def inspect_any(kernel: KernelSpace) -> dict[str, Any]:
    assert kernel._connection is not None
    return dict(kernel._connection.ask("inspect", {"id": kernel._connection.ask("ps", {})["agents"][0]["id"]}))


def test_ten_thousand_rules_do_not_stop_the_others_when_one_is_added(home: Path) -> None:
    """Ten times: how long the kernel takes to answer to a change is what every agent would have waited at most."""
    policy = Policy("large", rules=[Rule("allow", Pattern("read", f"data/t{number}/*")) for number in range(10_000)])
    with kernel_with(policy) as kernel:
        assert asyncio.run(kernel.execute("asker", "deny")) == ["deny"]
        policy.add_rule("allow", Pattern("read", "first/*"))  # the first one is hashed as a whole, here
        took = []
        for number in range(10):
            start = time.perf_counter()
            policy.add_rule("allow", Pattern("read", f"late{number}/*"))
            took.append(time.perf_counter() - start)
        assert min(took) < 0.05, took  # filing ten thousand anew takes more than that, their hash as much again
        policy.add_rule("allow", DB)
        assert asyncio.run(kernel.execute("asker", "allow")) == ["allow"]
