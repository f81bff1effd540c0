"""What an agent may put on its pipe: the broken is recorded and ends that agent; a flood hurts the flooder alone.

One kernel and one well-behaved agent live through the whole file; after every attack that agent must still be the same
process and be answered.
"""

from __future__ import annotations

import asyncio
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attackers
import msgpack
import pytest
from arena import Arena, arena
from world import carriers, wait_until

from agentos import AgentSignal, errors, wire

MIB = 1024 * 1024
ACT = wire.Act(7, "read", "data/x", None, None, "/", {}, "sdk")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena(tmp_path_factory.mktemp("arena")) as made:
        yield made


@pytest.fixture
def place(shared: Arena) -> Iterator[Arena]:
    shared.waits()
    yield shared
    shared.assert_bystander_acts()


def raw(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def packed(*fields: Any) -> bytes:
    return raw(msgpack.packb(fields, use_bin_type=True))


def nested(depth: int) -> Any:
    value: Any = "leaf"
    for _ in range(depth):
        value = {"k": value}
    return value


BROKEN = {
    "garbage": (b"\xff" * 1000, "bytes is announced"),
    "no msgpack": (raw(b"\xc1" * 40), "not a frame"),
    "nothing": (raw(b""), "not a frame"),
    "4 GiB announced": (b"\xff\xff\xff\xff", "4294967295 bytes is announced"),
    "an action of 1 MiB": (struct.pack(">I", MIB) + b"\x99\x0a", "the limit is 262144"),
    "no tag": (struct.pack(">I", MIB) + b"\xc4\xff", "the limit is 262144"),
    "a frame of the kernel's": (wire.encode(wire.Reap(1)), "unexpected frame Reap"),
    "an unknown frame": (packed(99, 1), "unexpected frame 99"),
    "a field too few": (packed(11, 1, True), "takes 3 fields"),
    "a wrong type": (packed(11, "1", True, ""), "Outcome.id is a str"),
    "text that is no UTF-8": (raw(b"\x94\x0b\x01\xc3\xa1\xff"), "not a frame"),
    "another version": (wire.encode(wire.Hello(wire.VERSION + 1, "agent", 1)), f"version {wire.VERSION + 1}"),
    "an extension type": (packed(10, *ACT._replace(claims={"x": msgpack.ExtType(5, b"")})), "extension type 5"),
    "a timestamp": (packed(10, *ACT._replace(claims={"x": msgpack.Timestamp(1)})), "no plain value"),
    "a deep value": (packed(10, *ACT._replace(claims=nested(60))), "nested deeper than 32"),
    "a very deep value": (raw(b"\x94\x1e\x01\xa1x" + b"\x81\xa1k" * 5_000 + b"\xc0"), "not a frame"),
    "a million maps": (packed(30, 1, "status", {"x": [{}] * 1_000_000}), "more than 65536 items"),
    "lists of what is not there": (
        raw(b"\x93\x1e\x01\xa1x" + b"\xdd\x00\xff\xff\xff" * 400 + bytes(9_000)),
        "not a frame",
    ),
    "a resource of 40,000 characters": (wire.encode(ACT._replace(resource="x" * 40_000)), "40000 characters"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_recorded_and_ends_its_agent(place: Arena, name: str) -> None:
    data, says = BROKEN[name]
    before = place.kernel_bytes()
    failed = place.fails(attackers.send, data)
    assert failed.signal == signal.SIGKILL
    assert "protocol_error" in str(failed)
    (event,) = place.events("protocol_error", failed.agent_id)
    assert says in event.data["error"]
    assert place.inspect(failed.agent_id)["ended_by"] == "protocol"
    assert place.kernel_bytes() - before < 24 * MIB


def test_a_stream_that_ends_inside_a_frame_ends_its_agent_too(place: Arena) -> None:
    failed = place.fails(attackers.send_and_close, wire.encode(ACT)[:20])
    assert failed.signal == signal.SIGKILL
    (event,) = place.events("protocol_error", failed.agent_id)
    assert "ends inside a frame, after 20 bytes" in event.data["error"]


def test_an_agent_that_exits_inside_a_frame_is_recorded_with_its_own_exit(place: Arena) -> None:
    failed = place.fails(attackers.send_and_leave, wire.encode(ACT)[:20])
    assert (failed.code, failed.signal) == (0, None)
    error, exited = place.events(agent_id=failed.agent_id)[-2:]
    assert (error.event_type, error.data["error"]) == (
        "protocol_error", "the agent ended inside a frame, after 20 bytes of it",
    )  # fmt: skip
    assert (exited.event_type, exited.data["exit_code"], exited.data["ended_by"]) == ("agent_exited", 0, "")


def test_nothing_after_a_broken_frame_is_believed(place: Arena) -> None:
    """Neither what came with it nor what lies in the pipe when the agent is dead."""
    after = wire.encode(ACT._replace(resource="data/after")) + wire.encode(wire.Result(b"\x01"))
    failed = place.fails(attackers.send, wire.encode(ACT) + raw(b"\xc1") + after * 200)
    seen = [one.data.get("resource") for one in place.events("action_allowed", failed.agent_id)]
    assert "data/x" in seen
    assert "data/after" not in seen
    assert len(place.events("protocol_error", failed.agent_id)) == 1


def test_an_agent_that_closes_its_pipe_is_allowed_nothing_and_ends_as_it_likes(place: Arena) -> None:
    failed = place.fails(attackers.close_early)  # there is no pipe left for its result
    assert failed.signal is None
    assert place.events("protocol_error", failed.agent_id) == []


def test_a_child_that_breaks_the_stream_of_its_parent_ends_the_whole_tree(place: Arena) -> None:
    failed = place.fails(attackers.send_from_a_forked_child, b"\xff" * 100)
    assert failed.signal == signal.SIGKILL
    assert carriers(failed.agent_id) == []


def test_parent_and_forked_child_act_at_once_and_each_hears_its_own_verdicts(place: Arena) -> None:
    assert place.run(attackers.fork_and_act, 200) == {"status": 7, "actions": 200}


# --- large and slow ------------------------------------------------------------------------------------------------


def test_a_frame_that_never_ends_costs_what_it_holds_and_hangs_nobody(place: Arena, tmp_path: Path) -> None:
    before = place.kernel_bytes()
    agent_id = place.start(attackers.never_finish, 15 * MIB, 14 * MIB, str(tmp_path / "ready"))
    wait_until(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text() == "sent")
    time.sleep(0.5)
    assert 10 * MIB < place.kernel_bytes() - before < 40 * MIB
    assert place.waits().worst_s < 2.0
    assert place.call("stop", id=agent_id, grace_s=0.2)["ok"]
    wait_until(lambda: place.kernel_bytes() - before < 10 * MIB, what="the kernel to give the memory back")


@pytest.mark.parametrize("size", [100, 70_000, 3 * MIB, 15 * MIB])
def test_a_result_is_whole_although_its_agent_exits_at_once(place: Arena, size: int) -> None:
    for _ in range(3):
        assert place.run(attackers.large_result, size) == attackers.large_result(size)


def test_a_pipe_of_one_page_is_enough(place: Arena) -> None:
    assert place.run(attackers.large_result_through_one_page, MIB) == attackers.large_result(MIB)


def test_a_result_that_no_frame_holds_is_an_error_that_says_so(place: Arena) -> None:
    assert "16777216" in str(place.fails(attackers.large_result, 17 * MIB))


# --- floods --------------------------------------------------------------------------------------------------------


def test_who_does_not_read_verdicts_is_not_read_either(place: Arena) -> None:
    """It waits in its own write; once it reads, not one verdict is missing."""
    before = place.kernel_bytes()
    told = place.run(attackers.act_without_reading, 20_000, 0.5)
    waits = place.waits()
    assert told["stuck_at"] < 10_000
    assert told["in_order"]
    assert place.kernel_bytes() - before < 16 * MIB
    assert waits.worst_s < 2.0
    assert waits.actions > 20


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_flood_of_actions_is_answered_to_the_last_and_others_hardly_wait(place: Arena, operation: str) -> None:
    """`write` is denied here, and each denial waits until it is durable."""
    place.waits()
    count = 4_000
    assert place.run(attackers.act_while_reading, count, operation, permissions=["read"]) == count
    waits = place.waits()
    assert waits.worst_s < 2.0
    assert waits.actions > 20


def test_outcomes_of_actions_that_never_were_change_nothing(place: Arena) -> None:
    assert place.run(attackers.send_outcomes, 20_000) == "done"
    assert place.waits().worst_s < 2.0


def test_who_asks_for_much_and_never_reads_it_is_given_a_bounded_part_of_it(place: Arena) -> None:
    """What does not fit fails. It is not ended for that: it may have been stopped, and reads on when continued."""
    before = place.kernel_bytes()
    fits = 15  # in 32 MiB, beside the one that it is being sent: each is a little more than its result
    agent_id = place.start(attackers.call_and_never_read, 2 * MIB, 60)
    wait_until(lambda: place.inspect(agent_id)["state"] == "stopped", 30)
    wait_until(lambda: place.inspect(agent_id)["calls_waiting"] == fits, 30, "what fits to wait")
    wait_until(lambda: len(place.events("kernel_call", agent_id)) >= 62, 30, "the rest to be refused")
    assert place.inspect(agent_id)["calls_waiting"] == fits
    assert place.kernel_bytes() - before < 80 * MIB
    asyncio.run(place.kernel.send_signal(agent_id, AgentSignal.SIGCONT))
    wait_until(lambda: place.inspect(agent_id)["calls_waiting"] == 0, 30, "it to read on")
    asyncio.run(place.kernel.send_signal(agent_id, AgentSignal.SIGKILL))
    wait_until(lambda: place.kernel_bytes() - before < 40 * MIB, what="the kernel to give the memory back")


def test_calls_that_are_never_answered_are_limited(place: Arena) -> None:
    agent_id = place.start(attackers.wait_for_itself, 2_000)
    acted = lambda: [one.data["resource"] for one in place.events("action_allowed", agent_id)]
    wait_until(lambda: "data/still-answered" in acted(), what="its next action to be answered")
    assert 1_024 <= place.inspect(agent_id)["calls_waiting"] <= 1_024 + 300
    assert place.call("stop", id=agent_id, grace_s=0.2)["ok"]


def test_the_name_of_a_call_is_a_name(place: Arena) -> None:
    """A long one, compared with the known names to suggest the nearest, once held the kernel for minutes."""
    failed = place.fails(attackers.send, wire.encode(wire.Call(1, "x" * 200_000, {})))
    assert "200000 characters" in place.events("protocol_error", failed.agent_id)[0].data["error"]
    assert place.waits().worst_s < 2.0


# --- lies ----------------------------------------------------------------------------------------------------------


def test_answers_to_what_nobody_asked_end_the_agent(place: Arena) -> None:
    """An agent that could answer for its sentry could be `stopped` without having stopped, and say what others know."""
    failed = place.fails(attackers.answer_what_nobody_asked, list(range(300)))
    (fault,) = place.events("protocol_error", failed.agent_id)
    assert fault.data["error"] == "Answer 0 to no question that is open"
    assert failed.signal == signal.SIGKILL


def test_an_agent_speaks_for_itself_alone(place: Arena) -> None:
    assert place.run(attackers.speak_for, place.bystander_id) == [errors.NotPermitted.__name__] * 4
    refused = {one.data["resource"] for one in place.events("policy_violation") if one.data["operation"] == "kernel"}
    assert refused == {"stop", "signal", "inspect", "wait", "result", "register", "detach", "log", "start",
                       "send_signal", "wait_all", "shutdown", "status", "query"}  # fmt: skip
