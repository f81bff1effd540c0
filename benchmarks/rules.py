"""Policies of any size, and names to decide: the mix of rules that policies of tenants and projects are made of. Pure.

Of twenty rules eight are a directory, two a directory with excludes, three files by suffix, two exact names, one a
secret at any depth, one below `src/**`, two URLs and one a regular expression. Every rule is about names of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from agentos.policies import Pattern, Policy, Rule

HIT_SHARE: Final = 0.7  # of the names; the rest match nothing and go to the default
_KINDS: Final = (
    *("directory",) * 8, *("excluding",) * 2, *("suffix",) * 3, *("exact",) * 2,
    "secret", "source", *("url",) * 2, "regex",
)  # fmt: skip


def policy(count: int) -> Policy:
    """Return a policy of `count` rules, each allowing; its default is allow, so that no decision waits for a disk."""
    rules = [Rule("allow", _pattern(number)) for number in range(count)]
    return Policy(name=f"{count} rules", rules=rules, default_action="allow")


def _pattern(number: int) -> Pattern:
    match _KINDS[number % len(_KINDS)]:
        case "directory":
            return Pattern("read", f"data/tenant_{number}/*")
        case "excluding":
            return Pattern("read", f"data/tenant_{number}/*", exclude=["**/*.key", "**/.env"])
        case "suffix":
            return Pattern("read", f"files/proj_{number}/*.txt")
        case "exact":
            return Pattern("read", f"etc/service_{number}.conf")
        case "secret":
            return Pattern("read", f"**/secret_{number}.env")
        case "source":
            return Pattern("read", f"src/**/mod_{number}/*.py")
        case "url":
            return Pattern("network", f"https://api-{number}.example.com/v1/*")
        case _:
            return Pattern("read", rf"logs/app_{number}/\d+\.log", match_type="regex")


def actions(
    count: int, among: int, seed: int, *, operations: Sequence[str] = ("read", "network")
) -> list[tuple[str, str]]:
    """Return `count` pairs of operation and name, no name twice, HIT_SHARE of them about one of `among` rules."""
    chance = random.Random(seed)  # noqa: S311 - the same names for everybody
    found: list[tuple[str, str]] = []
    serial = seed * 1_000_000
    while len(found) < count:
        serial += 1
        number = chance.randrange(among) if chance.random() < HIT_SHARE else among + serial
        operation, name = _action(number, serial)
        if operation in operations:
            found.append((operation, name))
    return found


def _action(number: int, serial: int) -> tuple[str, str]:
    """Return a name that the rule of that number matches (exact names: one beside it, or none would be new)."""
    match _KINDS[number % len(_KINDS)]:
        case "directory" | "excluding":
            return "read", f"data/tenant_{number}/report/{serial}.json"
        case "suffix":
            return "read", f"files/proj_{number}/{serial}.txt"
        case "exact":
            return "read", f"etc/service_{number}.conf/{serial}"
        case "secret":
            return "read", f"deploy/{serial}/secret_{number}.env"
        case "source":
            return "read", f"src/part_{serial}/mod_{number}/main.py"
        case "url":
            return "network", f"https://api-{number}.example.com/v1/items/{serial}"
        case _:
            return "read", f"logs/app_{number}/{serial}.log"
