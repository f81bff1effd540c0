"""How many deliveries are under way, and in which order: across threads and loops, whoever gives up meanwhile."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from agentos.client.delivery import Delivery, DeliveryQueue
from agentos.errors import HostError, SignalQueueFull
from agentos.signals import AgentSignal

TERM, KILL, STOP = AgentSignal.SIGTERM, AgentSignal.SIGKILL, AgentSignal.SIGSTOP


def has_turn(delivery: Delivery) -> bool:
    return delivery._turn.done()


def test_one_more_than_fits_is_refused_by_name_and_kill_and_stop_are_not_counted() -> None:
    queue = DeliveryQueue(2, in_order=False)
    first, _ = queue.enter(TERM), queue.enter(TERM)
    with pytest.raises(SignalQueueFull, match=r"SIGTERM was not sent: 2 deliveries .* larger queue_size") as full:
        queue.enter(TERM)
    assert isinstance(full.value, HostError)
    assert full.value.size == 2
    assert all(has_turn(queue.enter(signal)) for signal in (KILL, STOP) * 3)
    assert has_turn(queue.enter(TERM, inside=True))
    first.leave()
    first.leave()
    queue.enter(TERM)
    with pytest.raises(SignalQueueFull):
        queue.enter(TERM)


def test_in_order_each_waits_for_the_one_before_and_who_gives_up_leaves_no_gap() -> None:
    queue = DeliveryQueue(10, in_order=True)
    a, b, c, d = (queue.enter(TERM) for _ in range(4))
    assert [has_turn(one) for one in (a, b, c, d)] == [True, False, False, False]
    assert has_turn(queue.enter(KILL))
    b.leave()
    assert not has_turn(c)
    a.leave()
    assert has_turn(c)
    assert not has_turn(d)
    c.leave()
    assert has_turn(d)
    assert has_turn(queue.enter(STOP))


def test_two_threads_may_find_at_once_whose_turn_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = DeliveryQueue(10, in_order=True)
    first, second = queue.enter(TERM), queue.enter(TERM)
    monkeypatch.setattr(first._turn, "done", lambda: False)  # as the other thread saw it a moment ago
    second.leave()  # looks for whose turn it is, and finds the first
    first.leave()
    assert has_turn(queue.enter(TERM))


def test_thousands_that_gave_up_do_not_break_the_line() -> None:
    queue = DeliveryQueue(20_001, in_order=True)
    first = queue.enter(TERM)
    given_up = [queue.enter(TERM) for _ in range(20_000 - 1)]
    last = queue.enter(TERM)
    for one in given_up:
        one.leave()
    first.leave()
    assert has_turn(last)


@pytest.mark.parametrize("seed", [random.randrange(2**32)])
def test_any_mixture_of_threads_loops_and_cancellations_is_one_at_a_time(seed: int) -> None:
    queue = DeliveryQueue(1_000, in_order=True)
    at_work: list[Delivery] = []
    most: list[int] = []

    async def deliver() -> None:
        delivery = queue.enter(TERM)
        try:
            await delivery.turn()
            at_work.append(delivery)
            most.append(len(at_work))
            await asyncio.sleep(0)
        finally:
            at_work[:] = [one for one in at_work if one is not delivery]
            delivery.leave()

    async def many(rng: random.Random) -> None:
        tasks = [asyncio.ensure_future(deliver()) for _ in range(40)]
        await asyncio.sleep(0)
        for task in tasks:
            if rng.random() < 0.3 and not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(number: int) -> None:
        asyncio.run(many(random.Random(seed + number)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert set(most) == {1}
    assert queue.enter(TERM)._turn.done()


def test_what_was_cancelled_while_at_work_is_not_overtaken() -> None:
    """`at_work` above would not see it: a turn is over when its `leave` comes, not when its waiter is gone."""
    queue = DeliveryQueue(10, in_order=True)

    async def main() -> None:
        first, second = queue.enter(TERM), queue.enter(TERM)
        waiting = asyncio.ensure_future(second.turn())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not has_turn(second)
        first.leave()
        assert has_turn(second)
        third = queue.enter(TERM)
        await asyncio.sleep(0)
        assert not has_turn(third)
        second.leave()
        await asyncio.wait_for(third.turn(), 10)

    asyncio.run(main())
