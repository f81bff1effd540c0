"""A host program of its own: starts a kernel and one program under it, says what it started, and waits to be killed.

    python host.py '{"cwd": …, "start": {"argv": […], …}, "kernel": {…}, "limits": {"RLIMIT_NOFILE": 64}}'
Limits are hard ones; RLIMIT_NPROC is for as many tasks beside those that this user has already.
Prints one JSON line {"run", "id", "pid", …} from `inspect`, then reads commands from stdin, one JSON per line:
{"call": METHOD, "params": {…}} → the answer as a JSON line.
"""

import json
import os
import resource
import sys
from pathlib import Path

from agentos import errors
from agentos.client.launch import start_kernel


def main() -> None:
    spec = json.loads(sys.argv[1])
    for name, limit in spec["limits"].items():
        hard = limit + (tasks_of_this_user() if name == "RLIMIT_NPROC" else 0)
        resource.setrlimit(getattr(resource, name), (hard, hard))
    started = start_kernel(**{"policy": "permissive", "workspace": spec["cwd"], **spec.get("kernel", {})})
    params = {"kind": "program", "name": "prey", "require": "none", "grace_s": 0.5, **spec["start"]}
    answer = started.link.call("start", {"cwd": spec["cwd"], **params})
    say(started.link.call("inspect", {"id": answer["id"]}) | {"host_guard": started.guard.pid})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(started.link.call(request["call"], request["params"]))
        except errors.AgentosError as error:
            say({"error": type(error).__name__, "message": str(error)})


def tasks_of_this_user() -> int:
    found = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        if int(fields["Uid"].split()[0]) == os.getuid():
            found += int(fields["Threads"])
    return found


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


main()
