"""Level hooks on real agents: what an agent's Python code attempts is decided and recorded before it happens.

Every attempt is made twice: under a policy that allows nothing, where Linux is asked whether it left a trace, and
under one that allows everything, where it must succeed. Both times the record names it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentos import KernelSpace, Pattern, Policy, PolicyViolationError, Rule
from agentos.recorder.reader import RunReader

Facts = dict[str, Any]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTOS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("AGENTOS_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("old", "secret", "moved"):
        (folder / name).write_text(name)
    (folder / "shelf").mkdir()
    shutil.copy("/usr/bin/touch", folder / "mytool")
    (folder / "link").symlink_to("secret")
    monkeypatch.chdir(folder)
    return folder


def attempt(work: Path, policy: Policy, function: Callable[..., Any], *args: Any) -> tuple[Any, list[Facts]]:
    """Run `function` as an agent; return (what it returned or the refusal, the record of its actions)."""
    kernel = KernelSpace(policy=policy, workspace=work)
    kernel.register(name="agent")(function)

    async def main() -> Any:
        try:
            return await kernel.execute(function, *args)
        except PolicyViolationError as refusal:
            return refusal

    try:
        outcome = asyncio.run(main())
        assert kernel._connection is not None
        reader = RunReader(kernel._connection.run.state)
        events = list(reader.events())
        reader.close()
    finally:
        asyncio.run(kernel.shutdown())
    return outcome, [dict(e.data) for e in events if e.event_type in {"action_allowed", "policy_violation"}]


def nothing() -> Policy:
    return Policy("nothing")


def everything() -> Policy:
    return Policy("everything", default_action="allow")


def story(actions: list[Facts], layer: str = "policy") -> list[tuple[str, str]]:
    return [(one["operation"], one["resource"]) for one in actions if one["layer"] == layer]


# --- attempts: (name, what the agent does, what is on record of it, whether Linux shows the effect) ---------------


def read_text() -> str:
    return Path("secret").read_text()


def read_through_a_link() -> str:
    with open("link") as file:
        return file.read()


def read_by_descriptor() -> int:
    folder = os.open("/", os.O_RDONLY | os.O_PATH)
    here = os.getcwd().lstrip("/")
    return len(os.read(os.open(f"{here}/secret", os.O_RDONLY, dir_fd=folder), 100))


def write_text() -> int:
    return Path("new").write_text("x")


def append() -> int:
    with open("old", "ab") as file:
        return file.write(b"more")


def low_level_write() -> int:
    return os.write(os.open("new", os.O_WRONLY | os.O_CREAT, 0o600), b"x")


def create_and_read() -> bytes:
    """A file that may be created is readable all the same."""
    return os.read(os.open("secret", os.O_RDONLY | os.O_CREAT), 100)


def remove() -> bool:
    os.remove("old")
    return True


def remove_a_link() -> bool:
    os.unlink("link")
    return True


def rename() -> bool:
    os.rename("moved", "new")
    return True


def make_folder() -> bool:
    os.mkdir("new")
    return True


def make_pipe() -> bool:
    os.mkfifo("new")
    return True


def remove_folder() -> bool:
    os.rmdir("shelf")
    return True


def link() -> bool:
    os.link("secret", "new")
    return True


def symlink() -> bool:
    os.symlink("secret", "new")
    return True


def change_mode() -> bool:
    os.chmod("old", 0o400)
    return True


def truncate() -> bool:
    os.truncate("old", 0)
    return True


def database() -> bool:
    import sqlite3

    with sqlite3.connect("new") as connection:
        connection.execute("CREATE TABLE t (x)")
    return True


def list_folder() -> list[str]:
    return sorted(os.listdir("."))


def scan_folder() -> int:
    with os.scandir("shelf") as entries:
        return len(list(entries)) + 1


def run_program() -> int:
    import subprocess

    return 1 + subprocess.run(["touch", "new"], check=True).returncode


def run_shell() -> int:
    return 1 + os.system("touch new")


def replace_itself() -> int:
    if os.fork() == 0:
        os.execvp("touch", ["touch", "new"])
    return 1 + os.wait()[1]


def posix_spawn() -> int:
    return 1 + os.waitpid(os.posix_spawnp("touch", ["touch", "new"], dict(os.environ)), 0)[1]


def exec_by_a_bare_name() -> int:
    """execve(2) does not look through PATH: a bare name is a file of the working directory."""
    if os.fork() == 0:
        os.execv("mytool", ["mytool", "new"])
    return 1 + os.wait()[1]


def spawn_by_a_bare_name() -> int:
    return 1 + os.waitpid(os.posix_spawn("mytool", ["mytool", "new"], dict(os.environ)), 0)[1]


def spawn_that_opens() -> int:
    opens = [(os.POSIX_SPAWN_OPEN, 1, "new", os.O_CREAT | os.O_WRONLY, 0o600)]
    return 1 + os.waitpid(os.posix_spawn("/usr/bin/true", ["true"], {}, file_actions=opens), 0)[1]


def appeared(work: Path) -> bool:
    return (work / "new").exists()


def unchanged(name: str) -> Callable[[Path], bool]:
    return lambda work: not (work / name).is_file() or (work / name).read_text() != name


TOUCH = [("execute", "/usr/bin/touch")]
ATTEMPTS: dict[str, tuple[Callable[[], Any], list[tuple[str, str]], Callable[[Path], bool] | None]] = {
    "read": (read_text, [("read", "secret")], None),
    "read through a link": (read_through_a_link, [("read", "link")], None),
    "read below a descriptor": (read_by_descriptor, [("read", "/"), ("read", "secret")], None),
    "write": (write_text, [("write", "new")], appeared),
    "append": (append, [("write", "old")], unchanged("old")),
    "os.open": (low_level_write, [("write", "new")], appeared),
    "O_RDONLY with O_CREAT": (create_and_read, [("read", "secret"), ("write", "secret")], None),
    "remove": (remove, [("write/delete", "old")], lambda work: not (work / "old").exists()),
    "remove a link": (remove_a_link, [("write/delete", "link")], lambda work: not (work / "link").is_symlink()),
    "rename": (rename, [("write/rename", "moved"), ("write/rename", "new")], appeared),
    "mkdir": (make_folder, [("write/create", "new")], appeared),
    "mkfifo": (make_pipe, [("write/create", "new")], appeared),
    "rmdir": (remove_folder, [("write/rmdir", "shelf")], lambda work: not (work / "shelf").exists()),
    "link": (link, [("read", "secret"), ("write/link", "secret"), ("write/link", "new")], appeared),
    "symlink": (symlink, [("write/symlink", "new")], lambda work: (work / "new").is_symlink()),
    "chmod": (change_mode, [("write/chmod", "old")], lambda work: (work / "old").stat().st_mode & 0o777 == 0o400),
    "truncate": (truncate, [("write/truncate", "old")], lambda work: (work / "old").stat().st_size == 0),
    "sqlite": (database, [("read", "new"), ("write", "new")], appeared),
    "listdir": (list_folder, [("read", "./")], None),
    "scandir": (scan_folder, [("read", "shelf/")], None),
    "subprocess": (run_program, TOUCH, appeared),
    "system": (run_shell, [("execute", "/bin/sh")], appeared),
    "exec": (replace_itself, TOUCH, appeared),
    "posix_spawn": (posix_spawn, TOUCH, appeared),
    "exec by a bare name": (exec_by_a_bare_name, [("execute", "mytool")], appeared),
    "posix_spawn by a bare name": (spawn_by_a_bare_name, [("execute", "mytool")], appeared),
    "posix_spawn that opens": (spawn_that_opens, [("write", "new"), ("execute", "/usr/bin/true")], appeared),
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_is_not_allowed_does_not_happen(work: Path, name: str) -> None:
    function, wanted, effect = ATTEMPTS[name]
    outcome, actions = attempt(work, nothing(), function)
    if not name.startswith("exec"):  # there the refusal ends the forked child
        assert isinstance(outcome, PolicyViolationError)
        assert (outcome.operation, outcome.resource) == wanted[0]
    assert effect is None or not effect(work)
    denied = [one for one in actions if one["effect"] == "deny"]
    assert (denied[0]["operation"], denied[0]["resource"]) == wanted[0]
    assert denied[0]["mechanism"] == "hook"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_is_allowed_happens_and_is_on_record(work: Path, name: str) -> None:
    function, wanted, effect = ATTEMPTS[name]
    outcome, actions = attempt(work, everything(), function)
    assert not isinstance(outcome, PolicyViolationError)
    assert effect is None or effect(work)
    assert [one for one in story(actions) if one in wanted] == wanted


def test_a_link_is_decided_under_both_names(work: Path) -> None:
    policy = everything_but("read", "secret")
    outcome, actions = attempt(work, policy, read_through_a_link)
    assert isinstance(outcome, PolicyViolationError)
    (denied,) = [one for one in actions if one["effect"] == "deny"]
    assert denied["resource"] == "secret"
    assert denied["raw"] == "link"


def everything_but(operation: str, resource: str, **rule: Any) -> Policy:
    policy = everything()
    policy.add_rule("deny", Pattern(operation, resource), reason="not this one", **rule)
    return policy


def test_a_program_is_judged_by_its_words_and_by_where_it_leads(work: Path) -> None:
    policy = nothing()
    policy.add_rule("allow", Pattern("execute", "touch new"))

    def both() -> str:
        import subprocess

        subprocess.run(["touch", "new"], check=True)
        try:
            subprocess.run(["touch", "other"], check=True)
        except PermissionError as refusal:
            return str(refusal)
        return "was not refused"

    outcome, actions = attempt(work, policy, both)
    assert "execute /usr/bin/touch denied" in outcome
    assert (work / "new").exists()
    assert not (work / "other").exists()
    assert [one["argv"] for one in actions if one["operation"] == "execute"] == [["touch", "new"], ["touch", "other"]]


def test_the_rules_signal_ends_an_agent_that_would_go_on(work: Path) -> None:
    def stubborn() -> str:
        import time

        try:
            Path("secret").read_text()
        except PermissionError:
            time.sleep(30)
        Path("new").write_text("went on")
        return "went on"

    outcome, _ = attempt(work, everything_but("read", "secret", on_violation="SIGKILL"), stubborn)
    assert isinstance(outcome, PolicyViolationError)
    assert not (work / "new").exists()


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.sendall(b"hello")
        connection.close()


def visit(host: str, port: int) -> bytes:
    with socket.create_connection((host, port), timeout=5) as connection:
        return connection.recv(5)


def test_a_connection_is_decided_by_the_name_it_was_looked_up_by(work: Path, server: tuple[str, int]) -> None:
    port = server[1]
    policy = Policy("one peer")
    policy.add_rule("allow", Pattern("network", f"tcp://localhost:{port}"))
    outcome, actions = attempt(work, policy, visit, "localhost", port)
    assert outcome == b"hello"
    assert [one for one in story(actions) if one[0] == "network/connect"] == [
        ("network/connect", f"tcp://localhost:{port}")
    ]
    refused, _ = attempt(work, policy, visit, "127.0.0.1", port)  # the address was not granted, the name was
    assert isinstance(refused, PolicyViolationError)
    assert refused.resource == f"tcp://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("host", "port", "resource"),
    [
        ("127.0.0.1", 443, "https://127.0.0.1/"),
        ("127.0.0.1", 80, "http://127.0.0.1/"),
        ("::1", 5432, "tcp://[::1]:5432"),
        ("no.such.host.example", 443, "https://no.such.host.example/"),
    ],
)
def test_peers_are_named_as_urls(work: Path, host: str, port: int, resource: str) -> None:
    outcome, _ = attempt(work, nothing(), visit, host, port)
    assert isinstance(outcome, PolicyViolationError)
    assert outcome.resource == resource


def test_datagrams_unix_sockets_and_servers_are_decided_too(work: Path) -> None:
    def try_all() -> list[str]:
        refused = []
        for attempt_one in (
            lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
            lambda: socket.socket(socket.AF_UNIX).connect("sock"),
            lambda: socket.socket(socket.AF_UNIX).connect("\0hidden"),
            lambda: socket.socket().bind(("127.0.0.1", 0)),
            lambda: socket.gethostbyname("example.org"),
        ):
            try:
                attempt_one()
            except PermissionError as refusal:
                refused.append(f"{refusal.operation} {refusal.resource}")  # type: ignore[attr-defined]
        return refused

    outcome, _ = attempt(work, nothing(), try_all)
    assert outcome == [
        "network/send udp://127.0.0.1:9",
        f"network/connect unix:{work}/sock",
        "network/connect unix:@hidden",
        "network/bind tcp://127.0.0.1:0",
        "network/resolve dns://example.org/",
    ]


def test_threads_forks_and_signal_handlers_are_decided_too(work: Path) -> None:
    def everywhere() -> list[str]:
        import signal
        from concurrent.futures import ThreadPoolExecutor

        def guarded() -> str:
            try:
                return Path("secret").read_text()
            except PermissionError:
                return "refused"

        seen: list[str] = []
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(guarded()))
        with ThreadPoolExecutor(4) as threads:
            seen += [future.result() for future in [threads.submit(guarded) for _ in range(8)]]
        os.kill(os.getpid(), signal.SIGUSR1)
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, guarded().encode())
            os._exit(0)
        os.wait()
        return [*seen, os.read(read, 100).decode()]

    outcome, _ = attempt(work, everything_but("read", "secret"), everywhere)
    assert outcome == ["refused"] * 10


def test_what_a_handler_opens_meanwhile_has_its_own_directory(work: Path) -> None:
    """A signal comes while an os.open below a descriptor is being decided: the handler's names are not below it."""

    def interrupted() -> list[str]:
        import signal

        seen: list[str] = []

        def on_signal(*_: object) -> None:
            with open("moved") as file:
                seen.append(file.read())

        signal.signal(signal.SIGALRM, on_signal)
        shelf = os.open("shelf", os.O_RDONLY | os.O_DIRECTORY)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for number in range(200):
            os.close(os.open(f"book{number}", os.O_WRONLY | os.O_CREAT, dir_fd=shelf))
        signal.setitimer(signal.ITIMER_REAL, 0)
        return sorted(set(seen))

    outcome, actions = attempt(work, everything(), interrupted)
    assert outcome == ["moved"]
    named = {one["resource"] for one in actions if one["operation"] == "read" and one["layer"] == "policy"}
    assert named <= {"moved", "shelf/", "."}, named
    written = {one["resource"] for one in actions if one["operation"] == "write"}
    assert written == {f"shelf/book{number}" for number in range(200)}


