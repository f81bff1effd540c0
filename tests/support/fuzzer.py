"""A hostile agent by dice. It speaks frames of its own on its own pipes and keeps books on what it sent and heard.

The books are lines in a file, written before and after the fact, so that they are true however the agent ends:
`S id operation resource` an action is about to be sent, `W id` its last byte is in the pipe, `A id effect seq reason`
a verdict was read, `C id method` and `R id error` the same for calls, `B why` from here on nothing is promised to it,
`E` everything was answered as far as it knows, `X what` it did what it must not, which is a fault of the test.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import time
from collections import Counter, deque
from typing import Any

import mutants
from attackers import NOTES

import agentos
from agentos import wire
from agentos.actions import RESOURCE_BYTES_MAX
from agentos.agent.process import current
from agentos.errors import PolicyViolationError, ProtocolError

FIRST_ID = 10**6  # below are those of the agent's own channel
LIFE_S = 60.0  # of an agent that waits for what never comes
PIPE_BUF = select.PIPE_BUF
NEVER_ANSWERED = ("wait_all",)  # when it waits for itself
OPERATIONS = ("read", "read", "read", "write", "write", "write/delete", "execute", "network", "kernel", "READ", "")
RESOURCES = (
    *(f"data/{number}" for number in range(12)), "data/limited", "data/limited", "/etc/hostname", "",
    "a\0b", "../../x", "https://example.com/x", "tcp://[::1]:1", "https://[", "x" * RESOURCE_BYTES_MAX, "ü/😀", "*",
    "//", "~",
)  # fmt: skip
SIGNALS = (
    "SIGUSR1",
    "SIGUSR2",
    "SIGCONT",
    18,
    10,
    "SIGSTOP",
    "SIGTERM",
    "SIGALRM",
    "SIGKILL",
    "SIGINT",
    0,
    -1,
    64,
    "x",
)
TARGETS = ("fuzzer:small", "fuzzer:small", "nope:nope", "os:", ":", "x" * 9_000, "/nope.py:f")
HARMLESS = 5  # so many of the signals do not end who gets them


def small() -> int:
    """What hostile agents spawn."""
    return 1


def steady(path: str) -> int:
    """Act until the file is gone, as attackers.bystander does; a recorder that cannot record is lived with."""
    with open(path, "r+b") as file:
        notes = mmap.mmap(file.fileno(), 2 * NOTES.size)
    actions, sum_s, worst_s = 0, 0.0, 0.0
    watch = os.open(path, os.O_RDONLY)  # looking whether the file is gone shall be no action
    while os.fstat(watch).st_nlink:
        begin = time.perf_counter()
        try:
            agentos.act("read", "data/bystander")
        except PolicyViolationError as refusal:
            if refusal.reason != "recorder_unavailable":
                raise
        waited = time.perf_counter() - begin
        if NOTES.unpack_from(notes, NOTES.size)[0]:
            NOTES.pack_into(notes, NOTES.size, 0, 0.0, 0.0)
            worst_s = 0.0
        actions, sum_s, worst_s = actions + 1, sum_s + waited, max(worst_s, waited)
        NOTES.pack_into(notes, 0, actions, worst_s, sum_s)
        time.sleep(0.005)
    return actions


def hostile(seed: str, ledger: str, methods: list[str], words: dict[str, list[str]], ids: list[str]) -> int:
    """Do `steps` things by the dice of `seed`, then end in one of many ways."""
    agent = Hostile(random.Random(seed), ledger, methods, words, ids)
    try:
        return agent.live()
    except BaseException:  # a signal asks it to end, or it raises: the library goes on from here
        agent.let_go("it is unwound")
        raise


class Hostile:
    def __init__(
        self, dice: random.Random, ledger: str, methods: list[str], words: dict[str, list[str]], ids: list[str]
    ) -> None:
        process = current()
        assert process is not None
        assert process.runtime is not None
        self.dice = dice
        self.methods = methods
        self.words = words  # the parameters of calls, and what kinds of value they take
        self.ids = [process.id, *ids]
        self.books = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.up, self.down = process.channel._up.descriptor, process.channel._down.descriptor
        os.set_blocking(self.up, False)
        self.next_id = FIRST_ID
        self.used: list[tuple[int, str, str]] = []
        self.owed = Counter[int]()  # answers still to come, by the id of the action
        self.calls_owed: set[int] = set()
        self.outgoing: deque[tuple[bytes, str]] = deque()  # and the line to write once it is in the pipe
        self.questions: deque[int] = deque()  # that the kernel asked of it
        self.cursor = 0
        self.reads = True
        self.spawned = 0
        self.decoder = wire.Decoder(wire.TO_AGENT_VERDICTS)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        process.runtime._dispatch = self.answered  # type: ignore[method-assign]
        process.channel.act = self.trap  # type: ignore[assignment]

    def note(self, *lines: str) -> None:
        os.write(self.books, "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))

    def trap(self, *words: Any, **_: Any) -> None:
        """Whatever goes through the library would take verdicts that are ours to count."""
        self.note(f"X {words!r}")
        raise agentos.errors.KernelUnavailable("this agent uses its pipes by itself")

    def let_go(self, why: str) -> None:
        """Promise nothing from here on, and let the library act again."""
        self.note(f"B {why}")
        process = current()
        assert process is not None
        vars(process.channel).pop("act", None)

    def answered(self, frame: Any) -> None:
        """What the thread of the runtime reads on the calls pipe."""
        if isinstance(frame, wire.Query):
            self.questions.append(frame.id)
            return
        if isinstance(frame, wire.Query):  # it asked for that itself; some of its questions stay open
            if self.dice.random() < 0.8:
                answer = mutants.frame_of(self.dice, wire.Answer)._replace(id=frame.id)
                self.outgoing.append((wire.encode(answer), ""))
            return
        self.note(f"R {frame.id} {getattr(frame, 'error', '-')}")
        self.calls_owed.discard(frame.id)
        if isinstance(frame, wire.Reply) and isinstance(frame.value, str):
            self.ids.append(frame.value)

    # --- what it sends ---------------------------------------------------------------------------------------------

    def new_id(self) -> int:
        self.next_id += self.dice.choice((1, 1, 1, 7, 2**20))
        return self.next_id if self.dice.random() < 0.97 else self.next_id + self.dice.choice((2**32, 2**62, -(2**62)))

    def act(self, *, small: bool = False) -> bytes:
        """Return one action and put it into the books; a few repeat an id, a few are as wild as a frame may be."""
        dice = self.dice
        if self.used and dice.random() < 0.05:
            number, operation, resource = dice.choice(self.used[-40:])
        else:
            number, operation, resource = self.new_id(), dice.choice(OPERATIONS), dice.choice(RESOURCES)
        if dice.random() < 0.001:
            number, operation, resource = self.new_id(), "write", "data/stopping"
        act = wire.Act(number, operation, resource, None, None, "/", {}, "sdk")
        if not small and dice.random() < 0.1:
            act = mutants.frame_of(dice, wire.Act)._replace(id=number, operation=operation, resource=resource)
        data = wire.encode(act)
        if len(data) > (PIPE_BUF if small else wire.ACTION_BYTES_MAX):
            number, operation, resource = self.new_id(), "read", "data/1"
            data = wire.encode(wire.Act(number, operation, resource, None, None, "", {}, "hook"))
        self.used.append((number, operation, resource))
        self.owed[number] += 1
        self.note(f"S {number} {operation or '-'} {resource[:100]!r}")
        return data

    def send_acts(self, count: int) -> None:
        for _ in range(count):
            self.outgoing.append((self.act(), f"W {self.used[-1][0]}"))

    def send_burst(self) -> None:
        """Many actions in one write."""
        frames = [(self.act(), f"W {self.used[-1][0]}") for _ in range(self.dice.choice((3, 30, 200)))]
        self.outgoing.append((b"".join(data for data, _ in frames), "\n".join(line for _, line in frames)))

    def send_call(self) -> None:
        method, number = self.dice.choice(self.methods), self.new_id()
        if method == "spawn":
            self.spawned += 1
            if self.spawned > 3:
                return
        data = wire.encode(wire.Call(number, method, self.params(method)))
        if method not in NEVER_ANSWERED:
            self.calls_owed.add(number)
        self.note(f"C {number} {method}")
        self.outgoing.append((data, f"D {number}"))

    def params(self, method: str) -> dict[str, Any]:
        """Return what the call takes, what another takes, or anything."""
        dice = self.dice
        wanted = {
            "status": ["id"], "send_signal": ["id", "signal", "scope"], "signal": ["id", "signal"], "wait_all": ["ids"],
            "spawn": ["name", "target", "permissions", "restrictions", "timeout_s"], "save_state": ["value"],
            "query": ["id", "what"],
        }.get(method, [])  # fmt: skip
        names = [name for name in wanted if dice.random() < 0.9]
        names += dice.sample(sorted(self.words), dice.choice((0, 0, 1, 3)))
        return {name: self.value(name) for name in names}

    def value(self, name: str) -> Any:
        dice = self.dice
        if dice.random() < 0.15:
            return mutants.plain(dice)
        pools: dict[str, tuple[Any, ...]] = {
            "id": (*self.ids, "", "x", "y" * 5_000), "signal": SIGNALS[:HARMLESS] * 12 + SIGNALS,
            "scope": (None, "tree", "leader", "x"), "ids": ([self.ids[-1]], self.ids[-2:], ["x"], [], ["x"] * 3_000),
            "name": ("small", "small", "", "x" * 200), "target": TARGETS, "permissions": (None, [], ["read"], ["x"]),
            "restrictions": (None, ["no_network"], ["x"]), "timeout_s": (None, 5.0, 0.01, -1, 2**63, 1e308),
            "value": (b"", b"\xc0", bytes(70_000)), "what": ("get_state", "save_state", "cleanup", "x"),
        }  # fmt: skip
        if name in pools:
            return dice.choice(pools[name])
        makers: dict[str, Any] = {
            "str": "x",
            "int": 3,
            "float": 0.5,
            "bytes": b"\x90",
            "list": ["read"],
            "dict": {"k": "v"},
        }
        return makers[dice.choice(self.words[name])]

    def send_other(self) -> None:
        """What needs no answer: reports on actions that never were, a result, Hello."""
        cls = self.dice.choice((wire.Outcome, wire.Result, wire.Raised, wire.Hello))
        frame = mutants.frame_of(self.dice, cls)
        self.outgoing.append((wire.encode(frame._replace(version=wire.VERSION) if cls is wire.Hello else frame), ""))

    def answer_questions(self) -> None:
        """Answer what the kernel asked, with anything; one in five hears nothing."""
        while self.questions:
            number = self.questions.popleft()
            if self.dice.random() < 0.8:
                answer = mutants.frame_of(self.dice, wire.Answer)._replace(id=number)
                self.outgoing.append((wire.encode(answer), ""))

    def send_in_pieces(self) -> None:
        """Stop in the middle of a frame for a while, at any byte."""
        data = self.act() + self.act()
        self.flush()
        for piece in mutants.pieces(self.dice, data[:400]):
            self.outgoing.append((piece, ""))
            self.pump(self.dice.choice((0, 0, 0.002)))
        self.outgoing.append((data[400:], "\n".join(f"W {number}" for number, _, _ in self.used[-2:])))

    # --- reading and writing ---------------------------------------------------------------------------------------

    def pump(self, seconds: float) -> None:
        """Write what the pipe takes and read verdicts for so long, at least once."""
        deadline = time.monotonic() + seconds
        while True:
            self.step(max(0.0, min(0.05, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                return

    def step(self, wait_s: float) -> None:
        poller = select.poll()
        if self.reads:
            poller.register(self.down, select.POLLIN)
        if self.outgoing:
            poller.register(self.up, select.POLLOUT)
        for descriptor, _ in poller.poll(wait_s * 1_000):
            if descriptor == self.down:
                self.read()
            else:
                self.write()

    def write(self) -> None:
        data, line = self.outgoing[0]
        try:
            self.cursor += os.write(self.up, data[self.cursor :]) if data else 0
        except BlockingIOError:
            return
        if self.cursor == len(data):
            self.cursor = 0
            self.outgoing.popleft()
            if line:
                self.note(line)

    def read(self) -> None:
        try:
            data = os.read(self.down, 65_536)
        except BlockingIOError:
            return
        if not data:
            self.note("B the kernel closed the verdict pipe")
            os._exit(5)
        lines = []
        for verdict in self.decoder.feed(data):
            self.owed[verdict.id] -= 1
            lines.append(f"A {verdict.id} {verdict.effect} {verdict.seq} {verdict.reason[:60]!r}")
        self.note(*lines)

    def flush(self) -> None:
        while self.outgoing:
            self.step(0.05)

    def settle(self) -> bool:
        """Wait until everything was answered; whether it was."""
        self.reads = True
        deadline = time.monotonic() + LIFE_S
        while self.outgoing or any(count > 0 for count in self.owed.values()) or self.calls_owed:
            self.answer_questions()
            self.step(0.05)
            if time.monotonic() > deadline:
                return False
        return True

    # --- a life ----------------------------------------------------------------------------------------------------

    def live(self) -> int:
        dice = self.dice
        for _ in range(dice.choice((5, 20, 40, 60))):
            happens = [
                (20, lambda: self.send_acts(dice.randrange(1, 6))), (10, self.send_burst), (12, self.send_call),
                (8, self.send_other), (5, self.send_in_pieces), (3, self.read_nothing_for_a_while),
                (1, lambda: self.send_acts(1_500)), (2, self.fork), (10, lambda: self.pump(dice.choice((0, 0.05)))),
            ]  # fmt: skip
            weights, things = zip(*happens, strict=True)
            dice.choices(things, weights)[0]()
            self.answer_questions()
            self.step(0)
        return self.end()

    def read_nothing_for_a_while(self) -> None:
        self.reads = False
        self.send_acts(self.dice.choice((0, 50, 1_000)))
        self.pump(self.dice.choice((0.02, 0.1, 0.3)))
        self.reads = True

    def fork(self) -> None:
        """A child writes actions at the same time, each in one write that pipe(7) keeps whole; we hear the verdicts."""
        self.flush()
        frames = [(self.act(small=True), self.used[-1][0]) for _ in range(self.dice.randrange(1, 40))]
        child = os.fork()
        if child == 0:
            try:
                for data, number in frames:
                    while True:
                        select.select([], [self.up], [])
                        try:
                            os.write(self.up, data)
                            break
                        except BlockingIOError:
                            continue
                    self.note(f"W {number}")
            finally:
                os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if len(self.outgoing) < 20:
                self.outgoing.append((self.act(small=True), f"W {self.used[-1][0]}"))
            self.step(0.001)

    def end(self) -> int:
        ways = (
            (50, self.end_clean), (20, self.end_with_what_is_no_frame), (5, self.end_inside_a_frame),
            (5, self.end_killed), (4, self.end_without_up), (4, self.end_without_down), (4, self.end_without_both),
            (4, self.end_by_returning), (4, self.end_at_once), (4, self.end_with_an_answer_to_nothing),
        )  # fmt: skip
        weights, things = zip(*ways, strict=True)
        return self.dice.choices(things, weights)[0]() or 0

    def end_clean(self) -> None:
        self.note("E" if self.settle() else f"T {+self.owed} {self.calls_owed}")
        os._exit(0)

    def end_with_what_is_no_frame(self) -> None:
        if self.dice.random() < 0.5:
            self.settle()
        self.flush()
        data = mutants.mutant(
            self.dice, mutants.frame_of(self.dice, self.dice.choice(sorted(wire.FROM_AGENT, key=str)))
        )
        try:  # what it happens to hold is sent, too
            for frame in wire.Decoder(wire.FROM_AGENT).feed(data):
                if isinstance(frame, wire.Act):
                    self.note(f"S {frame.id} ? ''")
                elif isinstance(frame, wire.Call):
                    self.note(f"C {frame.id} ?")
        except ProtocolError:
            pass
        self.note("B it sends what is no frame")
        self.outgoing.append((data, ""))
        self.pump(1.0)
        os._exit(3)

    def end_with_an_answer_to_nothing(self) -> None:
        self.settle()
        self.note("B it answers what nobody asked")
        self.outgoing.append((wire.encode(wire.Answer(-1, True, b"", "")), ""))
        self.pump(LIFE_S)
        self.note("X it lives on")
        os._exit(4)

    def end_inside_a_frame(self) -> None:
        self.flush()
        data = self.act()
        self.note("B it ends inside a frame")
        os.write(self.up, data[: self.dice.randrange(1, len(data))][:PIPE_BUF])
        os._exit(0)

    def end_killed(self) -> None:
        self.send_acts(300)
        self.pump(self.dice.choice((0, 0.01)))
        self.note("B it kills itself")
        os.kill(os.getpid(), signal.SIGKILL)

    def end_without_up(self) -> None:
        self.flush()
        self.note("B it closes its pipe")
        os.close(self.up)
        self.pump(0.2)
        os._exit(0)

    def end_without_down(self) -> None:
        self.note("B it closes the verdict pipe")
        os.close(self.down)
        self.reads = False
        self.send_acts(self.dice.choice((0, 500)))
        self.pump(0.3)
        os._exit(0)

    def end_without_both(self) -> None:
        self.note("B it closes both pipes")
        os.close(self.down)
        os.close(self.up)
        time.sleep(self.dice.choice((0, 0.1, 1.2)))
        os._exit(0)

    def end_by_returning(self) -> int:
        """The library tells the result on the same pipe, and may act for that."""
        self.settle()
        self.let_go("it returns")
        os.set_blocking(self.up, True)
        if self.dice.random() < 0.5:
            raise ValueError("it raises")
        return 1

    def end_at_once(self) -> None:
        self.note("B it leaves with much unsent and unread")
        os._exit(self.dice.choice((0, 9)))
