"""Secrets in argv and claims are replaced, and nothing else is."""

from __future__ import annotations

import time

import pytest

from agentos.recorder.redact import REDACTED, is_secret_name, redact_argv, redact_claims, redact_text

R = REDACTED
TOKEN = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["curl", "--password", "hunter2", "-v"], ["curl", "--password", R, "-v"]),
        (["x", "--token=abc"], ["x", "--token=" + R]),
        (["x", "--api-key", "abc"], ["x", "--api-key", R]),
        (["x", "--db.password:abc"], ["x", "--db.password:" + R]),
        (["mysql", "-p=abc"], ["mysql", "-p=" + R]),
        (["env", "GITHUB_TOKEN=abc", "PATH=/bin"], ["env", "GITHUB_TOKEN=" + R, "PATH=/bin"]),
        (["env", "PGPASSWORD=abc"], ["env", "PGPASSWORD=" + R]),
        (["x", "--password", "--verbose"], ["x", "--password", "--verbose"]),
        (["curl", "-H", "Authorization: Bearer abcdefgh"], ["curl", "-H", "Authorization: " + R]),
        (["git", "clone", "https://me:pw@example.org/r"], ["git", "clone", f"https://{R}@example.org/r"]),
        (["git", "clone", f"https://{TOKEN}@example.org/r"], ["git", "clone", f"https://{R}@example.org/r"]),
        (["x", TOKEN], ["x", R]),
        (["x", "sk-proj-abcdefghijklmnop1234"], ["x", R]),
        (["x", "AKIAABCDEFGHIJKLMNOP"], ["x", R]),
        (["sh", "-c", "export API_KEY=abc; run"], ["sh", "-c", f"export API_KEY={R}; run"]),
        (["curl", "https://h/p?access_token=abc&q=1"], ["curl", f"https://h/p?access_token={R}&q=1"]),
        ([b"x", b"--token=abc", 7], [b"x", "--token=" + R, 7]),
    ],
)
def test_secrets_in_argv_are_replaced(argv: list[object], expected: list[object]) -> None:
    assert redact_argv(argv) == expected


@pytest.mark.parametrize(
    "argv",
    [
        ["gcc", "-O2", "-o", "out", "main.c"],
        ["pytest", "-k", "token", "tests/test_password.py"],
        ["git", "commit", "--author=Me <me@example.org>", "-m", "fix: keyboard monkey"],
        ["x", "--tokenizer=bpe", "--pass-through", "--port=80", "-p", "8080"],
        ["rsync", "host:/path", "https://example.org/a@b", "skate-board-with-long-name"],
        ["cat", "a=b", "C:\\Users\\x"],
    ],
)
def test_what_is_no_secret_stays(argv: list[str]) -> None:
    assert redact_argv(argv) == argv


def test_claims_are_redacted_at_any_depth() -> None:
    claims = {
        "cost": 3,
        "password": "x",
        "nested": {"apiKey": "y", "list": [{"secret": 1}, f"use {TOKEN}"]},
        "auth": True,
    }
    assert redact_claims(claims) == {
        "cost": 3, "password": R, "nested": {"apiKey": R, "list": [{"secret": R}, f"use {R}"]}, "auth": True
    }  # fmt: skip
    assert claims["password"] == "x"


def test_private_keys_and_web_tokens_in_texts_are_replaced() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----"
    assert redact_text(f"a {key} b") == f"a {R} b"
    assert redact_text("a eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc b") == f"a {R} b"


@pytest.mark.parametrize(
    "name", ["password", "db_password", "X-Api-Key", "accessToken", "AWS_SECRET_ACCESS_KEY", "auth"]
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["tokenizer", "author", "monkey", "keyboard", "path", "max_tokens", "compass"])
def test_plain_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "piece", ["a.", "-eyJ", "x://", "?a", "a=", "a ", "bearer ", "-----BEGIN ", "sk-", "password_", "aB", "'a"]
)
def test_hostile_texts_take_linear_time(piece: str) -> None:
    def spent(length: int) -> float:
        hostile = piece * (length // len(piece))
        started = time.process_time()
        redact_argv([hostile, "--" + hostile])
        return time.process_time() - started

    small = min(spent(16_000) for _ in range(3))
    assert spent(256_000) < 16 * 8 * max(small, 0.0005)  # quadratic would be 256 times
