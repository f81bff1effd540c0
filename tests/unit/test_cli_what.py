"""What shall run is found, and found missing, without executing any of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from agentos.cli.what import natural_name, what_to_run
from agentos.errors import ProgramNotFound, ProgramNotRunnable

SOURCE = """
import json as codec
raise SystemExit("a check has executed me")
def plain(): ...
async def later(): ...
class Callable_:
    def __call__(self): ...
made = lambda: None
if codec:
    def conditional(): ...
for looped in (plain,): ...
def outer():
    global by_global
    by_global = plain
(walrus := plain)
from os.path import join
match plain:
    case matched: ...
import both
both = plain
class Group:
    def inside(self): ...
    attribute = plain
used.later
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(SOURCE)
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "inner" / "__init__.py").write_text("def deep(): ...")
    (package / "module.py").write_text("def there(): ...")
    return tmp_path


def found(place: Path, *words: str) -> dict[str, object]:
    before = os.getcwd()
    os.chdir(place)
    try:
        return what_to_run(words, str(place), f"{place}/bin:/usr/bin:/bin")
    finally:
        os.chdir(before)


NAMES = [
    "plain",
    "later",
    "Callable_",
    "made",
    "conditional",
    "looped",
    "outer",
    "by_global",
    "walrus",
    "join",
    "matched",
    "both",
]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_source_binds_may_be_a_function(place: Path, name: str) -> None:
    assert found(place, f"agents.py:{name}", "x") == {
        "kind": "python", "target": f"{place}/agents.py:{name}", "args": ["x"],
    }  # fmt: skip
    assert found(place, f"agents:{name}") == {"kind": "python", "target": f"agents:{name}", "args": []}


MISSING = [
    ("agents.py:plian", "agents.py has no function 'plian' (did you mean 'plain'?)"),
    ("agents:codex", "has no function 'codex'"),
    ("agents.py:codec", "agents.py has 'codec', but that is a module"),
    ("agents:inside", "has no function 'inside'"),
    ("agents:attribute", "has no function 'attribute'"),
    ("agents:used", "has no function 'used'"),
    ("agent.py:plain", "agent.py: no such file (did you mean 'agents.py'?)"),
    ("agnts:plain", "no module 'agnts' in"),
    ("package.modul:there", "no module 'package.modul' in {place}/package (did you mean 'module'?)"),
    ("package.module.more:there", "no module 'package.module.more' in {place}/package/module.py"),
    ("package.module:here", "{place}/package/module.py has no function 'here'"),
    ("package.inner:dep", "has no function 'dep' (did you mean 'deep'?)"),
    ("nodir/x.py:f", "nodir/x.py: no such file"),
]


@pytest.mark.parametrize(("target", "text"), MISSING)
def test_what_is_missing_is_named_with_its_place_and_the_nearest(place: Path, target: str, text: str) -> None:
    with pytest.raises(ProgramNotFound) as caught:
        found(place, target)
    assert text.format(place=place) in str(caught.value)
    assert str(caught.value).startswith(f"cannot run '{target}': ")
    assert caught.value.exit_code == 127


UNCLEAR = [
    "from os.path import *", "def __getattr__(name): ...", "globals()['f'] = print", "exec('f = print')",
    "import sys\nsys.modules[__name__] = 1",
]  # fmt: skip


@pytest.mark.parametrize("source", UNCLEAR)
def test_where_a_source_does_not_show_its_names_nothing_is_claimed(place: Path, source: str) -> None:
    (place / "unclear.py").write_text(source)
    assert found(place, "unclear.py:f")["kind"] == "python"


BROKEN = [("ok = 1\nthis is no Python", 2), ("def f(:", 1), ("x = '\\udc00", 1), ("def f():\nreturn 1", 2)]


@pytest.mark.parametrize(("source", "line"), BROKEN)
@pytest.mark.parametrize("target", ["broken.py:f", "broken:f"])
def test_what_does_not_compile_is_refused_with_its_line(place: Path, target: str, source: str, line: int) -> None:
    (place / "broken.py").write_text(source)
    with pytest.raises(ProgramNotRunnable, match=rf"cannot run '{target}': .*broken\.py:{line}: ") as caught:
        found(place, target)
    assert caught.value.exit_code == 126


@pytest.mark.parametrize("source", ["(" * 2000, "x\0y"])
def test_what_the_compiler_gives_up_on_is_refused_or_left_to_the_agent(place: Path, source: str) -> None:
    (place / "odd.py").write_text(source)
    with contextlib.suppress(ProgramNotRunnable):
        assert found(place, "odd.py:f")["kind"] == "python"


def test_modules_without_a_source_are_left_to_the_agent(place: Path) -> None:
    for target in ("os.path:join", "sys:exit", "math:sqrt", "json:dumps", "package.module:there"):
        assert found(place, target)["target"] == target


def executable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


def test_programs_are_found_as_execvp_finds_them(place: Path) -> None:
    (place / "bin").mkdir()
    executable(place / "bin" / "tool", b"#!/bin/sh\n")
    executable(place / "here", b"\x7fELF")
    for words in (["tool", "-x"], ["./here"], [str(place / "here")], ["env", "a"]):
        assert found(place, *words) == {"kind": "program", "argv": words}


CANNOT = [
    ("tol", ProgramNotFound, "not found on PATH (did you mean 'tool'?)"),
    ("./her", ProgramNotFound, "no such file (did you mean 'here'?)"),
    ("./dangling", ProgramNotFound, "it is a link to nowhere, which does not exist"),
    ("agents.py", ProgramNotFound, "for a function of this Python file write agents.py:FUNCTION"),
    ("./agents.py", ProgramNotRunnable, "for the file as a program: python3 ./agents.py"),
    ("./package", ProgramNotRunnable, "it is a directory"),
    ("./plain", ProgramNotRunnable, "it is not executable; chmod +x"),
    ("./fifo", ProgramNotRunnable, "it is no regular file"),
    ("./script", ProgramNotRunnable, "its interpreter /no/such/shell does not exist"),
    ("a\0b", ProgramNotFound, "this is no name of a program"),
]


@pytest.mark.parametrize(("word", "kind", "text"), CANNOT)
def test_what_cannot_run_says_why(place: Path, word: str, kind: type[Exception], text: str) -> None:
    (place / "bin").mkdir()
    executable(place / "bin" / "tool", b"")
    executable(place / "here", b"")
    executable(place / "script", b"#! /no/such/shell -x\n")
    (place / "plain").touch()
    (place / "dangling").symlink_to("nowhere")
    os.mkfifo(place / "fifo", 0o755)
    os.chmod(place / "fifo", 0o755)
    with pytest.raises(kind) as caught:
        found(place, word)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("agents.py:plain", "plain"),
        ("a.b:c", "c"),
        ("/usr/bin/sleep", "sleep"),
        ("./-x", "x"),
        ("a\nb", "a_b"),
        ("/", "agent"),
    ],
)
def test_names_that_come_by_themselves(word: str, name: str) -> None:
    assert natural_name(word) == name
