"""Results are held until every module of the host program has verified them.

Owns which modules there are and what becomes of a result: released once all of them agreed, in the order in which they
were added, or withheld, for good, when one did not: it said no, raised, did not answer within its time, or is gone with
the host program. Each result is verified once, when it is first asked for; the verdict is on record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from agentos.errors import BadRequest, ResultWithheld
from agentos.supervisor.agents import Agent
from agentos.supervisor.callbacks import ERROR_CHARS_MAX, Ask, nobody
from agentos.supervisor.hearings import Note
from agentos.supervisor.outcome import outcome
from agentos.supervisor.tasks import Tasks

MODULES_MAX: Final = 100
NAME_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the host program that verifies results; `timeout_s` is how long it may take for one."""

    name: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Withheld:
    """By which module a result was withheld, and why."""

    module: str
    reason: str


class Verification:
    def __init__(self, loop: asyncio.AbstractEventLoop, line: Callable[[Agent], list[str]]) -> None:
        self._line = line
        self._modules: tuple[Module, ...] = ()
        self._tasks = Tasks(loop)
        self.ask: Ask = nobody
        self.note: Note = lambda *_, **__: None

    def use(self, modules: Sequence[Module]) -> None:
        """Take in the modules of the host program, in order; from here on every result is for them to see."""
        self._modules = tuple(modules)

    async def released(self, agent: Agent) -> bytes:
        """Return the packed result of an ended agent once it may be. Raises ResultWithheld, and what `outcome` does."""
        packed = outcome(agent)
        if agent.verification is None and not self._modules:
            return packed
        if agent.verification is None:
            agent.verification = self._tasks.start(self._verify(agent, packed, self._modules))
        withheld = await asyncio.shield(agent.verification)  # others may wait for it, too
        if withheld is not None:
            raise ResultWithheld(agent.name, agent_id=agent.id, module=withheld.module, reason=withheld.reason)
        return packed

    async def _verify(self, agent: Agent, packed: bytes, modules: tuple[Module, ...]) -> Withheld | None:
        for number, module in enumerate(modules):
            params = {
                "module": number, "agent_id": agent.id, "name": agent.name, "line": self._line(agent),
                "result": packed,
            }  # fmt: skip
            told = await self.ask("verify", params, module.timeout_s)
            said = told.value if isinstance(told.value, dict) else {}
            if told.failure or said.get("verified") is not True:
                reason = told.text if told.failure else str(said.get("reason") or "not verified")[:ERROR_CHARS_MAX]
                data = {"module": module.name, "reason": reason}
                self.note(agent, "result_withheld", data, severity="warning", durable=True)
                return Withheld(module.name, reason)
        self.note(agent, "result_verified", {"modules": [module.name for module in modules]}, durable=True)
        return None


def parse_modules(words: Sequence[Any]) -> list[Module]:
    """Return the modules that the host program names: pairs of a name and seconds. Raises BadRequest."""
    if len(words) > MODULES_MAX:
        raise BadRequest(f"modules: {len(words)} are more than the {MODULES_MAX} that a kernel takes")
    for pair in words:
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, float] or not isfinite(pair[1]):
            raise BadRequest("modules: each is a pair of a name and a number of seconds")
    return [Module(name[:NAME_CHARS_MAX], timeout_s) for name, timeout_s in words]
