"""Suite `round`: rounds and jobs against Flower's engine, secure rounds against plain ones, two workers against one.

Every program runs in a process of its own, on two cores and without a GPU, and is taken in turn with its peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.case import Suite, Target
from benchmarks.contest import Contest
from benchmarks.family import NUM_CORES
from benchmarks.job_inputs import DATA_VARIABLE, JobSize
from benchmarks.round_programs import CopyRounds, Folder, Jobs, Training, tuned_ways, write_parameters
from fl.runtime.cluster import num_cores

NEEDED_BYTES = 6 * 2**30
"""Free memory: what Flower's engine holds of eight sites' arrays of 47 MB, several times over, and two workers."""

SAME_PARAMETERS = 1e-5
"""Largest difference of what began as equal parameters of unit spread, averaged in float32 some rounds long."""

SAME_ACCURACY = 0.03
"""By how much the peer may be better before the two no longer count as equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured. rounds: that count, in each run without training; turns: runs of each side of a case."""

    turns: int
    job_turns: int
    rounds: int
    width: float
    sites: int
    secure_sites: int
    job: JobSize
    scaled_job: JobSize
    scaled_sites: int
    scaled_rounds: int


FULL = Sizes(
    turns=3,
    job_turns=2,
    rounds=8,
    width=1.0,
    sites=8,
    secure_sites=16,
    job=JobSize(num_train=120, num_test=160, num_sites=4),
    scaled_job=JobSize(num_train=44, num_test=4, num_sites=1, epochs=1),
    scaled_sites=4,
    scaled_rounds=4,
)
QUICK = Sizes(
    turns=1,
    job_turns=1,
    rounds=2,
    width=1.0,
    sites=8,
    secure_sites=16,
    job=JobSize(num_train=40, num_test=20, num_sites=4, epochs=1),
    scaled_job=JobSize(num_train=20, num_test=4, num_sites=1, epochs=1),
    scaled_sites=2,
    scaled_rounds=2,
)


def suite(folder: Path, sizes: Sizes) -> Suite:
    """Cases whose files all lie in `folder`. Raises SystemExit where the machine is too small to say anything."""
    require_machine(num_cores(), psutil.virtual_memory().available)
    return Suite(
        inputs=f"phantoms, or the scans that ${DATA_VARIABLE} names; {NUM_CORES} cores, no GPU",
        cases=_cases(Folder(folder), folder, sizes),
    )


def require_machine(cores: int, free_bytes: int) -> None:
    """Raise SystemExit unless there are cores and memory for what is compared."""
    if cores < NUM_CORES:
        raise SystemExit(f"suite round needs {NUM_CORES} cores, this process may use {cores}; nothing was measured")
    if free_bytes < NEEDED_BYTES:
        raise SystemExit(
            f"suite round needs {NEEDED_BYTES / 2**30:.0f} GiB of free memory, {free_bytes / 2**30:.1f} GiB are free; "
            "end other programs or take a larger machine"
        )


def _cases(fresh: Folder, folder: Path, sizes: Sizes) -> Iterator[Contest]:
    folder.mkdir(parents=True, exist_ok=True)
    parameters = write_parameters(folder, sizes.width)
    yield _overhead(CopyRounds(fresh, parameters, num_sites=sizes.sites, num_rounds=sizes.rounds), sizes.turns)
    yield from _jobs(Jobs(fresh, sizes.job), sizes.job_turns)
    yield _secure(CopyRounds(fresh, parameters, num_sites=sizes.secure_sites, num_rounds=sizes.rounds), sizes.turns)
    training = Training(fresh, sizes.scaled_job, sites_per_worker=sizes.scaled_sites, num_rounds=sizes.scaled_rounds)
    yield _scaling(training, sizes.turns)


def _overhead(rounds: CopyRounds, turns: int) -> Contest:
    return Contest(
        name="round_overhead_vs_flower",
        ours=rounds.ours,
        peers=[("Flower's Ray engine", rounds.flower)],
        differs=same_parameters,
        turns=turns,
        target=Target(figure="ratio", at_least=8),
        cpu_target=Target(figure="ratio", at_least=3),
    )


def _jobs(jobs: Jobs, turns: int) -> Iterator[Contest]:
    ways = ((False, "", "float32", Target(figure="ratio", at_least=4)), (True, "_tuned", tuned_ways(), None))
    for tuned, suffix, how, target in ways:
        yield Contest(
            name=f"job_vs_flower{suffix}",
            ours=jobs.ours,
            peers=[(f"Flower, {how}", partial(jobs.flower, tuned=tuned))],
            differs=worse_accuracy,
            turns=turns,
            target=target,
            remarks=("a whole job each, from the start of the program to its end, evaluations included",),
        )


def _secure(rounds: CopyRounds, turns: int) -> Contest:
    return Contest(
        name="secure_aggregation_vs_plain",
        ours=partial(rounds.ours, secure=True),
        peers=[("our plain round", rounds.ours)],
        differs=same_parameters,
        turns=turns,
        target=Target(figure="slowdown", at_most=2),
    )


def _scaling(training: Training, turns: int) -> Contest:
    return Contest(
        name="weak_scaling",
        ours=partial(training.with_workers, 2),
        peers=[("one worker", partial(training.with_workers, 1))],
        differs=lambda ours, theirs: None,  # twice the sites make another model
        turns=turns,
        target=Target(figure="ratio", at_least=1.7),
        remarks=("seconds are an example's in one epoch; every worker has one thread and the same number of sites",),
    )


def same_parameters(ours: Any, theirs: Any) -> str | None:
    """Compare two results of rounds without training, float32 [P]."""
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} against {theirs.shape}"
    most = float(np.abs(ours - theirs).max())
    return (
        None if most <= SAME_PARAMETERS else f"parameters differ by up to {most:.3g}, allowed are {SAME_PARAMETERS:g}"
    )


def worse_accuracy(ours: float, theirs: float) -> str | None:
    """Compare accuracies on the same test scans; ours may be better."""
    if ours >= theirs - SAME_ACCURACY:
        return None
    return f"accuracy {ours:.4f} against {theirs:.4f}, {SAME_ACCURACY:g} less is allowed"
