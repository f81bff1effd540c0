"""From the words of a call to a Request: all that is known about an agent before it exists. Starts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

from agentos.errors import BadRequest
from agentos.identity import NAME_CHARS_MAX
from agentos.policies import EffectivePolicy, Quota
from agentos.recorder.event import text
from agentos.restart_policy import NEVER, RestartPolicy, parse_restart
from agentos.supervisor.agents import Agent
from agentos.supervisor.policy_in_force import PolicyInForce
from agentos.supervisor.policy_source import effective
from agentos.values import pack_value

GRACE_S: Final = 10.0
_BOUNDS: Final = ("permissions", "allow", "deny", "restrictions")
TARGET_CHARS_MAX: Final = 8_192  # a path as long as Linux takes, and a function's name
NO_ARGS: Final = pack_value([], "args")
NO_KWARGS: Final = pack_value({}, "kwargs")

Params = Mapping[str, Any]

WORD_MAX: Final = 100  # characters of a word that can only be one of a few
_NUMBER: Final = (int, float)
_TAKES: Final[dict[str, tuple[type, ...]]] = {  # what a call may hold under each name, in whichever method; or None
    "id": (str,), "agent_id": (str,), "parent_id": (str,), "ids": (list,), "signal": (str, int), "scope": (str,),
    "state": (str,), "grace_s": _NUMBER, "timeout_s": _NUMBER, "value": (bytes,), "name": (str,), "target": (str,),
    "registered": (str,), "pickle": (bytes,), "args": (bytes, list), "kwargs": (bytes,), "permissions": (list,),
    "restrictions": (list,), "allow": (list,), "deny": (list,), "argv": (list,), "env": (dict,),
    "env_passed": (list,), "context": (dict,), "cwd": (str,), "workspace": (str,), "require": (str,),
    "priority": (int,), "rate_limit": (int,), "what": (str,), "restart": (str,),
    "rule": (dict,), "before": (str,), "after": (str,), "signals": (list,), "within": (list,),
    "modules": (list,),
}  # fmt: skip
_OF_WORDS: Final = ("ids", "permissions", "restrictions", "allow", "deny", "env_passed")
_ONE_OF_FEW: Final = ("signal", "scope", "state", "require", "what", "restart")
_NEEDED: Final = {
    "wait_all": "ids", "signal": "signal", "send_signal": "signal", "register": "name", "query": "what",
    "add_rule": "rule", "handlers": "signals", "modules": "modules",
}  # fmt: skip
_NAMES: Final = {str: "text", int: "a number", float: "a number", bytes: "packed bytes", list: "a list", dict: "a map"}


def check_params(method: str, params: Params) -> None:
    """Raise BadRequest for what a call cannot mean, so that what it does may trust the kinds of its parameters."""
    needed = _NEEDED.get(method)
    if needed is not None and params.get(needed) is None:
        raise BadRequest(f"{method}: {needed!r} is missing")
    for name, value in params.items():
        takes = _TAKES.get(name)
        if takes is None or value is None:
            continue
        if not isinstance(value, takes) or (isinstance(value, float) and not isfinite(value)):
            kinds = " or ".join(dict.fromkeys(_NAMES[kind] for kind in takes))
            raise BadRequest(f"{method}: {name}={str(value)[:WORD_MAX]!r} must be {kinds}")
        if name in _OF_WORDS and isinstance(value, list) and not all(isinstance(word, str) for word in value):
            raise BadRequest(f"{method}: {name} must be a list of words")
        if name in _ONE_OF_FEW and isinstance(value, str) and len(value) > WORD_MAX:
            raise BadRequest(f"{method}: {name} has {len(value)} characters; no such word has more than {WORD_MAX}")
    if params.get("scope") not in (None, "leader", "tree"):
        raise BadRequest(f"{method}: scope={params['scope']!r} must be 'leader' or 'tree'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What shall be started: the parsed params of the `start` call, or of an agent's `spawn`."""

    agent_id: str
    kind: str
    name: str
    cwd: str
    argv: list[str]
    target: str | None
    pickle: bytes | None
    args: bytes
    kwargs: bytes
    env: dict[str, str]
    env_passed: list[str]
    env_all: bool
    context: dict[str, Any]
    timeout_s: float | None
    grace_s: float
    require: str | None
    start_paused: bool
    policy: EffectivePolicy
    policy_name: str
    parent: Agent | None = None
    priority: int = 0
    bounds: Mapping[str, Any] = field(default_factory=dict)  # what was asked for beside the policy, for the record
    state: bytes | None = None  # what the previous life of the agent saved last, for its next one
    restart: RestartPolicy = NEVER


