"""A machine that cannot do what is needed: the thing, the place and the way out are said, and nothing is started."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PROGRAM, UNMEDIATED, CommandLine

RUN = ("run", *UNMEDIATED, "--", "true")


@pytest.fixture
def agentos(tmp_path: Path) -> Iterator[CommandLine]:
    world = CommandLine(tmp_path)
    yield world
    world.close()


def refused(agentos: CommandLine, *words: str, **env: str) -> str:
    """Return what is said, on one line, by a verb that cannot do its work."""
    done = agentos(*words, code=125, **env)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert agentos.nothing_started()
    return line.removeprefix("agentos: ")


BOTH = ["AGENTOS_RUNTIME_DIR", "AGENTOS_STATE_DIR"]


@pytest.mark.parametrize("variable", BOTH)
def test_a_directory_that_cannot_be_made(agentos: CommandLine, variable: str) -> None:
    blocked = agentos.place / "a file"
    blocked.touch()
    told = refused(agentos, *RUN, **{variable: str(blocked / "x")})
    assert told == f"{blocked}/x: Not a directory; set {variable} to a directory of your own"
    assert str(blocked) in refused(agentos, *RUN, **{variable: str(blocked)})
    assert variable in refused(agentos, *RUN, **{variable: "/proc/nowhere"})


@pytest.mark.parametrize("variable", BOTH)
def test_a_directory_of_somebody_else(agentos: CommandLine, variable: str) -> None:
    """For root somebody else is uid 65534; for that user, as for any other, it is root."""
    theirs = agentos.place / "theirs"
    theirs.mkdir()
    if os.getuid() == 0:
        os.chown(theirs, 65534, 65534)
    else:
        theirs = Path("/usr")
    for words in (RUN, ("ps", "-a"), ("kill", "-STOP", "x")) if variable == BOTH[0] else (RUN, ("ps", "-a")):
        told = refused(agentos, *words, **{variable: str(theirs)})
        assert told == (
            f"{theirs} must be a directory owned by uid {os.getuid()}; set {variable} to a directory of your own, "
            "or remove it"
        )
    link = agentos.place / "link"
    link.symlink_to(agentos.work)
    assert "must be a directory" in refused(agentos, *RUN, **{variable: str(link)}), "a link may lead anywhere tomorrow"


@pytest.mark.parametrize("variable", BOTH)
def test_a_directory_for_other_things_is_not_closed_to_others(agentos: CommandLine, variable: str) -> None:
    shared = agentos.place / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "a thing of somebody").touch()
    assert "is open to others and holds other things" in refused(agentos, *RUN, **{variable: str(shared)})
    assert shared.stat().st_mode & 0o777 == 0o755
    (shared / "a thing of somebody").unlink()
    agentos(*RUN, **{variable: str(shared)})
    assert shared.stat().st_mode & 0o777 == 0o700


def test_relative_directories_mean_the_same_to_everybody(agentos: CommandLine) -> None:
    where = {"AGENTOS_RUNTIME_DIR": "r", "AGENTOS_STATE_DIR": "s"}
    agentos(*RUN, **where)
    assert sorted(path.name for path in agentos.work.iterdir()) == ["r", "s"]
    assert " true " in agentos.out("ps", "-a", **where)


def without(agentos: CommandLine, *names: str, **env: str) -> dict[str, str]:
    return {key: value for key, value in agentos.env.items() if key not in names} | env


def test_homeless_it_keeps_its_record_beside_its_socket(agentos: CommandLine) -> None:
    for home in ({}, {"HOME": "/nonexistent"}):
        env = without(agentos, "HOME", "AGENTOS_STATE_DIR", **home)
        done = subprocess.run([*PROGRAM, *RUN], cwd=agentos.work, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(f"agentos: no HOME to write to: records and logs go to {agentos.runtime}/state; ")
        look = subprocess.run(
            [*PROGRAM, "doctor"], cwd=agentos.work, env=env, capture_output=True, text=True, check=True
        )
        (line,) = [line for line in look.stdout.splitlines() if " state directory " in line]
        assert line.startswith("note ")
        assert "for want of a HOME" in line
    assert len(list((agentos.runtime / "state" / "runs").iterdir())) == 2
    assert "HOME" not in agentos(*RUN).stderr


def test_a_new_user_has_everything_at_home(agentos: CommandLine) -> None:
    env = without(agentos, *BOTH, "LANG")
    done = subprocess.run([*PROGRAM, *RUN], cwd=agentos.work, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    state = agentos.home / ".local/state/agentos"
    assert state.stat().st_mode & 0o777 == 0o700
    assert len(list((state / "runs").iterdir())) == 1
    assert Path(f"/tmp/agentos-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_runs_are_found_whatever_tmpdir_says(agentos: CommandLine) -> None:
    """Two shells of one user may differ in it."""
    env = without(agentos, "AGENTOS_RUNTIME_DIR", "XDG_RUNTIME_DIR")

    def verb(*words: str, **more: str) -> str:
        return subprocess.run(
            [*PROGRAM, *words], cwd=agentos.work, env=env | more, capture_output=True, text=True, check=True
        ).stdout

    agent_id = verb("run", "-d", *UNMEDIATED, "--", "sleep", "60", TMPDIR=str(agentos.place)).strip()
    try:
        assert agent_id in verb("ps", "-q").split()
        assert agent_id in verb("ps", "-q", TMPDIR=str(agentos.work)).split()
    finally:
        verb("stop", agent_id)
    assert not (agentos.place / f"agentos-{os.getuid()}").exists()


def on_a_small_disk(agentos: CommandLine, size: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the state directory on a file system of `size`, in a mount namespace that ends with it."""
    agentos.state.mkdir(mode=0o700)
    mounted = f"mount -t tmpfs -o size={size},mode=0700 none {agentos.state} || exit 99\n"
    script = f'agentos() {{ {shlex.join(PROGRAM)} "$@"; }}\n{mounted}{script}'
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "/bin/bash", "-c", script],
        cwd=agentos.work, env=agentos.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_full_disk_is_found_before_anything_starts(agentos: CommandLine) -> None:
    done = on_a_small_disk(
        agentos, "512k", "agentos run --require none -- true; code=$?; ls -A $AGENTOS_STATE_DIR; exit $code"
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f"agentos: {agentos.state} has 512 KiB left, too little for a record; make room, or set AGENTOS_STATE_DIR\n"
    )


