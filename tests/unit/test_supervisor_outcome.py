"""What the caller hears of an agent that its policy ended: which signal the rule sent, whoever told of it first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentos.errors import PolicyViolationError
from agentos.supervisor.outcome import outcome, violation


def ended_by_policy(exit_signal: int | None) -> Any:
    return SimpleNamespace(
        failed="", timed_out=False, raised=None, result=None, exit_code=None if exit_signal else 1,
        exit_signal=exit_signal, ended_by="policy", name="worker",
    )  # fmt: skip


@pytest.mark.parametrize(("exit_signal", "named"), [(9, "SIGKILL"), (15, "SIGTERM"), (None, None)])
def test_an_agent_that_lived_on_is_told_of_by_what_ended_it(exit_signal: int | None, named: str | None) -> None:
    with pytest.raises(PolicyViolationError) as caught:
        outcome(ended_by_policy(exit_signal))
    assert caught.value.on_violation == named


def test_an_agent_that_raised_is_told_of_by_the_rule() -> None:
    told = violation({"operation": "write", "resource": "x", "reason": "why", "on_violation": "SIGKILL"})
    assert told.on_violation == "SIGKILL"
    assert violation({}).on_violation is None
