"""The federated head in closed form: ridge regression of one-hot labels on frozen features, from sums over sites.

Source: He et al. 2025, "AFL: A Single-Round Analytic Approach for Federated Learning with Pre-trained Models"; Fani
et al. 2024, "Accelerating Heterogeneous Federated Learning with Closed-form Classifiers" (Fed3R). The sums are those
of all examples together (fl/training/statistics.py), so the head is the centralised one, to the byte.

Regression scores lie about 0 and 1 and are no logits: under softmax they would hardly tell classes apart, and
cross-entropy would spend its first steps on blowing them up. One factor on all scores, chosen by cross-entropy on
validation scans, makes them logits without changing any answer.

Shape legend: M candidates, N examples, J features, K classes, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from fl.errors import StatisticsError
from fl.model.flat import FlatParameters
from fl.training.statistics import SiteStatistics

_LARGEST_SCALE = 100.0
"""Where validation scans are told apart without an error, a larger factor would be better without end."""


class AnalyticSettings(BaseModel):
    """The head in closed form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ridges: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 0.3, 0.1, 0.03, 0.01, 0.003),
        min_length=1,
        description="Ridges to try, as shares of the features' mean variance; validation scans choose.",
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnalyticHead:
    """A linear head, and how it came about.

    weight_KJ, bias_K: float32; logits are weight x + bias. ridge: share of the features' mean variance. scale: factor
    on the regression's scores that is in weight and bias already. validation_loss: mean cross-entropy in nats, NaN
    where it was not measured yet.
    """

    weight_KJ: NDArray[np.float32]
    bias_K: NDArray[np.float32]
    ridge: float
    scale: float = 1.0
    validation_loss: float = float("nan")


def candidates(statistics: SiteStatistics, ridges: Sequence[float]) -> Iterator[AnalyticHead]:
    """Yield the head of each ridge, unscaled; about J^3/3 multiplications each, and 16 J^2 bytes.

    Minimises sum |W x + b - onehot|^2 + ridge v n |W|^2 over the n examples, v the features' mean variance; b is free.
    A Cholesky factor each: for a handful of ridges that is cheaper than one eigendecomposition for all. Raises
    StatisticsError where there is nothing to learn from.
    """
    num_examples = statistics.num_examples
    if num_examples == 0 or np.count_nonzero(statistics.counts_K) < 2:
        raise StatisticsError(
            f"sums over {num_examples} examples of classes {statistics.counts_K.tolist()}; a head needs examples of "
            "two classes at least, so more sites must take part"
        )
    gram_JJ, cross_JK, mean_J, share_K = _centred(statistics)
    variance_sum = np.trace(gram_JJ) / len(gram_JJ)
    for ridge in ridges:
        penalised_JJ = gram_JJ.copy(order="K")
        penalised_JJ[np.diag_indices(len(gram_JJ))] += ridge * variance_sum
        try:
            factor = cho_factor(penalised_JJ, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError as error:
            raise StatisticsError(
                f"ridge {ridge:g} leaves the features of {num_examples} examples without one best head ({error}): they "
                "hardly differ, or the ridge is too small; try larger ones"
            ) from error
        weight_JK = cho_solve(factor, cross_JK, check_finite=False)
        bias_K = share_K - mean_J @ weight_JK
        yield AnalyticHead(
            weight_KJ=np.ascontiguousarray(weight_JK.T, np.float32), bias_K=bias_K.astype(np.float32), ridge=ridge
        )


def choose_head(
    heads: Sequence[AnalyticHead], logits_MNK: NDArray[np.float32], labels_N: NDArray[np.int64]
) -> AnalyticHead:
    """Return the head with the least cross-entropy on validation scans, each at its best scale.

    logits_MNK: of the unscaled heads on these scans.
    """
    scaled = [scale_to(head, logits_NK, labels_N) for head, logits_NK in zip(heads, logits_MNK, strict=True)]
    return min(scaled, key=lambda head: head.validation_loss)


def scale_to(head: AnalyticHead, logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> AnalyticHead:
    """Return the head with weight and bias times the factor in 1..100 that has the least cross-entropy.

    The loss is convex in the factor (temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks").
    """
    scores_NK = logits_NK.astype(np.float64)

    def loss(scale: float) -> float:
        scaled_NK = scale * scores_NK
        right_N = np.take_along_axis(scaled_NK, labels_N[:, None], axis=1)[:, 0]
        return float(np.mean(logsumexp(scaled_NK, axis=1) - right_N))

    found = minimize_scalar(loss, bounds=(1.0, _LARGEST_SCALE), method="bounded")
    scale = float(found.x)
    return replace(
        head,
        weight_KJ=head.weight_KJ * np.float32(scale),
        bias_K=head.bias_K * np.float32(scale),
        scale=scale,
        validation_loss=loss(scale),
    )


def with_head(parameters: FlatParameters, head: AnalyticHead) -> FlatParameters:
    """Return flat parameters [P] whose head is replaced; the tail's, before it, are kept."""
    end = len(parameters) - head.weight_KJ.size - head.bias_K.size
    if end < 0:
        raise ValueError(f"{len(parameters)} parameters cannot hold a head of shape {list(head.weight_KJ.shape)}")
    return np.concatenate([parameters[:end], head.weight_KJ.ravel(), head.bias_K])


def _centred(
    statistics: SiteStatistics,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return sums about the mean: gram_JJ (lower triangle), cross_JK with the labels; mean_J, and classes' share_K."""
    unit, num_examples = statistics.unit, statistics.num_examples
    num_features = len(statistics.class_sums_JK)
    sums_JK = statistics.class_sums_JK * unit
    mean_J = sums_JK.sum(axis=1) / num_examples
    share_K = statistics.counts_K / num_examples
    gram_JJ = np.zeros((num_features, num_features), order="F")
    start = 0
    for row in range(num_features):
        products = statistics.gram[start : start + num_features - row] * unit**2
        gram_JJ[row:, row] = products - num_examples * mean_J[row] * mean_J[row:]
        start += len(products)
    return gram_JJ, sums_JK - num_examples * np.outer(mean_J, share_K), mean_J, share_K
