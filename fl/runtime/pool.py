"""A pool of persistent Ray actors, each around a trainer, that takes calls and loses none.

One call at a time is given to a worker, and only once it is up, so a call's time limit starts when its work does.
Ray retries nothing (`max_task_retries=0`): a call whose worker died is given once more to a fresh worker, here, where
it is known that its first reply never came, so that nothing can be counted twice. A worker that overruns a limit is
killed and replaced, because an actor that hangs cannot be asked to stop.

Calls are submitted and their outcomes polled for; nothing happens in between (there is no thread), so whoever waits
for any call moves all of them on. `run` does both for one batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import ray
from flwr.app import RecordDict
from ray.exceptions import RayError, RayTaskError

from fl.errors import GliofedError, Stopped
from fl.runtime.client import Trainer, answer
from fl.runtime.cluster import WorkerPlan, largest_node_cpus
from fl.training.trainer import SiteTrainer, TrainerSetup
from fl.types import Site

MAX_ATTEMPTS = 2
POLL_SECONDS = 0.2
START_TIMEOUT_SECONDS = 300.0
"""For a worker to come up: room on a node that others may hold, and the import of torch on a slow disk."""

DESCRIBE_TIMEOUT_SECONDS = 60.0

PINNED_SHARE = 0.1
"""Of every GPU, kept for workers that are pinned to its node; an amount for Ray's books, no limit on use."""

Ticket = int
"""Stands for a submitted call until its outcome is polled or it is withdrawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One method call on any worker that may serve it.

    key: names it in reports. method: of the trainer, or `answer` (`SiteWorker`). node_resource: the Ray resource of the
    node that it must run on, or None. title: what the worker's process is called meanwhile, the method's name if None.
    """

    key: str
    method: str
    arguments: tuple[Any, ...]
    node_resource: str | None = None
    title: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A call that returned."""

    call: Call
    value: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A call that did not return: it raised, was late, its worker died on every attempt, or there is none for it."""

    call: Call
    cause: Literal["raised", "late", "died", "no worker"]
    reason: str


