"""The channel denies whatever it is not told to allow, and tells nobody else's verdict from its own: in one really
forked agent, with threads, handlers and forks of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_world import Agent, agent, verdict

import agentos
from agentos import PolicyViolationError, errors, wire
from agentos.agent import channel

PAGE = 4096  # the smallest pipe there is


def act(resource: str) -> str:
    """Ask once; "allow", or the reason for the denial."""
    try:
        agentos.act("read", resource)
    except PolicyViolationError as refusal:
        return refusal.reason
    return "allow"


def by_name(question: wire.Act) -> wire.Verdict:
    """Allow what ends in an even digit: a verdict that reaches the wrong asker is seen."""
    return verdict(question, "allow" if int(question.resource[-1]) % 2 == 0 else "deny", reason=question.resource)


def wrong_answers(name: str, count: int) -> list[str]:
    """Ask for `count` names; the answers that `by_name` did not give."""
    names = [f"{name}/{number}" for number in range(count)]
    return [each for each in names if act(each) != ("allow" if int(each[-1]) % 2 == 0 else each)]


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_an_allowed_action_says_by_what(tmp_path: Path) -> None:
    def function() -> list[Any]:
        allowed = agentos.act("write", "db/users/42", amount=3)
        return [allowed.operation, allowed.resource, allowed.rule, allowed.rule_name, allowed.reason, allowed.seq]

    with agent(function) as one:
        assert one.result() == ["write", "db/users/42", 3, "a-rule", "said the test", 7]
        (question,) = one.of(wire.Act)
    assert question == wire.Act(question.id, "write", "db/users/42", None, None, "", {"amount": 3}, "sdk")


NO_VERDICTS: dict[str, Callable[[wire.Act], bytes]] = {
    "garbage": lambda _: b"\x00\x00\x00\x05hello",
    "another frame": lambda question: wire.encode(wire.Reply(question.id, "allow")),
    "a frame too large": lambda _: b"\x7f\xff\xff\xff" + bytes(100),
    "a field too few": lambda question: b"\x00\x00\x00\x03\x92\x14" + bytes([question.id]),
    "an effect that is no word": lambda question: wire.encode(verdict(question)._replace(effect=1)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("answer", NO_VERDICTS.values(), ids=NO_VERDICTS)
def test_what_is_no_verdict_denies_and_nothing_is_asked_any_more(answer: Callable[[wire.Act], bytes]) -> None:
    with agent(lambda: [act("first"), act("second")], judge=answer) as one:
        code = one.wait()
        assert one.asked == ["first"]
    assert code == 70  # nobody can be told the result either


def test_the_end_of_the_kernel_denies_and_keeps_denying(tmp_path: Path) -> None:
    def function(out: str) -> None:
        Path(out).write_text("\n".join([act("first"), act("second")]))

    def judge(_: wire.Act, one: Agent) -> None:
        one.close_down()

    with agent(function, str(tmp_path / "out"), judge=judge) as one:
        assert one.wait() == 70
    reasons = (tmp_path / "out").read_text().splitlines()
    assert reasons == ["the kernel is gone; nothing is allowed any more"] * 2


@pytest.mark.parametrize("effect", ["deny", "ask", "", "ALLOW", "allowed"])
def test_only_the_word_allow_allows(effect: str) -> None:
    with agent(act, "x", judge=lambda question: verdict(question, effect)) as one:
        assert one.result() == "said the test"


def test_a_verdict_with_another_id_is_not_for_us() -> None:
    def judge(question: wire.Act) -> bytes:
        strangers = [verdict(question, id=question.id + offset) for offset in (-1, 1, 2**32)]
        return b"".join(map(wire.encode, strangers))

    with agent(act, "x", judge=judge) as one:
        question = one.until(wire.Act)
        time.sleep(0.2)
        assert not one.of(wire.Result)
        one.say(wire.encode(verdict(question, "deny", reason="ours")))
        assert one.result() == "ours"


def test_a_verdict_may_come_in_pieces_and_many_in_one() -> None:
    def judge(question: wire.Act, one: Agent) -> None:
        data = wire.encode(verdict(question, "deny", id=question.id + 2**40))
        data += wire.encode(by_name(question)) + wire.encode(verdict(question, id=question.id + 2**41))
        for byte in data:
            one.say(bytes([byte]))

    with agent(wrong_answers, "x", 6, judge=judge) as one:
        assert one.result() == []


def test_no_answer_is_no_action() -> None:
    with agent(act, "x", judge=lambda _: None) as one:
        one.until(wire.Act)
        time.sleep(0.5)
        assert not one.of(wire.Result)
        os.kill(one.pid, signal.SIGTERM)  # and it can be ended while it waits
        assert one.wait() == -signal.SIGTERM


def test_a_rate_limit_says_when_to_try_again() -> None:
    def function() -> list[Any]:
        with pytest.raises(agentos.RateLimitedError) as caught:
            agentos.act("read", "x")
        return [caught.value.retry_after_s, caught.value.event_id, caught.value.on_violation]

    limited = {"retry_after_s": 1.5, "on_violation": "SIGSTOP"}
    with agent(function, judge=lambda question: verdict(question, "deny", **limited)) as one:
        assert one.result() == [1.5, "run-1-7", "SIGSTOP"]


# --- what can be asked -----------------------------------------------------------------------------------------------


def test_too_large_an_action_is_denied_here_and_never_sent() -> None:
    def function() -> list[str]:
        answers = [act("x" * 40_000)]
        try:
            agentos.act("write", "x", text="y" * 300_000)
        except PolicyViolationError as refusal:
            answers.append(refusal.reason)
        return [*answers, act("small")]

    with agent(function) as one:
        assert one.result() == [channel.TOO_LARGE, channel.TOO_LARGE, "allow"]
        assert one.asked == ["small"]


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


@pytest.mark.parametrize("claim", [deep(40), list(range(70_000)), {1, 2}, object(), {(1, 2): 3}, 2**70])
def test_claims_that_the_kernel_would_end_the_agent_for_are_a_mistake_here(claim: Any) -> None:
    def function() -> str:
        try:
            agentos.act("write", "x", claim=claim)
        except errors.BadRequest as error:
            return str(error)
        return "sent"

    with agent(function) as one:
        assert one.result().startswith("write 'x': ")
        assert one.asked == []


@pytest.mark.parametrize("words", [("read", 5), ("read", b"x"), (1, "x"), ("read", Path("x")), ("read", None)])
def test_operation_and_resource_are_text(words: tuple[Any, Any]) -> None:
    def function() -> str:
        try:
            agentos.act(*words)
        except errors.BadRequest as error:
            return str(error)
        return "sent"

    with agent(function) as one:
        assert "both are text" in one.result()
        assert one.asked == []


def test_names_that_are_no_utf8_are_asked_for_as_policies_read_them() -> None:
    names = [os.fsdecode(b"data/\xff\xc3\xa9"), "\udc41", "caf\u00e9"]

    def function() -> list[str]:
        answers = []
        for name in names:
            try:
                answers.append(agentos.act("read", name).resource)
            except errors.BadRequest as error:
                answers.append(str(error))
        return answers

    with agent(function) as one:
        known, half, plain = one.result()
    assert (known, plain) == ("data/\\xff\u00e9", "caf\u00e9")
    assert "half a character" in half


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipe_bytes", [None, PAGE])
def test_threads_get_their_own_verdicts(pipe_bytes: int | None) -> None:
    def function() -> list[str]:
        wrong: list[str] = []

        def work(number: int) -> None:
            wrong.extend(wrong_answers(f"{number}{'x' * 5000 * (number % 2)}", 60))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return wrong

    with agent(function, judge=by_name, pipe_bytes=pipe_bytes) as one:
        assert one.result() == []
        assert len(set(one.asked)) == 360


@pytest.mark.parametrize("pipe_bytes", [None, PAGE])
def test_large_frames_are_never_cut_by_small_ones(pipe_bytes: int | None) -> None:
    """The decoder of the world would fail on any mixture."""

    def function() -> str:
        done = False

        def work() -> None:
            while not done:
                act("small/0")

        thread = threading.Thread(target=work)
        thread.start()
        for size in (3_000, 5_000, 200_000):
            agentos.act("write", "large", text="x" * size)
            agentos.save_state(["y" * size * 3])
        done = True
        thread.join()
        return "z" * 4_000_000

    with agent(function, pipe_bytes=pipe_bytes) as one:
        assert one.result() == "z" * 4_000_000
        assert [len(question.claims["text"]) for question in one.of(wire.Act) if question.resource == "large"] == [
            3_000, 5_000, 200_000,
        ]  # fmt: skip
        assert len(one.of(wire.Call)) == 3


# --- signal handlers -------------------------------------------------------------------------------------------------


def test_a_handler_may_act_while_the_action_it_interrupted_waits() -> None:
    def function() -> list[str]:
        answers: list[str] = []
        signal.signal(signal.SIGUSR1, lambda *_: answers.append(act("handler/1")))
        return [act("outer/0"), *answers]

    waiting: list[wire.Act] = []

    def judge(question: wire.Act, one: Agent) -> bytes | None:
        if question.resource == "outer/0":
            waiting.append(question)
            os.kill(one.pid, signal.SIGUSR1)
            return None
        return wire.encode(by_name(waiting[0])) + wire.encode(by_name(question))  # the handler reads both

    with agent(function, judge=judge) as one:
        assert one.result() == ["allow", "handler/1"]


def test_an_abandoned_action_leaves_the_channel_whole() -> None:
    """A handler raises out of the wait; the late verdict is nobody's, and the next action gets its own."""

    def function() -> list[str]:
        def give_up(*_: Any) -> None:
            raise TimeoutError

        signal.signal(signal.SIGUSR1, give_up)
        try:
            agentos.act("read", "abandoned/0")
        except TimeoutError:
            return wrong_answers("later", 4)
        return ["not abandoned"]

    abandoned: list[wire.Act] = []

    def judge(question: wire.Act, one: Agent) -> bytes | None:
        if not abandoned:
            abandoned.append(question)
            os.kill(one.pid, signal.SIGUSR1)
            return None
        return wire.encode(verdict(abandoned[0])) + wire.encode(by_name(question))

    with agent(function, judge=judge) as one:
        assert one.result() == []


