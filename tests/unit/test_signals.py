from __future__ import annotations

import signal

import pytest

from agentos.errors import UnknownSignal
from agentos.signals import AgentSignal, default_scope, describe_exit, parse_signal


def test_the_numbers_are_linux_own() -> None:
    assert {one.name: one.value for one in AgentSignal} == {
        name: signal.Signals[name].value
        for name in ("SIGKILL", "SIGSTOP", "SIGCONT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
    }


@pytest.mark.parametrize("spelled", ["STOP", "stop", "SIGSTOP", "sigstop", "19", 19, " 19 ", AgentSignal.SIGSTOP])
def test_every_spelling(spelled: str | int | AgentSignal) -> None:
    assert parse_signal(spelled) is AgentSignal.SIGSTOP


@pytest.mark.parametrize(("wrong", "hint"), [("STOPP", "SIGSTOP"), ("SIGKIL", "SIGKILL"), ("99", ""), ("HUP", "")])
def test_an_unknown_signal_names_the_nearest(wrong: str, hint: str) -> None:
    with pytest.raises(UnknownSignal, match=f"{wrong}.*{hint}"):
        parse_signal(wrong)


def test_stop_continue_and_kill_are_for_the_tree() -> None:
    assert [one.name for one in AgentSignal if default_scope(one) == "tree"] == ["SIGKILL", "SIGSTOP", "SIGCONT"]
    assert [one.name for one in AgentSignal if not one.catchable] == ["SIGKILL", "SIGSTOP"]


def test_exits_in_words() -> None:
    assert describe_exit(3, None) == "exit code 3"
    assert describe_exit(None, 9) == "killed by SIGKILL"
    assert describe_exit(None, 35) == "killed by signal 35"
