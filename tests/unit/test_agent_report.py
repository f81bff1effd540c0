"""What is told of an exception: bounded, readable, and nothing that its own code could spoil."""

from __future__ import annotations

from typing import Any

import pytest
from agent_world import agent

from agentos import PolicyViolationError, wire
from agentos.agent import report
from agentos.errors import RateLimitedError


def caught(error: BaseException) -> wire.Raised:
    try:
        raise error
    except BaseException as same:
        frame = report.raised(same)
    wire.encode(frame)  # or it could not be told
    return frame


def refusal(**fields: Any) -> PolicyViolationError:
    return PolicyViolationError("read", "x", **{"reason": "because", "rule": 2, **fields})


def test_type_message_and_traceback() -> None:
    frame = caught(KeyError("missing"))
    assert (frame.type, frame.message, frame.violation) == ("KeyError", "'missing'", None)
    assert frame.traceback.endswith("KeyError: 'missing'\n")
    assert "in caught" in frame.traceback


def test_what_is_too_long_is_cut_in_the_middle_and_says_so() -> None:
    frame = caught(ValueError("begin" + "x" * 1_000_000 + "end"))
    assert len(frame.message) == report.MESSAGE_CHARACTERS_MAX
    assert len(frame.traceback) == report.TRACEBACK_CHARACTERS_MAX
    for text in (frame.message, frame.traceback.rstrip()):
        assert "characters left out" in text
        assert text.endswith("end")
    assert frame.message.startswith("begin")
    long_name = type("N" * 5_000, (Exception,), {})
    assert len(caught(long_name()).type) == report.TYPE_CHARACTERS_MAX


def test_half_characters_are_escaped() -> None:
    assert caught(ValueError("a\udcffb")).message == "a\\udcffb"
    assert caught(refusal(reason="a\udcffb")).violation == {
        "operation": "read", "resource": "x", "reason": "a\\udcffb", "rule": 2,
    }  # fmt: skip


def test_a_message_that_cannot_be_shown_is_said_to_be_so() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

        __repr__ = __str__

    frame = caught(Hostile())
    assert frame.type.endswith("Hostile")
    assert "str() failed" in frame.message


class Liar(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError("no name for you")
        return super().__getattribute__(name)


def test_an_exception_whose_class_fights_back_is_told_by_its_true_name() -> None:
    def function() -> None:
        class Hostile(Exception, metaclass=Liar):
            pass

        raise Hostile("x")

    with agent(function) as one:
        raised = one.raised()
    assert raised.type.endswith("Hostile")
    assert raised.message == "it cannot be shown: showing it raised RuntimeError"


def test_only_refusals_make_a_violation_however_deep_they_are_in_groups() -> None:
    limited = RateLimitedError("network", "https://x/", reason="too fast", retry_after_s=1.5, rule_name="slow")
    group: BaseException = BaseExceptionGroup("all", [limited, refusal()])
    for _ in range(2_000):
        group = BaseExceptionGroup("deeper", [group])
    assert report._violation(group) == {
        "operation": "network", "resource": "https://x/", "reason": "too fast", "rule_name": "slow",
        "retry_after_s": 1.5,
    }  # fmt: skip
    assert caught(ExceptionGroup("mixed", [refusal(), ValueError()])).violation is None
    assert caught(ValueError()).violation is None


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("reason", "x" * 100_000, report.MESSAGE_CHARACTERS_MAX),
        ("rule", 2**80, 0),
        ("retry_after_s", float("inf"), 0),
        ("rule_name", object(), None),
        ("event_id", ["a"], None),
    ],
)
def test_fields_that_somebody_else_set_are_plain_and_bounded(field: str, value: Any, told: Any) -> None:
    error = refusal()
    setattr(error, field, value)
    violation = caught(error).violation
    assert violation is not None
    found = violation.get(field)
    assert (len(found) if isinstance(found, str) else found) == told


def test_causes_and_contexts_are_told_without_our_frames() -> None:
    def function() -> None:
        import agentos

        try:
            agentos.act("read", 5)  # type: ignore[arg-type]
        except agentos.AgentosError as error:
            raise RuntimeError("outer") from error

    with agent(function) as one:
        raised = one.raised()
    assert "BadRequest: act('read', 5): both are text" in raised.traceback
    assert "agentos/agent/" not in raised.traceback
