"""The federation's work as calls on a worker pool: prepare, train a round, evaluate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import GliofedError
from fl.model.flat import FlatParameters
from fl.runtime.pool import Call, Done, WorkerPool
from fl.server.rounds import LeftOut
from fl.training.augment import AugmentSettings
from fl.training.local import TrainingSummary
from fl.training.trainer import ModelState, Reply
from fl.training.warmup import WarmupSettings
from fl.types import Scan, Site

CHUNK_SCANS = 64
CHUNK_TIMEOUT_SECONDS = 1800.0
"""Limit of one chunk of preparation or evaluation: half a minute of prefix at 224 px on a slow core, times sixty."""

WARM_UP_TIMEOUT_SECONDS = 24 * 3600.0

PlacedScans = tuple[str | None, tuple[Scan, ...]]
"""Scans that one node can read: (its Ray resource or None, scans)."""


def place_scans(sites: Sequence[Site], anywhere: Iterable[Scan]) -> list[PlacedScans]:
    """Return validation scans by the node that may read them: each site's own at the site, the others anywhere."""
    placed: list[PlacedScans] = [(site.node_resource, site.validation_scans) for site in sites if site.validation_scans]
    return [*placed, (None, tuple(anywhere))]


def plan_preparation(
    sites: Sequence[Site], evaluated: Sequence[PlacedScans], augment: AugmentSettings
) -> tuple[Call, ...]:
    """Return the calls that compute every feature that rounds and evaluation will read, each scan once a node."""
    trained: dict[str | None, dict[str, Scan]] = {}
    for site in sites:
        unique = trained.setdefault(site.node_resource, {})
        unique.update({scan.pixels_sha256: scan for scan in (*site.shared_scans, *site.scans)})
    placed: list[PlacedScans] = [(place, tuple(unique.values())) for place, unique in trained.items()]
    views = training_views(augment)
    work: list[tuple[str | None, tuple[Scan, ...], tuple[int, ...] | None]] = []
    work += [(place, chunk, views) for place, chunk in _chunks(placed)]
    work += [(place, chunk, None) for place, chunk in _chunks(evaluated)]
    return tuple(
        Call(key=f"chunk {number}", method="prepare", arguments=(chunk, which), node_resource=place)
        for number, (place, chunk, which) in enumerate(work)
    )


def num_scans(calls: Sequence[Call]) -> int:
    """Return how many scans the calls of a preparation go over."""
    return sum(len(call.arguments[0]) for call in calls)


def prepare(pool: WorkerPool, calls: Sequence[Call]) -> Iterator[int]:
    """Run a planned preparation; yield how many scans each finished chunk had.

    Raises GliofedError where a chunk fails on every attempt.
    """
    for outcome in pool.run(calls, timeout_seconds=CHUNK_TIMEOUT_SECONDS):
        _value(outcome, "preparing features")
        yield num_scans([outcome.call])


def train_round(
    pool: WorkerPool,
    round: int,
    selected: Sequence[Site],
    parameters: FlatParameters,
    *,
    timeout_seconds: float,
) -> Iterator[Reply | LeftOut]:
    """Train the selected sites from the global parameters; yield each one's reply, or why there is none."""
    reference = pool.broadcast(parameters)
    calls = [
        Call(
            key=site.name,
            method="train",
            arguments=(round, site, reference),
            node_resource=site.node_resource,
        )
        for site in selected
    ]
    for outcome in pool.run(calls, timeout_seconds=timeout_seconds):
        if isinstance(outcome, Done):
            yield outcome.value
        else:
            yield LeftOut(site=outcome.call.key, reason=outcome.reason)


def predict_scans(
    pool: WorkerPool, parameters: FlatParameters, placed: Sequence[PlacedScans]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return (labels_N, logits_NK) of all placed scans, in their order."""
    reference = pool.broadcast(parameters)
    calls = [
        Call(key=f"{number}", method="evaluate", arguments=(reference, chunk), node_resource=place)
        for number, (place, chunk) in enumerate(_chunks(placed))
    ]
    logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(calls)
    for outcome in pool.run(calls, timeout_seconds=CHUNK_TIMEOUT_SECONDS):
        logits[int(outcome.call.key)] = _value(outcome, "evaluating")
    labels_N = np.array([scan.label for _, scans in placed for scan in scans], np.int64)
    return labels_N, np.concatenate(logits)


def warm_up(pool: WorkerPool, scans: Sequence[Scan], settings: WarmupSettings) -> tuple[ModelState, TrainingSummary]:
    """Warm the model up on one worker of the pool. Raises GliofedError where it fails."""
    call = Call(key="warm-up", method="warm_up", arguments=(tuple(scans), settings))
    (outcome,) = pool.run([call], timeout_seconds=WARM_UP_TIMEOUT_SECONDS)
    state, summary = _value(outcome, "warming up")
    return state, summary


def training_views(augment: AugmentSettings) -> tuple[int, ...]:
    """Return the views that training reads from the store; with fresh views only the crops are worth preparing."""
    return (0,) if augment.is_identity or not augment.views else tuple(range(augment.views))


def _chunks(placed: Sequence[PlacedScans]) -> Iterator[PlacedScans]:
    for place, scans in placed:
        for _, group in groupby(enumerate(scans), key=lambda item: item[0] // CHUNK_SCANS):
            yield place, tuple(scan for _, scan in group)


def _value(outcome: Any, doing: str) -> Any:
    if isinstance(outcome, Done):
        return outcome.value
    raise GliofedError(f"{doing}: {outcome.call.key} failed: {outcome.reason}")
