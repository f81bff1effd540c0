"""Modules of a host program: objects that the kernel consults, beginning with those that verify results.

Owns which were added, in order, and what each says of a result. Whether a result is then released is the kernel's to
decide, which releases none that is not verified.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentos import arguments
from agentos.client import running
from agentos.errors import BadRequest, KernelUnavailable
from agentos.printable import printable
from agentos.values import unpack_value

if TYPE_CHECKING:
    from agentos.client.connection import Connection

TIMEOUT_S: Final = 30.0  # for one result, unless the module has a `timeout` of its own
REASON_CHARS_MAX: Final = 500
NAME_CHARS_MAX: Final = 200
MODULES_MAX: Final = 100  # what a kernel takes; it refuses the whole list otherwise, and would verify by none


class ResultVerifier(Protocol):
    """What `KernelSpace.add_module` takes: an object with this method, plain or async.

    It may have a `timeout`, the seconds that one result may take (30 otherwise), and a `name` for the record.
    """

    def verify_result(self, agent_id: str, name: str, result: Any) -> Any:
        """Say whether the result of the agent `name` may be released: True, or a mapping with "verified": True.

        Anything else withholds it; such a mapping may give a "reason". `result` is a copy: changing it changes nothing.
        """


class Modules:
    """The modules of one KernelSpace, across the kernel processes that it starts one after the other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._added: list[tuple[ResultVerifier, str, float]] = []
        self._connection: Connection | None = None
        self._told = 0  # how many of them that connection knows

    def add(self, module: Any) -> None:
        """Have this one verify every result that is asked for once this returns.

        Raises BadRequest for what is no module, was added already, or is one too many; KernelUnavailable when the
        kernel does not answer.
        """
        if isinstance(module, type) or not callable(getattr(module, "verify_result", None)):
            raise BadRequest(f"add_module: {arguments.shown(module)} has no verify_result(agent_id, name, result)")
        timeout_s = float(arguments.seconds("add_module: timeout", getattr(module, "timeout", TIMEOUT_S)))
        name = printable(str(getattr(module, "name", None) or type(module).__name__)[:NAME_CHARS_MAX])
        with self._lock:
            if any(known is module for known, _, _ in self._added):
                raise BadRequest(f"add_module: {arguments.shown(module)} was added already")
            if len(self._added) >= MODULES_MAX:
                raise BadRequest(f"add_module: {MODULES_MAX} modules were added, which is the limit")
            self._added.append((module, name, timeout_s))
            self.tell()

    def tell(self, connection: Connection | None = None) -> None:
        """Tell the kernel process which modules there are, where that is news; a new one is handed in."""
        with self._lock:
            if connection is not None and connection is not self._connection:
                self._connection, self._told = connection, 0
            if self._connection is None or len(self._added) == self._told:
                return
            words = [[name, timeout_s] for _, name, timeout_s in self._added]
            try:
                self._connection.ask("modules", {"modules": words})  # and wait: a refusal must not pass unseen
            except KernelUnavailable:
                if not self._connection.ended:  # one that has ended releases nothing; the next is told when it starts
                    raise
            self._told = len(self._added)

    def work(self, params: dict[str, Any]) -> running.Work:
        """Return what has one module verify one result."""
        module = self._added[params["module"]][0]
        return lambda apart: _verify(module, params, apart=apart)


async def _verify(module: ResultVerifier, params: dict[str, Any], *, apart: bool) -> dict[str, Any]:
    result = unpack_value(params["result"])
    said = await running.call(module.verify_result, params["agent_id"], params["name"], result, apart=apart)
    reason = said.get("reason") if isinstance(said, Mapping) else None
    verified = said.get("verified") if isinstance(said, Mapping) else said
    return {"verified": verified is True, "reason": str(reason)[:REASON_CHARS_MAX] if reason is not None else None}
