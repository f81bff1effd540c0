"""`agentos run`, attached and detached, on real agents: what goes in, what comes out, and what it exits with."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, UNMEDIATED, CommandLine
from world import carriers, state_of, wait_until

NOTICE = "agentos: level none: the record is not protected from the agent"


@pytest.fixture
def agentos(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    yield world
    world.close()


# --- attached --------------------------------------------------------------------------------------------------------


def test_each_stream_goes_where_it_belongs_and_the_notice_comes_first(agentos: CommandLine) -> None:
    done = agentos("run", *UNMEDIATED, "--", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert done.stdout == "out\n"
    first, *rest = done.stderr.splitlines()
    assert first.startswith(NOTICE)
    assert rest == ["err"]


def test_what_has_no_effect_on_an_executable_is_said_first(agentos: CommandLine) -> None:
    given = ("--policy", "workspace", "--permissions", "read", "--allow", "read:a", "--deny", "read:b")
    for some in (given, given[:2], given[6:]):
        first, second = agentos("run", *UNMEDIATED, *some, "--", "true").stderr.splitlines()
        which = ", ".join(some[::2])
        assert first == (
            f"agentos: level none: nothing is decided between this program and the system, so {which} will have no "
            "effect on it"
        )
        assert second.startswith(NOTICE)
    agentos.work.joinpath("agents.py").write_text("def main(): ...\n")
    assert agentos("run", *given, "agents.py:main").stderr.count("\n") == 1


def test_both_streams_in_one_place_keep_their_order(agentos: CommandLine) -> None:
    """In the order of the log, which is the order in which they were written where something lies between."""
    script = "for i in 1 2 3 4 5; do echo out $i; sleep 0.03; echo err $i >&2; sleep 0.03; done"
    told = agentos.shell(f"agentos run --require none -- sh -c '{script}' 2>&1").stdout.splitlines()
    assert told[1:] == [f"{stream} {i}" for i in range(1, 6) for stream in ("out", "err")]
    again = agentos.shell("agentos logs sh 2>&1").stdout.splitlines()
    assert again == told[1:]


def test_stdin_is_the_agents_and_every_byte_comes_out(agentos: CommandLine) -> None:
    data = bytes(range(256)) * 4096
    process = agentos.start("run", *UNMEDIATED, "--", "cat")
    out, _ = process.communicate(data, timeout=60)
    assert out == data
    assert process.returncode == 0


ENDINGS = [("exit 255", 255), ("kill -KILL $$", 137), ("kill -SEGV $$", 139)]


@pytest.mark.parametrize(("script", "code"), ENDINGS)
def test_the_exit_code_is_the_agents_own(agentos: CommandLine, script: str, code: int) -> None:
    done = agentos("run", *UNMEDIATED, "--", "sh", "-c", script, code=code)
    assert ("killed by SIG" in done.stderr) == (code > 128 and code != 255)
    (row,) = agentos.json("ps", "-a")
    assert (row["exit_code"], row["exit_signal"]) == ((code, None) if code < 128 or code == 255 else (None, code - 128))


def test_a_time_out_ends_it_with_124(agentos: CommandLine) -> None:
    sleeper = "trap 'echo alarm; exit 0' ALRM; while :; do sleep 0.05; done"
    done = agentos("run", *UNMEDIATED, "--timeout", "0.3s", "--", "sh", "-c", sleeper, code=124)
    assert done.stdout == "alarm\n"
    assert "sh was ended: timeout" in done.stderr


def test_who_ignores_the_time_out_is_killed_after_its_grace(agentos: CommandLine) -> None:
    stubborn = "trap '' ALRM TERM; while :; do sleep 0.05; done"
    done = agentos("run", *UNMEDIATED, "--timeout", "200ms", "--grace", "200ms", "--", "sh", "-c", stubborn, code=124)
    assert "timeout, killed by SIGKILL" in done.stderr
    (end,) = agentos.events("--type", "agent_exited")
    assert end["data"]["exit_signal"] == 9
    assert agentos.json("inspect", "sh")["ended_by"] == "timeout"


def test_a_python_agent_prints_returns_and_raises(agentos: CommandLine) -> None:
    (agentos.work / "agents.py").write_text(
        "import os, sys\n"
        "def hello(*words):\n    print('hello', *words)\n    print('to stderr', file=sys.stderr)\n    return {'a': 1}\n"
        "def fails():\n    raise ValueError('not \\x1b[31mtoday')\n"
        "async def leaves():\n    print('later')\n    sys.exit(9)\n"
    )
    done = agentos("run", "agents.py:hello", "big", "world")
    first, *rest = done.stderr.splitlines()
    assert first.startswith(NOTICE.replace("none", "hooks"))
    assert (done.stdout, rest) == ("hello big world\n", ["to stderr"])
    assert agentos("run", "agents:leaves", code=9).stdout == "later\n"
    told = agentos("run", "agents.py:fails", code=1).stderr
    assert told.count("ValueError: not") == 1, "said once, by its own traceback"
    assert 'agents.py", line 7, in fails' in told
    assert "agentos/agent" not in told


def test_a_syntax_error_in_what_it_imports_is_the_agents_and_points_at_the_place(agentos: CommandLine) -> None:
    (agentos.work / "broken.py").write_text("def main(:\n    pass\n")
    (agentos.work / "imports.py").write_text("import broken\n\ndef main(): ...\n")
    told = agentos("run", "imports.py:main", code=1).stderr
    assert 'broken.py", line 1\n    def main(:\n' in told
    assert told.rstrip().endswith("SyntaxError: invalid syntax")
    assert "importlib" not in told


def test_what_only_the_agent_can_find_missing_is_one_line(agentos: CommandLine) -> None:
    (agentos.work / "agents.py").write_text("number = 7\n")
    told = agentos("run", "agents.py:number", code=1).stderr.splitlines()[1:]
    assert told == [f"agentos: {agentos.work}/agents.py has 'number', but that is no function"]


# --- what the agent gets ---------------------------------------------------------------------------------------------


def environment(told: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in told.splitlines())


def test_the_environment_is_what_was_asked_for(agentos: CommandLine) -> None:
    agentos.env |= {"TOKEN": "secret", "WANTED": "yes", "SSH_AUTH_SOCK": "/x", "LC_TIME": "C", "TERM": "vt100"}
    given = environment(agentos.out("run", *UNMEDIATED, "-e", "WANTED", "-e", "A=b=c", "--", "env"))
    assert (given["WANTED"], given["A"], given["LC_TIME"], given["TERM"]) == ("yes", "b=c", "C", "vt100")
    assert not {"TOKEN", "SSH_AUTH_SOCK", "COOKIE", "PYTHONPATH", "AGENTOS_LAUNCHER"} & given.keys()
    assert given["AGENTOS_AGENT_ID"] == agentos.json("ps", "-a")[0]["id"]
    (start,) = agentos.events("--type", "agent_starting")
    assert start["data"]["environment_all"] is False
    assert sorted(given) == sorted(start["data"]["environment_names"] + (["PWD"] if "PWD" in given else []))
    assert "secret" not in json.dumps(agentos.events("--severity", "debug"))


def test_all_of_the_environment_is_on_record_without_its_values(agentos: CommandLine) -> None:
    agentos.env |= {"TOKEN": "a-secret-value"}
    given = environment(agentos.out("run", *UNMEDIATED, "--env-all", "-e", "TOKEN=other", "--", "env"))
    assert (given["TOKEN"], given["COOKIE"]) == ("other", agentos.cookie)
    (start,) = agentos.events("--type", "agent_starting")
    assert start["data"]["environment_all"] is True
    assert {"TOKEN", "COOKIE"} <= set(start["data"]["environment_names"])
    assert "a-secret-value" not in json.dumps(agentos.events("--severity", "debug"))


def test_the_working_directory_is_the_workspace_unless_said(agentos: CommandLine) -> None:
    inside = agentos.work / "a place" / "deep"
    inside.mkdir(parents=True)
    assert agentos.out("run", *UNMEDIATED, "--", "pwd") == f"{agentos.work}\n"
    both = ["--workspace", "a place", "--cwd", "a place/deep"]
    assert agentos.out("run", *UNMEDIATED, *both, "--", "pwd") == f"{inside}\n"
    newest = agentos.events("--type", "agent_starting")[-1]["data"]
    assert newest["cwd"] == str(inside)
    assert agentos.events("--type", "kernel_started")[-1]["data"]["workspace"] == str(inside.parent)


def test_options_of_the_program_are_its_own(agentos: CommandLine) -> None:
    assert agentos.out("run", *UNMEDIATED, "echo", "-n", "--name", "x", "--", "-d") == "--name x -- -d"
    program = agentos.script("say", 'printf "[%s]" "$@"')
    assert agentos.out("run", *UNMEDIATED, "--", program, "", " two  words ", "ä\n") == "[][ two  words ][ä\n]"


def test_context_and_name_are_on_record(agentos: CommandLine) -> None:
    agentos("run", *UNMEDIATED, "--name", "a name", "--context", "user=ann", "--context", "k=a=b", "--", "true")
    (start,) = agentos.events("--type", "agent_starting")
    assert start["data"]["context"] == {"user": "ann", "k": "a=b"}
    assert start["data"]["name"] == "a name"
    assert agentos.json("ps", "-a")[0]["name"] == "a name"


def test_context_satisfies_a_condition_of_the_policy(agentos: CommandLine) -> None:
    (agentos.work / "admins.yaml").write_text(
        "name: admins\nrules:\n  - {action: allow, operation: read, resource: db/*, conditions: {user_role: [admin]}}\n"
    )
    (agentos.work / "ask.py").write_text("import agentos\ndef main():\n    agentos.act('read', 'db/users')\n")
    agentos("run", "--policy", "admins.yaml", "ask.py:main", code=4)
    agentos("run", "--policy", "admins.yaml", "--context", "user_role=admin", "ask.py:main")
    agentos("run", "--policy", "strict", "--allow", "read:db/*", "ask.py:main")
    agentos(
        "run", "--policy", "admins.yaml", "--context", "user_role=admin", "--deny", "read:db/*", "ask.py:main", code=4
    )


def test_it_can_start_paused(agentos: CommandLine) -> None:
    started = agentos.work / "started"
    agentos.detached("--start-paused", "--name", "p", "--", "touch", "started")
    row = agentos.json("inspect", "p")
    assert (row["state"], row["linux_state"]) == ("stopped", "T")
    assert state_of(row["pid"]) == "T"
    assert not started.exists()
    agentos("resume", "p")
    agentos("wait", "p")
    assert started.exists()


# --- detached --------------------------------------------------------------------------------------------------------


def test_detached_it_prints_the_id_and_goes_on_until_its_last_agent_ends(agentos: CommandLine) -> None:
    done = agentos("run", "-d", *UNMEDIATED, "-e", f"COOKIE={agentos.cookie}", "--name", "long", "--", "sleep", "60")
    agent_id = done.stdout.rstrip("\n")
    assert "\n" not in agent_id
    assert done.stderr.startswith(NOTICE)
    row = agentos.json("inspect", agent_id)
    assert (row["state"], row["name"]) == ("running", "long")
    kernel = row["kernel_pid"]
    assert state_of(kernel) in "SR"
    assert agentos.out("stop", "long") == "long: killed by SIGTERM\n"
    wait_until(lambda: not state_of(kernel), what="the kernel to end with its last agent")
    wait_until(lambda: not (agentos.runtime / "runs" / row["run"]).exists(), what="its runtime directory to go")
    assert agentos.out("ps", "-q") == ""
    assert agentos.events("--type", "kernel_stopped")[-1]["data"] == {"why": "last agent ended"}


def test_detached_its_stdin_is_empty_and_its_output_is_kept(agentos: CommandLine) -> None:
    agentos.detached("--name", "d", "--", "sh", "-c", "cat; echo out; echo err >&2; exit 4")
    assert agentos.out("wait", "d", code=4) == "d: exit code 4\n"
    done = agentos("logs", "d")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_what_an_agent_leaves_behind_ends_with_it(agentos: CommandLine) -> None:
    script = "setsid sleep 60 & setsid setsid sleep 60 & sleep 0.2; exit 0"
    agentos("run", *UNMEDIATED, "-e", f"COOKIE={agentos.cookie}", "--", "sh", "-c", script)
    assert carriers(agentos.cookie) == []
    (left,) = agentos.events("--type", "leftovers_killed")
    assert left["data"]["processes"] == 2


# --- the way its starter goes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [15, 1])
def test_who_ends_agentos_run_ends_its_agent_politely(agentos: CommandLine, number: int) -> None:
    script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    process = agentos.start("run", *UNMEDIATED, "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == (b"bye\n", 5)


def test_nohup_is_obeyed(agentos: CommandLine) -> None:
    words = [*PROGRAM, "run", *UNMEDIATED, "--", "sh", "-c", "echo ready; read x; echo got $x"]
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words], cwd=agentos.work, env=agentos.env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(b"it\n", timeout=60)
    assert (out, process.returncode) == (b"got it\n", 0)


def test_who_cannot_read_on_ends_the_agent(agentos: CommandLine) -> None:
    """As SIGPIPE would: no agent works on for a reader that left, and the pipeline sees 141."""
    script = "trap 'touch asked; exit 0' TERM; while echo line; do sleep 0.02; done"
    done = agentos.shell(f'agentos run --require none -- sh -c "{script}" | head -n 1; echo ${{PIPESTATUS[*]}}')
    assert done.stdout == "line\n141 0\n"
    assert (agentos.work / "asked").exists(), "it was asked first"


def test_a_reader_that_is_stuck_does_not_keep_us_from_ending(agentos: CommandLine) -> None:
    process = agentos.start("run", *UNMEDIATED, "--", "sh", "-c", "echo $$; exec yes")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    log = agentos.state / "runs"
    wait_until(lambda: sum(path.stat().st_size for path in log.rglob("*.log")) > 1_000_000, what="a full pipe")
    process.terminate()
    wait_until(lambda: not state_of(pid), what="the agent to end although nobody reads")
    assert process.wait(60) == 143
    process.communicate()


CLOSED = [("<&-", "out\n", "err"), (">&-", "", "err"), ("<&- >&- 2>&-", "", "")]


@pytest.mark.parametrize(("closing", "out", "err"), CLOSED)
def test_a_closed_stream_is_an_empty_one(agentos: CommandLine, closing: str, out: str, err: str) -> None:
    """Never the number of the next thing opened: that would be the socket to the kernel."""
    script = "readlink /proc/self/fd/0 > stdin; cat; echo out; echo err >&2; exit 3"
    done = agentos.shell(f"agentos run --require none -- sh -c '{script}' {closing}", code=3)
    assert done.stdout == out
    assert done.stderr.splitlines()[1:] == ([err] if err else [])
    assert (agentos.work / "stdin").read_text() == "/dev/null\n"


def test_a_full_disk_behind_stdout_is_said_and_ends_the_agent(agentos: CommandLine) -> None:
    done = agentos.shell("agentos run --require none -- sh -c 'echo x; sleep 60' >/dev/full", code=125)
    assert done.stderr.splitlines()[1:] == ["agentos: cannot write to stdout: No space left on device"]


def test_two_runs_at_once_do_not_meet(agentos: CommandLine) -> None:
    first = agentos.start("run", *UNMEDIATED, "--name", "twin", "--", "sh", "-c", "echo one; read x; exit 1")
    second = agentos.start("run", *UNMEDIATED, "--name", "twin", "--", "sh", "-c", "echo two; read x; exit 2")
    for process, word in ((first, b"one\n"), (second, b"two\n")):
        assert process.stdout is not None
        assert process.stdout.readline() == word
    rows = agentos.json("ps")
    assert len({row["run"] for row in rows}) == 2
    told = agentos("stop", "twin", code=3).stderr
    assert all(row["id"] in told for row in rows), "ambiguous: it lists them"
    assert [process.communicate(b"\n", timeout=60)[0] for process in (first, second)] == [b"", b""]
    assert (first.returncode, second.returncode) == (1, 2)


START_ITS_AGENT = (
    "from agentos.cli.run import Wishes, prepare; "
    "params = prepare(Wishes(words=('sleep', '600'), require='none', env_all=True), os.environ).params; "
    "started.link.call('start', params); "
)


@pytest.mark.parametrize("so_far", ["", START_ITS_AGENT])
def test_a_kernel_whose_starter_dies_before_it_detached_ends(agentos: CommandLine, so_far: str) -> None:
    """Killed while it starts, `run -d` has told nobody what there is: neither a kernel nor an agent may go on."""
    code = (
        "import os; from agentos.client.launch import start_kernel; started = start_kernel(attached=False); "
        f"{so_far}print(started.guard.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [PROGRAM[0], "-c", code], cwd=agentos.work, env=agentos.env, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    wait_until(lambda: state_of(int(done.stdout)) in ("", "Z"), what="the guard to end")
    wait_until(lambda: carriers(agentos.cookie) == [], what="all of it to end")
    assert list((agentos.runtime / "runs").iterdir()) == []


@pytest.mark.parametrize("delay_s", [0.05, 0.1, 0.15, 0.2])
def test_killed_while_it_starts_a_detached_run_leaves_nothing(agentos: CommandLine, delay_s: float) -> None:
    process = agentos.start("run", "-d", *UNMEDIATED, "--env-all", "--", "sleep", "2")  # it may get to detach
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay_s)
    process.kill()
    process.wait()
    wait_until(lambda: carriers(agentos.cookie) == [], 15.0, what="all of it to end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_before_there_is_an_agent_it_leaves_nothing(agentos: CommandLine, number: int) -> None:
    process = agentos.start("run", *UNMEDIATED, "-e", f"COOKIE={agentos.cookie}!", "--", "sleep", "60")
    meta = agentos.runtime / "runs"
    wait_until(lambda: list(meta.glob("*/lock")), what="a kernel")
    process.send_signal(number)
    assert process.wait(60) in {130, 143, -number}
    wait_until(lambda: not list(meta.iterdir()) and carriers(agentos.cookie) == [], what="all of it to end")
