"""Commands that cross each other, starts that fail, limits that are reached: every answer true, nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attackers
import pytest
from arena import Arena, arena
from world import PROJECT, SYSTEM_PYTHON, Client, Host, carriers, hostile_host, state_of, ticks_of, wait_until

from agentos import wire
from agentos.errors import AgentosError, ProgramNotRunnable
from agentos.faults import rebuild

STRANGER = 60_000 + os.getpid() % 1_000  # a user who has no process yet
SLEEPER = [SYSTEM_PYTHON, "-c", "import time; time.sleep(60)"]
Start = Callable[..., Host]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, {"argv": SLEEPER})
    yield made
    made.close()


def together(host: Host, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Make every call over a connection of its own, all at once; return the answers in order."""
    clients = [Client(host) for _ in calls]
    begin = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        begin.wait()
        try:
            answers[index] = clients[index].call(calls[index][0], **calls[index][1])
        except AgentosError as error:
            answers[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for client in clients:
        client.close()
    return answers


# --- commands at once ----------------------------------------------------------------------------------------------


def test_stop_kill_and_stop_again_at_once_end_in_one_death(tmp_path: Path) -> None:
    with hostile_host(tmp_path) as host:
        tree = carriers(host.cookie)
        answers = together(
            host,
            ("stop", {"grace_s": 5}),
            ("signal", {"signal": signal.SIGKILL}),
            ("signal", {"signal": signal.SIGSTOP}),
            ("stop", {"grace_s": 5}),
            ("signal", {"signal": signal.SIGTERM}),
            ("signal", {"signal": signal.SIGCONT}),
        )
        assert [pid for pid in tree if state_of(pid) not in ("", "Z")] == []
        assert all(isinstance(answer, dict) for answer in answers), answers
        assert answers[0]["exit_signal"] == answers[3]["exit_signal"] == signal.SIGKILL
        assert answers[1]["ok"]
        assert [one.data["exit_signal"] for one in host.events("agent_exited")] == [signal.SIGKILL]
        assert carriers(host.cookie) == []


def test_two_stops_tell_of_the_same_end(host: Host) -> None:
    answers = together(host, ("stop", {}), ("stop", {}))
    assert [answer["exit_signal"] for answer in answers] == [signal.SIGTERM] * 2


def test_a_kill_reaches_an_agent_that_has_not_begun(tmp_path: Path) -> None:
    """Between fork and exec: the kernel knows it, the program has not run."""
    host = Host(tmp_path, {"argv": SLEEPER, "start_paused": True})
    try:
        assert host.call("signal", signal=signal.SIGKILL)["ok"]
        assert state_of(host.facts["pid"]) in ("", "Z")
        assert host.call("wait", timeout_s=5)["exit_signal"] == signal.SIGKILL
    finally:
        host.close()


def test_kills_race_with_starts_and_every_start_is_answered(host: Host) -> None:
    """A second client kills whatever it sees, whatever its phase."""
    stop = threading.Event()
    killed: set[str] = set()

    def hunt() -> None:
        client = Client(host)
        while not stop.is_set():
            for row in client.link.call("ps")["agents"]:
                if row["name"] == "prey-of-the-hunt" and row["phase"] not in ("exited", "terminated"):
                    killed.add(row["id"])
                    client.link.call("signal", {"id": row["id"], "signal": 9})
        client.close()

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        for _ in range(30):
            answer = host.call("start", id=None, argv=SLEEPER, name="prey-of-the-hunt", require="none")
            assert "id" in answer or answer["error"] in ("HostError", "ProgramNotRunnable"), answer
    finally:
        wait_until(lambda: len(killed) >= 20, what="the hunter to have hunted")
        stop.set()
        hunter.join()
    rows = [row for row in host.call("ps")["agents"] if row["name"] == "prey-of-the-hunt"]
    for row in rows:
        assert host.call("wait", id=row["id"], timeout_s=10)["exit_signal"] == signal.SIGKILL
    assert [row["id"] for row in rows if row["sentry_pid"] and state_of(row["sentry_pid"]) not in ("", "Z")] == []


def test_signals_to_agents_that_are_just_ending_cost_no_exit_status(host: Host) -> None:
    program = [SYSTEM_PYTHON, "-I", "-S", "-c", "import os; os._exit(37)"]
    other = Client(host)
    for index in range(30):
        agent = host.call("start", argv=program, require="none")["id"]
        time.sleep(0.0015 * (index % 12))
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGUSR2):
            other.link.call("signal", {"id": agent, "signal": int(number)})
        ended = other.link.call("wait", {"id": agent, "timeout_s": 20})
        assert (ended["exit_code"], ended["exit_signal"]) in ((37, None), (None, signal.SIGUSR2))
    other.close()
    assert len(host.events("agent_exited")) == 30
    assert host.events("kernel_fault") == []


