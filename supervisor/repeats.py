"""What one agent is allowed to do again and again: record and verdict, prepared but for their numbers. Decides nothing.

Every action is decided. Only when that yields the very decision object that it yielded before, and no moment can change
it, is the rest the same too: a policy that was changed meanwhile makes another object.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agentos import wire
from agentos.actions import Action
from agentos.mould import HOLE, Mould
from agentos.policies import Decision

KEPT_MAX: Final = 1_024  # of one agent, 2 KB each; agents choose their names: they must not fill the kernel
ACTION_BYTES_MAX: Final = 512  # of one that is kept


class Repeat(NamedTuple):
    action: Action
    cwd: str
    decision: Decision
    record: Mould  # holes as in JournalWriter.append_cast; the last is the action's id
    verdict: Mould  # the frame; holes: the action's id, seq


class Repeats:
    """Of one agent, by the bytes of the action behind its id: those of most actions are those of a former one."""

    __slots__ = ("_known", "find", "missed")

    def __init__(self) -> None:
        self._known: dict[bytes, Repeat] = {}
        self.find = self._known.get
        self.missed = b""  # the bytes of the action under way behind its id, where it came alone and whole

    def keep(self, repeat: Repeat) -> None:
        """Have `find` find it by the bytes that were missed, unless these are too many for that."""
        if not 0 < len(self.missed) <= ACTION_BYTES_MAX:
            return
        if len(self._known) >= KEPT_MAX:
            self._known.clear()
        self._known[self.missed] = repeat
        self.missed = b""  # they are those of no other action


def verdict_mould(verdict: wire.Verdict) -> Mould | None:
    """Return the mould of a verdict's frame, whose holes are its id and its seq."""
    return Mould.of(wire.encode_plain(verdict._replace(id=HOLE, seq=HOLE)), 2)
