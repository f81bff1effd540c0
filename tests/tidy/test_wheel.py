"""What a user installs: the wheel, made from the sdist, holds one package with its rooms inside and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.rules import PRODUCT, ROOMS, ROOT, files


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    source = tmp_path_factory.mktemp("source")
    for name in (*PRODUCT, "pyproject.toml", "README.md", "LICENSE", "tests"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def expected() -> list[str]:
    """Every shipped file under the name it is imported by."""
    shipped = [*files(*PRODUCT, suffix=".py"), *files("policies/builtin", suffix=".yaml"), "agentos/py.typed"]
    return [f"agentos/{path}" if path.split("/")[0] in ROOMS else path for path in shipped]


def complaints(names: list[str], wanted: list[str]) -> Iterator[str]:
    for top in {name.split("/")[0] for name in names}:
        if top not in {"agentos", "agent_os"} and not re.fullmatch(r"agentos-[^/]+\.dist-info", top):
            yield f"{top} would be installed at top level"
    for name in set(names) - set(wanted):
        if ".dist-info/" not in name:
            yield f"{name} should not ship"
    yield from (f"{name} is missing" for name in set(wanted) - set(names))


def test_the_wheel_holds_what_ships_and_nothing_else(names: list[str]) -> None:
    assert not sorted(complaints(names, expected()))
    assert any(name.endswith("dist-info/entry_points.txt") for name in names)
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.parametrize("stray", ["supervisor/__init__.py", "tests/conftest.py", "agentos/tests/test_x.py"])
def test_a_stray_file_is_found(stray: str) -> None:
    assert list(complaints(["agentos/__init__.py", stray], ["agentos/__init__.py"]))


def test_a_missing_file_is_found() -> None:
    assert list(complaints([], ["agentos/policies/builtin/strict.yaml"]))


def test_the_rooms_are_links() -> None:
    assert {room: os.readlink(Path(ROOT, "agentos", room)) for room in ROOMS} == {room: f"../{room}" for room in ROOMS}
