"""What one site tells about its frozen features so that a linear head can be solved for: sums, and nothing else.

For features x of a site's examples these are the Gram matrix (sum of x x^T), the sum of x over each class, and the
number of examples of each class. Sums of sites' sums are the sums of all examples, so the head that they give is that
of one site which held everything, whatever the partition (AFL, He et al. 2025; Fed3R, Fani et al. 2024).

To the byte, not only up to rounding: each feature is read once as a whole number of 2^-20 of the largest that it can
be. Products and sums of whole numbers are exact in float64 up to 2^53 and in int64 up to 2^63, so no order, batch,
thread or partition can change a bit, and whole numbers add up under secure aggregation's masks as they are.

Shape legend: N examples, J features, K classes, M heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas

from fl.errors import StatisticsError
from fl.model.features import PREFIX_BATCH
from fl.model.head import WidePooling
from fl.model.speed import Execution
from fl.model.vgg import SplitVgg19
from fl.training.local import Loader

FEATURE_BITS = 20
"""A feature is read to 2^-20 of the largest: 4e-5 of a wide head's root mean square, where bfloat16 maps have 4e-3."""

MAX_EXAMPLES = 1 << (63 - 2 * FEATURE_BITS)
"""8,388,608 examples of all sites together stay below 2^63."""

