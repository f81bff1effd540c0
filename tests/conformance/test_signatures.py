"""Every signature of the API reference, beside what `inspect.signature` says of ours: names, order, kinds, defaults.

Ours may take more, as keywords after the reference's own; an agent's kernel client takes what the host's takes. What
belongs to sections that are not built is listed by section, and this fails once it exists.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from inspect import Parameter, Signature
from typing import Any, Final, get_type_hints

import pytest
from reference import blocks

import agentos
from agentos import (
    AgentHandle,
    AgentSignal,
    AgentStatus,
    FlightRecorder,
    KernelSpace,
    Pattern,
    Policy,
    SignalDispatcher,
    errors,
)
from agentos.agent.calls import AgentKernel

# What the reference shows by use alone: the names it uses, in its order. `...`: it says nothing of a default.
BY_USE: Final = {
    "kernel.get_agent": "agent_id",
    "kernel.wait_all": "ids",
    "kernel.add_module": "module",
    "agent.cleanup": "",
    "agent.save_state": "",
    "agent.get_state": "",
    "dispatcher.send": "agent_id, signal",
    "dispatcher.register_handler": "signal",
    "kernel.is_stopped": "",
    "kernel.wait_for_continue": "",
    "policy.add_rule": "action, pattern=..., reason=None, on_violation=None, rate_limit=None",
    "Pattern": 'operation, resource, match_type="glob", conditions=None, exclude=None',
}
PROPERTIES: Final = ("current_agent_id", "policy")

# By the name in the reference: ours in the host program, and in an agent where it exists there, too.
OURS: Final[dict[str, tuple[Callable[..., Any], ...]]] = {
    "KernelSpace": (KernelSpace, KernelSpace.__init__),
    "kernel.register": (KernelSpace.register, AgentKernel.register),
    "kernel.execute": (KernelSpace.execute, AgentKernel.execute),
    "kernel.spawn": (KernelSpace.spawn, AgentKernel.spawn),
    "kernel.send_signal": (KernelSpace.send_signal, AgentKernel.send_signal),
    "kernel.get_agent_status": (KernelSpace.get_agent_status, AgentKernel.get_agent_status),
    "kernel.get_agent": (KernelSpace.get_agent, AgentKernel.get_agent),
    "kernel.wait_all": (KernelSpace.wait_all, AgentKernel.wait_all),
    "kernel.is_stopped": (KernelSpace.is_stopped, AgentKernel.is_stopped),
    "kernel.wait_for_continue": (KernelSpace.wait_for_continue, AgentKernel.wait_for_continue),
    "kernel.add_module": (KernelSpace.add_module,),  # in an agent it is there, and refuses
    "SignalDispatcher": (SignalDispatcher,),
    "agent.cleanup": (AgentHandle.cleanup,),
    "agent.save_state": (AgentHandle.save_state,),
    "agent.get_state": (AgentHandle.get_state,),
    "dispatcher.send": (SignalDispatcher.send,),
    "dispatcher.register_handler": (SignalDispatcher.register_handler,),
    "Policy": (Policy,),
    "policy.add_rule": (Policy.add_rule,),
    "Pattern": (Pattern,),
}

# The other sections: their constructors and calls as the reference has them.
QUERIED: Final = (
    "event_type, agent_id, severity, start_time, end_time, execution_id, limit, filters".replace(",", "=...,") + "=..."
)
RECORDER: Final = {
    "FlightRecorder": (
        FlightRecorder,
        'storage="memory", connection_string=None, retention_days=90, compression=True, encryption_key=None',
    ),
    "recorder.log": (FlightRecorder.log, 'event_type: str, agent_id: str, data: dict, severity: str = "info"'),
    "recorder.query": (
        FlightRecorder.query,
        QUERIED,
    ),
    "recorder.log_state_dump": (FlightRecorder.log_state_dump, "agent_id, state"),
}
NOT_BUILT: Final = {
    "FlightRecorder": ("get_timeline", "replay", "export"),
    "CMVK": ("agentos.modules:CMVK", "agent_os.modules:CMVK"),
    "EMK": ("agentos.modules:EMK", "agent_os.modules:EMK"),
    "IATP": ("agentos.modules:IATP", "agent_os.modules:IATP"),
    "AMB": ("agentos.modules:AMB", "agent_os.modules:AMB"),
}
# What the recorder takes by name, as the reference says, and refuses by name, because it is not built.
REFUSED_BY_THE_RECORDER: Final[dict[str, Callable[[], Any]]] = {
    "query(filters=…)": lambda: asyncio.run(FlightRecorder().query(filters={"data.action": "write"})),
    "storage='postgresql'": lambda: FlightRecorder("postgresql"),
    "storage='s3'": lambda: FlightRecorder("s3"),
    "encryption_key=…": lambda: FlightRecorder(encryption_key=b"x" * 32),
}
BUILT_IN_POLICIES: Final = {"strict": "deny", "permissive": "allow", "audit": "allow"}


def written(text: str) -> Signature:
    """Return the signature in the words of the reference: `name(…)` or, for what is only used, the words between."""
    inside = re.search(r"\((.*?)\n?\)(?: ->|$|\n\n|\nasync)", text, re.DOTALL)
    words = inside[1] if inside else text
    tree = ast.parse(f"def f({words}\n): ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    namespace: dict[str, Any] = {}
    for one in ast.walk(tree):
        if isinstance(one, ast.arg):
            one.annotation = None  # some are names of the reference's own
    exec(compile(ast.Module([tree], []), "reference", "exec"), namespace)
    return inspect.signature(namespace["f"])


def differences(theirs: Signature, ours: Signature) -> Iterator[str]:
    """Yield what a call that the reference allows would find different."""
    expected, found = (
        [one for name, one in signature.parameters.items() if name != "self"] for signature in (theirs, ours)
    )
    extra = [one for one in found if one.name not in theirs.parameters]
    common = [one for one in found if one.name in theirs.parameters]
    if [one.name for one in common] != [one.name for one in expected]:
        yield f"parameters {[one.name for one in common]}, not {[one.name for one in expected]}"
        return
    for mine, other in zip(common, expected, strict=True):
        if mine.kind != other.kind:
            yield f"{mine.name} is {mine.kind.description}"
        if other.default is not ... and mine.default != other.default:
            yield f"{mine.name} defaults to {mine.default!r}, not {other.default!r}"
    for one in extra:
        if one.kind is not Parameter.KEYWORD_ONLY or one.default is Parameter.empty:
            yield f"{one.name} is more than the reference has, and no keyword with a default"


def reference() -> dict[str, str]:
    return {**blocks("signature"), **BY_USE}


@pytest.mark.parametrize("name", reference())
def test_ours_takes_what_the_reference_says(name: str) -> None:
    theirs = written(reference()[name])
    for function in OURS[name]:
        found = list(differences(theirs, inspect.signature(function)))
        assert found == [], function.__qualname__


def test_a_difference_is_found() -> None:
    theirs = written("agent, *args, timeout=None, **kwargs")

    def found(ours: str) -> list[str]:
        return list(differences(theirs, written(ours)))

    assert found("agent, *args, timeout=None, extra=1, **kwargs") == []
    assert found("agent, *args, extra, timeout=None, **kwargs") != []
    assert found("agent, extra=1, *args, timeout=None, **kwargs") != []
    assert found("agent, *args, timeout=0, **kwargs") == ["timeout defaults to 0, not None"]
    assert found("agent, timeout=None, *args, **kwargs") != []
    assert found("agent, *args, **kwargs") != []
    assert found("agent=None, *args, timeout=None, **kwargs") != []


def test_the_reference_is_read_as_it_stands() -> None:
    register, policy = written(reference()["kernel.register"]), written(reference()["Policy"])
    assert list(register.parameters) == ["name", "permissions", "rate_limit", "priority"]
    assert [one.default for one in policy.parameters.values()] == [Parameter.empty, "1.0.0", None, "deny", "strict"]
    assert str(written(reference()["kernel.execute"])) == "(agent, *args, timeout=None, context=None, **kwargs)"


def test_every_signature_is_compared() -> None:
    assert set(OURS) == set(reference())
    text = "\n".join(blocks("run").values())
    used = set(re.findall(r"\b((?:kernel|dispatcher|policy|agent)\.\w+)\(", text))
    assert used <= set(OURS)


@pytest.mark.parametrize("name", RECORDER)
def test_what_there_is_of_the_recorder_takes_what_the_reference_says(name: str) -> None:
    function, text = RECORDER[name]
    assert list(differences(written(text), inspect.signature(function))) == []


@pytest.mark.parametrize("what", REFUSED_BY_THE_RECORDER)
def test_what_the_recorder_cannot_yet_it_refuses(what: str) -> None:
    with pytest.raises(errors.BadRequest, match="not available in this version"):
        REFUSED_BY_THE_RECORDER[what]()


def test_what_is_not_built_says_so() -> None:
    """The recorder's are there and refuse; the modules do not exist."""
    for name in NOT_BUILT["FlightRecorder"]:
        assert inspect.signature(getattr(FlightRecorder, name)).return_annotation == "NoReturn", name
    for section in ("CMVK", "EMK", "IATP", "AMB"):
        for place in NOT_BUILT[section]:
            module, _, name = place.partition(":")
            with pytest.raises((ImportError, AttributeError)):
                getattr(importlib.import_module(module), name)


