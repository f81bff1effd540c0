"""What shall run, found and checked before anything is started, without executing any of it.

A program is looked for as execvp(3) would. Of a Python target the module is looked for on the path, and its source is
parsed, never imported: code of an agent runs in the agent. Where a module makes names that its source does not show,
or has no source, nothing is claimed and the agent says what is missing.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agentos.errors import ProgramNotFound, ProgramNotRunnable, nearest

SOURCE_BYTES_MAX: Final = 16 * 1024 * 1024  # more is no module that a person wrote; the agent may try it
_SHEBANG_BYTES: Final = 256  # what Linux itself reads of one (execve(2))

_FUNCTION: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_FILE_FUNCTION: Final = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d]\w*)")
# Who uses one of these can give a module names that nothing in its source shows.
_MAKES_NAMES: Final = frozenset({"__getattr__", "globals", "vars", "setattr", "exec", "modules", "locals"})


def what_to_run(words: Sequence[str], cwd: str, search_path: str) -> dict[str, Any]:
    """Return kind, and argv or target and args. Raises ProgramNotFound, ProgramNotRunnable."""
    first = words[0]
    in_file = _FILE_FUNCTION.fullmatch(first)
    if in_file:
        path = Path(in_file["file"])
        if not path.is_file():
            raise ProgramNotFound(first, f"{path}: no such file{_nearest_file(path)}")
        _check_function(first, str(path), in_file["function"])
        return {"kind": "python", "target": f"{path.resolve()}:{in_file['function']}", "args": list(words[1:])}
    if _FUNCTION.fullmatch(first):
        module, _, function = first.partition(":")
        source = _find_module(first, module, cwd)
        if source:
            _check_function(first, source, function)
        return {"kind": "python", "target": first, "args": list(words[1:])}
    check_program(first, cwd, search_path)
    return {"kind": "program", "argv": list(words)}


def natural_name(first_word: str) -> str:
    """Return what an agent is called when nobody named it: its function, or its program without the folders."""
    if _FUNCTION.fullmatch(first_word) or _FILE_FUNCTION.fullmatch(first_word):
        return first_word.rpartition(":")[2]
    return "".join(char if char.isprintable() else "_" for char in os.path.basename(first_word)).lstrip("-") or "agent"


# --- programs --------------------------------------------------------------------------------------------------------


def check_program(word: str, cwd: str, search_path: str) -> None:
    """Look for a program as execvp(3) would from `cwd`. Raises ProgramNotFound, ProgramNotRunnable."""
    if not word or "\0" in word:
        raise ProgramNotFound(word, "this is no name of a program")
    if "/" in word:
        _check_file(word, os.path.normpath(os.path.join(cwd, word)))
        return
    folders = [os.path.join(cwd, folder) for folder in search_path.split(os.pathsep)]
    files = [path for folder in folders if os.path.isfile(path := os.path.join(folder, word))]
    if not files:
        if word.endswith(".py") and os.path.isfile(os.path.join(cwd, word)):
            raise ProgramNotFound(word, f"not found on PATH; {_how_to_run_python(word)}")
        raise ProgramNotFound(word, f"not found on PATH{nearest(word, _programs(folders))}")
    found = next((path for path in files if os.access(path, os.X_OK)), None)
    if found is None:
        raise ProgramNotRunnable(word, f"{files[0]} is not executable; {_how_to_make_it_run(word, files[0])}")
    _check_interpreter(word, found)


def _programs(folders: Sequence[str]) -> Iterator[str]:
    for folder in folders:
        try:
            yield from os.listdir(folder)
        except OSError:  # PATH may name what is not there
            continue


def _check_file(word: str, path: str) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise ProgramNotFound(word, f"it is a link to {os.readlink(path)}, which does not exist")
    if not os.path.exists(path):
        folder, name = os.path.split(path)
        raise ProgramNotFound(word, f"no such file{nearest(name, _programs([folder]))}")
    if not os.path.isfile(path):
        raise ProgramNotRunnable(word, "it is a directory" if os.path.isdir(path) else "it is no regular file")
    if not os.access(path, os.X_OK):
        raise ProgramNotRunnable(word, f"it is not executable; {_how_to_make_it_run(word, path)}")
    _check_interpreter(word, path)


def _how_to_make_it_run(word: str, path: str) -> str:
    return _how_to_run_python(word) if word.endswith(".py") else f"chmod +x {path}"


def _how_to_run_python(word: str) -> str:
    return f"for a function of this Python file write {word}:FUNCTION, for the file as a program: python3 {word}"


def _check_interpreter(word: str, path: str) -> None:
    """Say which interpreter of a script is missing: execve(2) would only say `No such file` of the script."""
    try:
        with open(path, "rb") as file:
            first = file.read(_SHEBANG_BYTES).partition(b"\n")[0]
    except OSError:  # executable and not readable is a program all the same
        return
    if first.startswith(b"#!"):
        interpreter = os.fsdecode(first[2:].strip().partition(b" ")[0])
        if os.path.isabs(interpreter) and not os.path.exists(interpreter):
            raise ProgramNotRunnable(word, f"its interpreter {interpreter} does not exist")


# --- Python ----------------------------------------------------------------------------------------------------------


def _find_module(target: str, module: str, cwd: str) -> str | None:
    """Return the source of a module, None where it has none. Raises ProgramNotFound. Imports nothing."""
    if module in sys.modules or module in sys.builtin_module_names:
        return None
    place, path, known, source = cwd, [cwd, *sys.path], "", None
    for part in module.split("."):
        known = f"{known}.{part}".lstrip(".")
        spec = importlib.machinery.PathFinder.find_spec(known, path)
        if spec is None:
            where = f"in {place} or on the Python path" if "." not in known else f"in {place}"
            raise ProgramNotFound(target, f"no module {known!r} {where}{nearest(part, _modules(path))}")
        path = list(spec.submodule_search_locations or ())
        place = path[0] if path else str(spec.origin)
        source = spec.origin if spec.has_location and str(spec.origin).endswith(".py") else None
    return source


def _modules(path: Sequence[str]) -> Iterator[str]:
    """Yield the names that a person may have meant: files and packages in the first, local, place."""
    folder = Path(path[0]) if path else None
    for each in folder.iterdir() if folder is not None and folder.is_dir() else ():
        if each.suffix == ".py" or (each / "__init__.py").is_file():
            yield each.stem


def _check_function(target: str, path: str, name: str) -> None:
    """Raise ProgramNotFound when the source at `path` plainly has no function `name`, ProgramNotRunnable for no source."""
    names = _names_of(target, path)
    if names is None or names.get(name) in ("function", "perhaps"):
        return
    functions = [each for each, kind in names.items() if kind == "function"]
    problem = f"has {name!r}, but that is a module" if name in names else f"has no function {name!r}"
    raise ProgramNotFound(target, f"{path} {problem}{nearest(name, functions)}")


def _names_of(target: str, path: str) -> Mapping[str, str] | None:
    """Return every name of a module and what it is: function, module, perhaps either; None when it cannot be told.

    Raises ProgramNotRunnable when this Python cannot compile it: nothing in it would run.
    """
    try:
        if os.path.getsize(path) > SOURCE_BYTES_MAX:
            return None
        tree = ast.parse(Path(path).read_bytes())
    except SyntaxError as error:
        place = f"{path}:{error.lineno}" if error.lineno else path
        raise ProgramNotRunnable(target, f"{place}: {error.msg}") from None
    except (OSError, ValueError, RecursionError, MemoryError):  # the agent's own error, said by the agent
        return None
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):  # a function that is called while the module is made
            names.update(dict.fromkeys(node.names, "perhaps"))
        elif isinstance(node, ast.Name | ast.Attribute) and _word(node) in _MAKES_NAMES:
            return None
    for node in _at_top_level(tree):
        for name, kind in _bound_by(node):
            if names.get(name, "module") == "module":
                names[name] = kind
    return None if "*" in names or _MAKES_NAMES & names.keys() else names


def _at_top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all of a module but the bodies of its functions and classes, whose names are their own."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _at_top_level(node)


def _bound_by(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names that one node gives something to, each with what it is."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name, "function"
    elif isinstance(node, ast.Import):
        for each in node.names:
            yield each.asname or each.name.partition(".")[0], "module"
    elif isinstance(node, ast.ImportFrom):
        for each in node.names:
            yield each.asname or each.name, "perhaps"
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield _word(node), "perhaps"
    elif isinstance(node, ast.MatchAs | ast.MatchStar | ast.MatchMapping):
        name = node.rest if isinstance(node, ast.MatchMapping) else node.name
        yield from [(name, "perhaps")] if name else ()


def _word(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _nearest_file(path: Path) -> str:
    return nearest(path.name, [each.name for each in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