class SiteWorker:
    """What one actor is: a trainer whose methods are called by name, and which answers messages."""

    def __init__(self, make_trainer: Callable[[Any], Trainer], setup: Any) -> None:
        self._trainer = make_trainer(setup)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the trainer, or `answer`."""
        return self._answer(*arguments) if method == "answer" else getattr(self._trainer, method)(*arguments)

    def _answer(self, site: Site, message_type: str, keys: Sequence[str], *records: Any) -> RecordDict:
        # records come as arguments of their own: Ray resolves those that were put into its store, and only there
        return answer(self._trainer, site, message_type, RecordDict(dict(zip(keys, records, strict=True))))


@dataclass(slots=True, eq=False)
class _Worker:
    """One actor. greeting: reference to the answer of its first call; it is up when that has come."""

    handle: Any
    node_resource: str | None
    greeting: Any
    give_up_at: float
    is_up: bool = False
    fault: str | None = None


@dataclass(slots=True, eq=False)
class _Order:
    """A submitted call without an outcome. deadline: set while a worker runs it."""

    ticket: Ticket
    call: Call
    timeout_seconds: float
    attempt: int = 1
    worker: _Worker | None = None
    deadline: float = math.inf


class WorkerPool:
    """Workers that take `Call`s. Use as a context manager; leaving it kills the workers.

    places: the Ray resource of the node that each further worker is pinned to; `plan.num_workers` are pinned nowhere.
    should_stop: asked several times a second while waiting; True raises Stopped. make_trainer: called with the setup
    in each worker.
    """

    def __init__(
        self,
        setup: TrainerSetup,
        plan: WorkerPlan,
        *,
        places: Sequence[str] = (),
        should_stop: Callable[[], bool] = lambda: False,
        make_trainer: Callable[[TrainerSetup], Trainer] = SiteTrainer,
    ) -> None:
        self._plan = plan
        self._setup = ray.put(setup)
        self._make_trainer = make_trainer
        self._should_stop = should_stop
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(SiteWorker)
        self._num_cpus = _cpus_a_worker(plan)
        self._tickets = count()
        self._waiting: deque[_Order] = deque()
        self._running: dict[Any, _Order] = {}
        self._outcomes: dict[Ticket, Done | Failed] = {}
        self._workers = [self._start(place) for place in (*places, *([None] * plan.num_workers))]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            ray.kill(worker.handle)

    @property
    def num_workers(self) -> int:
        """Workers in the pool."""
        return len(self._workers)

    def broadcast(self, value: Any) -> Any:
        """Put a value into the object store once; pass what this returns as an argument of many calls."""
        return ray.put(value)

    def describe(self) -> dict[str, str]:
        """Return how the first worker that is up computes. Raises GliofedError where none comes up."""
        call = Call(key="describe", method="describe", arguments=())
        (outcome,) = self.run([call], timeout_seconds=DESCRIBE_TIMEOUT_SECONDS)
        if isinstance(outcome, Failed):
            raise GliofedError(f"no worker could be started: {outcome.reason}")
        description: dict[str, str] = outcome.value
        return description

    def run(self, calls: Sequence[Call], *, timeout_seconds: float) -> Iterator[Done | Failed]:
        """Run calls, each at most `timeout_seconds`, and yield their outcomes as they come, one for each call.

        Results are read from shared memory: arrays in them are read-only and live as long as they are referenced.
        """
        tickets = set(self.submit(calls, timeout_seconds=timeout_seconds))
        try:
            while tickets:
                for ticket, outcome in self.poll(tickets):
                    tickets.discard(ticket)
                    yield outcome
        finally:
            self.withdraw(tickets)

    def submit(self, calls: Sequence[Call], *, timeout_seconds: float) -> list[Ticket]:
        """Take calls, each for at most `timeout_seconds` from when a worker begins; begin those that can begin."""
        for worker in [worker for worker in self._workers if worker.fault is not None]:
            self._replace(worker)  # its node may be back
        orders = [_Order(ticket=next(self._tickets), call=call, timeout_seconds=timeout_seconds) for call in calls]
        self._waiting.extend(orders)
        self._welcome()
        self._dispatch()
        return [order.ticket for order in orders]

    def poll(
        self, tickets: Collection[Ticket], *, wait_seconds: float = POLL_SECONDS
    ) -> list[tuple[Ticket, Done | Failed]]:
        """Return the outcomes that have come of the tickets, each once; wait at most `wait_seconds` for a first one.

        Raises Stopped where `should_stop` says so.
        """
        self._step(0.0 if any(ticket in self._outcomes for ticket in tickets) else wait_seconds)
        return [(ticket, self._outcomes.pop(ticket)) for ticket in tickets if ticket in self._outcomes]

    def withdraw(self, tickets: Collection[Ticket]) -> None:
        """Forget calls: nobody will poll for them. Workers that run them are replaced."""
        self._waiting = deque(order for order in self._waiting if order.ticket not in tickets)
        for reference in [reference for reference, order in self._running.items() if order.ticket in tickets]:
            self._replace(_worker(self._running.pop(reference)))
        for ticket in tickets:
            self._outcomes.pop(ticket, None)

    def _step(self, wait_seconds: float) -> None:
        """Move every call on: begin what can begin, take what has come, end what is late."""
        self._welcome()
        self._drop_unservable()
        self._dispatch()
        greetings = [worker.greeting for worker in self._workers if not worker.is_up and worker.fault is None]
        if self._running or greetings:
            ready, _ = ray.wait([*self._running, *greetings], num_returns=1, timeout=wait_seconds)
            for reference in self._running.keys() & set(ready):
                self._collect(reference, self._running.pop(reference))
        if self._should_stop():
            raise Stopped("stopped by a signal; all that was finished is on disk, continue with --resume")
        self._drop_late()
        self._dispatch()  # so that no worker idles while the consumer is busy with what has come

    def _start(self, place: str | None) -> _Worker:
        handle: Any = self._actor.options(
            num_cpus=0 if place else self._num_cpus,
            num_gpus=self._plan.num_gpus * (PINNED_SHARE / self._plan.num_workers if place else 1 - PINNED_SHARE),
            resources={place: 0.001} if place else None,
        ).remote(self._make_trainer, self._setup)
        greeting, give_up_at = handle.call.remote("describe"), time.monotonic() + START_TIMEOUT_SECONDS
        return _Worker(handle=handle, node_resource=place, greeting=greeting, give_up_at=give_up_at)

    def _replace(self, worker: _Worker) -> None:
        ray.kill(worker.handle)
        fresh = self._start(worker.node_resource)
        worker.handle, worker.greeting, worker.give_up_at = fresh.handle, fresh.greeting, fresh.give_up_at
        worker.is_up, worker.fault = False, None

    def _welcome(self) -> None:
        """Note which of the starting workers are up, and which will never be."""
        for worker in self._workers:
            if worker.is_up or worker.fault is not None:
                continue
            if ray.wait([worker.greeting], timeout=0)[0]:
                try:
                    ray.get(worker.greeting)
                    worker.is_up = True
                except RayError as error:
                    worker.fault = brief(error)
            elif time.monotonic() > worker.give_up_at:
                worker.fault = (
                    f"it did not start within {START_TIMEOUT_SECONDS:g} s; see `ray status` for what the cluster lacks"
                )
                ray.kill(worker.handle)

    def _drop_unservable(self) -> None:
        faults = {worker.node_resource: worker.fault for worker in self._workers if worker.fault is not None}
        healthy = {worker.node_resource for worker in self._workers if worker.fault is None}
        for order in [order for order in self._waiting if order.call.node_resource not in healthy]:
            self._waiting.remove(order)
            place = order.call.node_resource
            where = f"on the node with resource {place!r}" if place else "in the pool"
            reason = f"no worker {where}: {faults.get(place, 'none was asked for')}"
            self._outcomes[order.ticket] = Failed(call=order.call, cause="no worker", reason=reason)

    def _dispatch(self) -> None:
        busy = {id(order.worker) for order in self._running.values()}
        for worker in self._workers:
            if id(worker) in busy or not worker.is_up:
                continue
            order = next((item for item in self._waiting if item.call.node_resource == worker.node_resource), None)
            if order is None:
                continue
            self._waiting.remove(order)
            call = order.call
            method = worker.handle.call.options(name=f"{SiteTrainer.__name__}.{call.title or call.method}")
            order.worker, order.deadline = worker, time.monotonic() + order.timeout_seconds
            self._running[method.remote(call.method, *call.arguments)] = order

    def _collect(self, reference: Any, order: _Order) -> None:
        call = order.call
        try:
            self._outcomes[order.ticket] = Done(call=call, value=ray.get(reference))
        except RayTaskError as error:
            cause = error.cause if error.cause is not None else error
            reason = f"{type(cause).__name__}: {cause}"
            self._outcomes[order.ticket] = Failed(call=call, cause="raised", reason=reason)
        except RayError as error:  # the worker died, or the node that held its reply
            self._replace(_worker(order))
            if order.attempt < MAX_ATTEMPTS:
                order.attempt, order.worker, order.deadline = order.attempt + 1, None, math.inf
                self._waiting.appendleft(order)
                return
            reason = f"its worker died {MAX_ATTEMPTS} times: {brief(error)}"
            self._outcomes[order.ticket] = Failed(call=call, cause="died", reason=reason)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for reference in [reference for reference, order in self._running.items() if order.deadline < now]:
            order = self._running.pop(reference)
            self._replace(_worker(order))
            reason = f"late: no reply within {order.timeout_seconds:g} s; its worker was replaced"
            self._outcomes[order.ticket] = Failed(call=order.call, cause="late", reason=reason)


def _worker(order: _Order) -> _Worker:
    assert order.worker is not None, "only running orders have come here"
    return order.worker


def brief(error: Exception) -> str:
    """Return what a Ray error says without its tracebacks: the cause where it carries one, else first and last line."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip() if len(lines) == 1 else f"{lines[0].strip()} … {lines[-1].strip()}"


def _cpus_a_worker(plan: WorkerPlan) -> float:
    """Return the CPUs that an unpinned worker asks for: its threads, but never more than can be had for all."""
    if plan.num_gpus:
        return 0.0
    total = float(ray.cluster_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
    return min(plan.num_threads, largest_node_cpus(), math.floor(total / plan.num_workers * 1e4) / 1e4)
