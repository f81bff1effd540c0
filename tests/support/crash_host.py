"""A host program whose kernels will be killed: its agent acts without pause and notes what was acknowledged.

    python crash_host.py NOTES_DIRECTORY
Reads commands from stdin, one JSON a line: {"start": NAME, "database": PATH or null} starts a new kernel with one agent
and answers with {"run_dir", "kernel_pid", "recorder_pid", "zygote_pid", "pid"}; {"pids": true} answers the same again.
Notes go to NOTES_DIRECTORY/NAME, one line an acknowledgement, written after it: `allowed N SEQ`; durable are
`denied N SEQ` and `logged N SEQ` (by this program); `refused N REASON` has no record of its own; `end`.
"""

import asyncio
import itertools
import json
import os
import sys
import threading
import time

import agentos
from agentos import FlightRecorder, KernelSpace, Pattern, Policy, PolicyViolationError

ACTIONS_MAX = 1_000_000  # far more than anybody waits for
DENIED_EVERY = 5


def act_without_pause(notes_path: str) -> None:
    notes = os.open(notes_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(ACTIONS_MAX):
        operation = "read" if number % DENIED_EVERY else "write"
        try:
            seq = agentos.act(operation, f"data/{number}").seq
            os.write(notes, f"allowed {number} {seq}\n".encode())
        except PolicyViolationError as refusal:
            if refusal.event_id is None:
                os.write(notes, f"refused {number} {refusal.reason}\n".encode())
            else:
                os.write(notes, f"denied {number} {refusal.event_id.rpartition('-')[2]}\n".encode())
            time.sleep(0.0005)  # leave room for those who test and record: two cores are all there is
    os.write(notes, b"end\n")


class Round:
    """One kernel, one agent, and this program's own events beside it."""

    def __init__(self, notes_path: str, database: str | None) -> None:
        policy = Policy("crash", default_action="deny")
        policy.add_rule("allow", Pattern("read", "data/*"))
        policy.add_rule("allow", Pattern("write", notes_path))
        self.recorder = FlightRecorder("sqlite", database)
        self.kernel = KernelSpace(policy, flight_recorder=self.recorder)
        self.kernel.register(act_without_pause)
        self.agent_id = asyncio.run(self.kernel.spawn(act_without_pause, notes_path))
        self.connection = self.kernel._connection
        threading.Thread(target=self._log, args=(notes_path,), daemon=True).start()

    def pids(self) -> dict[str, object]:
        facts = self.connection.submit("inspect", {"id": self.agent_id}).result(10)
        names = ("kernel_pid", "recorder_pid", "zygote_pid", "pid")
        return {name: facts[name] for name in names} | {"run_dir": str(self.connection.run.state)}

    def _log(self, notes_path: str) -> None:
        notes = os.open(notes_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in itertools.count():
            try:
                event_id = asyncio.run(self.recorder.log("mark", "host", {"number": number}))
            except agentos.AgentosError:
                return
            run_id, _, seq = event_id.rpartition("-")
            if run_id != self.connection.run.run_id:  # the kernel is gone: the recorder went on by itself
                return
            os.write(notes, f"logged {number} {seq}\n".encode())
            time.sleep(0.002)


def main() -> None:
    current = None
    for line in sys.stdin:
        command = json.loads(line)
        if "start" in command:
            current = Round(os.path.join(sys.argv[1], command["start"]), command["database"])
        print(json.dumps(current.pids()), flush=True)
    os._exit(0)  # the kernel sees the end of its host, however that ends; a logging thread need not


main()
