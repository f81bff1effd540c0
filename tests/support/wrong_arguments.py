"""Wrong arguments of a kernel client, in the host program as in an agent, with what is said of each."""

from __future__ import annotations

from typing import Any

WRONG_REGISTRATIONS: list[tuple[dict[str, Any], str]] = [
    ({"rate_limit": -1}, r"register\('a'\): rate_limit=-1 must be a whole number of at least 1"),
    ({"rate_limit": "x"}, r"register\('a'\): rate_limit='x' must be"),
    ({"priority": "y"}, r"register\('a'\): priority='y' must be a whole number"),
    ({"permissions": "read"}, r"permissions='read' must be a list of operations, such as \['read'\]"),
    ({"permissions": 5}, r"permissions=5 must be a list"),
    ({"permissions": ["reed"]}, r"unknown permission 'reed' \(did you mean 'read'\?\); known: read, write"),
]
WRONG_CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("execute", ("known",), {"context": "x"}, r"execute: context='x' must be a dict"),
    ("execute", ("known",), {"context": {1: 2}}, r"execute: context=\{1: 2\} must be a dict with names as keys"),
    ("execute", ("known",), {"timeout": "a"}, r"execute: timeout='a' must be a positive number"),
    ("execute", ([],), {}, r"the agent: \[\] is not a function"),
    ("spawn", ("known",), {"parent_id": 5}, r"spawn: parent_id=5 must be the id of an agent"),
    ("spawn", ("known",), {"additional_restrictions": "no_network"}, r"restrictions='no_network' must be a list"),
    ("wait_all", (None,), {}, r"wait_all: ids=None must be a list of agent ids"),
    ("wait_all", ("01a2",), {}, r"wait_all: ids='01a2' must be a list"),
    ("wait_all", ([1],), {}, r"wait_all: ids=\[1\] must be a list"),
    ("send_signal", (None, 15), {}, r"send_signal: agent_id=None must be the id of an agent"),
]
