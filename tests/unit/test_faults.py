"""Errors across a process border: they arrive as they were, and several large ones still fit a frame."""

from __future__ import annotations

from typing import Any

import pytest

from agentos import errors, wire
from agentos.faults import SeveralFailed, rebuild, to_fault


def failure(number: int, text: str) -> errors.AgentFailed:
    return errors.AgentFailed(f"agent {number}: {text}", agent_id=str(number), remote_type="ValueError",
                              remote_traceback=f"Traceback {text} at the end {number}")  # fmt: skip


def test_sixty_failures_of_the_largest_kind_fit_one_frame_and_each_can_be_told() -> None:
    several = SeveralFailed([failure(number, "\U0001f4a5" * 40_000) for number in range(60)])
    fault = to_fault(5, several)
    assert len(wire.encode(fault)) < wire.FRAME_BYTES_MAX
    group = rebuild(fault)
    assert isinstance(group, ExceptionGroup)
    assert len(group.exceptions) == 60
    for number, one in enumerate(group.exceptions):
        assert isinstance(one, errors.AgentFailed)
        assert one.agent_id == str(number)
        assert str(one).startswith(f"agent {number}: ")
        assert (one.remote_traceback or "").endswith(f"at the end {number}")


def test_a_few_failures_keep_every_word() -> None:
    several = SeveralFailed([failure(number, "x" * 40_000) for number in range(10)])
    group = rebuild(to_fault(5, several))
    assert isinstance(group, ExceptionGroup)
    assert [str(one) for one in group.exceptions] == [str(one) for one in several.failures]
    assert [vars(one) for one in group.exceptions] == [vars(one) for one in several.failures]


@pytest.mark.parametrize(
    "fields",
    [{1.5: None}, {"__class__": 3}, {"__cause__": "x"}, {"args": 5}, {"characters_written": "x"}],
)
def test_fields_that_no_error_has_cost_nobody_the_error(fields: dict[Any, Any]) -> None:
    """Found by tests/fuzz."""
    error = rebuild(wire.Fault(1, "PolicyViolationError", "denied", {**fields, "reason": "why"}))
    assert isinstance(error, errors.PolicyViolationError)
    assert (error.reason, Exception.__str__(error)) == ("why", "denied")


@pytest.mark.parametrize("failures", [None, 3, [], [3], [["X", "x"]], [["X", "x", {}, {}]]])
def test_several_failures_that_are_none_are_one_error(failures: Any) -> None:
    error = rebuild(wire.Fault(1, "SeveralFailed", "2 failed", {"failures": failures}))
    assert type(error) is errors.AgentosError
