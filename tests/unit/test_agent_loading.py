"""What an agent runs: by module, by file, by value; and what is said about a target that is not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from agent_world import agent

from agentos import wire
from agentos.agent import loading
from agentos.agent.loading import BadTarget
from agentos.values import pack_value


def start(target: str | None = None, pickle: bytes | None = None) -> wire.Start:
    nothing = pack_value([], "args"), pack_value({}, "kwargs")
    return wire.Start("id", "name", "run", target, pickle, *nothing, [], "none")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "part.py").write_text(
        "class Group:\n    @staticmethod\n    def work(): return 'in a class'\n"
    )
    (tmp_path / "helper_of_worker.py").write_text("word = 'helped'\n")
    (tmp_path / "worker.py").write_text(
        "import helper_of_worker\nnumber = 7\n"
        "def work(*words): return [helper_of_worker.word, __name__, __file__, *words]\ndef wink(): ...\n"
    )
    (tmp_path / "json.py").write_text("def loads(): return 'mine'\n")
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "raises.py").write_text("raise OSError('while importing')\n")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("worker:work", ["helped", "worker"]),
        ("{}/worker.py:work", ["helped", "worker"]),
        ("{}/../{name}/worker.py:work", ["helped", "worker"]),
    ],
)
def test_a_function_by_module_or_file(place: Path, target: str, expected: list[str]) -> None:
    path = [*sys.path, str(place)] if "/" not in target else list(sys.path)
    with agent(target.format(place, name=place.name), "a", "b", sys_path=path) as one:
        assert one.result() == [*expected, str(place / "worker.py"), "a", "b"]


def test_a_function_in_a_package_and_in_a_class(place: Path) -> None:
    with agent("package.part:Group.work", sys_path=[*sys.path, str(place)]) as one:
        assert one.result() == "in a class"


def test_a_file_with_a_name_that_is_taken_replaces_nothing(place: Path) -> None:
    def both(target: str) -> Any:
        import json

        mine = loading.load(start(target))()
        import json as again

        return [mine, json.loads("[1]"), again.loads("[2]")]

    with agent(both, f"{place}/json.py:loads") as one:
        assert one.result() == ["mine", [1], [2]]


def test_a_function_by_value_and_one_of_main() -> None:
    script = "kernel = 'theirs'\nbase = 40\nclass Thing:\n    number = 2\ndef work(): return base + Thing.number\n"
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(script, names)  # what a program that was started as `python script.py` has
    with agent(names["work"]) as one:
        assert one.result() == 42


def test_a_value_that_is_no_function() -> None:
    with pytest.raises(BadTarget, match="name: what was sent is a int, not a function"):
        loading.load(start(pickle=cloudpickle.dumps(5)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("worker", "write module:function or /path/file.py:function"),
        (":work", "write module:function"),
        ("worker:", "write module:function"),
        ("{}/wroker.py:work", "wroker.py does not exist.*did you mean 'worker.py'"),
        ("{}/nowhere/worker.py:work", "nowhere/worker.py does not exist"),
        ("{}/worker.py:wrk", "worker.py has no function 'wrk'.*did you mean 'work'"),
        ("{}/worker.py:number", "has 'number', but that is no function"),
        ("{}/worker.py:work.deeper", "has no function 'work.deeper'"),
        ("no_such_module_at_all:f", "no module 'no_such_module_at_all' on the path of this agent"),
        ("json.no_such_part:f", "no module 'json.no_such_part'"),
    ],
)
def test_a_target_that_is_not_there_is_named_with_the_nearest(place: Path, target: str, message: str) -> None:
    with agent(target.format(place)) as one:
        raised = one.raised()
    assert raised.type == "BadTarget"
    assert raised.traceback == f"agentos: {raised.message}\n", "one line, and no class of ours"
    import re

    assert re.search(message, raised.message), raised.message


@pytest.mark.parametrize(("name", "kind"), [("broken", "ModuleNotFoundError"), ("raises", "OSError")])
def test_a_module_that_fails_to_import_says_so_itself(place: Path, name: str, kind: str) -> None:
    for target, path in ((f"{name}:f", [*sys.path, str(place)]), (f"{place}/{name}.py:f", list(sys.path))):
        with agent(target, sys_path=path) as one:
            raised = one.raised()
        assert raised.type == kind
        assert f"{name}.py" in raised.traceback
        assert os.path.basename(loading.__file__) not in raised.traceback