def test_a_handler_that_reads_in_the_middle_of_our_reading_leaves_the_stream_whole() -> None:
    """Both take what arrived; half a frame that the handler completes must not be put back."""

    def function() -> list[str]:
        from agentos.agent import process

        class Early(dict[int, Any]):
            armed = True

            def __contains__(self, key: object) -> bool:
                if self.armed:
                    self.armed = False
                    signal.raise_signal(signal.SIGUSR1)
                return super().__contains__(key)

        agent = process.current()
        assert agent is not None
        agent.channel._early = Early()
        answers: list[str] = []
        signal.signal(signal.SIGUSR1, lambda *_: answers.append(act("handler/1")))
        return [act("outer/0"), *answers, act("after/0")]

    def judge(question: wire.Act) -> bytes:
        stray = wire.encode(verdict(question, id=2**40, resource="stray"))
        before, after = {"outer/0": (b"", stray[:9]), "handler/1": (stray[9:], b"")}.get(question.resource, (b"", b""))
        return before + wire.encode(by_name(question)) + after

    with agent(function, judge=judge) as one:
        assert one.result() == ["allow", "handler/1", "allow"]


def storm(rounds: int, seed: int) -> dict[str, Any]:
    """Act while alarms go off at random moments; their handler acts, or raises, or is interrupted itself."""

    class Boom(Exception):
        pass

    dice = random.Random(seed)
    seen = {"armed": 0, "alarms": 0, "raised": 0, "acted": 0}
    wrong: list[str] = []
    done = False

    def arm() -> None:
        seen["armed"] += 1
        signal.setitimer(signal.ITIMER_REAL, dice.random() * 0.0002 + 1e-6)

    def handler(*_: Any) -> None:
        seen["alarms"] += 1
        if seen["alarms"] % 2:
            if seen["alarms"] % 4 == 1:
                arm()
            wrong.extend(wrong_answers(f"handler/{seen['alarms']}", 1))
            seen["acted"] += 1
        else:
            seen["raised"] += 1
            raise Boom

    def beside() -> None:
        number = 0
        while not done:
            number += 1
            wrong.extend(wrong_answers(f"beside/{number}", 2))
            time.sleep(0.001)

    thread = threading.Thread(target=beside)
    thread.start()
    signal.signal(signal.SIGALRM, handler)

    def ask(number: int) -> None:
        with contextlib.suppress(Boom):
            arm()
            wrong.extend(wrong_answers(f"main/{number}{'x' * dice.choice((0, 0, 6000))}", 1))
        while seen["alarms"] < seen["armed"]:
            time.sleep(0.0001)

    for number in range(rounds):
        with contextlib.suppress(Boom):  # of the alarm that the handler set, on the way out of the first
            ask(number)
    done = True
    thread.join(5)
    return {**seen, "wrong": wrong, "beside lives": thread.is_alive(), "after": act("after/0")}


