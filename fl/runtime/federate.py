"""The federation's work as calls on a worker pool, where any worker can read any scan: prepare, warm up, predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import GliofedError
from fl.model.flat import FlatParameters
from fl.runtime.pool import Call, Done, WorkerPool
from fl.server.analytic import AnalyticHead
from fl.training.local import TrainingSummary
from fl.training.personal import PersonalAnswers, PersonalSettings
from fl.training.trainer import ModelState
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
    sites: Sequence[Site], evaluated: Sequence[PlacedScans], views: Sequence[int], *, plain: bool
) -> tuple[Call, ...]:
    """Return the calls that compute every feature that will be read, each scan once a node.

    views: that rounds train on, none where there are no rounds. plain: whether a closed form reads the training scans
    as they are.
    """
    trained: dict[str | None, dict[str, Scan]] = {}
    for site in sites:
        unique = trained.setdefault(site.node_resource, {})
        unique.update({scan.pixels_sha256: scan for scan in (*site.shared_scans, *site.scans)})
    placed: list[PlacedScans] = [(place, tuple(unique.values())) for place, unique in trained.items()]
    work: list[tuple[str | None, tuple[Scan, ...], tuple[int, ...] | None]] = []
    if views:
        work += [(place, chunk, tuple(views)) for place, chunk in _chunks(placed)]
    if plain:
        work += [(place, chunk, None) for place, chunk in _chunks(placed)]
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


def head_logits(
    pool: WorkerPool, parameters: FlatParameters, placed: Sequence[PlacedScans], heads: Sequence[AnalyticHead]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return (labels_N, logits_MNK) of all placed scans under each head, in their order."""
    reference = pool.broadcast(parameters)
    weights = pool.broadcast([(head.weight_KJ, head.bias_K) for head in heads])
    calls = [
        Call(key=f"{number}", method="head_logits", arguments=(reference, weights, chunk), node_resource=place)
        for number, (place, chunk) in enumerate(_chunks(placed))
    ]
    logits: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(calls)
    for outcome in pool.run(calls, timeout_seconds=CHUNK_TIMEOUT_SECONDS):
        logits[int(outcome.call.key)] = _value(outcome, "evaluating heads")
    labels_N = np.array([scan.label for _, scans in placed for scan in scans], np.int64)
    return labels_N, np.concatenate(logits, axis=1)


def personalise(
    pool: WorkerPool,
    parameters: FlatParameters,
    sites: Sequence[Site],
    held_out: Mapping[str, Sequence[Scan]],
    settings: PersonalSettings,
) -> Iterator[tuple[str, PersonalAnswers]]:
    """Yield (site, logits of its held-out scans by the global model and with a head tuned on the site)."""
    reference = pool.broadcast(parameters)
    calls = [
        Call(
            key=site.name,
            method="personalise",
            arguments=(reference, site, held_out[site.name], settings),
            node_resource=site.node_resource,
        )
        for site in sites
        if site.name in held_out
    ]
    for outcome in pool.run(calls, timeout_seconds=CHUNK_TIMEOUT_SECONDS):
        yield outcome.call.key, _value(outcome, "personalising")


def warm_up(pool: WorkerPool, scans: Sequence[Scan], settings: WarmupSettings) -> tuple[ModelState, TrainingSummary]:
    """Warm the model up on one worker of the pool. Raises GliofedError where it fails."""
    call = Call(key="warm-up", method="warm_up", arguments=(tuple(scans), settings))
    (outcome,) = pool.run([call], timeout_seconds=WARM_UP_TIMEOUT_SECONDS)
    state, summary = _value(outcome, "warming up")
    return state, summary


def _chunks(placed: Sequence[PlacedScans]) -> Iterator[PlacedScans]:
    for place, scans in placed:
        for _, group in groupby(enumerate(scans), key=lambda item: item[0] // CHUNK_SCANS):
            yield place, tuple(scan for _, scan in group)


def _value(outcome: Any, doing: str) -> Any:
    if isinstance(outcome, Done):
        return outcome.value
    raise GliofedError(f"{doing}: {outcome.call.key} failed: {outcome.reason}")
