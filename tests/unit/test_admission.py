"""Slots, a line with priorities, and slots that are lent: events in, names of who may run out."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from agentos.supervisor.admission import Admission
from agentos.supervisor.slots import Slots


def test_the_line_goes_by_priority_then_by_arrival() -> None:
    admission = Admission(1)
    assert admission.ask("a") == ["a"]
    assert admission.ask("b") == []
    assert admission.ask("c") == []
    assert admission.ask("urgent", priority=5) == []
    assert admission.leave("a") == ["urgent"]
    assert admission.leave("urgent") == ["b"]
    assert admission.leave("b") == ["c"]
    assert (admission.running, admission.in_line) == (1, 0)


def test_whoever_leaves_the_line_is_passed_over() -> None:
    admission = Admission(1)
    admission.ask("a")
    admission.ask("b")
    admission.ask("c")
    assert admission.leave("b") == []
    assert admission.leave("a") == ["c"]


def test_a_parent_that_waits_lends_its_slot_and_gets_the_next_one_back() -> None:
    admission = Admission(1)
    admission.ask("parent")
    assert admission.ask("child") == []
    assert admission.ask("urgent stranger", priority=9) == []
    assert admission.lend("parent") == ["urgent stranger"]
    assert admission.leave("urgent stranger") == ["child"]
    assert admission.reclaim("parent") == []
    admission.ask("another", priority=99)
    assert admission.leave("child") == ["parent"]


def test_who_waits_again_before_it_has_its_slot_back_leaves_the_line() -> None:
    admission = Admission(1)
    admission.ask("parent")
    assert admission.ask("first child") == []
    admission.lend("parent")
    assert admission.ask("second child") == []
    assert admission.reclaim("parent") == []
    assert admission.lend("parent") == []
    assert admission.leave("first child") == ["second child"]  # and not the parent, which could not use it
    assert admission.leave("second child") == []
    assert admission.reclaim("parent") == ["parent"]


def test_two_calls_of_one_agent_wait_for_one_slot() -> None:
    async def main() -> int:
        slots = Slots(asyncio.get_running_loop(), 1)
        assert slots.ask("parent")
        assert not slots.ask("child")
        slots.lend("parent")
        both = [asyncio.create_task(slots.reclaim("parent")) for _ in range(2)]
        await asyncio.sleep(0)
        both[0].cancel()
        slots.leave("child")
        return len((await asyncio.wait(both, timeout=5))[1])

    assert asyncio.run(main()) == 0


def test_who_has_no_slot_lends_none() -> None:
    admission = Admission(1)
    admission.ask("a")
    admission.ask("b")
    assert admission.lend("b") == []
    assert admission.lend("stranger") == []
    assert admission.reclaim("stranger") == []
    assert admission.running == 1


EVENTS = st.lists(
    st.tuples(st.sampled_from(["ask", "leave", "lend", "reclaim"]), st.sampled_from("abcdef")), max_size=60
)


@given(st.integers(1, 4), EVENTS)
def test_no_order_of_events_overbooks_loses_or_starves_anybody(slots: int, events: list[tuple[str, str]]) -> None:
    admission, known, lent, running, reclaiming = Admission(slots), set[str](), set[str](), set[str](), set[str]()
    for event, key in events:
        if event == "ask" and key in known:
            continue
        admitted = getattr(admission, event)(key)
        if event == "ask":
            known.add(key)
        elif event == "leave":
            known.discard(key)
            lent.discard(key)
            reclaiming.discard(key)
            running.discard(key)
        elif event == "lend" and key in running | reclaiming:
            running.discard(key)
            reclaiming.discard(key)
            lent.add(key)
        elif event == "reclaim" and key in lent:
            lent.discard(key)
            reclaiming.add(key)
        assert not running & set(admitted)
        running |= set(admitted)
        reclaiming -= running
        assert len(running) == admission.running <= slots
        assert admission.in_line == len(known - running - lent)
        assert admission.in_line == 0 or admission.running == slots  # nobody waits beside a free slot
