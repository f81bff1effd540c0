"""When an agent is started again: a pure decision about a history, a time and a throw of dice."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentos.errors import BadRequest
from agentos.restart_policy import NEVER, RestartPolicy, When, parse_restart
from agentos.supervisor import restarts
from agentos.supervisor.restarts import (
    Decision,
    Done,
    Ending,
    GiveUp,
    History,
    Restart,
    backoff_s,
    decide,
)

ALWAYS = RestartPolicy(When.ALWAYS)
ON_FAILURE = RestartPolicy(When.ON_FAILURE)


def after(policy: RestartPolicy, ending: Ending, history: History | None = None, now_s: float = 1.0) -> Decision:
    return decide(policy, history or History((0.0,)), now_s, ending, 0.0, lambda: 0.5)


@pytest.mark.parametrize(
    ("policy", "starts_again_after"),
    [
        (NEVER, set()),
        (ON_FAILURE, {Ending.FAILURE}),
        (ALWAYS, {Ending.FAILURE, Ending.SUCCESS}),
    ],
)
def test_who_is_started_again_after_what(policy: RestartPolicy, starts_again_after: set[Ending]) -> None:
    assert {ending for ending in Ending if isinstance(after(policy, ending), Restart)} == starts_again_after
    others = [after(policy, ending) for ending in Ending if ending not in starts_again_after]
    assert others == [Done()] * len(others)


@pytest.mark.parametrize("ending", [Ending.COMMANDED, Ending.ENFORCED])
def test_what_was_commanded_or_enforced_neither_counts_nor_fails_whatever_went_before(ending: Ending) -> None:
    worn_out = History(tuple(float(n) for n in range(restarts.STARTS_MAX)), restarts=99, failures=99)
    assert after(ALWAYS, ending, worn_out, now_s=11.0) == Done()
    assert isinstance(after(ALWAYS, Ending.FAILURE, worn_out, now_s=11.0), GiveUp)


def test_the_delay_doubles_up_to_its_cap_and_begins_anew_after_a_healthy_life() -> None:
    longest = [backoff_s(failures) for failures in range(2_000)]
    assert longest[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert set(longest[9:]) == {30.0}
    history = History((0.0,), failures=5)
    soon = after(ON_FAILURE, Ending.FAILURE, history, now_s=restarts.HEALTHY_S - 0.1)
    late = after(ON_FAILURE, Ending.FAILURE, history, now_s=restarts.HEALTHY_S)
    assert isinstance(soon, Restart)
    assert isinstance(late, Restart)
    assert (soon.delay_s, late.delay_s) == (1.6, 0.05)
    assert (soon.history.failures, late.history.failures) == (6, 1)


def test_so_many_restarts_and_no_more() -> None:
    twice = RestartPolicy(When.ON_FAILURE, 2)
    history, now_s = History().started(0.0), 0.0
    for attempt in (1, 2):
        now_s += 20  # healthy lives do not buy more of them
        what = after(twice, Ending.FAILURE, history, now_s)
        assert isinstance(what, Restart)
        assert what.attempt == attempt
        history = what.history.started(what.not_before_s)
    given_up = after(twice, Ending.FAILURE, history, now_s + 20)
    assert given_up == GiveUp("it was restarted 2 times, as often as on-failure:2 allows")


def test_ten_starts_are_as_many_as_two_minutes_bear() -> None:
    starts = tuple(float(n) for n in range(restarts.STARTS_MAX))
    given_up = after(ALWAYS, Ending.FAILURE, History(starts), now_s=9.0)
    assert given_up == GiveUp("it was started 10 times within 120 s")
    assert isinstance(after(ALWAYS, Ending.FAILURE, History(starts[1:]), now_s=9.0), Restart)
    a_little_later = restarts.WINDOW_S  # the first of them lies outside by then
    assert isinstance(after(ALWAYS, Ending.FAILURE, History(starts), now_s=a_little_later), Restart)


def test_window_and_healthy_interval_stand_still_while_the_agent_is_stopped() -> None:
    starts = tuple(float(n) for n in range(restarts.STARTS_MAX))
    an_hour = 3_600.0
    still = decide(ALWAYS, History(starts), 9.5 + an_hour, Ending.FAILURE, an_hour, lambda: 0.5)
    assert still == GiveUp("it was started 10 times within 120 s")
    unhealthy = decide(ALWAYS, History((0.0,), failures=3), 1.0 + an_hour, Ending.FAILURE, an_hour, lambda: 0.5)
    assert isinstance(unhealthy, Restart)
    assert unhealthy.history == History((an_hour,), restarts=1, failures=4)


def test_the_jitter_is_full() -> None:
    """A hundred crash loops that began at one moment do not come back at one."""
    dice = random.Random(7)
    for failures in range(12):
        history = History((0.0,), failures=failures)
        found = [decide(ALWAYS, history, 1.0, Ending.FAILURE, 0.0, dice.random) for _ in range(100)]
        delays = [one.delay_s for one in found if isinstance(one, Restart)]
        assert len(delays) == 100
        assert max(delays) - min(delays) > 0.5 * backoff_s(failures)
        assert max(delays) <= backoff_s(failures)


def crash_loop(dice: random.Random, life_s: float) -> list[float]:
    """Return when a loop of lives that all fail was started, until it failed for good."""
    now_s, history, starts = 0.0, History(), []
    while len(starts) < 1_000:
        history = history.started(now_s)
        starts.append(now_s)
        what = decide(ALWAYS, history, now_s + life_s, Ending.FAILURE, 0.0, dice.random)
        if not isinstance(what, Restart):
            return starts
        history, now_s = what.history, what.not_before_s
    raise AssertionError("it never failed for good")


@pytest.mark.parametrize("life_s", [0.0, 0.5, 3.5])
def test_every_crash_loop_fails_for_good_after_ten_starts(life_s: float) -> None:
    dice = random.Random(11)
    assert {len(crash_loop(dice, life_s)) for _ in range(200)} == {restarts.STARTS_MAX}


lives = st.lists(
    st.tuples(
        st.floats(0, 200),  # it lived
        st.floats(0, 1_000),  # of which it was stopped, as far as it lived so long
        st.sampled_from(Ending),
        st.floats(0, 1, exclude_max=True),
    ),
    max_size=60,
)


@given(lives, st.sampled_from([ALWAYS, ON_FAILURE, RestartPolicy(When.ON_FAILURE, 7)]))
def test_whatever_happens_starts_are_bounded_and_delays_capped(
    story: list[tuple[float, float, Ending, float]], policy: RestartPolicy
) -> None:
    now_s, history = 1_000.0, History()
    ran_s = 0.0  # the time that counts
    starts: list[float] = []
    for lived_s, stopped_s, ending, die in story:
        history = history.started(now_s)
        starts.append(ran_s)
        stood_s = min(lived_s, stopped_s)
        now_s += lived_s
        ran_s += lived_s - stood_s
        what = decide(policy, history, now_s, ending, stood_s, lambda die=die: die)
        if not isinstance(what, Restart):
            break
        assert 0 <= what.delay_s <= restarts.BACKOFF_S_MAX
        assert what.delay_s <= backoff_s(what.history.failures - 1)
        assert what.attempt == len(starts)
        ran_s += what.not_before_s - now_s
        now_s, history = what.not_before_s, what.history
    slack = 1e-6  # sums of floats in two orders
    for first, eleventh in zip(starts, starts[restarts.STARTS_MAX :], strict=False):
        assert eleventh - first >= restarts.WINDOW_S - slack
    if policy.limit is not None:
        assert len(starts) <= policy.limit + 1


@pytest.mark.parametrize("word", ["never", "on-failure", "on-failure:1", "on-failure:1000000", "always"])
def test_a_policy_is_written_as_it_is_read(word: str) -> None:
    assert str(parse_restart("restart=", word)) == word


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("allways", r"restart='allways' is no restart policy \(did you mean 'always'\?\); known: never, on-failure, "),
        ("on-failure:0", r"restart='on-failure:0' is no restart policy"),
        ("on_failure:3", r"did you mean 'on-failure'"),
        ("on-failure:-1", r"is no restart policy"),
        ("on-failure:٣", r"is no restart policy"),
        ("on-failure:1000001", r"is no restart policy"),
        ("", r"restart='' is no restart policy; known"),
        (3, r"restart=3 is no restart policy; known"),
        (None, r"restart=None is no restart policy"),
        (["always"], r"is no restart policy"),
    ],
)
def test_a_bad_word_is_named_with_the_nearest(word: object, text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        parse_restart("restart=", word)