def test_handlers_that_act_and_raise_at_any_moment_break_nothing() -> None:
    seed = random.randrange(2**32)
    with agent(storm, 1_000, seed, judge=by_name) as one:
        report = one.result()
    assert report["raised"] > 100, (seed, report)
    assert report["acted"] > 100, (seed, report)
    assert (report["wrong"], report["beside lives"], report["after"]) == ([], False, "allow"), (seed, report)


def test_a_large_frame_is_whole_when_a_handler_raises_in_the_middle_of_it() -> None:
    def function() -> int:
        class Boom(Exception):
            pass

        def handler(*_: Any) -> None:
            raise Boom

        signal.signal(signal.SIGALRM, handler)
        cut = 0
        for number in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003 + number**2 / 100_000)
                agentos.save_state("x" * 300_000)
                while True:  # not pause(2): the alarm may have come a moment before it
                    time.sleep(0.001)
            except Boom:
                cut += 1
        agentos.save_state("x" * 300_000)
        return cut

    with agent(function, pipe_bytes=PAGE) as one:
        assert one.result() == 20
        assert {len(call.params["value"]) for call in one.of(wire.Call)} == {300_005}


# --- forks -----------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], list[str]]) -> int:
    """Run `work` in a forked child; it ends with 0 when the list is empty."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            wrong = work()
            code = 1 if wrong else 0
        finally:
            os._exit(code)
    return pid


def ended(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_forked_processes_share_the_channel_and_get_their_own_verdicts() -> None:
    def function() -> list[Any]:
        wrong: list[str] = []
        done = False

        def beside() -> None:
            while not done:
                wrong.extend(wrong_answers(f"beside{'x' * 5000}", 2))

        thread = threading.Thread(target=beside)
        thread.start()

        def child(number: int) -> list[str]:
            grandchild = forked(lambda: wrong_answers(f"grandchild{number}", 40))
            return [*wrong_answers(f"child{number}", 40), *(["grandchild"] if ended([grandchild]) != [0] else [])]

        children = [forked(lambda number=number: child(number)) for number in range(4)]  # type: ignore[misc]
        wrong.extend(wrong_answers("parent", 40))
        codes = ended(children)
        done = True
        thread.join()
        return [codes, wrong, act("after/0")]

    with agent(function, judge=by_name) as one:
        assert one.result() == [[0, 0, 0, 0], [], "allow"]
        ids = [question.id for question in one.of(wire.Act)]
        assert len(ids) == len(set(ids))
        assert len({number >> 32 for number in ids}) == 9


def test_frames_of_forked_processes_are_not_mixed() -> None:
    def function() -> list[int]:
        def child() -> list[str]:
            for _ in range(5):
                agentos.act("write", "x/0", text="x" * 100_000)
            return []

        children = [forked(child) for _ in range(3)]
        for _ in range(5):
            agentos.save_state("y" * 100_000)
        return ended(children)

    with agent(function, pipe_bytes=PAGE) as one:
        assert one.result() == [0, 0, 0]
        assert len(one.of(wire.Act)) == 15


def test_a_child_that_ends_finishes_the_frame_that_its_thread_is_writing() -> None:
    def function() -> str:
        for number in range(20):
            pid = os.fork()
            if pid == 0:
                write = lambda: agentos.act("write", "large/0", text="x" * 200_000)
                threading.Thread(target=write, daemon=True).start()
                time.sleep(number / 4000)
                return "child"
            os.waitpid(pid, 0)
        return act("parent/0")

    with agent(function, judge=by_name, pipe_bytes=PAGE) as one:
        assert one.result() == "allow"
        assert {len(question.claims["text"]) for question in one.of(wire.Act)[:-1]} <= {200_000}


def test_a_child_that_outlives_its_parent_is_still_decided(tmp_path: Path) -> None:
    def function(out: str) -> int:
        first = os.getpid()

        def child() -> list[str]:
            while os.getppid() == first:
                time.sleep(0.005)
            Path(out).write_text(f"{act('orphan/0')} {act('orphan/1')}")
            return []

        return forked(child)

    out = tmp_path / "out"
    with agent(function, str(out), judge=by_name) as one:
        assert one.wait() == 0
        one.wait_for_all()
        assert out.read_text() == "allow orphan/1"
        assert len(one.of(wire.Result)) == 1


def test_a_child_without_a_lock_of_its_own_is_denied() -> None:
    """No descriptor is left for the lock: the child must not use the ids of its parent, which goes on."""

    def function() -> list[Any]:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        full = [os.open(os.devnull, os.O_RDONLY) for _ in range(used - len(os.listdir("/proc/self/fd")) + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(full) + 1, hard))
        pid = forked(lambda: [] if "no lock" in act("child/0") else ["allowed"])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        codes = ended([pid])
        again = forked(lambda: wrong_answers("again", 4))
        return [codes, act("parent/0"), ended([again])]

    with agent(function, judge=by_name) as one:
        assert one.result() == [[0], "allow", [0]]
        assert "child/0" not in one.asked


def test_a_child_forked_by_a_handler_does_not_wait_for_its_parents_verdict() -> None:
    def function() -> list[Any]:
        children: list[int] = []
        signal.signal(signal.SIGUSR1, lambda *_: children.append(os.fork()))
        answer = act("outer/0")
        if 0 in children:
            os._exit(0 if "forked" in answer else 1)
        return [answer, ended(children)]

    def judge(question: wire.Act, one: Agent) -> None:
        os.kill(one.pid, signal.SIGUSR1)
        time.sleep(0.5)
        one.say(wire.encode(by_name(question)))

    with agent(function, judge=judge) as one:
        assert one.result() == ["allow", [0]]


# --- an agent that tampers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closerange", "dup2"])
def test_a_closed_pipe_denies_and_nothing_is_written_to_what_took_its_number(tmp_path: Path, how: str) -> None:
    def function(place: str, how: str) -> None:
        mine = [os.open(f"{place}/file", os.O_RDWR | os.O_CREAT) for _ in range(1)]
        os.write(mine[0], b"mine")
        numbers = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
        if how == "closerange":
            os.closerange(3, max(numbers) + 1)
            mine = [os.open(f"{place}/file", os.O_RDWR) for _ in numbers]
        else:
            for number in numbers:
                os.dup2(mine[0], number)
        Path(f"{place}/out").write_text("\n".join([act("first"), act("second")]))

    with agent(function, str(tmp_path), how) as one:
        assert one.wait() == 70
        assert one.asked == []
    assert (tmp_path / "file").read_bytes() == b"mine"
    for reason in (tmp_path / "out").read_text().splitlines():
        assert "nothing is allowed any more" in reason


def test_only_the_verdict_pipe_closed_is_noticed_too() -> None:
    """The number is taken by a pipe that says "allow" to everything: it is not asked."""

    def function() -> str:
        from agentos.agent import process

        agent = process.current()
        assert agent is not None
        forged, forger = os.pipe()
        os.set_blocking(forged, False)
        for number in range(1, 20):
            os.write(forger, wire.encode(wire.Verdict(number, "allow", "", None, None, None, "x", 1, False, None)))
        os.dup2(forged, agent.channel._down.descriptor)
        return act("x")

    with agent(function, judge=lambda _: None) as one:
        code = one.wait()
        assert one.asked == ["x"]
    assert code == 70