def test_multiprocessing_and_other_interpreters_are_seen(work: Path) -> None:
    def spread() -> list[str]:
        import multiprocessing

        refused = []
        try:
            multiprocessing.get_context("spawn").Process(target=print).start()
        except PermissionError as refusal:
            refused.append(refusal.operation)  # type: ignore[attr-defined]
        try:
            import _xxsubinterpreters  # its name until 3.12; renamed in 3.13

            _xxsubinterpreters.create()
        except (ImportError, PermissionError, RuntimeError) as refusal:
            refused.append(type(refusal).__name__)
        return refused

    policy = everything()
    policy.add_rule("deny", Pattern("execute", "*"))
    outcome, _ = attempt(work, policy, spread)
    assert outcome[0] == "execute"
    assert len(outcome) == 2


def test_an_agent_has_a_temporary_directory_of_its_own(work: Path) -> None:
    def scratch() -> str:
        import tempfile

        with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryDirectory() as folder:
            Path(folder, "x").write_text("y")
            return str(Path(file.name).parent)

    outcome, actions = attempt(work, nothing(), scratch)
    assert not Path(outcome).exists()
    assert {one["effect"] for one in actions if one["layer"] == "@private"} == {"allow"}


def test_a_bare_name_that_path_has_too_is_asked_about_as_what_will_run(work: Path) -> None:
    (work / "mytool").rename(work / "ls")
    policy = nothing()
    policy.add_rule("allow", Pattern("execute", "/usr/bin/ls"))

    def lie() -> str:
        try:
            os.posix_spawn("ls", ["ls", "new"], dict(os.environ))
        except PermissionError as refusal:
            return str(refusal.resource)  # type: ignore[attr-defined]
        return "was not refused"

    outcome, _ = attempt(work, policy, lie)
    assert outcome == "ls"
    assert not (work / "new").exists()


