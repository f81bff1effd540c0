"""The rules of the house as functions from one source file to complaints. Pure: reading files is the tests' part.

A rule that must be broken is broken by name, in one of the tables below, with the reason beside it.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("agentos", "agent_os", "supervisor", "sandbox", "policies")
ROOMS = ("supervisor", "sandbox", "policies")  # folders at the top whose import name is agentos.<room>

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
LONG_MODULES: dict[str, int] = {}

# Longest prefix wins; a module imports from its own rank or below.
RANKS = {
    "agentos.errors": 0,  # words: no I/O, no decisions
    "agentos.signals": 0,
    "agentos.actions": 0,
    "agentos.clock": 0,
    "agentos.identity": 0,
    "agentos.status": 0,
    "agentos.printable": 0,
    "agentos.mould": 1,  # the core: values in, values out
    "agentos.frames": 1,
    "agentos.wire": 1,
    "agentos.arguments": 1,
    "agentos.restart_policy": 1,
    "agentos.shape": 1,
    "agentos.values": 1,
    "agentos.faults": 1,
    "agentos.lifecycle": 1,
    "agentos.policies": 1,
    "agentos.recorder.event": 1,
    "agentos.recorder.kinds": 1,
    "agentos.recorder.merkle": 1,
    "agentos.recorder.query": 1,
    "agentos.recorder.redact": 1,
    "agentos.supervisor.decide": 1,
    "agentos.supervisor.restarts": 1,
    "agentos.sandbox.profile": 1,
    "agentos.runs": 2,  # adapters: one thing of the outside world each
    "agentos.logfile": 2,
    "agentos.client.link": 2,
    "agentos.recorder.journal": 2,
    "agentos.recorder.storage": 2,
    "agentos.supervisor.linux": 2,
    "agentos.supervisor.tree": 2,
    "agentos.supervisor.pipes": 2,
    "agentos.agent": 3,  # what runs
    "agentos.client": 3,
    "agentos.modules": 3,
    "agentos.recorder": 3,
    "agentos.sandbox": 3,
    "agentos.supervisor": 3,
    "agentos": 4,  # the faces
    "agentos.cli": 4,
    "agentos.testing": 4,
    "agent_os": 4,
}

# The two sides of the pipe share wire and what lies below it, nothing else.
APART = (("agentos.agent", "agentos.supervisor"), ("agentos.supervisor", "agentos.agent"))
SHARED_BELOW = 3  # by rank: adapters, core and words
APART_EXCEPTIONS = {
    ("agentos.supervisor.zygote", "agentos.agent.entry"),  # preloaded once, so that every agent is born with it
    ("agentos.supervisor.spawn", "agentos.agent.entry"),  # the forked child turns into the agent here
}

CTYPES = {"supervisor/linux.py"}

# The outermost loop of a process or of somebody else's code: what escapes here would be lost, or end the wrong thing.
TOP_LOOPS = {
    "supervisor/zygote.py",  # a forked child must report and never return into the zygote
    "supervisor/kernel.py",  # one client's bad call must not end everybody's kernel
    "supervisor/repeating.py",  # what the short way fails over, the broker meets again on the long one
    "supervisor/broker.py",  # a frame that we fail over is refused: its sender must not wait for ever
    "agentos/agent/entry.py",  # the agent's own function
    "supervisor/preload.py",  # a module of the operator's: what it raises is what the host program is told
    "agentos/client/running.py",  # the host program's own functions: what they raise, the kernel must hear
}

CLOCK_CALLS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
CLOCKS = {
    "agentos/clock.py",
    "agentos/cli/",  # a person at a terminal: how long to wait, how long ago
    "supervisor/tree.py",  # deadlines of waiting for Linux itself
    "supervisor/zygote.py",
    "supervisor/sentry.py",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its path relative to the checkout, its text and its tree."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        """The import name: `supervisor/tree.py` is agentos.supervisor.tree."""
        parts = self.path.removesuffix(".py").split("/")
        if parts[0] in ROOMS:
            parts.insert(0, "agentos")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def product_sources() -> list[Source]:
    """Every Python file that ships, once: the links to the rooms are not followed."""
    return [Source(path, (ROOT / path).read_text()) for path in files(*PRODUCT, suffix=".py")]


def files(*tops: str, suffix: str) -> list[str]:
    found = []
    for top in tops:
        for folder, _, names in os.walk(ROOT / top):
            found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names if name.endswith(suffix)]
    return sorted(found)


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything imported, `from a import b` as a.b, at any depth of the file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def rank(name: str) -> int:
    while name not in RANKS:
        name = name.rpartition(".")[0]
    return RANKS[name]


def _below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def no_relative_imports(source: Source) -> Iterator[str]:
    """A file is read under two paths, the room's and the package's: only absolute names mean the same in both."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{source.path}:{node.lineno}: relative import"


