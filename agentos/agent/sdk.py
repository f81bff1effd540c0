"""What an agent's own code may say: act, tool, save_state, saved_state, on_cleanup, current_agent_id.

Re-exported by `agentos`. `act` asks before something happens and raises when it may not; the rest is convenience.
In a host program `tool` functions run as plain functions and `on_cleanup` keeps nothing; `act`, `save_state`
and `saved_state` say that there is no kernel to ask.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar, overload

from agentos import wire
from agentos.agent.process import AgentProcess, current
from agentos.errors import BadRequest, KernelUnavailable, ProtocolError
from agentos.values import pack_value, unpack_value

F = TypeVar("F", bound=Callable[..., Any])


class Allowed(NamedTuple):
    """A decision that allowed: it is on record as `seq` already. `rule` is None for the default."""

    operation: str
    resource: str
    rule: int | None
    rule_name: str | None
    reason: str
    seq: int


def act(operation: str, resource: str, /, **claims: Any) -> Allowed:
    """Ask the kernel whether this action may happen; returns only when it may.

    `operation` is read, write, execute or network; `resource` any name that policies speak of (`db/users/42`).
    `claims` are recorded and can only tighten the decision. Raises PolicyViolationError (RateLimitedError over a
    rate limit), also when no verdict can be had; BadRequest outside an agent or for claims that cannot be sent.
    """
    process = _agent("act")
    if not isinstance(operation, str) or not isinstance(resource, str):
        raise BadRequest(f"act({operation!r}, {resource!r}): both are text, such as act('read', 'db/users/42')")
    verdict = process.decide(operation, resource, claims=claims)
    return Allowed(operation, verdict.resource, verdict.rule, verdict.rule_name, verdict.reason, verdict.seq)


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(*, name: str | None = None, cost: float | None = None) -> Callable[[F], F]: ...
def tool(function: Any = None, /, *, name: str | None = None, cost: float | None = None) -> Any:
    """Make each call of a function the action `execute tools/NAME`, decided before the body runs.

    The outcome (well, or the exception's type) is recorded afterwards. `cost` is a claim for `max_cost` conditions.
    Works for plain and async functions and for generators of both kinds, whose use begins with the first item; outside
    an agent the function runs undecided.
    """
    if function is None:
        return functools.partial(tool, name=name, cost=cost)
    resource = f"tools/{name or function.__name__}"
    claims = {} if cost is None else {"cost": cost}

    wrapper = next((wrap for fits, wrap in _WRAPPERS if fits(function)), _wrap_plain)
    return functools.wraps(function)(wrapper(function, functools.partial(_Use, resource, claims)))


def _wrap_plain(function: Any, use: Callable[[], _Use]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with use():
            return function(*args, **kwargs)

    return call


def _wrap_async(function: Any, use: Callable[[], _Use]) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with use():
            return await function(*args, **kwargs)

    return call


def _wrap_generator(function: Any, use: Callable[[], _Use]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with use():
            return (yield from function(*args, **kwargs))

    return call


def _wrap_async_generator(function: Any, use: Callable[[], _Use]) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with use():
            async with contextlib.aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item

    return call


_WRAPPERS: Final = (
    (inspect.iscoroutinefunction, _wrap_async),
    (inspect.isgeneratorfunction, _wrap_generator),
    (inspect.isasyncgenfunction, _wrap_async_generator),
)


class _Use:
    """One call of a tool: the decision at its beginning, the outcome at its end."""

    def __init__(self, resource: str, claims: dict[str, Any]) -> None:
        self._resource = resource
        self._claims = claims
        self._process = current()
        self._act_id = 0

    def __enter__(self) -> None:
        if self._process is not None:
            self._act_id = self._process.decide("execute", self._resource, claims=self._claims).id

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._process is not None:
            failure = "" if kind is None or kind is GeneratorExit else kind.__name__  # the latter: its user had enough
            self._process.channel.send(wire.Outcome(self._act_id, not failure, failure))


def save_state(value: Any) -> None:
    """Keep `value`, as it is now, as the agent's state, and send it to the kernel.

    Raises NotSerialisable at once, BadRequest outside an agent and for what no frame holds, KernelUnavailable when the
    kernel is gone. What was saved before stays saved then.
    """
    process = _agent("save_state")
    packed = pack_value(value, "the state")
    before, process.state = process.state, packed  # ours first: what we answer is never older than what the kernel has
    try:
        if process.runtime is not None:
            process.runtime.call("save_state", {"value": packed}, lambda *_: None)
    except ProtocolError as error:
        process.state = before
        raise BadRequest(f"save_state: {error}; save it to a file, and its path here") from error
    except KernelUnavailable:
        process.state = before
        raise


def saved_state() -> Any:
    """Return a copy of the state that this agent saved last: a previous life of it, until this one saves.

    None when nothing was ever saved. An agent that is restarted goes on from here. Raises BadRequest outside an agent,
    ProtocolError when what a previous life saved by other means than `save_state` is no value.
    """
    return unpack_value(_agent("saved_state").state)


def on_cleanup(function: F) -> F:
    """Have `function` (plain or async, no arguments) run when the agent ends or is asked to clean up.

    Last in, first out. Also a decorator. SIGKILL leaves no time for it.
    """
    process = current()
    if process is not None:
        process.on_cleanup(function)
    return function


def current_agent_id() -> str:
    """Return the id of the agent that this process is. Raises BadRequest outside an agent."""
    return _agent("current_agent_id").id


def _agent(what: str) -> AgentProcess:
    process = current()
    if process is None:
        raise BadRequest(
            f"{what}() works inside an agent only; run this function with `agentos run` or KernelSpace.execute"
        )
    return process
