"""A pool of persistent Ray actors, each a `SiteTrainer`, that takes calls and loses none.

One call at a time is given to a worker, so a call's time limit starts when its work does. Ray retries nothing
(`max_task_retries=0`): a call whose worker died is given once more to a fresh worker, here, where it is known that
its first reply never came, so that nothing can be counted twice. A worker that overruns a limit is killed and
replaced, because an actor that hangs cannot be asked to stop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from fl.errors import Stopped
from fl.runtime.cluster import WorkerPlan
from fl.training.trainer import SiteTrainer, TrainerSetup

MAX_ATTEMPTS = 2
POLL_SECONDS = 0.2
START_TIMEOUT_SECONDS = 300.0


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
    handle: Any
    node_resource: str | None


@dataclass(slots=True)
class _Running:
    worker: _Worker
    call: Call
    attempt: int
    deadline: float


class WorkerPool:
    """Workers that run `Call`s. Use as a context manager; leaving it kills the workers.

    node_resources: the distinct places that sites are pinned to, None for unpinned ones; each gets its own workers.
    should_stop: asked several times a second while waiting; True raises Stopped.
    """

    def __init__(
        self,
        setup: TrainerSetup,
        plan: WorkerPlan,
        *,
        node_resources: Sequence[str | None] = (None,),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._plan = plan
        self._setup = ray.put(setup)
        self._should_stop = should_stop
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(SiteTrainer)
        self.num_replaced = 0
        self._workers = [self._start(place) for place in node_resources for _ in range(plan.num_workers)]

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
        """Return how the first worker computes, having waited until it is up."""
        description: dict[str, str] = ray.get(self._workers[0].handle.describe.remote(), timeout=START_TIMEOUT_SECONDS)
        return description

    def run(self, calls: Sequence[Call], *, timeout_seconds: float) -> Iterator[Done | Failed]:
        """Run calls, each at most `timeout_seconds`, and yield their outcomes as they come, one for each call.

        Results are read from shared memory: arrays in them are read-only and live as long as they are referenced.
        """
        waiting = deque((call, 1) for call in calls)
        running: dict[Any, _Running] = {}
        try:
            while waiting or running:
                self._dispatch(waiting, running, timeout_seconds)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                if self._should_stop():
                    raise Stopped("stopped by a signal; the last checkpoint is on disk, continue with --resume")
                for reference in ready:
                    outcome = self._collect(reference, running.pop(reference), waiting)
                    if outcome is not None:
                        yield outcome
                yield from self._drop_late(running, timeout_seconds)
        finally:
            for task in running.values():  # the consumer left: nobody will read these
                self._replace(task.worker)

    def _start(self, place: str | None) -> _Worker:
        handle = self._actor.options(
            num_cpus=0 if self._plan.num_gpus else self._plan.num_threads,
            num_gpus=self._plan.num_gpus,
            resources={place: 0.001} if place else None,
        ).remote(self._setup)
        return _Worker(handle=handle, node_resource=place)

    def _replace(self, worker: _Worker) -> None:
        ray.kill(worker.handle)
        worker.handle = self._start(worker.node_resource).handle
        self.num_replaced += 1

    def _dispatch(self, waiting: deque[tuple[Call, int]], running: dict[Any, _Running], timeout_seconds: float) -> None:
        busy = {id(task.worker) for task in running.values()}
        for worker in self._workers:
            if id(worker) in busy:
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
        except RayActorError as error:
            self._replace(task.worker)
            if task.attempt < MAX_ATTEMPTS:
                waiting.appendleft((task.call, task.attempt + 1))
                return None
            return Failed(call=task.call, reason=f"its worker died {MAX_ATTEMPTS} times: {_first_line(error)}")

    def _drop_late(self, running: dict[Any, _Running], timeout_seconds: float) -> Iterator[Failed]:
        now = time.monotonic()
        for reference in [reference for reference, task in running.items() if task.deadline < now]:
            task = running.pop(reference)
            self._replace(task.worker)
            yield Failed(call=task.call, reason=f"late: no reply within {timeout_seconds:g} s; its worker was replaced")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