def dependencies_point_down(source: Source) -> Iterator[str]:
    own = rank(source.module)
    for line, name in imports(source):
        if name.split(".")[0] in {"agentos", "agent_os"} and rank(name) > own:
            yield f"{source.path}:{line}: {source.module} (rank {own}) imports {name} (rank {rank(name)})"


def both_sides_stay_apart(source: Source) -> Iterator[str]:
    for line, name in imports(source):
        for side, other in APART:
            excepted = any(source.module == who and _below(name, what) for who, what in APART_EXCEPTIONS)
            if _below(source.module, side) and _below(name, other) and not excepted:
                yield f"{source.path}:{line}: {side} must not import {name}"


def shared_modules_take_no_side(source: Source) -> Iterator[str]:
    """What both sides import would drag one of them into the other's processes if it imported either."""
    if rank(source.module) < SHARED_BELOW and not any(_below(source.module, side) for side, _ in APART):
        for line, name in imports(source):
            if any(_below(name, side) for side, _ in APART):
                yield f"{source.path}:{line}: {source.module} is for both sides and must not import {name}"


def ctypes_in_one_file(source: Source) -> Iterator[str]:
    for line, name in imports(source):
        if name.split(".")[0] in {"ctypes", "cffi"} and source.path not in CTYPES:
            yield f"{source.path}:{line}: only {', '.join(CTYPES)} may import {name}"


def no_pickle_from_an_agent(source: Source) -> Iterator[str]:
    """Loading runs code of the sender's choice: only the agent itself, behind the wall, may do that."""
    if source.path.startswith("agentos/agent/"):
        return
    for node in ast.walk(source.tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name in {f"{m}.{f}" for m in ("pickle", "cloudpickle", "marshal") for f in ("load", "loads", "Unpickler")}:
            yield f"{source.path}:{node.lineno}: {name}"
    for line, name in imports(source):
        if name.split(".")[0] in {"pickle", "marshal", "shelve", "dill"} or name.startswith("cloudpickle.load"):
            yield f"{source.path}:{line}: imports {name}"


def narrow_excepts(source: Source) -> Iterator[str]:
    """Cleaning up and raising again swallows nothing; whatever else catches everything must be a top loop."""
    if source.path in TOP_LOOPS:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and ast.unparse(node.body[-1]) != "raise":
            caught = "everything" if node.type is None else ast.unparse(node.type)
            if caught == "everything" or {"Exception", "BaseException"} & set(caught.strip("()").split(", ")):
                yield f"{source.path}:{node.lineno}: catches {caught}"


def one_door_to_time(source: Source) -> Iterator[str]:
    if any(source.path == place or (place.endswith("/") and source.path.startswith(place)) for place in CLOCKS):
        return
    clocks = {f"time.{name}" for name in CLOCK_CALLS} | {"datetime.now", "datetime.utcnow", "datetime.today"}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in clocks:
            yield f"{source.path}:{node.lineno}: {ast.unparse(node)} (take an agentos.clock.Clock)"
    for line, name in imports(source):
        if name in clocks:
            yield f"{source.path}:{line}: imports {name}"


def small(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    limit = LONG_MODULES.get(source.path, MODULE_LINES_MAX)
    if lines > limit:
        yield f"{source.path}: {lines} lines, {limit} is the wall"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node
            length = (node.end_lineno or 0) - first.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{source.path}:{node.lineno}: {node.name} has {length} lines, {FUNCTION_LINES_MAX} is the wall"


def module_docstrings(source: Source) -> Iterator[str]:
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield f"{source.path}: no docstring says what this module owns"


def rooms_refuse_bare_names(source: Source) -> Iterator[str]:
    """Each room's __init__ raises ImportError unless it was reached as agentos.<room>."""
    if source.path in {f"{room}/__init__.py" for room in ROOMS}:
        guards = [node for node in source.tree.body if isinstance(node, ast.If) and "ImportError" in ast.unparse(node)]
        if not any("__name__" in ast.unparse(node.test) for node in guards):
            yield f"{source.path}: can be imported by its bare name"


RULES = (
    no_relative_imports,
    dependencies_point_down,
    both_sides_stay_apart,
    shared_modules_take_no_side,
    ctypes_in_one_file,
    no_pickle_from_an_agent,
    narrow_excepts,
    one_door_to_time,
    small,
    module_docstrings,
    rooms_refuse_bare_names,
)
