"""How far an image lies from those that a model was made for, by the embedding that its head reads.

Images of anything at all get a class, and noise may get a high score. What tells strange ones apart is how much of
their embedding lies outside the subspace in which training scans differ from one another: the residual of a principal
component analysis (Moghaddam & Pentland 1997, "Probabilistic Visual Learning for Object Representation", section 2.2;
used with deep features by Wang et al. 2022, "ViM", section 3). Embeddings are compared by the roots of their values at
unit length (Hellinger's distance; Arandjelovic & Zisserman 2012, "Three things everyone should know to improve object
retrieval", section 3), which takes brightness and a few large values out of it. docs/confidence.md has
the figures against Mahalanobis distances, nearest neighbours and scores by which it was chosen.

What the statistics hold of training scans: their mean, and the directions in which at least four times as many of them
differ most. No scan's own embedding is among them, and no image. They are no proof of privacy: who knows all of the
scans but one could compute that one's embedding from them, as from any mean.

NumPy alone. Shape legend: N M images, E embedding, K principal directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DIRECTIONS = 64
"""Of 2048 values, 0.5 MB. On real scans 32 to 128 tell strange images apart about equally well."""

MIN_REFERENCE_SCANS = 40


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Familiarity:
    """Statistics of training scans' embeddings, float32.

    mean_E, of roots at unit length. directions_KE: orthonormal rows. usual: [1], > 0, the mean squared residual.
    """

    mean_E: NDArray[np.float32]
    directions_KE: NDArray[np.float32]
    usual: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Raise ValueError for shapes that do not fit together, other dtypes, or values that are not usable."""
        for name, values in self.arrays().items():
            if values.dtype != np.float32 or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite float32 values, got {values.dtype}")
        shapes = (self.mean_E.shape, self.directions_KE.shape, self.usual.shape)
        num_directions, num_embedded = self.directions_KE.shape if self.directions_KE.ndim == 2 else (0, 0)
        if shapes != ((num_embedded,), (num_directions, num_embedded), (1,)) or self.usual[0] <= 0:
            raise ValueError(f"mean, directions and usual residual have shapes {shapes}; expected [E], [K,E], [1] > 0")
        if not 1 <= num_directions <= min(MAX_DIRECTIONS, num_embedded):
            raise ValueError(f"has {num_directions} directions of {num_embedded}; expected 1 to {MAX_DIRECTIONS}")
        if np.abs(self.directions_KE @ self.directions_KE.T - np.eye(num_directions)).max() > 1e-3:
            raise ValueError("the directions are not orthonormal")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the statistics by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def strangeness(self, embedding_NE: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the residual as a multiple of training scans', score_N >= 0: 1 is usual, more is stranger.

        The root of the squared residual over its mean on training scans; finite for any finite embedding. Raises
        ValueError for embeddings of another size.
        """
        if embedding_NE.ndim != 2 or embedding_NE.shape[1] != len(self.mean_E):
            raise ValueError(f"embeddings have shape {embedding_NE.shape}; expected [N, {len(self.mean_E)}]")
        residual_N = _squared_residual(_roots(embedding_NE) - self.mean_E, self.directions_KE)
        score_N: NDArray[np.float64] = np.sqrt(residual_N / float(self.usual[0]))
        return score_N


def fit_familiarity(embedding_NE: NDArray[np.floating]) -> Familiarity | None:
    """Return the statistics of training scans' embeddings; None for fewer than `MIN_REFERENCE_SCANS`, or all alike."""
    if len(embedding_NE) < MIN_REFERENCE_SCANS:
        return None
    wide_NE = _roots(embedding_NE)
    mean_E = wide_NE.mean(axis=0)
    _, _, rows_KE = np.linalg.svd(wide_NE - mean_E, full_matrices=False)
    directions_KE = rows_KE[: min(MAX_DIRECTIONS, len(wide_NE) // 4, wide_NE.shape[1] // 4)]
    usual = float(_squared_residual(wide_NE - mean_E, directions_KE).mean()) if len(directions_KE) else 0.0
    if usual <= float(np.finfo(np.float32).tiny):
        return None
    return Familiarity(
        mean_E=mean_E.astype(np.float32),
        directions_KE=directions_KE.astype(np.float32),
        usual=np.array([usual], np.float32),
    )


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Familiarity:
    """Return statistics read from a file. Raises ValueError for other names, shapes, dtypes or values."""
    names = {field.name for field in fields(Familiarity)}
    if set(arrays) != names:
        raise ValueError(f"has arrays {sorted(arrays)}; expected {sorted(names)}")
    return Familiarity(**arrays)


def highest_usual(score_N: NDArray[np.floating], accepted: float) -> float | None:
    """Return the score that a new scan like these N stays at or below with a probability of at least `accepted`.

    Their order statistic of rank ceil((N + 1) accepted), as in conformal prediction; None where N is too small for it.
    """
    rank = math.ceil((len(score_N) + 1) * accepted - 1e-9)
    return float(np.sort(score_N)[rank - 1]) if rank <= len(score_N) else None


def separation(usual_N: NDArray[np.floating], strange_M: NDArray[np.floating]) -> float:
    """Return the probability that a strange image scores above a usual one, ties counting half (AUROC)."""
    sorted_N = np.sort(usual_N)
    below_M = np.searchsorted(sorted_N, strange_M, side="left") + np.searchsorted(sorted_N, strange_M, side="right")
    return float(below_M.mean() / (2 * len(usual_N)))


def _roots(embedding_NE: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the roots of the values, which a ReLU has left no less than 0, at unit length; zeros stay zeros."""
    roots_NE = np.sqrt(np.maximum(embedding_NE.astype(np.float64), 0))
    lengths_N1 = np.linalg.norm(roots_NE, axis=1, keepdims=True)
    unit_NE: NDArray[np.float64] = roots_NE / np.maximum(lengths_N1, np.finfo(np.float32).tiny)
    return unit_NE


def _squared_residual(centred_NE: NDArray[np.float64], directions_KE: NDArray[np.floating]) -> NDArray[np.float64]:
    wide_KE = directions_KE.astype(np.float64)
    rest_NE = centred_NE - (centred_NE @ wide_KE.T) @ wide_KE
    squared_N: NDArray[np.float64] = (rest_NE**2).sum(axis=1)
    return squared_N