def parse_request(
    params: Params,
    parent: Agent | None,
    *,
    bounded: bool,
    in_force: PolicyInForce,
    boot: Mapping[str, Any],
    quota: Quota,
    agent_id: str,
    private: str,
    state: bytes | None = None,
) -> Request:
    """Return what `params` ask for. Raises BadRequest or PolicyLoadError. `state` is what its last life saved.

    `bounded`: the parent's policy binds the agent, too. `quota` counts for every agent of the kernel, by name.
    `private` is the directory that the agent will have to itself.
    """
    argv = [_word(word) for word in params.get("argv") or []]
    target = params.get("target")
    cwd = params.get("cwd") or boot["cwd"]
    _check_directory(cwd)
    name = _name(params, argv, target)
    bound = effective(
        in_force.policy,
        boot,
        params,
        private=private,
        command=argv[0] if argv else "",
        code_paths=() if argv else _code_paths(boot, target),
        parent=parent.policy if parent and bounded else None,
        name=name,
        quota=quota,
    )
    return Request(
        agent_id=agent_id,
        kind="program" if argv else "python",
        name=name,
        cwd=cwd,
        argv=argv,
        target=target,
        pickle=params.get("pickle"),
        args=_packed_arguments(params.get("args")),
        kwargs=params.get("kwargs") or NO_KWARGS,
        env=dict(params.get("env") or {}),
        env_passed=list(params.get("env_passed") or []),
        env_all=bool(params.get("env_all")),
        context=dict(params.get("context") or (parent.context if parent else {})),
        timeout_s=_seconds(params.get("timeout_s")),
        grace_s=float(params.get("grace_s") or GRACE_S),
        require=params.get("require") or (parent.level if parent else None),
        start_paused=bool(params.get("start_paused")),
        policy=in_force.bind(bound),
        policy_name=in_force.policy.name,
        parent=parent,
        priority=int(params.get("priority") or 0),
        state=state,
        restart=parse_restart("restart=", params.get("restart") or "never"),
        bounds={key: params[key] for key in _BOUNDS if params.get(key) is not None},
    )


def _check_directory(path: str) -> None:
    if not os.path.isdir(path):
        raise BadRequest(f"working directory {path!r} does not exist; pass --cwd DIR")


def _seconds(value: Any) -> float | None:
    if value is None or (type(value) in (int, float) and 0 < value < float("inf")):
        return value  # type: ignore[no-any-return]
    raise BadRequest(f"timeout={value!r} must be a positive number of seconds")


def _word(word: Any) -> str:
    """A word of a command line comes as bytes where it is no UTF-8 (PEP 383)."""
    return os.fsdecode(word) if isinstance(word, bytes) else str(word)


def _name(params: Params, argv: list[str], target: str | None) -> str:
    """Return the agent's name; agents choose those of their children, and every list of agents repeats them."""
    if len(target or "") > TARGET_CHARS_MAX:
        raise BadRequest(f"the target {str(target)[:40]!r}… is longer than {TARGET_CHARS_MAX} characters")
    if params.get("name"):
        return check_name(str(params["name"]))
    natural = text(os.path.basename(argv[0])) if argv else str(target or "agent").rpartition(":")[2]
    return natural[:NAME_CHARS_MAX]


def check_name(name: str) -> str:
    """Return `name` when it may be an agent's. Raises BadRequest."""
    if len(name) > NAME_CHARS_MAX:
        raise BadRequest(f"the name {name[:20]!r}… is {len(name)} characters long; {NAME_CHARS_MAX} are possible")
    return name


def _packed_arguments(args: Any) -> bytes:
    """Arguments come packed from a program, as plain words from a command line."""
    return args if isinstance(args, bytes) else pack_value([str(word) for word in args or ()], "args")


def _code_paths(boot: Mapping[str, Any], target: str | None) -> list[str]:
    paths = [str(path) for path in boot["sys_path"] if path]
    if target and ".py:" in target:
        paths.append(os.path.dirname(os.path.abspath(os.path.join(boot["cwd"], target.rpartition(":")[0]))))
    return paths
