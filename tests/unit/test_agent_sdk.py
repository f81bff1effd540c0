"""act, tool, save_state and on_cleanup: inside a really forked agent, and what is left of them in a host program."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_world import agent, refuse

import agentos
from agentos import PolicyViolationError, errors, wire
from agentos.values import unpack_value

# --- tools -----------------------------------------------------------------------------------------------------------


@agentos.tool
def double(number: int) -> int:
    """Twice the number."""
    return number * 2


@agentos.tool(name="mail/send", cost=0.5)
async def send(to: str) -> str:
    await asyncio.sleep(0)
    return f"sent to {to}"


def test_a_tool_is_an_action_with_an_outcome() -> None:
    def function() -> list[Any]:
        return [double(21), asyncio.run(send("ada"))]

    with agent(function) as one:
        assert one.result() == [42, "sent to ada"]
        first, second = one.of(wire.Act)
        assert (first.operation, first.resource, first.claims) == ("execute", "tools/double", {})
        assert (second.resource, second.claims) == ("tools/mail/send", {"cost": 0.5})
        assert one.of(wire.Outcome) == [wire.Outcome(first.id, True, ""), wire.Outcome(second.id, True, "")]


def test_a_refused_tool_never_runs_and_has_no_outcome(tmp_path: Path) -> None:
    @agentos.tool
    def remove(place: str) -> None:
        Path(place).touch()

    @agentos.tool
    async def remove_later(place: str) -> None:
        Path(place).touch()

    def function(place: str) -> list[str]:
        refused = []
        for call in (lambda: remove(place), lambda: asyncio.run(remove_later(place))):
            try:
                call()
            except PolicyViolationError as refusal:
                refused.append(refusal.resource)
        return refused

    with agent(function, str(tmp_path / "file"), judge=refuse("remove")) as one:
        assert one.result() == ["tools/remove", "tools/remove_later"]
        assert not one.of(wire.Outcome)
    assert not (tmp_path / "file").exists()


def test_a_tool_that_fails_says_so_and_raises() -> None:
    @agentos.tool
    def fail() -> None:
        raise KeyError("secret detail")

    def function() -> str:
        try:
            fail()
        except KeyError as error:
            return str(error)
        return "no error"

    with agent(function) as one:
        assert one.result() == "'secret detail'"
        (outcome,) = one.of(wire.Outcome)
        assert outcome == wire.Outcome(one.of(wire.Act)[0].id, False, "KeyError")


def test_nested_and_concurrent_tools_keep_their_outcomes_apart() -> None:
    @agentos.tool
    def outer() -> int:
        return double(1) + double(2)

    def function() -> int:
        threads = [threading.Thread(target=outer) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outer()

    with agent(function) as one:
        assert one.result() == 6
        ids = sorted(act.id for act in one.of(wire.Act))
        assert sorted(outcome.id for outcome in one.of(wire.Outcome)) == ids
        assert len(ids) == 15


def test_tools_that_stream_are_decided_at_the_first_item_and_end_when_their_user_had_enough() -> None:
    @agentos.tool
    def count(begin: int) -> Iterator[int]:
        yield from range(begin, begin + 3)

    @agentos.tool(name="stream")
    async def count_later(begin: int) -> AsyncIterator[int]:
        for number in range(begin, begin + 3):
            yield number
            await asyncio.sleep(0)
        raise OSError("the line is dead")

    async def collect() -> list[int]:
        items = []
        with contextlib.suppress(OSError):
            async for number in count_later(5):
                items.append(number)  # noqa: PERF401 - what came before the error counts
        return items

    def function() -> list[Any]:
        unused, some = count(1), count(2)
        first = next(some)
        del unused, some
        return [first, list(count(3)), asyncio.run(collect())]

    with agent(function) as one:
        assert one.result() == [2, [3, 4, 5], [5, 6, 7]]
        assert one.asked == ["tools/count", "tools/count", "tools/stream"]
        assert [(outcome.ok, outcome.detail) for outcome in one.of(wire.Outcome)] == [
            (True, ""), (True, ""), (False, "OSError"),
        ]  # fmt: skip


def test_a_tool_is_still_its_function() -> None:
    assert (double.__name__, double.__doc__) == ("double", "Twice the number.")
    assert asyncio.iscoroutinefunction(send)
    assert inspect.signature(send) == inspect.signature(send.__wrapped__)  # type: ignore[attr-defined]


# --- state -----------------------------------------------------------------------------------------------------------


def test_saved_state_is_a_copy_and_is_sent() -> None:
    def function() -> None:
        state = {"step": 1}
        agentos.save_state(state)
        state["step"] = 2
        agentos.save_state(state)

    with agent(function) as one:
        one.result()
        saved = [unpack_value(call.params["value"]) for call in one.of(wire.Call)]
    assert saved == [{"step": 1}, {"step": 2}]


def test_a_state_that_cannot_cross_is_refused_and_the_old_one_stays() -> None:
    def function() -> str:
        from agentos.agent import process

        agentos.save_state({"step": 1})
        try:
            agentos.save_state({"lock": threading.Lock()})
        except errors.NotSerialisable as error:
            current = process.current()
            assert current is not None
            return f"{error.where} {unpack_value(current.state)}"
        return "saved"

    with agent(function) as one:
        assert one.result() == "the state {'step': 1}"


def test_an_agent_finds_what_its_previous_life_saved_until_it_saves_itself() -> None:
    def function() -> list[Any]:
        found = [agentos.saved_state()]
        found[0]["step"] = 8  # a copy: what is saved is what was saved
        found.append(agentos.saved_state())
        agentos.save_state({"step": 9})
        return [*found, agentos.saved_state()]

    with agent(function, saved={"step": 7}) as one:
        assert one.result() == [{"step": 8}, {"step": 7}, {"step": 9}]
    with agent(agentos.saved_state) as one:
        assert one.result() is None


def test_a_state_that_is_no_value_is_said_to_be_none_of_ours() -> None:
    def function() -> str:
        try:
            return str(agentos.saved_state())
        except errors.ProtocolError as error:
            return str(error)

    with agent(function, saved=b"\xc1") as one:
        assert one.result().startswith("not a packed value")


def test_the_largest_state_that_can_be_saved_can_be_given_to_the_next_life() -> None:
    def save() -> None:
        room = wire.FRAME_BYTES_MAX - 64
        while True:
            try:
                agentos.save_state(b"x" * room)
            except errors.BadRequest:
                assert agentos.saved_state() is None
                room -= 8
            else:
                return

    with agent(save) as one:
        one.result()
        (call,) = one.of(wire.Call)
    with agent(lambda: len(agentos.saved_state()), saved=call.params["value"]) as one:
        assert one.result() > wire.FRAME_BYTES_MAX - 256


# --- in a host program -----------------------------------------------------------------------------------------------


def test_outside_an_agent_tools_run_and_questions_are_mistakes() -> None:
    assert double(2) == 4
    assert asyncio.run(send("ada")) == "sent to ada"
    assert agentos.on_cleanup(double) is double
    for call in (lambda: agentos.act("read", "x"), lambda: agentos.save_state(1), agentos.saved_state):
        with pytest.raises(errors.BadRequest, match="inside an agent only"):
            call()
