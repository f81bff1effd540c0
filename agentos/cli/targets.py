"""Which agents a word means: exact name, exact id, unique id prefix, quoted glob, in this order.

The living come before the ended: a name means the agent that lives now, and only when none does the newest that had
it. Two living agents of one name are an error that lists them, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from agentos.errors import CallerError, UnknownAgent
from agentos.runs import Run
from agentos.signals import describe_exit

PREFIX_CHARS_MIN: Final = 4  # as git: anything shorter is a slip of the finger that reaches a stranger
_GLOB_CHARS: Final = frozenset("*?[")


class AgentEnded(CallerError):
    """The agent is known and has ended; there is nothing left to act on."""

    exit_code = 3

    def __init__(self, agent: Agent) -> None:
        super().__init__(f"agent {agent.label!r} has ended ({agent.ending})")


class Agent(NamedTuple):
    """One agent as its kernel or its record tells of it. `row` is untrusted text: print it with printable()."""

    row: dict[str, Any]
    run: Run

    @property
    def id(self) -> str:
        return str(self.row["id"])

    @property
    def name(self) -> str:
        return str(self.row.get("name") or "")

    @property
    def label(self) -> str:
        return self.name or self.id

    @property
    def started_at(self) -> str:
        """RFC 3339 in UTC, so that text order is time order."""
        return str(self.row.get("started_at") or "")

    @property
    def living(self) -> bool:
        """Whether anything of its tree may still live; `terminated` alone is said of a leader that exited."""
        if "ended_at" in self.row:
            return self.row["ended_at"] is None
        return self.row.get("state") != "terminated"

    @property
    def ending(self) -> str:
        """How it ended, in words; `ended` when nobody saw how."""
        code, number = self.row.get("exit_code"), self.row.get("exit_signal")
        return "nobody saw how" if code is None and number is None else describe_exit(code, number)


def resolve(target: str, agents: Sequence[Agent]) -> list[Agent]:
    """Return the agents that `target` means, more than one only for a glob. Raises UnknownAgent."""
    named = [agent for agent in agents if agent.name == target]
    if named:
        return [_the_one(target, named)]
    for found in (_by_id(target, agents), _by_prefix(target, agents)):
        if found:
            return [_the_only(target, found)]
    if _GLOB_CHARS & set(target):
        matching = _by_glob(target, agents)
        if matching:
            return matching
    raise UnknownAgent(target, sorted({agent.name for agent in agents if agent.name}))


def resolve_all(targets: Iterable[str], agents: Sequence[Agent]) -> tuple[list[Agent], list[UnknownAgent]]:
    """Return the agents of all targets, each once, and an error for every target that means none."""
    found: dict[str, Agent] = {}
    unknown = []
    for target in targets:
        try:
            found.update((agent.id, agent) for agent in resolve(target, agents))
        except UnknownAgent as error:
            unknown.append(error)
    return list(found.values()), unknown


def short_ids(ids: Sequence[str], chars_min: int = 8) -> dict[str, str]:
    """Return the shortest prefix of each id that tells all of them apart; one length, so that columns line up."""
    length = chars_min
    longest = max((len(each) for each in ids), default=0)
    while length < longest and len({each[:length] for each in ids}) < len(set(ids)):
        length += 1
    return {each: each[:length].rstrip("-") for each in ids}


def _the_one(target: str, named: Sequence[Agent]) -> Agent:
    living = [agent for agent in named if agent.living]
    if living:
        return _the_only(target, living)
    return max(named, key=lambda agent: agent.started_at)


def _the_only(target: str, found: Sequence[Agent]) -> Agent:
    if len(found) > 1:
        raise UnknownAgent(target, matches=[f"{agent.id} ({agent.name})" for agent in found])
    return found[0]


def _by_id(target: str, agents: Sequence[Agent]) -> list[Agent]:
    return [agent for agent in agents if agent.id == target]


def _by_prefix(target: str, agents: Sequence[Agent]) -> list[Agent]:
    prefix = target.lower().replace("-", "")
    if len(prefix) < PREFIX_CHARS_MIN:
        return []
    found = [agent for agent in agents if agent.id.lower().replace("-", "").startswith(prefix)]
    return [agent for agent in found if agent.living] or found


def _by_glob(pattern: str, agents: Sequence[Agent]) -> list[Agent]:
    from fnmatch import translate  # noqa: PLC0415  # most targets are plain words

    match = re.compile(translate(pattern)).match
    found = [agent for agent in agents if match(agent.name) or match(agent.id)]
    return [agent for agent in found if agent.living] or found
