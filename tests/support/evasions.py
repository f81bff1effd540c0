"""Programs that try to get away from their supervisor, one a name. Run with the system's own interpreter.

    python3 evasions.py NAME [ARGUMENT…]
Every loop that forks is capped by count and by time, and nothing stays longer than LIFETIME_S.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time

LIFETIME_S = 60
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH = 16
SYS_EXIT = {"x86_64": 60, "aarch64": 93}


def rest(seconds: float = LIFETIME_S) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.02)


def tick(path: str) -> None:
    """Show life in a file, until the time is over."""
    deadline = time.monotonic() + LIFETIME_S
    with open(path, "a") as file:
        while time.monotonic() < deadline:
            file.write(".")
            file.flush()
            time.sleep(0.01)
    os._exit(0)


def detach() -> bool:
    """Double fork and setsid; True in the grandchild."""
    if os.fork():
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True


def say(name: str, text: str = "") -> None:
    with open(f"{name}.new", "w") as file:
        file.write(text or "yes")
    os.rename(f"{name}.new", name)


def wait_for(name: str) -> None:
    while not os.path.exists(name):
        time.sleep(0.01)


# --- how to be overlooked ------------------------------------------------------------------------------------------


def hop(hops: str, others: str) -> None:
    """Fork and exit, again and again, as fast as can be: whoever lists the tree finds only the dead.

    The others are listed before the chain, so that it is gone from where it was when it is looked at.
    """
    for _ in range(int(others)):
        if detach():
            time.sleep(LIFETIME_S)
    with open("hopped", "w+b") as file:
        file.write(bytes(8))
        file.flush()
        count = mmap.mmap(file.fileno(), 8)
    if not detach():
        say("ready")
        rest()
    for number in range(1, int(hops)):
        if os.fork():
            os._exit(0)
        count[:8] = number.to_bytes(8, "little")
    rest()


def headless(_: str = "") -> None:
    """End the first thread while another one works: the process looks like a zombie."""
    if not detach():
        wait_for("ticking")
        say("ready")
        rest()
    threading.Thread(target=tick, args=("ticking",)).start()
    libc.syscall(SYS_EXIT[os.uname().machine], 0)


def bomb(count: str) -> None:
    """Everybody forks until there are `count`, in sessions of their own; then all tick. As nobody, a limit helps."""
    resource.setrlimit(resource.RLIMIT_NPROC, (1_000, 1_000))  # of this user, this bomb's or not; root has none
    if os.environ.get("CGROUP"):
        with open(os.environ["CGROUP"] + "/cgroup.procs", "w") as file:
            file.write("0")
    born = mmap.mmap(-1, 8)
    deadline = time.monotonic() + 10
    while struct.unpack("q", born)[0] < int(count) and time.monotonic() < deadline:
        born[:8] = struct.pack("q", struct.unpack("q", born)[0] + 1)  # not atomic: a few more, never endless
        try:
            if os.fork() == 0:
                os.setsid()
        except BlockingIOError:
            time.sleep(0.01)
    rest()


def subreaper(_: str = "") -> None:
    """Adopt one's own orphans, and die: they move up in the middle of whatever is being done to them."""
    libc.prctl(36, 1, 0, 0, 0)
    for index in range(6):
        if detach():
            tick(f"tick-{index}")
    wait_for("tick-5")
    say("ready")
    rest()


def vfork(threads: str) -> None:
    """Wait in vfork for a child that waits in open(2): a parent in D that takes no signal."""
    os.mkfifo("fifo")
    for _ in range(int(threads)):
        threading.Thread(target=rest, daemon=True).start()
    say("ready")
    actions = [(os.POSIX_SPAWN_OPEN, 0, "fifo", os.O_RDONLY, 0)]
    os.posix_spawn("/bin/true", ["true"], dict(os.environ), file_actions=actions)
    say("went on")
    rest()


# --- how to end, or not to -----------------------------------------------------------------------------------------


def leave_children(count: str) -> None:
    """Exit with 0 and leave descendants behind."""
    for index in range(int(count)):
        if detach():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            tick(f"tick-{index}")
    for index in range(int(count)):
        wait_for(f"tick-{index}")


def ignore_term(_: str = "") -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("ready")
    tick("tick")


def stop_when_asked_to_end(_: str = "") -> None:
    """Answer SIGTERM by stopping oneself: a clock that stands still for the stopped would never end this."""
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), os.kill(os.getpid(), signal.SIGSTOP)))
    say("ready")
    tick("tick")


def work_while_stopped(_: str = "") -> None:
    """Stop oneself, and leave the work to a child."""
    if detach():
        tick("tick")
    wait_for("tick")
    say("ready")
    os.kill(os.getpid(), signal.SIGSTOP)
    rest()


# --- how to attack the supervisor ----------------------------------------------------------------------------------


def with_children(count: int = 4) -> None:
    for index in range(count):
        if detach():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            tick(f"tick-{index}")
    for index in range(count):
        wait_for(f"tick-{index}")


def against_sentry(how: str) -> None:
    """Use a signal, or ptrace, on one's own sentry; `zygote` stops the zygote first, so that nobody is adopted.

    `ptrace` comes from a detached child: Linux tells a parent of its child's death only when no tracer has it.
    """
    with_children()
    sentry = os.getppid()
    say("ready")
    if how == "ptrace" and not detach():
        rest()
    if how == "zygote":
        with open(f"/proc/{sentry}/stat") as file:
            zygote = int(file.read().rpartition(")")[2].split()[1])
        os.kill(zygote, signal.SIGSTOP)
        os.kill(sentry, signal.SIGKILL)
    elif how == "ptrace":
        failed = libc.ptrace(PTRACE_ATTACH, sentry, 0, 0) != 0
        say("attached", "refused" if failed else "attached")
    else:
        os.kill(sentry, getattr(signal, how))
    rest()


def knock(path: str) -> str:
    """Connect to a control socket, greet, and ask for somebody's death; returns what came back."""
    try:
        folder, name = os.path.split(path)
        handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)  # a socket's own name holds 108 bytes (unix(7))
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(5)
            door.connect(f"/proc/self/fd/{handle}/{name}")
            with contextlib.suppress(BrokenPipeError):  # refused already; why lies there to be read
                door.sendall(bytes.fromhex(os.environ["KNOCK"]))
            answer = door.recv(4096)
            return answer.decode("latin-1") or "hung up"
    except OSError as error:
        return f"OSError {error.errno}"


def knock_from_everywhere(path: str, how: str) -> None:
    """As the agent, as a detached child of it, or as one whose sentry is dead and whose zygote cannot adopt it yet."""
    if how != "agent" and not detach():
        rest()
    if how == "orphan":
        sentry = os.getppid()  # which adopted us
        with open(f"/proc/{sentry}/stat") as file:
            zygote = int(file.read().rpartition(")")[2].split()[1])
        os.kill(zygote, signal.SIGSTOP)
        os.kill(sentry, signal.SIGKILL)
        while os.getppid() == sentry:
            time.sleep(0.001)
    say("heard", knock(path))
    rest()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
