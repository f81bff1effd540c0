"""The guard: the topmost process of a kernel, small and deaf, so that nothing outlives a kill -9 of the zygote.

It is a subreaper: when the zygote dies, whatever lived below it becomes the guard's child and is ended (ADR 0001).
When the guard dies, the zygote sees its lifeline close and ends everything itself. It reads the boot message, forks
the zygote, and then only waits. It is exec'd fresh, so it never inherits the host program's threads.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from typing import Any, Final, NoReturn

from agentos.supervisor import linux, tree

KILL_LIMIT_S: Final = 30.0
BOOT_BYTES_MAX: Final = 16 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")


def main(socket_fd: int) -> NoReturn:
    """Read the boot message from `socket_fd` (u32 length, JSON), then guard. Never returns."""
    boot = read_boot(socket_fd)
    sys.path[:] = boot["sys_path"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # whoever wants the run to end says so to the kernel
    linux.set_subreaper()
    lifeline_read, lifeline_write = os.pipe()
    zygote = os.fork()
    if zygote == 0:
        os.close(lifeline_write)
        from agentos.supervisor import zygote as program  # noqa: PLC0415 - the guard itself stays small

        program.main(socket_fd, boot, lifeline_read)
    linux.set_dumpable(False)
    linux.set_name("agentos-guard")
    linux.close_all_but({0, 1, 2, lifeline_write})  # above all the host's socket: its EOF must reach the kernel
    _, status = os.waitpid(zygote, 0)
    tree.kill(os.getpid(), limit_s=KILL_LIMIT_S, reap=lambda pid: os.waitpid(pid, os.WNOHANG)[0] == pid)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def read_boot(socket_fd: int) -> dict[str, Any]:
    """Return the boot message. Exits 125 when the host is gone before it said everything."""
    with socket.socket(fileno=os.dup(socket_fd)) as sock:
        (size,) = _LENGTH.unpack(_read_exactly(sock, _LENGTH.size))
        if size > BOOT_BYTES_MAX:
            os._exit(125)
        boot: dict[str, Any] = json.loads(_read_exactly(sock, size))
        return boot


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            os._exit(125)
        data += piece
    return data


def pack_boot(boot: dict[str, Any]) -> bytes:
    """Return the bytes the host sends first; the counterpart of `read_boot`."""
    data = json.dumps(boot).encode()
    return _LENGTH.pack(len(data)) + data
