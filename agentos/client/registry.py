"""What a host program registered as agents, and how much of it the kernel has been told.

Owns names, functions and their pickles; starts nothing. A function is pickled when it first travels, because all that
it refers to is defined by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import cloudpickle

from agentos import arguments, errors
from agentos.agent.calls import name_of, place_of
from agentos.client.interactive import is_retyped

if TYPE_CHECKING:
    from agentos.client.connection import Connection

MISSING_CHARS_MAX: Final = 2_000  # of the reason why a function cannot travel
# pickle's own, and what the __reduce__ of somebody's class raises
_NO_PICKLE: Final = (
    cloudpickle.pickle.PicklingError, TypeError, AttributeError, ValueError, ImportError, LookupError, OSError,
    RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Registration:
    """One registered agent function."""

    function: Callable[..., Any]
    name: str
    permissions: list[str] | None
    rate_limit: int | None
    priority: int
    restart: str


class Registry:
    def __init__(self) -> None:
        self._by_function: dict[Any, Registration] = {}
        self._by_name: dict[str, Registration] = {}
        self._told: dict[str, str] = {}  # what the kernel knows by name, and why it has no function: "" when it has

    def add(
        self,
        function: Callable[..., Any],
        name: str | None,
        permissions: list[str] | None,
        rate_limit: int | None,
        priority: int,
        restart: str,
    ) -> Callable[..., Any]:
        """Take in one function and return it; typed again, it takes the place of what it was.

        Raises DuplicateAgent, BadRequest.
        """
        arguments.function("register", function)
        known = name or name_of(function)
        options = arguments.registration(known, permissions, rate_limit, priority, restart)
        before = self._by_name.get(known)
        if before is not None:
            if not is_retyped(before.function, function):
                raise errors.DuplicateAgent(known)
            self._by_function.pop(before.function, None)
            self._told.pop(known, None)  # the kernel is told anew before the next agent starts
        entry = Registration(function, known, **options)
        self._by_name[known] = entry
        self._by_function[function] = entry
        return function

    def find(self, agent: Callable[..., Any] | str) -> Registration:
        """Return what `agent` was registered as. Raises NotRegistered, BadRequest for what is neither."""
        if not isinstance(agent, str):
            arguments.function("the agent", agent)
        entry = self._by_name.get(agent) if isinstance(agent, str) else self._by_function.get(agent)
        if entry is None:
            raise errors.NotRegistered(agent if isinstance(agent, str) else name_of(agent), self._by_name)
        return entry

    def places(self) -> list[tuple[str, str]]:
        """Return (place, name) of each: how an agent knows it again."""
        return [(place_of(entry.function), entry.name) for entry in self._by_name.values()]

    def forget_told(self) -> None:
        """The kernel is another one from here on, and knows nothing."""
        self._told.clear()

    async def tell(self, connection: Connection, wanted: Registration) -> None:
        """Send what was registered since the last call, so that agents can name each other.

        What cannot travel stops `wanted` alone: of any other function the kernel is told why it has none.
        """
        for entry in list(self._by_name.values()):
            if self._told.get(entry.name) != "":
                await self._tell(connection, entry, needed=entry is wanted)

    async def _tell(self, connection: Connection, entry: Registration, *, needed: bool) -> None:
        params = {
            "name": entry.name, "permissions": entry.permissions, "rate_limit": entry.rate_limit,
            "priority": entry.priority, "restart": entry.restart,
        }  # fmt: skip
        try:
            answer = connection.submit("register", {**params, "pickle": _pickle(entry)})
            missing = ""
        except (errors.NotSerialisable, errors.BadRequest) as error:
            if needed:
                raise
            missing = error.type_name if isinstance(error, errors.NotSerialisable) else str(error)
            if self._told.get(entry.name) == missing:  # it may travel once all it refers to is defined: tried each time
                return
            answer = connection.submit("register", {**params, "missing": missing[:MISSING_CHARS_MAX]})
        await asyncio.wrap_future(answer)
        if self._by_name.get(entry.name) is entry:  # it may have been typed again meanwhile
            self._told[entry.name] = missing


def _pickle(entry: Registration) -> bytes:
    """Return the function for the agent: by import path where it has one, by value for `__main__` and closures."""
    try:
        data: bytes = cloudpickle.dumps(entry.function)
    except _NO_PICKLE as error:
        raise errors.NotSerialisable(str(error) or type(error).__name__, f"agent function {entry.name!r}") from error
    return data
