"""How a job gets to its sites: workers of a Ray cluster here, hospitals over TLS in `service.coordinate`.

The journey (`service.job`) trains, validates and tests through this alone, so it is the same in both worlds.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from flwr.app import RecordDict

from fl.data.federation import Federation
from fl.evaluation.metrics import ClassificationMetrics, EvaluationReport, evaluate, evaluate_paired
from fl.evaluation.personal import PersonalResult, local_scans
from fl.model.flat import FlatParameters
from fl.model.vgg import SplitVgg19
from fl.runtime.closed_form import FederatedSums, gather_secure_sums, gather_sums, solve
from fl.runtime.federate import PlacedScans, head_logits, personalise, place_scans, predict_scans
from fl.runtime.grid import RayGrid
from fl.runtime.pool import WorkerPool
from fl.runtime.secure import PHASE_TIMEOUT_SECONDS, SECURE_FORGET, Ask, train_secure_round
from fl.runtime.sites import Limits, ask_named, train_sites
from fl.server.analytic import AnalyticHead, AnalyticSettings
from fl.server.rounds import RoundSettings
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask, SecureMean
from fl.training.personal import PersonalSettings
from fl.types import CLASSES, Site
from service.spec import JobSpec


class Reach(Protocol):
    """The sites of one arm."""

    def train(
        self, task: RoundTask, assignments: Sequence[Assignment], settings: RoundSettings
    ) -> Iterator[Reply | LeftOut | SecureMean]:
        """Give the task to the selected sites; yield what comes of it."""

    def validate(self, parameters: FlatParameters) -> ClassificationMetrics:
        """Return how parameters [P] do on the validation scans."""

    def test(self, parameters: FlatParameters) -> EvaluationReport:
        """Return how parameters [P] do on the test scans."""

    def personalise(self, parameters: FlatParameters, settings: PersonalSettings) -> tuple[PersonalResult, ...]:
        """Return what parameters [P], and a head tuned on each site, are worth to each site."""

    def forget(self) -> None:
        """Let sites drop the secrets of their last secure round."""


class ClusterReach:
    """Sites whose scans any worker, or the one on their node, can read. context: digest of the job and arm."""

    def __init__(
        self, pool: WorkerPool, federation: Federation, sites: Sequence[Site], *, spec: JobSpec, context: str
    ) -> None:
        self._pool = pool
        self._federation = federation
        self._sites = sites
        self._spec = spec
        self._context = this_start(context)
        self._grid = RayGrid(pool, sites)

    def train(
        self, task: RoundTask, assignments: Sequence[Assignment], settings: RoundSettings
    ) -> Iterator[Reply | LeftOut | SecureMean]:
        """Give the task to the selected sites; yield what comes of it, as it comes."""
        limits = Limits(timeout_seconds=settings.site_timeout_seconds)
        if settings.secure_aggregation is None:
            return train_sites(self._grid, self._grid.nodes, task, assignments, limits)
        return train_masked(self._ask, task, assignments, settings, context=self._context)

    def validate(self, parameters: FlatParameters) -> ClassificationMetrics:
        """Return how parameters [P] do on the coordinator's and the sites' validation scans."""
        return evaluate(*predict_scans(self._pool, parameters, validation_of(self._federation)), CLASSES)

    def test(self, parameters: FlatParameters) -> EvaluationReport:
        """Return how parameters [P] do on the test scans, as published and deduplicated."""
        labels_T, logits_TK = predict_scans(self._pool, parameters, [(None, self._federation.test_scans)])
        return evaluate_paired(labels_T, logits_TK, self._federation.near_copies_T, CLASSES)

    def forget(self) -> None:
        """Let sites drop the secrets of their last secure round; one that does not answer keeps them in its file."""
        if self._spec.fl.secure_aggregation is not None:
            forget_secrets(self._ask, self._sites)

    def sums(self, parameters: FlatParameters) -> FederatedSums:
        """Return the sums over all sites' features under parameters [P], masked where the job says so."""
        num_features = SplitVgg19(self._spec.model.network).head.in_features
        secure = self._spec.fl.secure_aggregation
        if secure is None:
            return gather_sums(self._ask, self._sites, parameters, num_features=num_features)
        return gather_secure_sums(
            self._ask, self._sites, parameters, secure, num_features=num_features, context=self._context
        )

    def solve(
        self, sums: FederatedSums, parameters: FlatParameters, settings: AnalyticSettings
    ) -> tuple[FlatParameters, AnalyticHead]:
        """Return parameters [P] with the head that the sums give and validation scans like best."""
        logits = partial(head_logits, self._pool, parameters, validation_of(self._federation))
        return solve(sums.statistics, parameters, settings, logits)

    def personalise(self, parameters: FlatParameters, settings: PersonalSettings) -> tuple[PersonalResult, ...]:
        """Return what parameters [P], and a head tuned on each site, are worth to each site."""
        held_out = local_scans(self._sites, self._federation.test_scans, seed=self._spec.seed)
        results = []
        for site, answers in personalise(self._pool, parameters, self._sites, held_out, settings):
            labels_N = np.array([scan.label for scan in held_out[site]], np.int64)
            results.append(
                PersonalResult(
                    site=site,
                    with_global=evaluate(labels_N, answers.of_global, CLASSES),
                    with_tuned_head=evaluate(labels_N, answers.of_tuned, CLASSES),
                )
            )
        return tuple(sorted(results, key=lambda result: result.site))

    def _ask(
        self, contents: Mapping[str, RecordDict], message_type: str, timeout_seconds: float
    ) -> Iterator[tuple[str, RecordDict | LeftOut]]:
        return ask_named(self._grid, self._grid.nodes, message_type, contents, Limits(timeout_seconds=timeout_seconds))


def train_masked(
    ask: Ask, task: RoundTask, assignments: Sequence[Assignment], settings: RoundSettings, *, context: bytes
) -> Iterator[SecureMean | LeftOut]:
    """Give the task to the selected sites under the settings' secure aggregation."""
    assert settings.secure_aggregation is not None, "the caller has looked"
    return train_secure_round(
        ask,
        task,
        assignments,
        settings.secure_aggregation,
        by_examples=settings.aggregation == "by_examples",
        context=context,
        timeout_seconds=settings.site_timeout_seconds,
    )


def forget_secrets(ask: Ask, sites: Sequence[Site]) -> None:
    """Let sites drop the secrets of their last secure round; one that does not answer keeps them in its file."""
    list(ask({site.name: RecordDict() for site in sites}, SECURE_FORGET, PHASE_TIMEOUT_SECONDS))


def this_start(job_digest: str) -> bytes:
    """Return what is bound into the keys of secure rounds: the job, and that this is another start of it.

    Sites that have masked for a round refuse to mask for other neighbours; a driver that begins the round again, with
    sites that are back or gone, must therefore begin another one.
    """
    return f"{job_digest}|{secrets.token_hex(16)}".encode()


def validation_of(federation: Federation) -> list[PlacedScans]:
    """Return the validation scans by who may read them."""
    return place_scans(federation.sites, federation.validation_scans)
