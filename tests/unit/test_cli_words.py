"""What people type becomes what is meant, or an error that says what would have been right."""

import pytest

from agentos.cli.kill import rewrite_signal_words
from agentos.cli.options import parse_age, parse_duration, parse_level, parse_operations, parse_pair, parse_rule
from agentos.errors import BadRequest, UnknownSignal

SIGNAL_WORDS = [
    (["-STOP", "x"], ["--signal=SIGSTOP", "x"]),
    (["-SIGSTOP", "x"], ["--signal=SIGSTOP", "x"]),
    (["-19", "x"], ["--signal=SIGSTOP", "x"]),
    (["-stop", "x"], ["--signal=SIGSTOP", "x"]),
    (["-s", "STOP", "x"], ["-s", "STOP", "x"]),
    (["-s", "-STOP", "x"], ["-s", "-STOP", "x"]),
    (["--signal=STOP", "x"], ["--signal=STOP", "x"]),
    (["--signal", "STOP", "x"], ["--signal", "STOP", "x"]),
    (["-9", "-a"], ["--signal=SIGKILL", "-a"]),
    (["-a", "-9"], ["-a", "--signal=SIGKILL"]),
    (["x", "-CONT", "w*"], ["x", "--signal=SIGCONT", "w*"]),
    (["-l"], ["-l"]),
    (["-l", "19"], ["-l", "19"]),
    (["--", "-STOP"], ["--", "-STOP"]),
    (["-USR1", "--", "-9"], ["--signal=SIGUSR1", "--", "-9"]),
    (["-q", "--tree", "x"], ["-q", "--tree", "x"]),
    (["-"], ["-"]),
    ([], []),
]


@pytest.mark.parametrize(("typed", "meant"), SIGNAL_WORDS)
def test_signal_words_are_rewritten_before_options_are_parsed(typed: list[str], meant: list[str]) -> None:
    assert rewrite_signal_words(typed) == meant


@pytest.mark.parametrize("word", ["-STOPP", "-HUP", "-0", "-64", "-Stopp", "-999999999999"])
def test_what_looks_like_a_signal_and_is_none_is_refused(word: str) -> None:
    with pytest.raises(UnknownSignal) as caught:
        rewrite_signal_words([word, "x"])
    assert caught.value.exit_code == 2
    assert "SIGSTOP" in str(caught.value)


DURATIONS = [
    ("10", 10.0), ("10s", 10.0), ("0", 0.0), ("0.5", 0.5), ("250ms", 0.25), ("5m", 300.0), ("1h30m", 5400.0),
    ("90d", 7_776_000.0), ("2w", 1_209_600.0), (" 5M ", 300.0), ("1.5h", 5400.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5x", "s", "-5s", "1e9", "nan", "inf", "5 m", "m5", "٣s", "٣", "9" * 400, "999999d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_duration(text)


@pytest.mark.parametrize(("text", "seconds"), [("90d", 7_776_000.0), ("0s", 0.0), ("1h30m", 5400.0)])
def test_an_age_says_its_unit(text: str, seconds: float) -> None:
    assert parse_age(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "90", "0", "0.5", " 7 "])
def test_an_age_without_a_unit_is_refused_because_it_deletes(text: str) -> None:
    with pytest.raises(BadRequest, match="needs a unit"):
        parse_age(text)


def test_rules_levels_lists_and_pairs() -> None:
    assert parse_rule("read:data/*") == "read:data/*"
    assert parse_rule("network:https://example.org:443/") == "network:https://example.org:443/"
    assert parse_rule("network/connect:x") == "network/connect:x"
    assert parse_operations("read, write") == ["read", "write"]
    assert parse_operations("") == []
    assert parse_level("hooks") == "hooks"
    assert parse_pair("a=b=c") == ("a", "b=c")
    assert parse_pair("a=") == ("a", "")


@pytest.mark.parametrize(
    ("parse", "text", "hint"),
    [
        (parse_rule, "raed:x", "'read'"),
        (parse_rule, "read", "read:data/*"),
        (parse_rule, "read:", "read:data/*"),
        (parse_operations, "read,wirte", "'write'"),
        (parse_level, "ful", "'full'"),
        (parse_pair, "novalue", "KEY=VALUE"),
        (parse_pair, "=v", "KEY=VALUE"),
    ],
)
def test_a_refusal_says_what_is_right(parse: object, text: str, hint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text)  # type: ignore[operator]
    assert hint in str(caught.value)
