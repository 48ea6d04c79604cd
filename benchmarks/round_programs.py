"""The programs that suite `round` takes in turn: each runs in a process of its own and becomes an Outcome."""

from __future__ import annotations

from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contest import Outcome
from benchmarks.family import NUM_CORES, Report, run_program
from benchmarks.job_inputs import SEED, JobInputs, JobSize, lay_down
from fl.model.speed import has_fast_bfloat16
from fl.model.vgg import NetworkSettings, SplitVgg19

TIMEOUT_SECONDS = 1800.0


class CopyRounds:
    """Rounds without training: `parameters` go to all sites and come back."""

    def __init__(self, folder: Folder, parameters: Path, *, num_sites: int, num_rounds: int) -> None:
        self._folder = folder
        self._parameters = parameters
        self._size = {"num_sites": num_sites, "num_rounds": num_rounds}

    def ours(self, *, secure: bool = False) -> Outcome:
        """Run ours. secure: under secure aggregation."""
        folder = self._folder.fresh()
        scratch = str(folder / "scratch")
        return self._run("benchmarks.round_ours:overhead", ".npy", folder, scratch=scratch, secure=secure)

    def flower(self) -> Outcome:
        """Run Flower's engine."""
        return self._run("benchmarks.round_flower:overhead", ".npz", self._folder.fresh())

    def _run(self, function: str, suffix: str, folder: Path, **more: Any) -> Outcome:
        parameters, result = self._parameters.with_suffix(suffix), folder / "result.npy"
        asked = {"parameters": str(parameters), "result": str(result), **self._size, **more}
        found = run_program(function, folder, timeout_seconds=TIMEOUT_SECONDS, **asked).values
        return Outcome(
            wall_seconds=found["wall_seconds"],
            cpu_seconds=found["cpu_seconds"],
            made=np.load(result),
            remark=_shares(found),
        )


class Training:
    """Rounds of real training; an item is one example in one epoch."""

    def __init__(self, folder: Folder, size: JobSize, *, sites_per_worker: int, num_rounds: int) -> None:
        self._folder = folder
        self._size = size
        self._asked = {"sites_per_worker": sites_per_worker, "num_rounds": num_rounds}

    @cached_property
    def _inputs(self) -> JobInputs:
        return lay_down(self._folder.fresh(), self._size)

    def with_workers(self, num_workers: int) -> Outcome:
        """Run it on so many workers, each with as many sites."""
        job, folder = str(self._inputs.job), self._folder.fresh()
        asked = {"job": job, "num_workers": num_workers, "scratch": str(folder / "scratch"), **self._asked}
        found = run_program("benchmarks.scaling:training", folder, timeout_seconds=TIMEOUT_SECONDS, **asked).values
        return Outcome(
            wall_seconds=found["wall_seconds"] / found["num_examples"],
            cpu_seconds=found["cpu_seconds"] / found["num_examples"],
            made=None,
            remark=_shares(found),
        )


class Jobs:
    """Whole jobs on the same scans; what they make is their accuracy on the test scans, by our evaluation."""

    def __init__(self, folder: Folder, size: JobSize) -> None:
        self._folder = folder
        self._size = size

    @cached_property
    def _inputs(self) -> JobInputs:
        return lay_down(self._folder.fresh(), self._size)

    @cached_property
    def _judge(self) -> Path:
        return self._folder.fresh()

    def ours(self) -> Outcome:
        """Run ours."""
        job, folder = str(self._inputs.job), self._folder.fresh()
        asked = {"job": job, "scratch": str(folder / "scratch"), "result": str(folder / "result.npy")}
        report = run_program("benchmarks.job_ours:job", folder, timeout_seconds=TIMEOUT_SECONDS, **asked)
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.values["phases"].items())
        return self._judged(folder / "result.npy", report, f"{self._inputs.source}; {phases}")

    def flower(self, *, tuned: bool) -> Outcome:
        """Run the peer. tuned: in the fastest way that plain torch offers on this processor."""
        plain, folder = str(self._inputs.plain), self._folder.fresh()
        asked = {"plain": plain, "tuned": tuned, "bfloat16": tuned and _fast_bfloat16()}
        asked["result"] = str(folder / "result.npy")
        report = run_program("benchmarks.job_flower:job", folder, timeout_seconds=TIMEOUT_SECONDS, **asked)
        evaluations = report.values["evaluation_seconds"]
        return self._judged(folder / "result.npy", report, f"evaluations {evaluations:.1f} s")

    def _judged(self, result: Path, report: Report, remark: str) -> Outcome:
        asked = {"job": str(self._inputs.job), "scratch": str(self._judge / "kept"), "parameters": str(result)}
        judge = run_program("benchmarks.job_ours:score", self._judge, timeout_seconds=TIMEOUT_SECONDS, **asked)
        accuracy = judge.values["accuracy"]
        return Outcome(
            wall_seconds=report.wall_seconds,
            cpu_seconds=report.cpu_seconds,
            made=accuracy,
            remark=f"accuracy {accuracy:.4f}; {remark}; {_busy(report.cpu_seconds, report.wall_seconds)}",
        )


class Folder:
    """Gives new folders of short names: Ray's sockets lie in them, and their paths may have 107 characters."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = count()

    def fresh(self) -> Path:
        """Return the path of a folder that does not exist yet."""
        return self._root / str(next(self._numbers))


def write_parameters(folder: Path, width: float) -> Path:
    """Write normal values in the shapes that a job trains: .npz by name and .npy one after another; return the .npy."""
    random = np.random.default_rng(SEED)
    with torch.device("meta"):
        trained = SplitVgg19(NetworkSettings(width=width)).trained_parameters()
    named = {name: random.standard_normal(tuple(array.shape), np.float32) for name, array in trained}
    path = folder / "parameters.npy"
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **named)
    np.save(path, np.concatenate([array.ravel() for array in named.values()]))
    return path


def tuned_ways() -> str:
    """Return what `tuned` means on this processor."""
    return "bfloat16, channels-last" if _fast_bfloat16() else "channels-last"


def _shares(found: dict[str, float]) -> str:
    wall, own, all_of_them = found["wall_seconds"], found["own_cpu_seconds"], found["cpu_seconds"]
    return f"the server's process computes for {own / wall:.0%} of a round; {_busy(all_of_them, wall)}"


def _busy(cpu_seconds: float, wall_seconds: float) -> str:
    return f"{cpu_seconds / wall_seconds:.2f} of {NUM_CORES} cores are busy"


def _fast_bfloat16() -> bool:
    return has_fast_bfloat16(torch.device("cpu"))
