"""What the kernel keeps and how it lets go: locks, directories that agents filled, results, the watch over sentries."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from agentos.errors import HostError
from agentos.policies import EffectivePolicy, Policy
from agentos.supervisor import agents as agents_module
from agentos.supervisor import kernel
from agentos.supervisor.agents import Agent, Agents
from agentos.supervisor.scratch import remove_tree

# --- the lock ------------------------------------------------------------------------------------------------------


def test_a_lock_that_somebody_looks_at_is_waited_for(tmp_path: Path) -> None:
    held = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_SH)
    threading.Timer(0.2, lambda: os.close(held)).start()
    os.close(kernel._take_lock(str(tmp_path)))


def test_a_lock_that_another_kernel_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "LOCK_TRIES", 3)
    held = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="belongs to another kernel"):
        kernel._take_lock(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(held)


# --- directories ---------------------------------------------------------------------------------------------------


def test_whatever_an_agent_put_into_its_directory_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    top = tmp_path / "top"
    top.mkdir()
    here = os.getcwd()
    os.chdir(top)
    try:
        for level in range(1_200):  # deeper than Python recurses, longer than a path may be
            os.mkdir("deep")
            os.chdir("deep")
            if level % 100 == 0:
                Path("file").write_text("x")
                os.symlink(outside, "link")
                os.mkfifo("fifo")
                os.mkdir("locked")
                os.mkdir("locked/inside")
                os.chmod("locked", 0)
    finally:
        os.chdir(here)
    for number in range(300):
        (top / f"wide-{number}").mkdir()
    (top / ".removed-0").mkdir()
    (top / ".removed-0" / "taken").write_text("a name that we would have used")
    assert remove_tree(str(top))
    assert not top.exists()
    assert (outside / "kept").read_text() == "kept"


def test_what_cannot_be_removed_is_said_and_raises_nothing(tmp_path: Path) -> None:
    assert remove_tree(str(tmp_path / "nothing"))
    (tmp_path / "link").symlink_to(tmp_path)
    assert not remove_tree(str(tmp_path / "link"))
    assert tmp_path.exists()


# --- results -------------------------------------------------------------------------------------------------------


def ended(number: int, result: bytes | None, *, collected: bool = False) -> Agent:
    agent = Agent(
        id=str(number), name="a", execution_id="a", kind="python", command=[], level="hooks", cwd="/", context={},
        policy=EffectivePolicy(Policy.builtin("permissive"), workspace="/"), policy_name="permissive", grace_s=1.0,
    )  # fmt: skip
    agent.result = result
    agent.collected = collected
    agent.gone.set()
    return agent


def test_results_are_kept_within_a_limit_and_the_collected_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_module, "RESULT_BYTES_MAX", 100)
    agents = Agents()
    for number, collected in enumerate([False, True, False, True, False]):
        agents.add(ended(number, bytes(40), collected=collected))
        agents.forget_results()
    held = {agent.id: (agent.result is not None, agent.result_dropped) for agent in agents.all()}
    assert held == {
        "0": (False, True), "1": (False, True), "2": (True, False), "3": (False, True), "4": (True, False),
    }  # fmt: skip


def test_ended_agents_are_forgotten_and_living_ones_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_module, "ENDED_KEPT", 5)
    agents = Agents()
    living = ended(1_000, None)
    living.gone.clear()
    agents.add(living)
    for number in range(50):
        agents.add(ended(number, None))
    assert living in agents.all()
    assert len(agents.all()) <= 6
    assert agents.get("49") is not None
    assert agents.get("0") is None
