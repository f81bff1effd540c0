"""Every type of audit event that the sources record is in agentos.recorder.kinds, and nothing else is."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from agentos.recorder.kinds import EVENT_TYPES, MEANINGS
from tests.tidy.rules import Source, product_sources

# Who records, by name, and which of its arguments is the type.
RECORDING = {"append": 0, "try_append": 0, "note": 1, "_warn": 0, "_write": 0, "Record": 0}
NO_RECORD = {"self._log"}  # what an agent printed
# These only pass on what a caller named, or what a program logs in words of its own.
PASSED_ON = {"event_type", "record.event_type", "entry.event_type"}


def recorded(source: Source) -> Iterator[str]:
    """Yield the types that a file records; for what cannot be read there, its place and text in angle brackets."""
    for function in ast.walk(source.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and (argument := type_of_event(call)) is not None:
                    yield from words(argument, function, source.path)


def type_of_event(call: ast.Call) -> ast.expr | None:
    if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in NO_RECORD:
        return None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    place = RECORDING.get(name)
    if place is None or len(call.args) < place + 2:  # a list's append has one argument, a file's _write too
        return None
    return call.args[place]


def words(value: ast.expr, function: ast.AST, path: str) -> Iterator[str]:
    text = ast.unparse(value)
    if isinstance(value, ast.Constant):
        yield str(value.value)
    elif isinstance(value, ast.IfExp):
        yield from words(value.body, function, path)
        yield from words(value.orelse, function, path)
    elif isinstance(value, ast.Name) and (given := assigned(value.id, function)):
        for one in given:
            yield from words(one, function, path)
    elif text not in PASSED_ON:
        yield f"<{path}:{value.lineno}: {text}>"


def assigned(name: str, function: ast.AST) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]
    ]


def test_what_is_recorded_is_listed_and_what_is_listed_is_recorded() -> None:
    sources = [one for one in product_sources() if one.path.startswith("supervisor/")]
    assert {word for source in sources for word in recorded(source)} == EVENT_TYPES


def test_every_type_says_what_it_means() -> None:
    assert all(meaning and not meaning.endswith(".") for meaning in MEANINGS.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("self.note(agent, 'a_b', {})", {"a_b"}),
        ("self._recording.try_append('a_b', {}, durable=True)", {"a_b"}),
        ("kind = 'a' if x else 'b'\n    r.append(kind, {})", {"a", "b"}),
        ("Record('a', 'info', {}, durable=True)", {"a"}),
        ("xs.append('a')", set()),
        ("r.append(event_type, {})", set()),
        ("r.append(make(), {})", {"<supervisor/a.py:2: make()>"}),
    ],
)
def test_a_recorded_type_is_seen(text: str, found: set[str]) -> None:
    assert set(recorded(Source("supervisor/a.py", f"def f():\n    {text}\n"))) == found
