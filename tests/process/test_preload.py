"""KernelSpace(preload=[…]): agents are born with modules; what cannot be had is said, and nothing is left running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from world import carriers, wait_until

from agentos import KernelSpace, errors
from agentos.client import launch

COOKIE = "AGENTOS_TEST_PRELOAD"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv(COOKIE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.syspath_prepend(str(modules))
    return modules


def run(kernel: KernelSpace, function: Callable[..., Any], *args: Any) -> Any:
    async def story() -> Any:
        kernel.register(name="agent")(function)
        try:
            return await kernel.execute("agent", *args)
        finally:
            await kernel.shutdown()

    return asyncio.run(story())


def refused(home: Path, *names: str) -> str:
    """Start a kernel that must not start; returns why, once nothing of it lives."""
    with pytest.raises(errors.BadRequest) as caught:
        run(KernelSpace(preload=names), os.getpid)
    assert carriers(f"{COOKIE}={home.parent}") == []
    assert not list((home.parent / "run").glob("*/sock"))
    return str(caught.value)


def test_agents_have_them_before_their_first_line_and_they_were_imported_once(home: Path) -> None:
    (home / "heavy.py").write_text("import os\npid = os.getpid()\n")

    def look() -> tuple[list[bool], int]:
        born_with = [name in sys.modules for name in ("heavy", "xml.dom.minidom", "heavier")]
        import heavy  # type: ignore[import-not-found]

        return born_with, heavy.pid

    born_with, pid = run(KernelSpace(preload=("heavy", "xml.dom.minidom")), look)
    assert born_with == [True, True, False]
    assert pid != os.getpid()
    assert run(KernelSpace(), look)[0] == [False, False, False]


def test_they_are_sought_as_this_program_seeks_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.parent / "here").mkdir()
    (home.parent / "here" / "relative.py").write_text("text = open('note').read()\n")
    (home.parent / "note").write_text("a note")
    monkeypatch.setattr(sys, "path", [*sys.path, "here"])

    def look() -> str:
        return str(sys.modules["relative"].text)

    assert run(KernelSpace(preload=["relative"]), look) == "a note"


def test_a_handler_that_a_module_installs_is_none_of_ours(home: Path) -> None:
    """In the zygote, and in the sentries that are forked from it: who is told to end must not call a module."""
    (home / "meddler.py").write_text("import signal\nsignal.signal(signal.SIGUSR1, print)\n")

    async def caught() -> list[int]:
        kernel = KernelSpace(preload=["meddler"])
        kernel.register(name="agent")(time.sleep)
        async with kernel:
            agent_id = await kernel.spawn("agent", 60)
            seen = await kernel._call("inspect", {"id": agent_id})
            return [mask_of(seen[name]) for name in ("zygote_pid", "sentry_pid", "kernel_pid")]

    assert [mask & 1 << signal.SIGUSR1 - 1 for mask in asyncio.run(caught())] == [0, 0, 0]


def mask_of(pid: int) -> int:
    """Return the signals that a process has handlers for (SigCgt, proc_pid_status(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))


def test_a_module_that_is_not_there_is_named_with_the_one_that_may_be_meant(home: Path) -> None:
    (home / "lists.py").write_text("")
    assert "there is no module 'jsno' (did you mean 'json'?)" in refused(home, "json", "jsno")
    assert "there is no module 'lits' (did you mean 'lists'?)" in refused(home, "lits")
    assert "there is no module 'xml.domm' (did you mean 'dom'?)" in refused(home, "xml.domm")


def test_a_module_that_fails_tells_what_it_failed_with(home: Path) -> None:
    (home / "broken.py").write_text("raise OSError('no licence here')")
    (home / "leaving.py").write_text("import sys; sys.exit(3)")
    (home / "lacking.py").write_text("import no_such_thing_at_all")
    assert "'broken' cannot be imported: OSError: no licence here" in refused(home, "broken")
    assert "'leaving' cannot be imported: SystemExit: 3" in refused(home, "leaving")
    assert "'lacking' cannot be imported: ModuleNotFoundError: No module named 'no_such" in refused(home, "lacking")


def test_a_module_that_starts_threads_or_processes_is_refused(home: Path) -> None:
    (home / "pool.py").write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n")
    (home / "helper.py").write_text("import subprocess\nsubprocess.Popen(['sleep', '99'])\n")
    said = refused(home, "json", "pool")
    assert "'pool' starts a thread when it is imported" in said
    assert "OPENBLAS_NUM_THREADS" in said
    assert "'helper' starts a process when it is imported" in refused(home, "helper")


def test_a_module_that_never_ends_does_not_outlive_the_attempt(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that defends itself: the host program gives up, and kills what hangs."""
    (home / "endless.py").write_text(
        "import os, signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True:\n    time.sleep(60)\n"
    )
    monkeypatch.setattr(launch, "START_LIMIT_S", 1.0)
    monkeypatch.setattr(launch, "GIVE_UP_S", 0.2)
    with pytest.raises(errors.KernelUnavailable):
        run(KernelSpace(preload=["endless"]), os.getpid)
    wait_until(lambda: carriers(f"{COOKIE}={home.parent}") == [], 30)


def test_what_is_no_list_of_module_names_is_refused_at_once() -> None:
    for wrong in ("numpy", ["num py"], [3], ["a..b"], [""], ["os; print()"]):
        with pytest.raises(errors.BadRequest, match="module names, such as"):
            KernelSpace(preload=wrong)  # type: ignore[arg-type]


def test_after_a_refusal_a_right_one_starts(home: Path) -> None:
    kernel = KernelSpace(preload=["late"])
    with pytest.raises(errors.BadRequest, match="no module 'late'"):
        run(kernel, os.getpid)
    (home / "late.py").write_text("")

    async def again() -> int:
        async with kernel:
            return int(await kernel.execute("agent"))

    assert asyncio.run(again()) != os.getpid()


def test_an_agent_that_needs_a_slow_module_is_sooner_there(home: Path) -> None:
    (home / "slow.py").write_text("import time\ntime.sleep(0.5)\n")

    def first_line(since: float) -> float:
        import slow  # type: ignore[import-not-found]  # noqa: F401

        return time.monotonic() - since

    def measured(kernel: KernelSpace) -> float:
        async def story() -> float:
            kernel.register(name="agent")(first_line)
            async with kernel:
                return float(await kernel.execute("agent", time.monotonic()))

        return asyncio.run(story())

    with_it, without = measured(KernelSpace(preload=["slow"])), measured(KernelSpace())
    assert without > 0.5
    assert with_it < without
