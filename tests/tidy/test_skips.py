"""Where no skip is allowed, each kind of skip fails the session and is named; an expected failure is no skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.rules import ROOT

KINDS = {
    "in a test": "import pytest\ndef test_quiet():\n    pytest.skip('why')\n",
    "by a mark": "import pytest\n@pytest.mark.skip(reason='why')\ndef test_quiet(): ...\n",
    "of a module": "import pytest\npytest.skip('why', allow_module_level=True)\n",
}


def run(folder: Path, text: str, *, allowed: bool) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "tests/conftest.py", folder)
    (folder / "test_planted.py").write_text("def test_passes(): ...\n")
    (folder / "test_quiet.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "."]
    env = {**os.environ, "AGENTOS_NO_SKIPS": "" if allowed else "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skip_fails_where_none_is_allowed(tmp_path: Path, kind: str) -> None:
    done = run(tmp_path, KINDS[kind], allowed=False)
    assert done.returncode == 1
    assert "no skip is allowed here" in done.stdout
    assert "test_quiet.py" in done.stdout.partition("no skip is allowed here")[2]


def test_a_skip_passes_elsewhere(tmp_path: Path) -> None:
    assert run(tmp_path, KINDS["in a test"], allowed=True).returncode == 0


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    text = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_known():\n    assert False\n"
    assert run(tmp_path, text, allowed=False).returncode == 0
