"""A host program of its own: starts a kernel and one program under it, says what it started, and waits to be killed.

    python host.py '{"argv": […], "cwd": …, "env": {…}, "start_paused": false, "kernel": {…}}'
Prints one JSON line {"run", "id", "pid", …} from `inspect`, then reads commands from stdin, one JSON per line:
{"call": METHOD, "params": {…}} → the answer as a JSON line.
"""

import json
import sys

from agentos import errors
from agentos.client.launch import start_kernel


def main() -> None:
    spec = json.loads(sys.argv[1])
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


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


main()
