"""Finds the function that an agent shall run: by `module:function`, by `/path/file.py:function`, or by value.

The one place in the project that unpickles: in the agent, behind whatever wall its level has, bytes that the host
program made. Everything that is wrong with a target is BadTarget, naming the place and the nearest name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cloudpickle

from agentos import wire
from agentos.errors import CallerError, nearest


class BadTarget(CallerError):
    """The module or function that the agent shall run does not exist."""


def load(start: wire.Start) -> Callable[..., Any]:
    """Return the function that `start` names. Raises BadTarget, or what the user's module raises when imported."""
    if start.pickle is not None:
        function = cloudpickle.loads(start.pickle)
        if not callable(function):
            raise BadTarget(f"{start.name}: what was sent is a {type(function).__name__}, not a function")
        return function  # type: ignore[no-any-return]
    place, _, name = (start.target or "").rpartition(":")
    if not place or not name:
        raise BadTarget(f"{start.target!r}: write module:function or /path/file.py:function")
    module = _from_file(place) if place.endswith(".py") else _from_name(place)
    return _function(module, place, name)


def _from_name(name: str) -> ModuleType:
    if os.getcwd() not in sys.path[:1]:  # as `python -m` looks; our own launchers keep it off the path
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise BadTarget(f"no module {error.name!r} on the path of this agent") from None


def _from_file(path: str) -> ModuleType:
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise BadTarget(f"{path} does not exist{_nearest_file(path)}")
    folder, name = os.path.split(path.removesuffix(".py"))
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)
    if name in sys.modules:  # a user's json.py must not replace the json that others have
        name = f"agent_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _nearest_file(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return nearest(name, [other for other in os.listdir(folder) if other.endswith(".py")])
    except OSError:
        return ""


def _function(module: ModuleType, place: str, name: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    where = getattr(module, "__file__", None) or place
    known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("__")]
    problem = f"has no function {name!r}" if found is None else f"has {name!r}, but that is no function"
    raise BadTarget(f"{where} {problem}{nearest(name, known)}")
