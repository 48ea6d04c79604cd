"""A program in a process of its own, with every process that it starts: run, timed, and none left behind.

While it runs, this process adopts what loses its parent (Linux' child subreaper), so that whatever the program
started, servers that it detached from itself included, is ended here at last. CPU time is sampled while the processes
live: the system's own account of ended children lacks those of parents that ignore their children's end, as Ray does.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36
LEAVE_SECONDS = 10.0
"""For a program's servers to end themselves after it."""

SAMPLE_SECONDS = 0.5
"""Between two looks at the CPU times; what a process computes after the last one before its end is not counted."""

NUM_CORES = 2
"""On which everything in this suite runs, so that a figure means the same on a larger machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A finished program: what it reported, and what its whole family took from start to end."""

    values: dict[str, Any]
    wall_seconds: float
    cpu_seconds: float


def run_program(function: str, folder: Path, *, timeout_seconds: float, **arguments: Any) -> Report:
    """Run `function` (module:name) with plain JSON arguments in a new process on two cores; it returns a JSON object.

    folder: where its files and its log go. Raises RuntimeError with the log's end where it fails or takes longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked, answered, log = folder / "arguments.json", folder / "report.json", folder / "log.txt"
    asked.write_text(json.dumps(arguments), encoding="utf-8")
    answered.unlink(missing_ok=True)
    command = [sys.executable, *_flags(), "-m", "benchmarks.child", function, str(asked), str(answered)]
    with _adopting_orphans(), CpuSampler() as sampler, log.open("wb") as output:
        started = time.perf_counter()
        code = _run(command, _environment(folder), output, timeout_seconds)
        wall_seconds = time.perf_counter() - started
    if code != 0:
        raise RuntimeError(f"{function} {_verdict(code, timeout_seconds)}; the end of its log:\n{_tail(log)}")
    return Report(
        values=json.loads(answered.read_text(encoding="utf-8")),
        wall_seconds=wall_seconds,
        cpu_seconds=sampler.total_seconds,
    )


class CpuSampler:
    """Adds up the CPU time of all processes below this one that live at some time while it is entered."""

    def __init__(self) -> None:
        self._seconds: dict[psutil.Process, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="cpu-sampler", daemon=True)

    def __enter__(self) -> CpuSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def total_seconds(self) -> float:
        """CPU seconds seen so far."""
        return sum(self._seconds.values())

    def _sample_until_stopped(self) -> None:
        before = family_cpu_seconds()
        while not self._stop.wait(SAMPLE_SECONDS):
            self._seconds |= {member: spent - before.get(member, 0.0) for member, spent in family_cpu_seconds().items()}


def family_cpu_seconds() -> dict[psutil.Process, float]:
    """CPU seconds of each living process that this one started, or one of those."""
    spent: dict[psutil.Process, float] = {}
    for member in psutil.Process().children(recursive=True):
        try:
            times = member.cpu_times()
        except psutil.Error:
            continue  # it ended between being listed and being asked
        spent[member] = times.user + times.system
    return spent


def _flags() -> list[str]:
    # A child imports what this process does, whichever way it was told where to look.
    return [flag for flag, is_on in (("-P", sys.flags.safe_path), ("-S", sys.flags.no_site)) if is_on]


def _environment(folder: Path) -> dict[str, str]:
    """The user's, but for what would let a card, another cluster or a server on the network take part."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_HOME": str(folder / "flwr"),
        "RAY_TMPDIR": str(folder),
    }


def _run(command: Sequence[str], environment: Mapping[str, str], output: Any, timeout_seconds: float) -> int | None:
    """Return the exit code, None where the time was over; whatever happens, nobody is left."""
    known = {child.pid for child in psutil.Process().children()}
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        return process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        _end_orphans(known)


def _end_orphans(known: set[int]) -> None:
    deadline = time.monotonic() + LEAVE_SECONDS
    while orphans := [child for child in psutil.Process().children() if child.pid not in known]:
        _, alive = psutil.wait_procs(orphans, timeout=max(0.0, deadline - time.monotonic()))
        for orphan in alive:
            orphan.kill()  # its own children come to this process next


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _verdict(code: int | None, timeout_seconds: float) -> str:
    return f"took longer than {timeout_seconds:g} s" if code is None else f"ended with exit code {code}"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
