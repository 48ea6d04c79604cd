"""Weights of a convolution as whole numbers whose errors cancel on the inputs that the layer really sees.

Rounding each weight to the nearest step is best only if inputs were independent and of mean zero. What a Relu lets
through is neither. Weights are therefore rounded one input after another, and what has been lost so far is made up for
by those still to come (LDLQ: Chee et al. 2023, "QuIP: 2-Bit Quantization of Large Language Models With Guarantees",
section 3; it gives what Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", gives, without inverting a matrix). What is left of the mean goes into the bias (Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with measured means).

Shape legend: O output channels, K inputs of one output value (channels times kernel places), n sampled places.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_DAMPING = 0.01
"""Added to every input's variance, as a share of the mean variance (Frantar et al. 2023, section 3.3)."""

_BLOCK = 128
"""Columns whose errors are passed on at once: only speed depends on it."""


@dataclass(slots=True)
class Moments:
    """First and second moments of a convolution's inputs, over all rows given so far: 4 K^2 bytes."""

    count: int = 0
    sum_K: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    products_KK: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def add(self, rows_nK: NDArray[np.float32]) -> None:
        """Take in rows, float32 [n,K], one for each place where the kernel lay."""
        if not self.count:
            width = rows_nK.shape[1]
            self.sum_K, self.products_KK = np.zeros(width), np.zeros((width, width), np.float32)
        self.count += len(rows_nK)
        self.sum_K += rows_nK.sum(axis=0, dtype=np.float64)
        self.products_KK += rows_nK.T @ rows_nK

    def mean(self, gain_K: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean of rows times gain_K, float32 [K]."""
        return (self.sum_K / self.count * gain_K).astype(np.float32)

    def covariance(self, gain_K: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the covariance of rows times gain_K, float32 [K,K]; damped, so positive definite."""
        mean_K = self.mean(gain_K)
        covariance_KK = self.products_KK / np.float32(self.count) * np.outer(gain_K, gain_K) - np.outer(mean_K, mean_K)
        variance_K = np.maximum(np.diagonal(covariance_KK), 0)
        room = max(_DAMPING * float(variance_K.mean()), float(np.finfo(np.float32).tiny))
        np.fill_diagonal(covariance_KK, variance_K + np.float32(room))
        return covariance_KK


def round_weights(
    weight_OK: NDArray[np.float32], scale_O: NDArray[np.float32], covariance_KK: NDArray[np.float32], most: int
) -> NDArray[np.int8]:
    """Return steps int8 [O,K] in -most..most: steps times scale gives nearly what the weights give.

    Nearly: of E covariance E^T, E the weights less steps times scale, the diagonal is small. covariance_KK: symmetric,
    positive definite.
    """
    order_K = np.argsort(-np.diagonal(covariance_KK), kind="stable")
    feedback_KK = _feedback(covariance_KK[np.ix_(order_K, order_K)])
    wanted_OK = weight_OK[:, order_K]
    steps_OK, lost_OK = np.zeros_like(wanted_OK), np.zeros_like(wanted_OK)
    for start in range(0, wanted_OK.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        owed_OB = lost_OK[:, :start] @ feedback_KK[:start, block]
        for at in range(owed_OB.shape[1]):
            column = start + at
            owed_O = owed_OB[:, at] + lost_OK[:, start:column] @ feedback_KK[start:column, column]
            target_O = (wanted_OK[:, column] + owed_O) / scale_O
            steps_OK[:, column] = np.clip(np.rint(target_O), -most, most)
            lost_OK[:, column] = wanted_OK[:, column] - steps_OK[:, column] * scale_O
    found_OK = np.empty(weight_OK.shape, np.int8)
    found_OK[:, order_K] = steps_OK.astype(np.int8)
    return found_OK


def _feedback(covariance_KK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return M with ones on the diagonal, upper triangular, such that M D M^T is the covariance, D diagonal."""
    upper_KK = np.linalg.cholesky(covariance_KK[::-1, ::-1])[::-1, ::-1]
    return (upper_KK / np.diagonal(upper_KK)).astype(np.float32, copy=False)
