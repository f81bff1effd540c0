"""Asked wrongly: the documented exit code, one line that names the thing, no traceback, nothing started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from world import carriers

PROJECT = Path(__file__).resolve().parents[2]
HEAVY = ("asyncio", "uvloop", "yaml", "apsw", "rich", "psutil", "re2", "nacl", "agentos.supervisor", "agentos.policies")


class Cli:
    """`agentos` in a world of its own: empty runtime and state directories, empty working directory."""

    def __init__(self, place: Path) -> None:
        self.work = place / "work"
        self.work.mkdir()
        self.env = {
            "PATH": os.defpath,
            "PYTHONPATH": str(PROJECT),
            "HOME": str(place),
            "AGENTOS_RUNTIME_DIR": str(place / "runtime"),
            "AGENTOS_STATE_DIR": str(place / "state"),
        }
        self.cookie = f"agentos-asks-{place.name}-{os.getpid()}"
        self.env["COOKIE"] = self.cookie
        self.runs = (place / "runtime" / "runs", place / "state" / "runs")

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agentos", *words]
        return subprocess.run(
            command, cwd=self.work, env={**self.env, **more}, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def agentos(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


BAD_INPUT = [
    (["psx"], 2, "did you mean 'ps'"),
    (["--nope"], 2, "--nope"),
    (["kill"], 2, "TARGET"),
    (["kill", "-a", "x"], 2, "not both"),
    (["kill", "--tree", "--leader", "x"], 2, "either --tree or --leader, not both"),
    (["kill", "-STOPP", "x"], 2, "did you mean 'STOP'"),
    (["kill", "-s", "HUP", "x"], 2, "unknown signal 'HUP'"),
    (["kill", "-STOP", "nobody"], 3, "no agent 'nobody'"),
    (["stop", "nobody", "else"], 3, "no agent 'else'"),
    (["stop", "-t", "soon", "x"], 2, "'soon' is not a duration"),
    (["pause", "nobody"], 3, "nobody"),
    (["resume", "nobody"], 3, "nobody"),
    (["unpause", "nobody"], 3, "nobody"),
    (["cont", "nobody"], 3, "nobody"),
    (["wait", "nobody"], 3, "nobody"),
    (["wait", "--state", "exitd", "x"], 2, "exited"),
    (["logs", "nobody"], 3, "nobody"),
    (["logs", "-n", "-3", "x"], 2, "-3"),
    (["inspect", "nobody"], 3, "nobody"),
    (["audit", "nobody"], 3, "nobody"),
    (["audit", "--severity", "wrong"], 2, "warning"),
    (["audit", "--run", "nope"], 2, "no such run"),
    (["audit", "show", "nope-1"], 3, "no event 'nope-1'"),
    (["audit", "show"], 2, "EVENT_ID"),
    (["prune"], 2, "--older-than"),
    (["prune", "--older-than", "old"], 2, "'old' is not a duration"),
    (["run"], 2, "what to run is missing"),
    (["run", "--require", "none", "--", "no-such-program"], 127, "cannot run 'no-such-program'"),
    (["run", "--require", "none", "--", "./nothing"], 127, "no such file"),
    (["run", "--require", "none", "--", "./plain"], 126, "not executable"),
    (["run", "--require", "none", "--", "plain"], 126, "not executable"),
    (["run", "--require", "none", "--", "/"], 126, "directory"),
    (["run", "--require", "none", "--", ""], 127, "cannot run ''"),
    (["run", "true"], 125, "--require none"),
    (["run", "--require", "full", "agents.py:main"], 125, "--require hooks"),
    (["run", "missing.py:main"], 127, "missing.py: no such file"),
    (["run", "agent.py:main"], 127, "did you mean 'agents.py'"),
    (["run", "agent:main"], 127, "did you mean 'agents'"),
    (["run", "--require", "ful", "true"], 2, "did you mean 'full'"),
    (["run", "--allow", "raed:x", "true"], 2, "did you mean 'read'"),
    (["run", "--deny", "read", "true"], 2, "OPERATION:RESOURCE"),
    (["run", "--permissions", "read,wirte", "true"], 2, "did you mean 'write'"),
    (["run", "--context", "novalue", "true"], 2, "KEY=VALUE"),
    (["run", "--timeout", "5x", "true"], 2, "'5x' is not a duration"),
    (["run", "--timeout", "0", "--require", "none", "true"], 2, "--timeout"),
    (["run", "--grace", "-1", "true"], 2, "-1"),
    (["run", "--workspace", "nowhere", "--require", "none", "true"], 2, "--workspace nowhere does not exist"),
    (["run", "--workspace", "plain", "--require", "none", "true"], 2, "is not a directory"),
    (["run", "--cwd", "nowhere", "--require", "none", "true"], 2, "--cwd nowhere does not exist"),
    (["run", "--cwd", "asrc", "--require", "none", "true"], 2, "did you mean 'src'"),
    (["run", "-e", "NOT_SET_HERE", "--require", "none", "true"], 2, "NOT_SET_HERE: not set"),
    (["run", "-e", "=x", "--require", "none", "true"], 2, "neither NAME nor NAME=VALUE"),
    (["run", "--name", "", "--require", "none", "true"], 2, "--name"),
    (["run", "--name", "a\x1bb", "--require", "none", "true"], 2, "--name"),
    (["run", "--policy", "wrkspace", "--require", "none", "true"], 2, "workspace"),
    (["run", "--policy", "no.yaml", "--require", "none", "true"], 2, "no.yaml: no such file"),
    (["run", "--policy", "wrkspace", "--require", "none", "true"], 2, "did you mean 'workspace'"),
    (["run", "--policy", "bad.yaml", "--require", "none", "true"], 2, "bad.yaml:2:1: unknown key 'rulez'"),
    (["run", "--policy", "type.yaml", "--require", "none", "true"], 2, "type.yaml:2:8: rules is a list, not text"),
    (["run", "--policy", "src.yaml", "--require", "none", "true"], 2, "src.yaml is a directory"),
    (["run", "--policy", "fifo.yaml", "--require", "none", "true"], 2, "fifo.yaml is no regular file"),
    (["run", "--policy", "bare", "--require", "none", "true"], 2, "for the file write ./bare"),
    (["run", "--policy", "type.yml", "--require", "none", "true"], 2, "did you mean 'type.yaml'"),
    (["run", "--allow", "read:[", "agents.py:main"], 2, "--allow read:[: resource '['"),
    (["run", "--name", "x" * 300, "--require", "none", "true"], 2, "is 300 characters long"),
    (["run", "agents.py:mian"], 127, "agents.py has no function 'mian' (did you mean 'main'?)"),
    (["run", "agents:mian"], 127, "did you mean 'main'"),
    (["run", "uses.py:os"], 127, "uses.py has 'os', but that is a module"),
    (["run", "broken.py:main"], 126, "broken.py:2: "),
    (["run", "agents.sub:main"], 127, "no module 'agents.sub'"),
    (["run", "agents.py"], 126, "write agents.py:FUNCTION"),
    (["run", "--require", "none", "./dangling"], 127, "it is a link to nowhere"),
    (["run", "--require", "none", "./script"], 126, "its interpreter /no/such/shell does not exist"),
    (["run", "--require", "none", "tru"], 127, "did you mean 'true'"),
    (["kill", "-s", "STPO", "x"], 2, "did you mean 'STOP'"),
    (["kill", "-l", "77"], 2, "unknown signal '77'"),
    (["prune", "--older-than", "90"], 2, "'90' needs a unit: 90d"),
    (["audit", "--run", "latest", "nobody"], 3, "no agent 'nobody'"),
    (["audit", "show", "a", "b"], 2, "one EVENT_ID"),
    (["ps", "x"], 2, "unexpected extra argument (x)"),
    (["help", "rnu"], 2, "did you mean 'run'"),
]


@pytest.mark.parametrize(
    ("words", "code", "text"), BAD_INPUT, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_bad_input(agentos: Cli, words: list[str], code: int, text: str) -> None:
    (agentos.work / "plain").write_text("no program")
    (agentos.work / "agents.py").write_text("raise SystemExit('imported')\n\ndef main(): ...\n")
    (agentos.work / "uses.py").write_text("import os\nhere = os.getcwd()\n")
    (agentos.work / "broken.py").write_text("def main(): ...\nmain(\n")
    (agentos.work / "bad.yaml").write_text("version: 1\nrulez: []\n")
    (agentos.work / "type.yaml").write_text("name: x\nrules: 7\n")
    (agentos.work / "bare").write_text("name: x\nrules: []\n")
    (agentos.work / "src").mkdir()
    (agentos.work / "src.yaml").mkdir()
    os.mkfifo(agentos.work / "fifo.yaml")
    (agentos.work / "dangling").symlink_to("nowhere")
    (agentos.work / "script").write_text("#!/no/such/shell\n")
    (agentos.work / "script").chmod(0o755)
    done = agentos(*words, PATH=f"{os.defpath}:{agentos.work}")
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert all(line.startswith("agentos: ") for line in done.stderr.splitlines())
    assert not any(root.exists() and list(root.iterdir()) for root in agentos.runs)
    assert carriers(agentos.cookie) == [], "no process is left, and none was started to be left"


def test_ps_and_kill_import_next_to_nothing(agentos: Cli) -> None:
    for words in (["ps"], ["kill", "-STOP", "nobody"]):
        code = (
            "import sys; from agentos.cli.main import run\n"
            f"run({words!r})\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=agentos.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_nobody_lives_in_an_empty_world(agentos: Cli) -> None:
    assert agentos("ps").stdout.startswith("ID  NAME  STATE")
    assert agentos("ps", "--json").stdout == "[]\n"
    assert agentos("ps", "-q").stdout == ""
    assert agentos("kill", "--all").returncode == 0
    assert agentos("stop", "--all").returncode == 0


def test_help_and_version_are_found_where_people_look(agentos: Cli) -> None:
    assert agentos("help").stdout == agentos("--help").stdout == agentos("-h").stdout
    assert agentos("help", "run").stdout == agentos("run", "--help").stdout
    assert agentos("--version").stdout.startswith("agentos 0.")
    assert "Exit codes" in agentos("help").stdout


def test_signals_are_listed_and_translated(agentos: Cli) -> None:
    assert "19 SIGSTOP\n" in agentos("kill", "-l").stdout
    assert agentos("kill", "-l", "19", "KILL").stdout == "STOP\n9\n"


def test_a_reader_that_leaves_is_no_reason_to_shout(agentos: Cli) -> None:
    command = f"{sys.executable} -m agentos kill -l | true"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=agentos.env,
        cwd=agentos.work,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""


def test_help_needs_nothing(agentos: Cli) -> None:
    done = agentos("--help")
    assert done.returncode == 0
    assert "kill" in done.stdout


@pytest.mark.parametrize(
    "verb",
    ["run", "ps", "kill", "stop", "pause", "resume", "wait", "logs", "inspect", "audit", "doctor", "prune", "version"],
)
def test_every_verb_explains_itself(agentos: Cli, verb: str) -> None:
    done = agentos(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: agentos {verb}")
    assert done.stderr == ""
