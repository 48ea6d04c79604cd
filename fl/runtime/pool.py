"""A pool of persistent Ray actors, each a `SiteTrainer`, that takes calls and loses none.

One call at a time is given to a worker, and only once it is up, so a call's time limit starts when its work does.
Ray retries nothing (`max_task_retries=0`): a call whose worker died is given once more to a fresh worker, here, where
it is known that its first reply never came, so that nothing can be counted twice. A worker that overruns a limit is
killed and replaced, because an actor that hangs cannot be asked to stop.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fl.errors import GliofedError, Stopped
from fl.runtime.cluster import WorkerPlan, largest_node_cpus
from fl.training.trainer import SiteTrainer, TrainerSetup

MAX_ATTEMPTS = 2
POLL_SECONDS = 0.2
START_TIMEOUT_SECONDS = 300.0
"""For a worker to come up: room on a node that others may hold, and the import of torch on a slow disk."""

DESCRIBE_TIMEOUT_SECONDS = 60.0

PINNED_SHARE = 0.1
"""Of every GPU, kept for workers that are pinned to its node; an amount for Ray's books, no limit on use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One method call on any worker that may serve it.

    key: names it in reports. node_resource: the Ray resource of the node that it must run on, or None.
    """

    key: str
    method: str
    arguments: tuple[Any, ...]
    node_resource: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A call that returned."""

    call: Call
    value: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A call that did not return: it raised, was late, or its worker died on every attempt."""

    call: Call
    reason: str


@dataclass(slots=True)
class _Worker:
    """One actor. greeting: reference to the answer of its first call; it is up when that has come."""

    handle: Any
    node_resource: str | None
    greeting: Any
    give_up_at: float
    is_up: bool = False
    fault: str | None = None


@dataclass(slots=True)
class _Running:
    worker: _Worker
    call: Call
    attempt: int
    deadline: float


class WorkerPool:
    """Workers that run `Call`s. Use as a context manager; leaving it kills the workers.

    places: the Ray resource of the node that each further worker is pinned to; `plan.num_workers` are pinned nowhere.
    should_stop: asked several times a second while waiting; True raises Stopped.
    """

    def __init__(
        self,
        setup: TrainerSetup,
        plan: WorkerPlan,
        *,
        places: Sequence[str] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._plan = plan
        self._setup = ray.put(setup)
        self._should_stop = should_stop
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(SiteTrainer)
        self._num_cpus = _cpus_a_worker(plan)
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
        waiting = deque((call, 1) for call in calls)
        running: dict[Any, _Running] = {}
        for worker in [worker for worker in self._workers if worker.fault is not None]:
            self._replace(worker)  # its node may be back
        try:
            while waiting or running:
                self._welcome()
                yield from self._drop_unservable(waiting)
                self._dispatch(waiting, running, timeout_seconds)
                greetings = [worker.greeting for worker in self._workers if not worker.is_up and worker.fault is None]
                ready: list[Any] = []
                if running or greetings:
                    ready, _ = ray.wait([*running, *greetings], num_returns=1, timeout=POLL_SECONDS)
                if self._should_stop():
                    raise Stopped("stopped by a signal; all that was finished is on disk, continue with --resume")
                for reference in running.keys() & set(ready):
                    outcome = self._collect(reference, running.pop(reference), waiting)
                    if outcome is not None:
                        yield outcome
                yield from self._drop_late(running, timeout_seconds)
        finally:
            for task in running.values():  # the consumer left: nobody will read these
                self._replace(task.worker)

    def _start(self, place: str | None) -> _Worker:
        handle: Any = self._actor.options(
            num_cpus=0 if place else self._num_cpus,
            num_gpus=self._plan.num_gpus * (PINNED_SHARE / self._plan.num_workers if place else 1 - PINNED_SHARE),
            resources={place: 0.001} if place else None,
        ).remote(self._setup)
        give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
        return _Worker(handle=handle, node_resource=place, greeting=handle.describe.remote(), give_up_at=give_up_at)

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

    def _drop_unservable(self, waiting: deque[tuple[Call, int]]) -> Iterator[Failed]:
        faults = {worker.node_resource: worker.fault for worker in self._workers if worker.fault is not None}
        healthy = {worker.node_resource for worker in self._workers if worker.fault is None}
        for item in [item for item in waiting if item[0].node_resource not in healthy]:
            waiting.remove(item)
            place = item[0].node_resource
            where = f"on the node with resource {place!r}" if place else "in the pool"
            yield Failed(call=item[0], reason=f"no worker {where}: {faults.get(place, 'none was asked for')}")

    def _dispatch(self, waiting: deque[tuple[Call, int]], running: dict[Any, _Running], timeout_seconds: float) -> None:
        busy = {id(task.worker) for task in running.values()}
        for worker in self._workers:
            if id(worker) in busy or not worker.is_up:
                continue
            chosen = next((item for item in waiting if item[0].node_resource == worker.node_resource), None)
            if chosen is None:
                continue
            waiting.remove(chosen)
            call, attempt = chosen
            reference = getattr(worker.handle, call.method).remote(*call.arguments)
            deadline = time.monotonic() + timeout_seconds
            running[reference] = _Running(worker=worker, call=call, attempt=attempt, deadline=deadline)

    def _collect(self, reference: Any, task: _Running, waiting: deque[tuple[Call, int]]) -> Done | Failed | None:
        try:
            return Done(call=task.call, value=ray.get(reference))
        except RayTaskError as error:
            cause = error.cause if error.cause is not None else error
            return Failed(call=task.call, reason=f"{type(cause).__name__}: {cause}")
        except RayError as error:  # the worker died, or the node that held its reply
            self._replace(task.worker)
            if task.attempt < MAX_ATTEMPTS:
                waiting.appendleft((task.call, task.attempt + 1))
                return None
            return Failed(call=task.call, reason=f"its worker died {MAX_ATTEMPTS} times: {brief(error)}")

    def _drop_late(self, running: dict[Any, _Running], timeout_seconds: float) -> Iterator[Failed]:
        now = time.monotonic()
        for reference in [reference for reference, task in running.items() if task.deadline < now]:
            task = running.pop(reference)
            self._replace(task.worker)
            yield Failed(call=task.call, reason=f"late: no reply within {timeout_seconds:g} s; its worker was replaced")


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