_EXACT_ROWS = 1 << (53 - 2 * FEATURE_BITS)
"""So many rows' products, at most 2^40 each, add up exactly in float64."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SiteStatistics:
    """Sums over one site's examples, or over several sites'.

    gram: [J(J+1)/2] int64 >= 0, the upper triangle of the Gram matrix row by row, in units of `unit`^2.
    class_sums_JK: int64 >= 0, in units of `unit`. counts_K: int64 >= 0. unit: what one step of a feature is worth; the
    same at all sites that have the same model.

    With one example the Gram matrix is that example's features, and with few it spans them: who should not see these
    must only see the sum over sites (secure aggregation).
    """

    gram: NDArray[np.int64]
    class_sums_JK: NDArray[np.int64]
    counts_K: NDArray[np.int64]
    unit: float

    def __post_init__(self) -> None:
        """Refuse shapes and numbers that no sums over examples have."""
        num_features = len(self.class_sums_JK)
        arrays = {"gram": self.gram, "class_sums_JK": self.class_sums_JK, "counts_K": self.counts_K}
        expected = {
            "gram": (num_features * (num_features + 1) // 2,),
            "class_sums_JK": (num_features, len(self.counts_K)),
            "counts_K": (len(self.counts_K),),
        }
        for name, array in arrays.items():
            if array.dtype != np.int64 or array.shape != expected[name] or array.min(initial=0) < 0:
                raise StatisticsError(
                    f"{name} is {array.dtype}{list(array.shape)} from {array.min(initial=0)}, expected "
                    f"int64{list(expected[name])} from 0; site and server must run the same gliofed"
                )
        if self.num_examples > MAX_EXAMPLES:
            raise StatisticsError(f"sums of {self.num_examples} examples; at most {MAX_EXAMPLES} stay exact")
        if int(self.gram.max(initial=0)) > self.num_examples << (2 * FEATURE_BITS) or any(
            int(self.class_sums_JK[:, label].max(initial=0)) > count << FEATURE_BITS
            for label, count in enumerate(self.counts_K.tolist())
        ):
            raise StatisticsError(
                f"a sum is larger than {self.num_examples} examples of the largest features can make it; "
                "the site sent garbage, or sums of another gliofed"
            )

    @property
    def num_examples(self) -> int:
        """How many examples were summed."""
        return sum(self.counts_K.tolist())  # Python's whole numbers do not wrap

    def __add__(self, other: SiteStatistics) -> SiteStatistics:
        """Return the sums over both; the same bytes in every order. Raises StatisticsError unless they fit."""
        if self.class_sums_JK.shape != other.class_sums_JK.shape or self.unit != other.unit:
            raise StatisticsError(
                f"sums of {list(self.class_sums_JK.shape)} features and classes in units of {self.unit:g} do not add "
                f"to {list(other.class_sums_JK.shape)} in {other.unit:g}; all sites must have the same model"
            )
        return SiteStatistics(
            gram=self.gram + other.gram,
            class_sums_JK=self.class_sums_JK + other.class_sums_JK,
            counts_K=self.counts_K + other.counts_K,
            unit=self.unit,
        )

    def as_vector(self) -> NDArray[np.uint64]:
        """Return all sums as one vector [J(J+1)/2 + J K + K] for addition modulo 2^64, masked or not.

        No number scaling is needed. Over n examples no entry exceeds n 2^40, so sums of up to MAX_EXAMPLES do not wrap.
        """
        return np.concatenate([self.gram, self.class_sums_JK.ravel(), self.counts_K]).view(np.uint64)

    @staticmethod
    def from_vector(vector: NDArray[np.uint64], *, num_features: int, num_classes: int, unit: float) -> SiteStatistics:
        """Return the sums that a vector of `as_vector`, or the sum of several, holds. Raises StatisticsError."""
        ends = np.cumsum([num_features * (num_features + 1) // 2, num_features * num_classes, num_classes])
        if vector.dtype != np.uint64 or vector.shape != (ends[-1],):
            raise StatisticsError(
                f"a vector of {num_features} features and {num_classes} classes is uint64[{ends[-1]}], "
                f"got {vector.dtype}{list(vector.shape)}"
            )
        gram, class_sums, counts = np.split(vector.view(np.int64), ends[:-1])
        return SiteStatistics(
            gram=gram, class_sums_JK=class_sums.reshape(num_features, num_classes), counts_K=counts, unit=unit
        )


def network_statistics(
    model: SplitVgg19, load: Loader, labels: Sequence[int], *, execution: Execution
) -> SiteStatistics:
    """Return the sums over examples 0..len(labels)-1 of what the model's head reads, without dropout.

    Raises StatisticsError for a head whose features have no bound, so no exact sums.
    """
    pooling = model.pooling
    if not isinstance(pooling, WidePooling):
        raise StatisticsError(
            "an average head's features have no bound, so their sums cannot be exact; set model.network.head: wide"
        )
    starts = range(0, len(labels), PREFIX_BATCH)
    labelled = (np.array(labels[start : start + PREFIX_BATCH], np.int64) for start in starts)
    return site_statistics(
        zip(head_features(model, load, len(labels), execution=execution), labelled, strict=True),
        num_features=pooling.num_features,
        num_classes=model.head.out_features,
        largest_feature=pooling.largest_feature,
    )


def candidate_logits(
    model: SplitVgg19,
    load: Loader,
    num_examples: int,
    heads: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    *,
    execution: Execution,
) -> NDArray[np.float32]:
    """Return logits_MNK of examples 0..num_examples-1 under each (weight_KJ, bias_K), the tail run once for all."""
    logits_MNK = np.empty((len(heads), num_examples, model.head.out_features), np.float32)
    start = 0
    for features_NJ in head_features(model, load, num_examples, execution=execution):
        for logits_NK, (weight_KJ, bias_K) in zip(logits_MNK, heads, strict=True):
            logits_NK[start : start + len(features_NJ)] = features_NJ @ weight_KJ.T + bias_K
        start += len(features_NJ)
    return logits_MNK


@torch.no_grad()
def head_features(
    model: SplitVgg19, load: Loader, num_examples: int, *, execution: Execution
) -> Iterator[NDArray[np.float32]]:
    """Yield features_NJ float32 of examples 0..num_examples-1 in order, PREFIX_BATCH at a time.

    The last batch is padded, as in fl/model/features.py: an example's features are then the same bytes in any company.
    """
    model.eval()
    for start in range(0, num_examples, PREFIX_BATCH):
        chosen = np.minimum(np.arange(start, start + PREFIX_BATCH), num_examples - 1)
        with execution.autocast():
            features_NJ = model.head_features(load(chosen, 0))
        yield features_NJ[: num_examples - start].float().cpu().numpy()


def site_statistics(
    batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    *,
    num_features: int,
    num_classes: int,
    largest_feature: float,
) -> SiteStatistics:
    """Return the sums over batches of (features_NJ in 0..largest_feature, labels_N), one batch in memory at a time.

    Takes 8 J^2 bytes beside the result. Raises StatisticsError for a feature outside the range or not finite.
    """
    gram_JJ = np.zeros((num_features, num_features), order="F")
    total = np.zeros(num_features * (num_features + 1) // 2, np.int64)
    class_sums_JK = np.zeros((num_features, num_classes), np.int64)
    counts_K = np.zeros(num_classes, np.int64)
    num_rows = 0
    for features_NJ, labels_N in batches:
        for start in range(0, len(labels_N), _EXACT_ROWS):
            rows = slice(start, start + _EXACT_ROWS)
            whole_NJ = _as_whole_numbers(features_NJ[rows], largest_feature)
            if num_rows + len(whole_NJ) > _EXACT_ROWS:
                total += _packed(gram_JJ)
                gram_JJ[:], num_rows = 0.0, 0
            gram_JJ = blas.dsyrk(1.0, whole_NJ.T, beta=1.0, c=gram_JJ, lower=1, overwrite_c=1)
            num_rows += len(whole_NJ)
            class_sums_JK += (whole_NJ.T @ np.eye(num_classes)[labels_N[rows]]).astype(np.int64)
            counts_K += np.bincount(labels_N[rows], minlength=num_classes)
    total += _packed(gram_JJ)
    unit = largest_feature * 2.0**-FEATURE_BITS
    return SiteStatistics(gram=total, class_sums_JK=class_sums_JK, counts_K=counts_K, unit=unit)


def _as_whole_numbers(features_NJ: NDArray[np.float32], largest_feature: float) -> NDArray[np.float64]:
    """Return features as whole numbers 0..2^20 of float64, each rounded once."""
    whole_NJ = np.rint(features_NJ.astype(np.float64) * (2.0**FEATURE_BITS / largest_feature))
    if not (whole_NJ.min(initial=0) >= 0 and whole_NJ.max(initial=0) <= 2**FEATURE_BITS):  # NaN is neither
        raise StatisticsError(
            f"features lie in {features_NJ.min():g}..{features_NJ.max():g}, expected 0..{largest_feature:g}; the "
            "network's weights are damaged, or do not fit its input normalisation"
        )
    return whole_NJ


def _packed(gram_JJ: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the upper triangle row by row, of a matrix whose lower triangle is filled, column-major."""
    rows = [gram_JJ[row:, row] for row in range(len(gram_JJ))]
    return np.concatenate(rows).astype(np.int64) if rows else np.zeros(0, np.int64)
