"""What a run used: memory over all its processes, hardware, software, seconds by phase."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import psutil
import torch

SAMPLE_SECONDS = 2.0

_SOFTWARE = ("gliofed", "torch", "torchvision", "ray", "numpy", "opencv-python", "onnx", "onnxruntime-gpu")


class MemorySampler:
    """Samples the memory of this process and all that it started, and keeps the highest sum.

    Proportional set size: a page that several processes share counts once in all. Pages of memory-mapped store files
    count while they are resident, although the system may drop them. On a joined cluster the workers are children of
    other processes and are not seen.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="memory-sampler", daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _memory_of_family())


@dataclass(slots=True)
class PhaseClock:
    """Wall seconds of the journey's phases, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def software() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in _SOFTWARE}}


def hardware() -> dict[str, Any]:
    """Return what the run's driver machine has."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu_name() -> str:
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return str(name)


def _memory_of_family() -> int:
    total = 0
    process = psutil.Process()
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue  # it ended between being listed and being asked
    return total
