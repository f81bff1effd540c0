"""A process tree that does not want to die: forks, double forks, setsid, ignores every catchable signal.

Capped by count (and by RLIMIT_NPROC where the user is not root). Run with the system's own interpreter; every member
carries COOKIE in its environment and ticks in its file under the directory given, so that a test can see life.
    python3 hostile.py DIRECTORY COUNT
"""

import os
import signal
import sys
import time

LIFETIME_S = 60  # a test that fails must not leave its prey behind


def tick(directory: str) -> None:
    deadline = time.monotonic() + LIFETIME_S
    with open(os.path.join(directory, str(os.getpid())), "a") as file:
        while time.monotonic() < deadline:
            file.write(".")
            file.flush()
            time.sleep(0.02)
    os._exit(0)


def detach(directory: str) -> None:
    """Double fork and setsid: the child's parent is gone before it starts."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            tick(directory)
        os._exit(0)


def main() -> None:
    directory, count = sys.argv[1], int(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for index in range(count):
        if index % 2:
            detach(directory)
        elif os.fork() == 0:
            os.setsid() if index % 4 else None
            tick(directory)
    tick(directory)


main()
