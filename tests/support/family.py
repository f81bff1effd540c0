"""A tree for storms: `alone`, with three `children`, or with two children in sessions of their own and a child each.

python3 family.py alone|children|strays
"""

import os
import signal
import sys
import time

LIFETIME_S = 300  # a test that fails must not leave its prey behind


def live() -> None:
    """Run a little, again and again: what only sleeps would look the same whether it was stopped or not."""
    deadline = time.monotonic() + LIFETIME_S
    while time.monotonic() < deadline:
        time.sleep(0.005)
    os._exit(0)


def main() -> None:
    kind = sys.argv[1]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for _ in range({"alone": 0, "children": 3, "strays": 2}[kind]):
        if os.fork() == 0:
            if kind == "strays":
                os.setsid()
                os.fork()
            live()
    live()


main()