def test_sql_that_opens_files_is_decided(work: Path) -> None:
    def attach(statement: str) -> str:
        import sqlite3

        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
        try:
            connection.execute(statement)
        except sqlite3.DatabaseError as error:
            return str(error)
        return "opened"

    for statement in ("ATTACH DATABASE 'new' AS f", "VACUUM INTO 'new'"):
        outcome, actions = attempt(work, nothing(), attach, statement)
        assert "not auth" in outcome or "denied" in outcome, outcome
        assert not (work / "new").exists()
        assert [one["resource"] for one in actions if one["effect"] == "deny"] == ["new"]
    assert "not auth" in attempt(work, everything(), attach, "ATTACH DATABASE 'n'||'ew' AS f")[0]  # it cannot be seen
    assert attempt(work, everything(), attach, "VACUUM INTO 'new'")[0] == "opened"


def test_an_agent_imports_its_source_and_asks_to_read_it(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be imported is no way around a rule: as a file it is one like any other."""
    (work / "keys.py").write_text("KEY = 'hunter2'\n")
    monkeypatch.syspath_prepend(work)

    def pry() -> tuple[str, str]:
        import keys  # type: ignore[import-not-found]

        try:
            return keys.KEY, Path("keys.py").read_text()
        except PermissionError as refusal:
            return keys.KEY, str(refusal.reason)  # type: ignore[attr-defined]

    outcome, actions = attempt(work, nothing(), pry)
    assert outcome == ("hunter2", "default_deny")
    assert ("read/import", "keys.py") in story(actions, "@command")


def test_the_records_of_other_runs_are_out_of_bounds_too(work: Path) -> None:
    other = work.parent / "state/runs/other"
    other.mkdir(parents=True)
    (other / "flight.db").write_text("kept")

    def vandalise() -> list[str]:
        refused = []
        for attempt_one in (
            lambda: (other / "flight.db").write_text("gone"),
            (other / "flight.db").read_text,
            lambda: os.rename(other, other.parent / "moved"),
            lambda: os.listdir(other.parent.parent.parent / "run/runs"),
            (other.parent / "evil").touch,
            lambda: Path("agentos.yaml").touch(),
        ):
            try:
                attempt_one()
            except PermissionError as refusal:
                refused.append(str(refusal.reason))  # type: ignore[attr-defined]
        return refused

    outcome, _ = attempt(work, everything(), vandalise)
    assert outcome == ["protected"] * 6
    assert (other / "flight.db").read_text() == "kept"


def test_the_record_and_the_socket_are_out_of_bounds_under_every_policy(work: Path) -> None:
    def pry() -> list[str]:
        run = Path(os.environ["TMPDIR"]).parent.parent
        refused = []
        for path, mode in ((run / "sock", "r"), (run / "meta.json", "r"), (run / "meta.json", "a")):
            try:
                path.open(mode).close()
            except PermissionError as refusal:
                refused.append(refusal.reason)  # type: ignore[attr-defined]
        return refused

    outcome, _ = attempt(work, everything(), pry)
    assert outcome == ["protected"] * 3


def test_a_relative_name_is_relative_to_the_directory_of_the_agent(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work / "shelf")
    (work / "shelf/book").write_text("text")
    policy = Policy("shelf", rules=[Rule("allow", Pattern("read", "shelf/*"))])
    outcome, actions = attempt(work, policy, lambda: Path("book").read_text())
    assert outcome == "text"
    assert ("read", "shelf/book") in story(actions)