# --- storms --------------------------------------------------------------------------------------------------------


def storm(client: Client, numbers: list[int]) -> list[Any]:
    """Send every signal without waiting, then collect the answers."""
    ids = {}
    for number in numbers:
        call = wire.Call(client.link.new_id(), "signal", {"id": client.host.facts["id"], "signal": number})
        client.link.send(call)
        ids[call.id] = number
    answers = []
    while len(answers) < len(numbers):
        frame = client.link.receive()
        if isinstance(frame, wire.Fault):
            raise rebuild(frame)
        assert frame.id in ids
        answers.append(frame.value)
    return answers


@pytest.mark.parametrize("last", [signal.SIGSTOP, signal.SIGCONT])
def test_many_pairs_of_stop_and_cont_end_as_was_asked_last(tmp_path: Path, last: signal.Signals) -> None:
    """Of one that computes; tests/storm has ten thousand, with trees, and looks at what is shown meanwhile."""
    pairs = 300
    first = signal.SIGCONT if last is signal.SIGSTOP else signal.SIGSTOP
    host = Host(tmp_path, {"argv": [SYSTEM_PYTHON, "-c", "while True: pass"]})
    try:
        client = Client(host)
        answers = storm(client, [int(first), int(last)] * pairs)
        assert all(answer["ok"] for answer in answers)
        stopped = last is signal.SIGSTOP
        assert client.call("status")["state"] == ("stopped" if stopped else "running")
        pid = host.facts["pid"]
        assert (state_of(pid) in "Tt") is stopped
        ticks = ticks_of(pid)
        time.sleep(0.3)
        assert (ticks_of(pid) == ticks) is stopped
        client.close()
    finally:
        host.close()


def test_what_is_shown_is_what_linux_says_after_a_storm_from_outside(host: Host) -> None:
    pid = host.facts["pid"]
    for number in itertools.islice(itertools.cycle((signal.SIGSTOP, signal.SIGCONT)), 301):
        os.kill(pid, number)
    wait_until(lambda: host.call("status")["state"] == "stopped", what="the last one, a SIGSTOP, to be shown")
    assert state_of(pid) == "T"
    assert host.call("signal", signal=signal.SIGCONT)["state"] == "running"


# --- starts that fail ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena(tmp_path_factory.mktemp("arena")) as made:
        yield made


def start(place: Arena, *argv: str, **params: Any) -> Any:
    return place.call("start", argv=list(argv), require="none", **params)