def test_a_disk_that_fills_up_meanwhile_costs_output_and_says_so(agentos: CommandLine) -> None:
    """What is dropped is counted to the byte and not told in a hundred lines; the agent is not held up."""
    size = 4_000_000
    printing = f"yes | head -c {size}; exit 3"
    run = f"agentos run --require none -- sh -c '{printing}'; echo code $?; echo === >&2; agentos logs sh >/dev/null"
    done = on_a_small_disk(agentos, "3m", run)
    printed, code = done.stdout.rsplit("code ", 1)
    assert code == "3\n", done.stderr
    for told in done.stderr.split("===\n"):
        lines = [line for line in told.splitlines() if "bytes dropped: disk" in line or "could not be kept" in line]
        dropped = sum(int(line.split()[2]) for line in lines)
        assert len(printed) < size
        assert len(printed) + dropped == size, told


FILL = "head -c 9999999 /dev/zero > {}/ballast 2>/dev/null; echo hello; exit 3"


def test_what_a_full_disk_cannot_even_note_is_said_at_the_end(agentos: CommandLine) -> None:
    fill = FILL.format(agentos.state)
    done = on_a_small_disk(agentos, "3m", f"agentos run --require none -- sh -c '{fill}' 2>&1; echo code $?")
    *told, code = done.stdout.splitlines()
    assert "agentos: … 6 bytes of output could not be kept: the disk is full …" in told
    assert code == "code 3"


def test_who_follows_a_log_is_told_what_a_full_disk_could_not_keep(agentos: CommandLine) -> None:
    fill = FILL.format(agentos.state)
    script = (
        f"agentos run -d --require none --name filler -- sh -c 'until [ -e go ]; do sleep 0.05; done; {fill}'\n"
        "agentos logs -f filler & reader=$!; sleep 1; touch go; wait $reader"
    )
    done = on_a_small_disk(agentos, "3m", script)
    assert "agentos: … 6 bytes of output could not be kept: the disk is full …" in done.stderr.splitlines()


def test_denials_on_a_full_disk_are_told_and_counted(agentos: CommandLine) -> None:
    (agentos.work / "app.py").write_text(
        "import agentos\n"
        "def main():\n"
        "    for number in range(2_000_000):\n"
        "        try:\n"
        "            agentos.act('read', f'data/{number}')\n"
        "        except agentos.PolicyViolationError as error:\n"
        "            print(error)\n"
        "            return\n"
    )
    done = on_a_small_disk(agentos, "3m", "agentos run --policy permissive app.py:main 2>&1")
    why = "recorder_unavailable: it could not be recorded"
    assert why in done.stdout, done.stdout
    assert "1 action denied; see: " in done.stdout, done.stdout


def test_a_directory_that_is_gone(agentos: CommandLine) -> None:
    script = f"mkdir gone; cd gone; rmdir ../gone; {' '.join(PROGRAM)} run --require none -- true"
    done = agentos.shell(script, code=2)
    assert done.stderr == "agentos: the current directory does not exist any more; cd to one that does\n"
    assert agentos.nothing_started()


def test_what_only_execve_can_refuse_leaves_no_process_and_no_socket(agentos: CommandLine) -> None:
    (agentos.work / "garbage").write_bytes(b"\x00\x01\x02\x03garbage")
    (agentos.work / "garbage").chmod(0o755)
    told = agentos("run", *UNMEDIATED, "--", "./garbage", code=126).stderr
    assert "cannot run './garbage': Exec format error" in told
    assert list((agentos.runtime / "runs").iterdir()) == []
    (started,) = agentos.events("--type", "agent_starting")
    assert started["data"]["command"] == ["./garbage"], "it was tried, and that is on record"
