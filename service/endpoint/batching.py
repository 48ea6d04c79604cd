"""Who computes when: a bounded number of calls at once in the order of arrival, and calls joined for a GPU.

A request whose time is up, or whose client has gone, before its turn comes is not computed.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.endpoint.body import Gone
from service.endpoint.errors import TooLate

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """One request's claim on an answer. deadline: in the event loop's time. is_gone: whether the client went away."""

    deadline: float
    is_gone: Callable[[], Awaitable[bool]]

    async def check(self) -> None:
        """Raise TooLate or Gone where nobody waits any more."""
        if asyncio.get_running_loop().time() >= self.deadline:
            raise _too_late()
        if await self.is_gone():
            raise Gone


class Lane:
    """At most `max_concurrent` calls at once on threads of its own; the others wait in the order of arrival."""

    def __init__(self, max_concurrent: int, name: str) -> None:
        self._free = asyncio.Semaphore(max_concurrent)
        self._threads = ThreadPoolExecutor(max_concurrent, thread_name_prefix=name)
        self.num_waiting = 0
        self.num_running = 0

    async def run(self, call: Callable[[], T], ticket: Ticket) -> T:
        """Return what the call returns. Raises TooLate once the ticket's time is up; a call begun then goes on."""
        if self._free.locked():
            await self.wait_turn(ticket.deadline)
            try:
                await ticket.check()
            except BaseException:
                self._free.release()
                raise
        else:
            await self._free.acquire()
        return await until(ticket.deadline, self.start(call))

    async def wait_turn(self, deadline: float) -> None:
        """Wait for a free thread and claim it; `start` must follow, or `release`."""
        self.num_waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError:
            raise _too_late() from None
        finally:
            self.num_waiting -= 1

    def release(self) -> None:
        """Give a claimed thread back unused."""
        self._free.release()

    def start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Run the call on the thread that was claimed."""
        self.num_running += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self.num_running -= 1
        self._free.release()
        if not future.cancelled():
            future.exception()  # seen here, because nobody may be waiting for it any more

    def close(self) -> None:
        """Let running calls end and take no others."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def until(deadline: float, future: asyncio.Future[T]) -> T:
    """Return the future's result. Raises TooLate at the deadline; the future goes on."""
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.shield(future)
    except TimeoutError:
        if future.done():  # the call itself raised it
            raise
        raise _too_late() from None
    finally:
        del future  # it holds its exception, whose traceback holds this frame and all that the call had in hand


def _too_late() -> TooLate:
    return TooLate("the time for the request was up before there was an answer; the server is busy, try again later")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    size: int
    ticket: Ticket
    future: asyncio.Future[Result]


@dataclass(slots=True, eq=False)
class _Group(Generic[Item, Result]):
    waiting: deque[_Waiting[Item, Result]] = field(default_factory=deque)
    full: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def size(self) -> int:
        return _size(self.waiting)


def _size(waiting: Iterable[_Waiting[Any, Any]]) -> int:
    return sum(one.size for one in waiting)


class Batcher(Generic[Item, Result]):
    """Joins requests of one key into calls of at most `max_batch` images, each waiting `max_delay_seconds` at most.

    While all of the lane's threads are busy a group goes on growing, so under load batches fill without delay.
    """

    def __init__(
        self,
        lane: Lane,
        call: Callable[[Any, Sequence[Item]], Sequence[Result]],
        *,
        max_batch: int,
        max_delay_seconds: float,
    ) -> None:
        self._lane = lane
        self._call = call
        self._max_batch = max_batch
        self._max_delay = max_delay_seconds
        self._groups: dict[Hashable, _Group[Item, Result]] = {}
        self._dispatchers: set[asyncio.Task[None]] = set()

    async def run(self, key: Hashable, item: Item, ticket: Ticket, *, size: int = 1) -> Result:
        """Return the item's own result of a joint call(key, items). Raises TooLate, or what the call raises."""
        one: _Waiting[Item, Result] = _Waiting(item, size, ticket, asyncio.get_running_loop().create_future())
        if key not in self._groups:
            self._groups[key] = _Group()
            dispatcher = asyncio.create_task(self._dispatch(key))
            self._dispatchers.add(dispatcher)
            dispatcher.add_done_callback(self._dispatchers.discard)
        group = self._groups[key]
        group.waiting.append(one)
        if group.size >= self._max_batch:
            group.full.set()
        try:
            return await until(ticket.deadline, one.future)
        finally:
            one.future.cancel()
            del one  # as in `until`

    async def _dispatch(self, key: Hashable) -> None:
        """Start calls for one key until nobody waits."""
        group = self._groups[key]
        while group.waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._max_delay):
                    await group.full.wait()
            await self._lane.wait_turn(math.inf)
            if batch := await self._take(group):
                self._start(key, batch)
            else:
                self._lane.release()
        del self._groups[key]

    async def _take(self, group: _Group[Item, Result]) -> list[_Waiting[Item, Result]]:
        """Take the next call's requests out of the group; those that nobody waits for any more go unanswered."""
        batch: list[_Waiting[Item, Result]] = []
        while group.waiting and (not batch or _size(batch) + group.waiting[0].size <= self._max_batch):
            one = group.waiting.popleft()
            try:
                await one.ticket.check()
            except (TooLate, Gone) as error:
                if not one.future.done():
                    one.future.set_exception(error)
            else:
                batch.append(one)
        if group.size < self._max_batch:
            group.full.clear()
        return batch

    def _start(self, key: Hashable, batch: list[_Waiting[Item, Result]]) -> None:
        running = self._lane.start(lambda: self._call(key, [one.item for one in batch]))

        def hand_out(done: asyncio.Future[Sequence[Result]]) -> None:
            error = done.exception()
            for index, one in enumerate(batch):
                if one.future.done():
                    continue
                if error is not None:
                    one.future.set_exception(error)
                else:
                    one.future.set_result(done.result()[index])

        running.add_done_callback(hand_out)