# --- what is no call -----------------------------------------------------------------------------------------------


def test_an_agent_has_every_call_and_keyword_that_the_host_program_has() -> None:
    """Also those of our own: what is not for agents is there, and refuses."""
    public = {name for name in vars(KernelSpace) if not name.startswith("_")}
    assert {name for name in public if not hasattr(AgentKernel, name)} == set()
    for name in public:
        host, agent = getattr(KernelSpace, name), getattr(AgentKernel, name)
        if callable(host) and inspect.signature(agent).return_annotation != "NoReturn":
            assert list(differences(inspect.signature(host), inspect.signature(agent))) == [], name


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("kind", [KernelSpace, AgentKernel])
def test_what_is_a_property_in_the_reference_is_one(kind: type, name: str) -> None:
    assert isinstance(getattr(kind, name), property)


def test_a_status_has_the_fields_of_the_reference() -> None:
    text = reference()["kernel.get_agent_status"]
    listed = re.findall(r"^# - (\w+): ", text, re.MULTILINE)
    assert [one.name for one in fields(AgentStatus)] == listed
    hints = {name: hint.__name__ for name, hint in get_type_hints(AgentStatus).items()}
    assert hints == {
        "id": "str", "name": "str", "state": "str", "started_at": "datetime", "actions_count": "int",
        "violations_count": "int",
    }  # fmt: skip
    states = re.search(r"state: (.*)", text)
    assert states is not None
    assert set(ast.literal_eval(f"({states[1].replace(' | ', ',')})")) == {
        "running", "stopped", "terminated", "waiting",
    }  # fmt: skip


def test_the_states_that_are_shown_are_those_of_the_reference() -> None:
    from agentos.lifecycle import State, public_state

    assert {public_state(state) for state in State} == {"running", "stopped", "terminated", "waiting"}


def test_the_signals_are_those_of_the_reference() -> None:
    listed = re.findall(r"^    (SIG\w+) = (\d+)", blocks("run")["the enum"], re.MULTILINE)
    assert {one.name: one.value for one in AgentSignal} == {name: int(number) for name, number in listed}


@pytest.mark.parametrize("name", BUILT_IN_POLICIES)
def test_a_built_in_policy_has_the_default_of_the_reference(name: str) -> None:
    policy = Policy.builtin(name)
    assert policy.name == name
    allowed = policy.decide("read", "data/x").allowed
    assert allowed == (BUILT_IN_POLICIES[name] == "allow")


def test_the_names_to_import_are_those_of_the_reference() -> None:
    text = "\n".join([*blocks("run").values(), *blocks("signature").values()])
    imported = {
        name for line in re.findall(r"^from agent_os import (.*)$", text, re.MULTILINE) for name in line.split(", ")
    }
    assert imported <= set(agentos.__all__)
    assert issubclass(errors.PolicyViolationError, PermissionError)
