"""Talking to the kernels of all live runs: who lives there, and many calls at once.

`gather` is why `agentos stop a b c` takes one grace and not three: every call is on its way before any answer is
waited for. Imports only what `ps` and `kill` may import.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from agentos import wire
from agentos.cli.output import say
from agentos.cli.targets import Agent
from agentos.client.link import Link, connect
from agentos.errors import AgentosError, HostError, KernelUnavailable, UnknownAgent
from agentos.faults import rebuild
from agentos.runs import Run, live_runs

LIST_TIMEOUT_S: Final = 5.0  # a kernel that cannot say who lives there in this time is not well
ANSWER_TIMEOUT_S: Final = 150.0  # twice what the kernel itself waits for Linux; reached only by a kernel that hangs


class Conversation:
    """Calls without waiting, and the notices between their answers. Takes over a link that is greeted and idle."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._decoder = wire.Decoder(wire.TO_CLIENT)

    def fileno(self) -> int:
        return self._link.socket.fileno()

    def start(self, method: str, params: dict[str, Any]) -> int:
        """Send a call and return its id; the Reply or Fault with this id comes out of `receive`."""
        call = wire.Call(self._link.new_id(), method, params)
        self._link.send(call)
        return call.id

    def receive(self) -> list[Any]:
        """Return the frames that one read completes; blocks when there is nothing to read. Raises KernelUnavailable."""
        try:
            data = self._link.socket.recv(65536)
        except OSError as error:
            raise KernelUnavailable(f"the kernel is gone ({error.strerror})") from error
        if not data:
            raise KernelUnavailable("the kernel is gone; its agents are ended")
        return list(self._decoder.feed(data))

    def close(self) -> None:
        self._link.close()


class Request(NamedTuple):
    """One call about one agent."""

    agent: Agent
    method: str
    params: dict[str, Any]


class RunSilent(HostError):
    """A live run does not say who lives in it."""

    def __init__(self, run: Run, target: str = "") -> None:
        missed = f", {target!r} may be one of them" if target else ""
        super().__init__(f"run {run.run_id} does not answer; its agents are not known{missed}")


class Present(NamedTuple):
    """The agents of all live runs, ended ones too, oldest first; and the live runs that did not answer."""

    agents: list[Agent]
    silent: list[Run]

    def explain(self, unknown: Iterable[UnknownAgent]) -> list[AgentosError]:
        """Return what is to be said of targets that mean nobody who is known: a silent run may have them."""
        return [RunSilent(self.silent[0], error.target) if self.silent and not error.matches else error
                for error in unknown]  # fmt: skip


def living_agents() -> Present:
    """Ask all live runs who lives there. A kernel that hangs is named, not waited for."""
    found, silent = [], []
    for run in live_runs():
        try:
            found += agents_of(run)
        except (KernelUnavailable, TimeoutError) as error:
            if (
                run.alive() and run.meta.exists()
            ):  # else it ended while we looked, or has only begun: nobody lives there
                say(f"run {run.run_id} does not answer: {error}")
                silent.append(run)
    return Present(sorted(found, key=lambda agent: agent.started_at), silent)


def agents_of(run: Run) -> list[Agent]:
    """Return the agents of one live run. Raises KernelUnavailable, TimeoutError."""
    link = open_link(run)
    try:
        link.socket.settimeout(LIST_TIMEOUT_S)
        return [Agent(row, run) for row in link.call("ps")["agents"]]
    finally:
        link.close()


def open_link(run: Run) -> Link:
    """Connect to a live run. Raises KernelUnavailable, also when the kernel accepts and then says nothing."""
    try:
        return connect(run)
    except TimeoutError as error:
        raise KernelUnavailable(f"the kernel of run {run.run_id} does not answer") from error


def gather(requests: Sequence[Request], timeout_s: float | None) -> Iterator[tuple[Request, Any]]:
    """Make all calls at once; yield each with its answer, an AgentosError where it failed, as they come.

    After `timeout_s` (None: never) what has not been answered yields KernelUnavailable.
    """
    exchange = _Exchange()
    try:
        for request in requests:
            failed = exchange.send(request)
            if failed is not None:
                yield request, failed
        yield from exchange.answers(None if timeout_s is None else time.monotonic() + timeout_s)
    finally:
        exchange.close()


class _Exchange:
    """The state of one gather: a conversation a run, and the requests that wait for their answer."""

    def __init__(self) -> None:
        self._conversations: dict[str, Conversation] = {}
        self._waiting: dict[tuple[int, int], Request] = {}
        self._poll = select.poll()

    def send(self, request: Request) -> AgentosError | None:
        try:
            conversation = self._open(request.agent.run)
            call_id = conversation.start(request.method, request.params)
        except AgentosError as error:
            return error
        self._waiting[conversation.fileno(), call_id] = request
        return None

    def answers(self, deadline: float | None) -> Iterator[tuple[Request, Any]]:
        by_descriptor = {conversation.fileno(): conversation for conversation in self._conversations.values()}
        while self._waiting:
            left_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = self._poll.poll(left_ms)
            if not ready:
                yield from self._give_up(KernelUnavailable("the kernel does not answer; `agentos doctor` may tell why"))
            for descriptor, _ in ready:
                yield from self._read(by_descriptor[descriptor])

    def _read(self, conversation: Conversation) -> Iterator[tuple[Request, Any]]:
        descriptor = conversation.fileno()
        try:
            frames = conversation.receive()
        except AgentosError as error:
            self._poll.unregister(descriptor)
            yield from self._give_up(error, descriptor)
            return
        for frame in frames:
            request = self._waiting.pop((descriptor, getattr(frame, "id", -1)), None)
            if request is not None:
                yield request, rebuild(frame) if isinstance(frame, wire.Fault) else frame.value

    def _give_up(self, error: AgentosError, descriptor: int | None = None) -> Iterator[tuple[Request, Any]]:
        for key in [key for key in self._waiting if descriptor in (None, key[0])]:
            yield self._waiting.pop(key), error

    def _open(self, run: Run) -> Conversation:
        conversation = self._conversations.get(run.run_id)
        if conversation is None:
            conversation = self._conversations[run.run_id] = Conversation(open_link(run))
            self._poll.register(conversation.fileno(), select.POLLIN)
        return conversation

    def close(self) -> None:
        for conversation in self._conversations.values():
            conversation.close()
