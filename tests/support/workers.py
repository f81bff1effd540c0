"""What the agents of a crowd do: each acts on names of its own. Imports little, for each of them imports this."""

from __future__ import annotations

import os
import time

import agentos

LOOK_S = 0.05  # hundreds of agents wait for one file
LIFE_S = 300.0


def is_denied(tenant: int) -> bool:
    return tenant % 10 == 3


def tenant_of(worker: int, number: int, rules: int) -> int:
    return (worker * 37 + number * 101) % rules  # both coprime to the number of rules: every tenant has its turn


def name_of(worker: int, number: int, rules: int) -> str:
    return f"data/tenant_{tenant_of(worker, number, rules)}/{worker}-{number}"


def work(worker: int, actions: int, rules: int, begin: str) -> list[int]:
    """Act once, wait for the file `begin`, act `actions` times; return the numbers of those that were denied."""
    agentos.act("read", f"ready/{worker}")
    wait_for(begin)
    denied = []
    for number in range(actions):
        try:
            agentos.act("read", name_of(worker, number, rules))
        except agentos.PolicyViolationError:
            denied.append(number)
    return denied


def idle(number: int, end: str) -> int:
    """Act once and do nothing until the file `end` is there."""
    agentos.act("read", f"ready/{number}")
    wait_for(end)
    return number


def wait_for(path: str) -> None:
    deadline = time.monotonic() + LIFE_S
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
