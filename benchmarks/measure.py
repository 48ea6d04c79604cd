"""Times runs against each other: interleaved, in turning order, each sample long against the clock's grain."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.case import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long one case is measured: rounds until case_seconds are over, in any case min_rounds to max_rounds.

    A sample repeats a run until it takes at least sample_seconds; a round is one sample of every run.
    """

    case_seconds: float
    sample_seconds: float
    min_rounds: int
    max_rounds: int


FULL = Budget(case_seconds=5.0, sample_seconds=0.05, min_rounds=10, max_rounds=200)
QUICK = Budget(case_seconds=0.2, sample_seconds=0.001, min_rounds=2, max_rounds=20)


def measure(runs: Sequence[Run], budget: Budget, clock: Callable[[], float]) -> NDArray[np.float64]:
    """Seconds of one run, [rounds, runs]; the figures of one row were taken right after each other.

    Every second round goes backwards, so that nobody always runs first or in the wake of the same other. Each run
    must have been called before: the first call is not warm.
    """
    repeats = [_repeats(run, budget, clock) for run in runs]
    rounds: list[list[float]] = []
    end = time.perf_counter() + budget.case_seconds
    with _no_garbage_collection():
        while len(rounds) < budget.max_rounds and (len(rounds) < budget.min_rounds or time.perf_counter() < end):
            order = range(len(runs)) if len(rounds) % 2 == 0 else reversed(range(len(runs)))
            taken = {place: _sample(runs[place], repeats[place], clock) for place in order}
            rounds.append([taken[place] for place in range(len(runs))])
    return np.array(rounds, np.float64)


def _repeats(run: Run, budget: Budget, clock: Callable[[], float]) -> int:
    once = _sample(run, 1, clock)
    return max(1, math.ceil(budget.sample_seconds / once)) if once > 0 else 1


def _sample(run: Run, repeats: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(repeats):
        run()
    return (clock() - started) / repeats


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # A collection in the middle of a sample would be charged to whoever happened to trigger it.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
