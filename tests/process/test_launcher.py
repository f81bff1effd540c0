"""bin/agentos from a bare checkout: what it starts, what it repairs, and what it says when it can do neither.

A stand-in for the environment's Python records how it was called; nothing is installed and no network is used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("supervisor", "sandbox", "policies")
STAND_IN = '#!/bin/sh\necho "$(pwd)|$*|$PYTHONPYCACHEPREFIX"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a check out"
    shutil.copytree(ROOT / "bin", root / "bin")
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "agentos").mkdir()
    for room in ROOMS:
        (root / room).mkdir()
        (root / "agentos" / room).symlink_to(f"../{room}")
    install(root, root / ".venv")
    return root


def install(root: Path, venv: Path) -> None:
    """Leave what a finished install would leave, with the stand-in as Python."""
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text(STAND_IN)
    (venv / "bin/python").chmod(0o755)
    (venv / "stamp").write_text(f"{root} \n{(root / 'pyproject.toml').read_text()}")


def start(
    command: Path, *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[int, str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    done = subprocess.run(
        [command, *args], cwd=cwd, env=inherited | dict(env or {}), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_an_up_to_date_environment_is_started_at_once(checkout: Path, tmp_path: Path) -> None:
    assert start(checkout / "bin/agentos", "ps", "a b", cwd=tmp_path) == (0, f"{tmp_path}|-P -m agentos ps a b|", "")


def test_it_starts_through_a_link_with_an_empty_home(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a check out/bin/agentos")
    code, out, err = start(tmp_path / "link", "ps", env={"HOME": ""}, cwd=tmp_path)
    assert (code, out.split("|")[1], err) == (0, "-P -m agentos ps", "")


def test_a_link_that_arrived_as_a_text_file_is_repaired(checkout: Path) -> None:
    room = checkout / "agentos/sandbox"
    room.unlink()
    room.write_text("../sandbox")
    code, _, err = start(checkout / "bin/agentos")
    assert code == 0
    assert "repaired" in err
    assert os.readlink(room) == "../sandbox"


def test_a_link_that_cannot_be_repaired_is_explained(checkout: Path, tmp_path: Path) -> None:
    room = checkout / "agentos/sandbox"
    room.unlink()
    room.write_text("../sandbox")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ln").symlink_to("/bin/false")
    code, _, err = start(checkout / "bin/agentos", env={"PATH": f"{programs}:{os.environ['PATH']}"})
    assert code == 125
    assert "core.symlinks true" in err


def test_an_interrupted_install_is_begun_again_and_a_missing_python_explained(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".venv/stamp").unlink()
    script = checkout / "bin/environment.sh"
    script.write_text(script.read_text().replace("/usr/", "/nowhere/"))
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "readlink", "mkdir", "flock", "rm", "env"):
        (programs / name).symlink_to(shutil.which(name) or name)
    code, _, err = start(checkout / "bin/agentos", env={"PATH": str(programs)})
    assert code == 125
    assert "installing" in err
    assert "apt-get install python3-venv" in err


def test_a_changed_pyproject_asks_for_an_install(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text("[project]\n")
    _, _, err = start(checkout / "bin/agentos")
    assert "installing" in err


def test_a_checkout_that_may_not_be_written_uses_the_cache(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    script = checkout / "bin/environment.sh"
    script.write_text(script.read_text().replace("-w $root ", "-w /proc/1/nothing "))  # root may write everywhere
    venv = tmp_path / "cache/agentos" / (str(checkout).replace("/", "%") + ".venv")
    install(checkout, venv)
    code, out, err = start(checkout / "bin/agentos", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert (code, err) == (0, "")
    assert out.endswith(f"|{venv}/pycache")
