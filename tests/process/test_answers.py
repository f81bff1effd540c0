"""Every call has an answer, however large or wrong what it failed with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from world import SYSTEM_PYTHON, Client, Host

from agentos import errors

LIMIT_S = 30.0


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]})
    try:
        client = Client(host)
        yield client
        client.close()
    finally:
        host.close()


def answered(client: Client, method: str, **params: Any) -> BaseException | None:
    """Return what the call raised; fail when there is no answer."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            client.call(method, **params)
        except errors.AgentosError as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "no answer"
    return raised[0] if raised else None


def test_an_error_that_fits_no_frame_is_answered_in_short(client: Client) -> None:
    error = answered(client, "\x01" * 5_000_000)  # of which the text of the error shows four characters for each
    assert type(error) is errors.AgentosError
    assert "failed with BadRequest, which cannot be sent" in str(error)
    assert answered(client, "ps") is None
