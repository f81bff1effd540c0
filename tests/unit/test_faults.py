"""Errors across a process border: they arrive as they were, and several large ones still fit a frame."""

from __future__ import annotations

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
