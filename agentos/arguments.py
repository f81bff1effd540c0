"""What people pass to a kernel client, in the host program or in an agent, checked before anything is asked or started.

Every check returns the value or raises BadRequest, which names the argument, what it was and what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from agentos.errors import BadRequest, nearest
from agentos.restart_policy import parse_restart

PERMISSIONS: Final = ("read", "write", "execute", "network")
_SHOWN_CHARS_MAX: Final = 100  # of a value in an error text


def whole_number(where: str, value: Any, *, at_least: int | None = None) -> int:
    """Check a number of things; `where` is how the text begins, such as "register('a'): rate_limit"."""
    if type(value) is not int or (at_least is not None and value < at_least):
        what = "must be a whole number" if at_least is None else f"must be a whole number of at least {at_least}"
        raise BadRequest(f"{where}={shown(value)} {what}")
    return value


def seconds(where: str, value: Any) -> float:
    """Check a length of time."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise BadRequest(f"{where}={shown(value)} must be a positive number of seconds")
    return value  # type: ignore[no-any-return]


def operations(where: str, value: Any) -> list[str] | None:
    """Check a list of operations."""
    if value is None:
        return None
    for word in words(f"{where}permissions", value, "operations, such as ['read']"):
        if word not in PERMISSIONS:
            hint = nearest(word, PERMISSIONS)
            raise BadRequest(f"{where}unknown permission {word!r}{hint}; known: {', '.join(PERMISSIONS)}")
    return list(value)


def registration(name: str, permissions: Any, rate_limit: Any, priority: Any, restart: Any) -> dict[str, Any]:
    """Check what `register` takes beside the name; return it by name."""
    where = f"register({name!r}): "
    if rate_limit is not None:
        whole_number(f"{where}rate_limit", rate_limit, at_least=1)
    whole_number(f"{where}priority", priority)
    parse_restart(f"{where}restart=", restart)
    return {
        "permissions": operations(where, permissions), "rate_limit": rate_limit, "priority": priority,
        "restart": restart,
    }  # fmt: skip


def restrictions(value: Any) -> list[str]:
    """Check the additional restrictions of a child as words; what each means is the policy's to say."""
    return words("spawn: additional_restrictions", value or [], "restrictions, such as ['no_network']")


def agent_ids(value: Any) -> list[str]:
    """Check what `wait_all` takes."""
    return words("wait_all: ids", value, "agent ids, as spawn() returns them")


def words(where: str, value: Any, what: str) -> list[str]:
    """Check a list of texts. One text is no list of them: it would be taken apart into letters."""
    usable = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    found = list(value) if usable else []
    if not usable or not all(isinstance(one, str) for one in found):
        raise BadRequest(f"{where}={shown(value)} must be a list of {what}")
    return found


def facts(where: str, value: Any) -> dict[str, Any]:
    """Check a context: what a policy's conditions may use, by name."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise BadRequest(f"{where}={shown(value)} must be a dict with names as keys, such as {{'user_id': 'u1'}}")
    return dict(value)


def agent_id(where: str, value: Any) -> str:
    """Check the id of an agent as such; whether there is one is the kernel's to say."""
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{where}={shown(value)} must be the id of an agent, as spawn() returns it")
    return value


def function(where: str, value: Any) -> Callable[..., Any]:
    """Check that it can be called."""
    if not callable(value):
        raise BadRequest(f"{where}: {shown(value)} is not a function")
    return value  # type: ignore[no-any-return]


def shown(value: Any) -> str:
    """Return the value as an error text repeats it."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"
