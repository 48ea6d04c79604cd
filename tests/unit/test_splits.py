"""Split sizes on data with duplicates, the edges of the fraction, and independence of purposes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fl.data.duplicates import near_duplicate_mask
from fl.data.splits import SplitSettings, split_training, stratified_split
from fl.errors import DataError
from fl.types import Scan


def make_scans(*num_by_class: int, copies: int = 1) -> list[Scan]:
    """Scans of which every `copies` in a row are near-copies; the groups are far apart."""
    random = np.random.default_rng(9)
    scans = []
    for label, count in enumerate(num_by_class):
        for index in range(count):
            if index % copies == 0:
                base = int(random.integers(0, 2**63))
            phash = base ^ (index % copies and 1 << (index % copies))
            name = f"{label}-{index}"
            scans.append(Scan(path=Path(name), label=label, pixels_sha256=name, phash=phash, height=224, width=224))
    return scans


def labels(scans: list[Scan], indices: np.ndarray) -> Counter[int]:
    return Counter(scans[index].label for index in indices)


def test_holdout_of_five_percent_is_stratified_to_rounding() -> None:
    scans = make_scans(1321, 1339, 1595, 1457)

    split = stratified_split(scans, 0.05, seed=7, purpose="holdout")

    assert labels(scans, split.selected) == {0: 66, 1: 67, 2: 80, 3: 73}
    assert len(split.selected) + len(split.remaining) == len(scans)


def test_near_copies_stay_on_one_side_by_default() -> None:
    scans = make_scans(60, 60, 60, 60, copies=3)

    split = stratified_split(scans, 0.2, seed=7, purpose="validation")

    assert labels(scans, split.selected) == {0: 12, 1: 12, 2: 12, 3: 12}
    selected, remaining = ([scans[index] for index in side] for side in (split.selected, split.remaining))
    assert not near_duplicate_mask(selected, remaining).any()


def test_given_groups_are_used_instead_of_perceptual_ones() -> None:
    scans = make_scans(40, 40)
    patients = np.repeat(np.arange(16), 5)

    split = stratified_split(scans, 0.25, seed=7, purpose="validation", groups=patients)

    assert not set(patients[split.selected]) & set(patients[split.remaining])
    assert labels(scans, split.selected) == {0: 10, 1: 10}


def test_groups_larger_than_the_share_still_leave_something_on_both_sides() -> None:
    scans = make_scans(20, 20, copies=10)

    split = stratified_split(scans, 0.05, seed=7, purpose="validation")

    assert labels(scans, split.selected) == {0: 10, 1: 10}
    assert labels(scans, split.remaining) == {0: 10, 1: 10}


def test_last_group_of_a_class_is_never_taken_from_training() -> None:
    groups = np.array([0, 1, 1, 1, 1, 1])

    for seed in range(10):
        split = stratified_split(make_scans(6), 0.9, seed=seed, purpose="validation", groups=groups)
        assert len(split.selected) in (1, 5)


def test_class_that_is_one_single_group_stays_in_training() -> None:
    scans = make_scans(6, 30, copies=6)

    split = stratified_split(scans, 0.4, seed=7, purpose="validation")

    assert labels(scans, split.selected) == {1: 12}


def test_group_with_conflicting_labels_is_kept_whole() -> None:
    scans = make_scans(10, 10)
    groups = np.array([0, *range(1, 10), 0, *range(10, 19)])

    for seed in range(20):
        split = stratified_split(scans, 0.3, seed=seed, purpose="validation", groups=groups)
        assert (0 in split.selected) == (10 in split.selected)
        assert labels(scans, split.selected) == {0: 3, 1: 3}


def test_fraction_zero_selects_nothing_and_no_scans_are_no_error() -> None:
    scans = make_scans(5, 5)

    assert stratified_split(scans, 0, seed=1, purpose="holdout").remaining.tolist() == list(range(10))
    assert len(stratified_split([], 0.5, seed=1, purpose="holdout").selected) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="validation fraction"):
        stratified_split(make_scans(5), fraction, seed=1, purpose="validation")


def test_groups_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(4,\); expected one for each of 5"):
        stratified_split(make_scans(5), 0.2, seed=1, purpose="validation", groups=np.arange(4))


def test_purposes_draw_independently_and_seeds_repeat() -> None:
    scans = make_scans(100, 100)

    first, again, other = (
        stratified_split(scans, 0.2, seed=1, purpose=purpose).selected.tolist() for purpose in ("a", "a", "b")
    )

    assert first == again != other


def test_training_is_divided_into_three_without_near_copies_across() -> None:
    scans = make_scans(120, 120, 120, 120, copies=2)

    split = split_training(scans, SplitSettings(validation_fraction=0.1, holdout_fraction=0.05), seed=3)

    sides = (split.training_scans, split.validation_scans, split.holdout_scans)
    assert [len(side) for side in sides] == [408, 48, 24]
    assert set().union(*sides) == set(scans)
    for one in sides:
        assert not any(near_duplicate_mask(one, other).any() for other in sides if other is not one)


def test_settings_leave_scans_to_train_on() -> None:
    with pytest.raises(ValidationError, match=r"less than or equal to 0\.5"):
        SplitSettings(validation_fraction=0.6)
    with pytest.raises(ValidationError, match=r"is 1; expected at most 0\.9"):
        SplitSettings(validation_fraction=0.5, holdout_fraction=0.5)
