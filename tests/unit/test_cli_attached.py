"""Keys, denials and endings of an attached run, decided without a terminal."""

import os
import signal
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.cli.attached import DENIALS_SHOWN_A_SECOND, Denials, exit_code
from agentos.cli.keys import DECISIONS, Keys, Order, Phase, Press
from agentos.errors import PolicyViolationError

SECOND = 1_000_000_000


def test_every_press_has_a_meaning_in_every_phase() -> None:
    assert set(DECISIONS) == set(product(Phase, Press))


def orders(*presses: Press) -> list[Order]:
    phase, given_ = Phase.RUNNING, []
    for press in presses:
        phase, order = DECISIONS[phase, press]
        given_.append(order)
    return given_


def test_one_interrupt_stops_a_second_kills_a_third_changes_nothing() -> None:
    assert orders(*[Press.INTERRUPT] * 3) == [Order.STOP, Order.KILL, Order.NOTHING]


def test_hanging_up_twice_does_not_kill() -> None:
    assert orders(Press.HANGUP, Press.HANGUP, Press.INTERRUPT) == [Order.STOP, Order.NOTHING, Order.KILL]


def test_pausing_can_be_repeated() -> None:
    assert orders(Press.SUSPEND, Press.SUSPEND, Press.INTERRUPT) == [Order.PAUSE, Order.PAUSE, Order.STOP]


def test_when_it_is_over_whoever_presses_leaves_the_rest_of_the_output() -> None:
    assert {DECISIONS[Phase.OVER, press] for press in (Press.INTERRUPT, Press.HANGUP)} == {(Phase.OVER, Order.LEAVE)}
    assert DECISIONS[Phase.OVER, Press.SUSPEND] == (Phase.OVER, Order.PAUSE_US)


@given(st.lists(st.sampled_from(Press)))
def test_an_agent_is_stopped_once_and_killed_once(presses: list[Press]) -> None:
    given_ = orders(*presses)
    assert given_.count(Order.STOP) <= 1
    assert given_.count(Order.KILL) <= 1
    assert Order.KILL not in given_ or given_.index(Order.STOP) < given_.index(Order.KILL)
    assert Order.PAUSE not in given_[given_.index(Order.STOP) :] if Order.STOP in given_ else True


def test_before_there_is_an_agent_whoever_wants_us_gone_is_obeyed_at_once() -> None:
    """A start that hangs can be left. A pause that early is kept until there is somebody to pause."""
    with Keys() as keys:
        os.kill(os.getpid(), signal.SIGTSTP)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        keys.there_is_somebody()
        os.kill(os.getpid(), signal.SIGINT)
        presses = list(keys.pressed())
    assert (presses[0], presses[-1]) == (Press.SUSPEND, Press.INTERRUPT)


def denial(resource: str, **more: Any) -> dict[str, Any]:
    return {"operation": "read", "resource": resource, "reason": "secrets stay out of reach", "rule": 0, **more}


def test_each_distinct_denial_is_shown_once() -> None:
    denials = Denials()
    assert (
        denials.line(denial(".env", rule_name="secrets"), 0) == "denied read .env: secrets stay out of reach (secrets)"
    )
    assert denials.line(denial(".env", rule_name="secrets"), 9 * SECOND) is None
    assert denials.line(denial(".ssh"), 0) == "denied read .ssh: secrets stay out of reach (rule 0)"
    assert denials.line(denial("/y", rule_name="Outside", reason="outside"), 0) == "denied read /y: outside"
    assert denials.line(denial("x", rule=None), 0) == "denied read x: secrets stay out of reach (the default)"


def test_what_could_not_be_recorded_was_denied_by_no_rule_and_no_default() -> None:
    unrecorded = denial("x", rule=None, reason="recorder_unavailable")
    why = "recorder_unavailable: it could not be recorded"
    assert Denials().line(unrecorded, 0) == f"denied read x: {why}"
    assert str(PolicyViolationError("read", "x", reason="recorder_unavailable")) == f"read x denied: {why}"
    assert str(PolicyViolationError("read", "x", reason="no")) == "read x denied by the default: no"


def test_a_flood_of_denials_is_not_a_flood_of_lines() -> None:
    denials = Denials()
    shown = [denials.line(denial(f"f{number}"), 0) for number in range(1000)]
    assert len([line for line in shown if line]) == DENIALS_SHOWN_A_SECOND
    assert denials.line(denial("later"), SECOND)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"exit_code": 0}, 0),
        ({"exit_code": 3, "ended_by": ""}, 3),
        ({"exit_signal": 15, "ended_by": "stop"}, 143),
        ({"exit_signal": 9}, 137),
        ({"exit_signal": 9, "ended_by": "timeout"}, 124),
        ({"exit_code": 0, "ended_by": "timeout"}, 124),
        ({"exit_signal": 9, "ended_by": "policy"}, 4),
        ({"ended_by": "sentry lost"}, 125),
    ],
)
def test_exit_codes(row: dict[str, Any], code: int) -> None:
    assert exit_code(row) == code
