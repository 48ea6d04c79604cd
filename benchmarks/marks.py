"""When rounds ended, and what the processes had computed by then."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.family import family_cpu_seconds


class Marks:
    """Take one before the first round and one after each; the first round counts as warm-up."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []

    def take(self) -> None:
        """Note wall time, CPU time of this process and CPU time of all."""
        own = time.process_time()
        self._taken.append((time.perf_counter(), own, own + sum(family_cpu_seconds().values())))

    def to_json(self) -> dict[str, Any]:
        """Medians over the rounds: wall seconds, CPU seconds of the serving process, CPU seconds of all processes."""
        if len(self._taken) < 3:
            raise ValueError(f"{len(self._taken)} marks; expected 3 or more: a warm-up round and one that counts")
        wall, own, family = np.median(np.diff(np.array(self._taken), axis=0)[1:], axis=0)
        return {"wall_seconds": float(wall), "own_cpu_seconds": float(own), "cpu_seconds": float(family)}
