"""The table: every pair moves or is named; what Linux can do next is in it."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos import lifecycle
from agentos.lifecycle import Began, Blocked, Exited, Gone, IllegalTransition, Paused, Resumed, State, Unblocked, after

EVENTS = typing.get_args(lifecycle.Event)


@given(st.lists(st.sampled_from(EVENTS), max_size=50))
def test_any_event_list_ends_in_a_known_state_or_a_named_error(kinds: list[type[typing.Any]]) -> None:
    state = State.STARTING
    for kind in kinds:
        try:
            state = after(state, kind())
        except IllegalTransition as error:
            assert error.state is state
            assert error.event == kind()
        assert state in State
        assert lifecycle.public_state(state) in ("running", "stopped", "terminated", "waiting")


def test_a_life() -> None:
    state = State.STARTING
    for event, expected in [
        (Began(), State.RUNNING),
        (Paused(), State.STOPPED),
        (Paused(), State.STOPPED),
        (Resumed(), State.RUNNING),
        (Blocked(), State.WAITING),
        (Unblocked(), State.RUNNING),
        (Exited(), State.EXITED),
        (Gone(), State.TERMINATED),
    ]:
        state = after(state, event)
        assert state is expected


def test_sigkill_reaches_every_living_state() -> None:
    for state in State:
        if state is not State.TERMINATED:
            assert after(state, Exited()) is State.EXITED
            assert after(state, Gone()) is State.TERMINATED


@pytest.mark.parametrize("kind", EVENTS)
def test_nothing_happens_to_the_dead(kind: type[typing.Any]) -> None:
    with pytest.raises(IllegalTransition, match="cannot happen to a terminated agent"):
        after(State.TERMINATED, kind())
