from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.endpoint.batching import Batcher, Lane, Ticket
from service.endpoint.body import Gone
from service.endpoint.errors import TooLate


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def ticket(seconds: float = 15, *, gone: bool = False) -> Ticket:
    async def is_gone() -> bool:
        return gone

    return Ticket(deadline=asyncio.get_running_loop().time() + seconds, is_gone=is_gone)


def test_no_more_than_the_given_number_of_calls_run_at_once_and_all_are_answered_in_order() -> None:
    async def check() -> None:
        lane, lock = Lane(2, "test"), threading.Lock()
        running, most, order = 0, 0, []

        def call(number: int) -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                order.append(number)
            time.sleep(0.01)
            with lock:
                running -= 1
            return number * 10

        answers = await asyncio.gather(*(lane.run(lambda n=n: call(n), ticket()) for n in range(8)))  # type: ignore[misc]
        assert answers == [number * 10 for number in range(8)]
        assert most == 2 and sorted(order) == list(range(8))
        assert all(abs(place - number) <= 1 for place, number in enumerate(order))
        assert (lane.num_running, lane.num_waiting) == (0, 0)
        lane.close()

    run(check)


def test_a_request_whose_time_is_up_or_whose_client_has_gone_is_not_computed() -> None:
    async def check() -> None:
        lane, release, computed = Lane(1, "test"), threading.Event(), []
        first = asyncio.create_task(lane.run(release.wait, ticket()))
        await asyncio.sleep(0.01)
        late = asyncio.create_task(lane.run(lambda: computed.append("late"), ticket(0.05)))
        gone = asyncio.create_task(lane.run(lambda: computed.append("gone"), ticket(gone=True)))
        kept = asyncio.create_task(lane.run(lambda: computed.append("kept"), ticket()))
        with pytest.raises(TooLate):
            await late
        release.set()
        assert await first
        with pytest.raises(Gone):
            await gone
        await kept
        assert computed == ["kept"]
        lane.close()

    run(check)


def test_a_call_that_outlasts_its_request_holds_its_thread_until_it_ends() -> None:
    async def check() -> None:
        lane, release = Lane(1, "test"), threading.Event()
        with pytest.raises(TooLate):
            await lane.run(release.wait, ticket(0.05))
        assert lane.num_running == 1
        waiting = asyncio.create_task(lane.run(lambda: "second", ticket()))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        release.set()
        assert await waiting == "second"
        lane.close()

    run(check)


def test_what_a_call_raises_reaches_its_request_and_frees_the_thread() -> None:
    async def check() -> None:
        lane = Lane(1, "test")
        for kind in (ValueError, TimeoutError):
            with pytest.raises(kind):
                await lane.run(lambda kind=kind: (_ for _ in ()).throw(kind("x")), ticket())  # type: ignore[misc]
        assert await lane.run(lambda: 1, ticket()) == 1
        lane.close()

    run(check)


def doubling(sizes: list[int]) -> Callable[[Any, Any], list[int]]:
    def call(key: Any, items: Any) -> list[int]:
        sizes.append(len(items))
        return [item * 2 for item in items]

    return call


def test_requests_of_one_key_are_joined_up_to_the_largest_batch_and_keep_their_answers() -> None:
    async def check() -> None:
        sizes: list[int] = []
        lane = Lane(1, "test")
        batcher = Batcher(lane, doubling(sizes), max_batch=4, max_delay_seconds=0.05)
        answers = await asyncio.gather(*(batcher.run("key", number, ticket()) for number in range(10)))
        assert answers == [number * 2 for number in range(10)]
        assert max(sizes) == 4 and sum(sizes) == 10
        lane.close()

    run(check)


def test_requests_of_different_keys_are_not_joined() -> None:
    async def check() -> None:
        sizes: list[int] = []
        lane = Lane(1, "test")
        batcher = Batcher(lane, doubling(sizes), max_batch=4, max_delay_seconds=0.02)
        await asyncio.gather(*(batcher.run(key, 1, ticket()) for key in "abc"))
        assert sizes == [1, 1, 1]
        lane.close()

    run(check)


def test_a_full_batch_does_not_wait_and_a_larger_request_goes_alone() -> None:
    async def check() -> None:
        sizes: list[int] = []
        lane = Lane(1, "test")
        batcher = Batcher(lane, doubling(sizes), max_batch=4, max_delay_seconds=10)
        began = time.monotonic()
        assert await batcher.run("key", 1, ticket(), size=9) == 2
        both = await asyncio.gather(*(batcher.run("key", n, ticket(), size=2) for n in (3, 4)))
        assert both == [6, 8] and sizes == [1, 2]
        assert time.monotonic() - began < 5
        lane.close()

    run(check)


def test_who_waits_no_longer_is_left_out_of_the_batch() -> None:
    async def check() -> None:
        sizes: list[int] = []
        lane = Lane(1, "test")
        batcher = Batcher(lane, doubling(sizes), max_batch=8, max_delay_seconds=0.1)
        late = batcher.run("key", 1, ticket(0.02))
        gone = batcher.run("key", 2, ticket(gone=True))
        kept = batcher.run("key", 3, ticket())
        results = await asyncio.gather(late, gone, kept, return_exceptions=True)
        assert isinstance(results[0], TooLate) and isinstance(results[1], Gone) and results[2] == 6
        assert sizes == [1]
        lane.close()

    run(check)


def test_a_joint_call_that_fails_fails_each_of_its_requests_and_the_next_one_works() -> None:
    async def check() -> None:
        def call(_: Any, items: Any) -> list[int]:
            if -1 in items:
                raise ValueError("bad item")
            return list(items)

        lane = Lane(1, "test")
        batcher = Batcher(lane, call, max_batch=4, max_delay_seconds=0.02)
        results = await asyncio.gather(*(batcher.run("k", n, ticket()) for n in (1, -1)), return_exceptions=True)
        assert all(isinstance(result, ValueError) for result in results)
        assert await batcher.run("k", 5, ticket()) == 5
        lane.close()

    run(check)
