"""Every shipped file keeps the rules of the house, and every rule is seen to fail on a planted fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import agentos
from tests.tidy import rules
from tests.tidy.rules import ROOMS, ROOT, RULES, Source

Rule = Callable[[Source], Iterator[str]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    complaints = [line for source in rules.product_sources() for line in rule(source)]
    assert not complaints, "\n".join(complaints)


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 61
FAULTS: list[tuple[Rule, str, str]] = [
    (rules.no_relative_imports, "supervisor/a.py", "from . import tree"),
    (rules.dependencies_point_down, "agentos/errors.py", "import agentos.wire"),
    (rules.dependencies_point_down, "agentos/wire.py", "def f():\n    from agentos import runs"),
    (rules.dependencies_point_down, "policies/glob.py", "from agentos.supervisor.broker import Broker"),
    (rules.dependencies_point_down, "supervisor/a.py", "from agentos import KernelSpace"),
    (rules.both_sides_stay_apart, "agentos/agent/a.py", "from agentos.supervisor import linux"),
    (rules.both_sides_stay_apart, "supervisor/a.py", "from agentos.agent import entry"),
    (rules.both_sides_stay_apart, "supervisor/zygote.py", "from agentos.agent import hooks"),
    (rules.shared_modules_take_no_side, "agentos/arguments.py", "from agentos.supervisor import restarts"),
    (rules.shared_modules_take_no_side, "policies/model.py", "def f():\n    import agentos.agent.sdk"),
    (rules.ctypes_in_one_file, "sandbox/a.py", "from ctypes import CDLL"),
    (rules.no_pickle_from_an_agent, "supervisor/a.py", "x = cloudpickle.loads(b'')"),
    (rules.no_pickle_from_an_agent, "agentos/client/a.py", "from pickle import loads"),
    (rules.narrow_excepts, "agentos/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (rules.narrow_excepts, "agentos/a.py", "try:\n    f()\nexcept (OSError, BaseException):\n    pass"),
    (rules.narrow_excepts, "agentos/a.py", "try:\n    f()\nexcept:\n    pass"),
    (rules.one_door_to_time, "supervisor/broker.py", "import time\nx = time.monotonic()"),
    (rules.one_door_to_time, "agentos/a.py", "from time import time"),
    (rules.one_door_to_time, "agentos/a.py", "x = datetime.now()"),
    (rules.small, "agentos/a.py", LONG_FUNCTION),
    (rules.small, "agentos/a.py", "x = 1\n" * 401),
    (rules.module_docstrings, "agentos/a.py", "x = 1"),
    (rules.rooms_refuse_bare_names, "sandbox/__init__.py", '"""A room."""'),
]


@pytest.mark.parametrize(("rule", "path", "text"), FAULTS)
def test_a_planted_fault_is_found(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text)))


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in FAULTS} == set(RULES)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (rules.dependencies_point_down, "agentos/wire.py", "from agentos import errors"),
        (rules.dependencies_point_down, "agentos/__init__.py", "from agentos.supervisor import kernel"),
        (rules.both_sides_stay_apart, "supervisor/zygote.py", "from agentos.agent import entry"),
        (rules.no_pickle_from_an_agent, "agentos/client/a.py", "import cloudpickle\nx = cloudpickle.dumps(f)"),
        (rules.narrow_excepts, "agentos/a.py", "try:\n    f()\nexcept (OSError, ValueError):\n    raise"),
        (rules.narrow_excepts, "agentos/a.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
        (rules.small, "agentos/a.py", 'def f():\n    """' + "text\n" * 70 + '"""\n    return 1'),
        (rules.module_docstrings, "agentos/__init__.py", ""),
    ],
)
def test_what_is_allowed_passes(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Source(path, text)))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_no_package_of_its_own(room: str) -> None:
    bare = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"agentos.{room}" in bare.stderr.rpartition("ImportError")[2]
    whole = [sys.executable, "-c", f"import agentos.{room}"]
    assert subprocess.run(whole, cwd=ROOT, check=False).returncode == 0


def undocumented(name: str, thing: object) -> Iterator[str]:
    """Yield what a user of the public face would find without a word: classes, functions, public methods."""
    if not callable(thing):
        return
    if not thing.__doc__:
        yield name
    if isinstance(thing, type):
        for key, member in vars(thing).items():
            if not key.startswith("_") and (callable(member) or isinstance(member, property)) and not member.__doc__:
                yield f"{name}.{key}"


def test_the_public_face_is_documented() -> None:
    missing = [line for name in agentos.__all__ for line in undocumented(name, getattr(agentos, name))]
    assert not missing


def test_an_undocumented_method_is_found() -> None:
    class Quiet:
        """Says something."""

        def method(self) -> None: ...

    assert list(undocumented("Quiet", Quiet)) == ["Quiet.method"]
