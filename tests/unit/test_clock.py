from __future__ import annotations

import uuid

import pytest

from agentos.clock import RunningTime, SystemClock, rfc3339
from agentos.identity import new_id
from agentos.testing import ManualClock


def test_a_deadline_stands_still_while_its_agent_is_stopped() -> None:
    clock = RunningTime(10.0)
    clock.resume(100.0)
    assert clock.left_s(104.0) == 6.0
    clock.pause(104.0)
    clock.pause(105.0)
    assert clock.left_s(500.0) == 6.0
    clock.resume(500.0)
    clock.resume(501.0)
    assert clock.left_s(506.0) == 0.0


def test_times_leave_in_one_form() -> None:
    assert rfc3339(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456Z"
    assert rfc3339(1_700_000_000_000_000_000).endswith(".000000Z")


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    now = SystemClock().wall_ns()
    early, late = new_id(now), new_id(now + 2_000_000)
    assert uuid.UUID(early).version == 7
    assert uuid.UUID(early).variant == uuid.RFC_4122
    assert early < late
    assert len({new_id(now) for _ in range(1000)}) == 1000


def test_a_manual_clock_goes_when_told() -> None:
    clock = ManualClock(wall_ns=1_000, monotonic_ns=5)
    clock.advance(1.5)
    assert (clock.wall_ns(), clock.monotonic_ns()) == (1_500_001_000, 1_500_000_005)
    clock.set_wall(0)
    assert (clock.wall_ns(), clock.monotonic_ns()) == (0, 1_500_000_005)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