def executable(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


def failures(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    return {
        "E2BIG": (["/bin/echo", "x" * 200_000], os.strerror(errno.E2BIG)),  # one word: MAX_ARG_STRLEN
        "ENOEXEC": ([executable(tmp_path / "noexec", b"no magic number\n")], os.strerror(errno.ENOEXEC)),
        "ETXTBSY": ([executable(tmp_path / "busy", Path("/bin/true").read_bytes())], os.strerror(errno.ETXTBSY)),
        "ENOENT": ([executable(tmp_path / "lost", b"#!/does/not/exist\n")], os.strerror(errno.ENOENT)),
        "ELOOP": ([executable(tmp_path / "self", f"#!{tmp_path}/self\n".encode())], os.strerror(errno.ELOOP)),
        "NUL": (["/bin/echo", "a\0b"], os.strerror(errno.EINVAL)),
    }


def test_a_failure_of_exec_is_on_record_before_the_exit_whatever_the_sentry_hears_first(tmp_path: Path) -> None:
    lost = executable(tmp_path / "lost", b"#!/does/not/exist\n")
    host = Host(tmp_path, {"argv": [lost], "start_paused": True})
    try:
        os.kill(host.facts["sentry_pid"], signal.SIGSTOP)
        os.kill(host.facts["pid"], signal.SIGCONT)  # it tries to execute, fails and exits, and nobody hears it
        wait_until(lambda: state_of(host.facts["pid"]) == "Z", what="the agent to be dead")
        os.kill(host.facts["sentry_pid"], signal.SIGCONT)
        host.call("wait", timeout_s=10)
        kinds = [one.event_type for one in host.events() if one.event_type.startswith("agent_")]
        assert [kind for kind in kinds if kind in ("agent_start_failed", "agent_exited")] == [
            "agent_start_failed", "agent_exited",
        ]  # fmt: skip
    finally:
        host.close()


@pytest.mark.parametrize("name", ["E2BIG", "ENOEXEC", "ETXTBSY", "ENOENT", "ELOOP", "NUL"])
def test_a_failure_of_exec_is_named_and_leaves_nothing(place: Arena, tmp_path: Path, name: str) -> None:
    argv, says = failures(tmp_path)[name]
    before = place.descriptors()
    held = os.open(argv[0], os.O_WRONLY) if name == "ETXTBSY" else -1
    try:
        with pytest.raises(AgentosError) as caught:
            start(place, *argv)
    finally:
        if held >= 0:
            os.close(held)
    assert type(caught.value).__name__ == "ProgramNotRunnable"
    assert says in str(caught.value)
    assert os.path.basename(argv[0]) in str(caught.value)
    assert place.events("agent_start_failed")[-1].data["error"] == says
    wait_until(lambda: place.descriptors() == before, what="the kernel's descriptors to be closed")
    place.assert_bystander_acts()


def test_a_command_that_cannot_go_on_record_whole_is_not_started(place: Arena) -> None:
    with pytest.raises(ProgramNotRunnable, match="argv has 60000.. characters, the limit is 262144"):
        start(place, "/bin/echo", *["x" * 100_000] * 60)
    place.assert_bystander_acts()


def test_words_that_are_no_utf8_reach_the_program(place: Arena, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    code = "import sys, os; os.close(os.open(os.fsencode(sys.argv[1]), os.O_CREAT))"
    agent = start(place, SYSTEM_PYTHON, "-c", code, name)  # type: ignore[arg-type]  # as the command line sends it
    assert place.call("wait", id=agent["id"], timeout_s=20)["exit_code"] == 0
    assert os.path.exists(name)
    assert place.inspect(agent["id"])["command"][-1].endswith("caf\\xe9")


def test_an_agent_gets_no_descriptor_and_no_setting_of_ours(place: Arena, tmp_path: Path) -> None:
    code = (
        "import os, json, resource, signal, sys\n"
        "fds = sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1]\n"
        "status = dict(l.split(':\\t', 1) for l in open('/proc/self/status') if ':\\t' in l)\n"
        "print(json.dumps({'fds': fds, 'umask': status['Umask'].strip(), 'blocked': status['SigBlk'].strip(),\n"
        "    'ignored': status['SigIgn'].strip(), 'nofile': resource.getrlimit(resource.RLIMIT_NOFILE),\n"
        "    'sid': os.getsid(0) == os.getpid(), 'agentos': sorted(k for k in os.environ if k.startswith('AGENTOS')),\n"
        "    'tmp': oct(os.stat(os.environ['TMPDIR']).st_mode)}), file=open('seen', 'w'))\n"
    )
    old = os.umask(0o027)
    os.umask(old)
    agent = start(place, "/usr/bin/python3", "-I", "-S", "-c", code, cwd=str(tmp_path))
    assert place.call("wait", id=agent["id"], timeout_s=20)["exit_code"] == 0
    seen = __import__("json").loads((tmp_path / "seen").read_text())
    assert seen["fds"] == [0, 1, 2]
    assert int(seen["umask"], 8) == old
    assert int(seen["blocked"], 16) == 0
    assert int(seen["ignored"], 16) & ~(1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0  # CPython's own two
    assert tuple(seen["nofile"]) == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert seen["sid"]
    assert seen["agentos"] == ["AGENTOS_AGENT_ID", "AGENTOS_RUN"]
    assert seen["tmp"].endswith("700")


def test_a_function_agent_has_its_three_pipes_and_its_programs_have_none_of_them(place: Arena) -> None:
    seen = place.run(attackers.descriptors)
    assert seen["program"] == ["0", "1", "2"]
    assert seen["own"].count("pipe") == 5  # up, down, calls, stdout, stderr
    assert "socket" not in seen["own"]
    others = [kind for kind in seen["own"] if kind not in ("pipe", "/dev/null", "anon_inode", "/memfd")]
    assert [kind for kind in others if not kind.startswith("/proc/")] == []


# --- many ----------------------------------------------------------------------------------------------------------


def test_two_hundred_agents_leave_no_descriptor_and_no_zombie(place: Arena) -> None:
    async def crowd(count: int) -> None:
        async def one(index: int) -> None:
            params = {"argv": ["/bin/true"] if index % 2 else ["/bin/false"], "require": "none"}
            agent = await place.kernel._call("start", params)
            ended = await place.kernel._call("wait", {"id": agent["id"], "timeout_s": 60})
            assert ended["exit_code"] == (0 if index % 2 else 1)

        await asyncio.gather(*(one(index) for index in range(count)))

    asyncio.run(crowd(20))
    before = place.descriptors()
    asyncio.run(crowd(200))
    wait_until(lambda: place.descriptors() == before, what="the kernel's descriptors to be closed")
    after = place.inspect()
    ours = {after[name] for name in ("kernel_pid", "zygote_pid", "guard_pid", "recorder_pid", "sentry_pid")}
    wait_until(lambda: not zombies_of(ours), what="the zombies to be reaped")
    runs = place.state_dir.parent.parent.parent / "run" / "runs"
    wait_until(lambda: len(list(runs.glob("*/tmp/*"))) == 1, what="all directories but the bystander's to be removed")
    place.assert_bystander_acts()


def zombies_of(parents: set[int]) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] == "Z" and int(fields[1]) in parents:
            found.append(int(name))
    return found


def test_many_function_agents_at_once_all_complete_and_every_action_is_counted(place: Arena) -> None:
    count = int(os.environ.get("AGENTOS_TEST_AGENTS", "60"))
    place.kernel.register(name=f"worker-of-{count}")(attackers.act_often)

    async def crowd() -> list[Any]:
        names = [f"worker-of-{count}"] * count
        return await asyncio.gather(*(place.kernel.execute(name, 20) for name in names))  # type: ignore[arg-type]

    before = len(place.events("action_allowed"))
    assert asyncio.run(crowd()) == [20] * count
    workers = [one for one in place.events("agent_exited") if one.agent_name == f"worker-of-{count}"]
    assert len(workers) == count
    ids = {one.agent_id for one in workers}
    acts = [one for one in place.events("action_allowed")[before:] if one.agent_id in ids]
    told = [one for one in acts if one.data["mechanism"] == "sdk"]
    assert len(told) == 20 * count
    for agent_id in ids:
        mine = [one.data["resource"] for one in told if one.agent_id == agent_id]
        assert mine == [f"data/{number}" for number in range(20)]
    place.assert_bystander_acts()


# --- limits --------------------------------------------------------------------------------------------------------


def test_without_descriptors_a_start_fails_by_name_and_others_go_on(tmp_path: Path) -> None:
    """The kernel raises its soft limit to the hard one; the hard one holds."""
    host = Host(tmp_path, {"argv": SLEEPER}, limits={"RLIMIT_NOFILE": 64})
    try:
        started, failed = [], []
        for _ in range(40):
            answer = host.call("start", argv=SLEEPER, require="none", name="one-more")
            (failed if "error" in answer else started).append(answer)
        assert len(started) >= 5
        assert failed
        assert {answer["error"] for answer in failed} == {"HostError"}
        assert all("Too many open files" in answer["message"] for answer in failed), failed[0]
        before = host.call("inspect")["kernel_descriptors"]
        assert host.call("status")["state"] == "running"
        for answer in started:
            assert host.call("signal", id=answer["id"], signal=signal.SIGKILL)["ok"]
            assert host.call("wait", id=answer["id"], timeout_s=10)["exit_signal"] == signal.SIGKILL
        wait_until(lambda: host.call("inspect")["kernel_descriptors"] == before - 2 * len(started))
        again = host.call("start", argv=["/bin/true"], require="none")
        assert host.call("wait", id=again["id"], timeout_s=10)["exit_code"] == 0
        assert host.events("kernel_fault") == []
    finally:
        host.close()


def can_be_a_stranger() -> bool:
    """Root is held to no number of processes; where another user can read this checkout, that user's host is."""
    if os.getuid() != 0:
        return True
    done = subprocess.run(
        [sys.executable, "-c", "import agentos.client.launch"],
        cwd=PROJECT, user=STRANGER, group=STRANGER, extra_groups=[], check=False, capture_output=True,
    )  # fmt: skip
    return done.returncode == 0


@pytest.mark.parametrize("limit", [15, 16])  # an agent takes two: one time there is room for its sentry only
@pytest.mark.parametrize("user", [STRANGER if os.getuid() == 0 else os.getuid()] if can_be_a_stranger() else [])
def test_without_processes_a_start_fails_by_name_and_others_go_on(user: int, limit: int) -> None:
    with tempfile.TemporaryDirectory() as base:  # where that user can go
        host = Host(Path(base), {"argv": SLEEPER}, limits={"RLIMIT_NPROC": limit}, user=user)
        try:
            started, failed = [], []
            for _ in range(12):
                answer = host.call("start", argv=SLEEPER, require="none", name="one-more", cwd=base)
                (failed if "error" in answer else started).append(answer)
            assert started, failed[0]
            assert failed
            assert {answer["error"] for answer in failed} == {"HostError"}
            assert all(os.strerror(errno.EAGAIN) in answer["message"] for answer in failed), failed
            assert host.call("status")["state"] == "running"
            for answer in started:
                assert host.call("signal", id=answer["id"], signal=signal.SIGKILL)["ok"]
                assert host.call("wait", id=answer["id"], timeout_s=10)["exit_signal"] == signal.SIGKILL
            again = host.call("start", argv=["/bin/true"], require="none", cwd=base)
            assert host.call("wait", id=again["id"], timeout_s=10)["exit_code"] == 0
            assert host.events("kernel_fault") == []
        finally:
            host.close()
