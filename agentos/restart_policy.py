"""When an agent that ended is to be started again: the words for it, as clients, agents and the kernel read them. Pure.

Whether it then is, and after how long, is the kernel's to decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from agentos.errors import BadRequest, nearest

RESTARTS_MAX: Final = 1_000_000  # of on-failure:N; more is a slip of the finger


class When(Enum):
    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start again, and how many times at most; None sets no limit but that of the window."""

    when: When
    limit: int | None = None

    def __str__(self) -> str:
        return self.when.value if self.limit is None else f"{self.when.value}:{self.limit}"


NEVER: Final = RestartPolicy(When.NEVER)
_FORM: Final = re.compile(r"on-failure:([0-9]{1,7})", re.ASCII)


def parse_restart(where: str, word: object) -> RestartPolicy:
    """Return what `never`, `on-failure`, `on-failure:N` or `always` means; raises BadRequest naming `where`."""
    known = [one.value for one in When]
    if isinstance(word, str):
        if word in known:
            return RestartPolicy(When(word))
        found = _FORM.fullmatch(word)
        if found and 1 <= int(found[1]) <= RESTARTS_MAX:
            return RestartPolicy(When.ON_FAILURE, int(found[1]))
    shown = repr(word)[:100]
    hint = nearest(word.partition(":")[0], known) if isinstance(word, str) else ""
    raise BadRequest(f"{where}{shown} is no restart policy{hint}; known: never, on-failure, on-failure:N, always")
