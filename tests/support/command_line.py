"""`agentos` as a person has it: a process a verb, in a world of its own that leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terminal import Terminal
from world import PROJECT, carriers, state_of, wait_until

LIMIT_S = 60.0
UNMEDIATED = ("--require", "none")
PROGRAM = [sys.executable, "-P", "-m", "agentos"]


class CommandLine:
    """Empty home, working, runtime and state directories, and no environment but what a verb needs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.work = place / "work"
        self.home = place / "home"
        self.state = place / "state"
        self.runtime = place / "run"
        for folder in (self.work, self.home):
            folder.mkdir(parents=True)
        self._started: list[subprocess.Popen[bytes]] = []
        self.cookie = f"agentos-cli-{uuid.uuid4().hex}"
        self.env = {
            "PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(self.home), "PYTHONPATH": str(PROJECT),
            "AGENTOS_RUNTIME_DIR": str(self.runtime), "AGENTOS_STATE_DIR": str(self.state), "COOKIE": self.cookie,
        }  # fmt: skip

    def __call__(
        self, *words: str, code: int | None = 0, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one verb to its end. `code` None: whatever it exits with. A traceback of ours is never right."""
        done = subprocess.run(
            [*PROGRAM, *words], cwd=self.work, env={**self.env, **env}, input=stdin, capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert "agentos/cli" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def out(self, *words: str, **more: Any) -> str:
        return self(*words, **more).stdout

    def json(self, *words: str, **more: Any) -> Any:
        return json.loads(self.out(*words, "--json", **more))

    def events(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out("audit", "--json", *words).splitlines()]

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start one verb and leave it running; its streams are pipes unless `options` say otherwise."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([*PROGRAM, *words], cwd=self.work, env=self.env, **{**streams, **options})
        self._started.append(process)
        return process

    def shell(self, script: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a bash script in which `agentos` is a command; pipes and redirections are the shell's own."""
        program = " ".join(PROGRAM)
        done = subprocess.run(
            ["/bin/bash", "-c", f'agentos() {{ {program} "$@"; }}\n{script}'], cwd=self.work, env=self.env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert "agentos/cli" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def terminal(self, *words: str, columns: int = 80, lines: int = 24, **env: str) -> Terminal:
        """Start one verb on a terminal of its own."""
        return self.on_terminal([*PROGRAM, *words], columns=columns, lines=lines, **env)

    def on_terminal(self, argv: Sequence[str], *, columns: int = 80, lines: int = 24, **env: str) -> Terminal:
        return Terminal(argv, env={**self.env, "TERM": "xterm", **env}, cwd=self.work, columns=columns, lines=lines)

    def detached(self, *words: str) -> str:
        """Start an unmediated agent with `run -d` and return its id."""
        return self.out("run", "-d", *UNMEDIATED, *words).strip()

    def script(self, name: str, text: str) -> str:
        """Write an executable shell script into the working directory and return how to call it."""
        path = self.work / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return f"./{name}"

    def runs(self) -> list[str]:
        """Return the names of all directories of runs, alive or not."""
        roots = (self.runtime / "runs", self.state / "runs")
        return sorted({path.name for root in roots if root.is_dir() for path in root.iterdir()})

    def nothing_started(self) -> bool:
        return not self.runs() and carriers(self.cookie) == []

    def pid(self, target: str) -> int:
        return int(self.json("inspect", target)["pid"])

    def close(self) -> None:
        """End every agent, see that their kernels go, and leave no process that carries our cookie."""
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self("stop", "-t", "0", "--all", code=None)
        live = self.runtime / "runs"
        try:
            wait_until(lambda: not live.is_dir() or not any(self._alive(run) for run in live.iterdir()), 20.0, "no run")
        finally:
            for pid in carriers(self.cookie):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _alive(self, run: Path) -> bool:
        meta = run / "meta.json"
        return meta.exists() and state_of(json.loads(meta.read_text())["kernel_pid"]) not in ("", "Z", "X")
