"""What follows from a decision: the record, then the answer, then the rule's signal, for any input."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentos import wire
from agentos.policies import Decision
from agentos.supervisor.decide import RECORDER_UNAVAILABLE, Record, Respond, Send, react, refuse

words = st.text(max_size=20)
maybe = st.none() | words
acts = st.builds(
    wire.Act, st.integers(0, 2**40), words, words, maybe, st.none() | st.lists(words, max_size=3), words,
    st.dictionaries(words, st.integers() | words, max_size=3), st.sampled_from(["sdk", "hook"]),
)  # fmt: skip
decisions = st.builds(
    Decision,
    effect=st.sampled_from(["allow", "deny", "ask"]), rule=st.none() | st.integers(0, 9), rule_name=maybe, reason=words,
    on_violation=st.none() | st.sampled_from(["SIGSTOP", "SIGKILL"]), resource=words, policy_hash=words,
    layer=st.sampled_from(["policy", "@runtime", "@self", "@command"]), durable=st.booleans(), cacheable=st.booleans(),
    would_deny=st.booleans(),
)  # fmt: skip
contexts = st.dictionaries(words, words, max_size=2)


@given(acts, decisions, contexts)
def test_the_record_comes_first_and_a_signal_only_after_a_denial(
    act: wire.Act, decision: Decision, context: dict[str, Any]
) -> None:
    commands = react(act, decision, "hooks", context)
    record, respond, *rest = commands
    assert isinstance(record, Record)
    assert isinstance(respond, Respond)
    allowed = decision.effect == "allow"
    assert [type(one) for one in rest] == ([] if allowed or not decision.on_violation else [Send])
    assert respond.verdict.effect == ("allow" if allowed else "deny")
    assert respond.verdict.id == act.id
    assert record.durable or (allowed and not decision.durable)
    assert (record.event_type == "policy_violation") is (not allowed or decision.would_deny)
    assert (record.data["operation"], record.data["resource"]) == (act.operation, decision.resource)


@given(acts, decisions, contexts)
def test_nothing_that_was_asked_is_missing_from_the_record(
    act: wire.Act, decision: Decision, context: dict[str, Any]
) -> None:
    data = react(act, decision, "hooks", context)[0].data  # type: ignore[union-attr]
    assert data.get("raw", data["resource"]) == act.resource
    assert data.get("resolved", act.resource) == (act.resource if act.resolved is None else act.resolved)
    assert data.get("argv") == act.argv
    assert data.get("claims", {}) == act.claims
    assert data.get("context", {}) == context
    assert data["action_id"] == act.id


@given(acts)
def test_a_refusal_refuses_whatever_was_asked(act: wire.Act) -> None:
    verdict = refuse(act, RECORDER_UNAVAILABLE)
    assert (verdict.id, verdict.effect, verdict.reason) == (act.id, "deny", RECORDER_UNAVAILABLE)
    assert not verdict.cacheable
