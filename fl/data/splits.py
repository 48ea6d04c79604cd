"""Stratified splits that keep duplicates together: validation, and the holdout that a federation shares.

Legend: N scans, C classes, G duplicate groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl.data.duplicates import duplicate_groups
from fl.errors import DataError
from fl.random import stream
from fl.types import CLASSES, Scan

Indices = NDArray[np.int64]


class SplitSettings(BaseModel):
    """What is set apart from the training scans before sites get theirs. The test set plays no part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Part of each class held back to stop early and to choose the best round",
    )
    holdout_fraction: float = Field(
        default=0.0, ge=0, le=0.5, description="Part of each class shared by the federation (Case 2: 0.05)"
    )

    @model_validator(mode="after")
    def _leave_scans_to_train_on(self) -> Self:
        total = self.validation_fraction + self.holdout_fraction
        if total > 0.9:
            raise ValueError(f"validation_fraction + holdout_fraction is {total:g}; expected at most 0.9")
        return self


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Two disjoint, complete, ascending index arrays into the scans that were split."""

    selected: Indices
    remaining: Indices


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSplit:
    """The training scans of a federation, divided; no near-copy lies in two of the three."""

    training_scans: tuple[Scan, ...]
    validation_scans: tuple[Scan, ...]
    holdout_scans: tuple[Scan, ...]


def split_training(scans: Sequence[Scan], settings: SplitSettings, seed: int) -> TrainingSplit:
    """Set validation and holdout apart; both fractions are of all the scans given here."""
    groups_N = duplicate_groups(scans)
    validation = stratified_split(scans, settings.validation_fraction, seed, "validation", groups_N)
    rest = [scans[index] for index in validation.remaining]
    of_rest = settings.holdout_fraction / (1 - settings.validation_fraction)
    holdout = stratified_split(rest, of_rest, seed, "holdout", groups_N[validation.remaining])
    return TrainingSplit(
        training_scans=tuple(rest[index] for index in holdout.remaining),
        validation_scans=tuple(scans[index] for index in validation.selected),
        holdout_scans=tuple(rest[index] for index in holdout.selected),
    )


def stratified_split(
    scans: Sequence[Scan], fraction: float, seed: int, purpose: str, groups: Indices | None = None
) -> Split:
    """Select about `fraction` of each class, whole groups only, so that no group is on both sides.

    groups: one number for each scan, int64 [N]; default is `duplicate_groups(scans)`, so near-copies stay
    together. Pass patient numbers where they are known. fraction: 0 ≤ fraction < 1.
    Each class misses its share by at most the size of its largest group; with groups of one the share is
    exact to rounding. A class of two or more groups always has scans on both sides (if fraction > 0), unless
    groups that span classes make that impossible. The same seed and purpose give the same split.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"{purpose} fraction is {fraction}; expected at least 0 and below 1")
    if groups is None:
        groups = duplicate_groups(scans)
    if groups.shape != (len(scans),):
        raise DataError(f"{purpose}: groups have shape {groups.shape}; expected one for each of {len(scans)} scans")
    labels_N = np.fromiter((scan.label for scan in scans), dtype=np.int64, count=len(scans))
    _, group_of_N = np.unique(groups, return_inverse=True)
    sizes_GC = np.zeros((int(group_of_N.max(initial=-1)) + 1, len(CLASSES)), dtype=np.int64)
    np.add.at(sizes_GC, (group_of_N, labels_N), 1)
    is_selected_G = _select_groups(sizes_GC, fraction, stream(seed, "split", purpose))
    is_selected_N = is_selected_G[group_of_N]
    return Split(selected=np.flatnonzero(is_selected_N), remaining=np.flatnonzero(~is_selected_N))


def _select_groups(sizes_GC: Indices, fraction: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Choose groups in random order while they fit, then those that bring a class nearer to its target."""
    order_G = random.permutation(len(sizes_GC))
    is_selected_G = np.zeros(len(sizes_GC), dtype=np.bool_)
    missing_C = _targets(sizes_GC, fraction)
    for group in order_G:
        if not missing_C.any():
            break
        if (sizes_GC[group] <= missing_C).all():
            is_selected_G[group] = True
            missing_C -= sizes_GC[group]
    for label in np.flatnonzero(missing_C).tolist():
        while (group := _best_filler(label, sizes_GC[order_G], missing_C, is_selected_G[order_G])) is not None:
            is_selected_G[order_G[group]] = True
            missing_C -= sizes_GC[order_G[group]]
    return is_selected_G


def _targets(sizes_GC: Indices, fraction: float) -> Indices:
    """Scans to select of each class: rounded, but at least one on either side where there are two groups."""
    num_scans_C, num_groups_C = sizes_GC.sum(axis=0), np.count_nonzero(sizes_GC, axis=0)
    if fraction == 0:
        return np.zeros_like(num_scans_C)
    rounded_C = np.floor(num_scans_C * fraction + 0.5).astype(np.int64)
    return np.where(num_groups_C < 2, 0, np.clip(rounded_C, 1, np.maximum(1, num_scans_C - 1)))


def _best_filler(label: int, sizes_GC: Indices, missing_C: Indices, is_selected_G: NDArray[np.bool_]) -> int | None:
    """Find the group to add for a class that is short, or None if the selection is better as it is.

    A group helps if it lessens the sum over classes of |missing|, or if the class has nothing selected yet.
    It may not take the last scans of any class from the remaining side.
    """
    remaining_C = sizes_GC[~is_selected_G].sum(axis=0)
    is_spared_G = ((sizes_GC == 0) | (sizes_GC < remaining_C)).all(axis=1)
    candidates = np.flatnonzero(~is_selected_G & is_spared_G & (sizes_GC[:, label] > 0))
    if missing_C[label] <= 0 or not len(candidates):
        return None
    deviations = np.abs(missing_C - sizes_GC[candidates]).sum(axis=1)
    best = int(np.argmin(deviations))
    has_none = not sizes_GC[is_selected_G, label].any()
    return int(candidates[best]) if has_none or deviations[best] < np.abs(missing_C).sum() else None
