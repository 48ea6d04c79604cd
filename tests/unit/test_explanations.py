"""Figures of class maps: known maps get known figures, and each figure tells a good map from a bad one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.evaluation.explanations import (
    NUM_STEPS,
    ExplainedScan,
    centre_prior,
    deletion_insertion,
    energy_inside,
    measure_explanations,
    points_inside,
    shifted,
)
from kernels.spec import Box

SIDE = 40
REGION = Box(left=4, top=2, right=36, bottom=38)


def lesion_at(row: int, column: int, radius: int = 4) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    mask: NDArray[np.bool_] = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return mask


def bell(row: int, column: int, width: float = 4.0) -> NDArray[np.float32]:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    heat = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2)).astype(np.float32)
    outside = np.ones_like(heat, dtype=np.bool_)
    outside[REGION.top : REGION.bottom, REGION.left : REGION.right] = False
    heat[outside] = 0
    return heat


def scan_with(heat_HW: NDArray[np.float32], lesion_HW: NDArray[np.bool_]) -> ExplainedScan:
    image_HW = np.where(lesion_HW, 250, 90).astype(np.uint8)
    return ExplainedScan(image_HW=image_HW, lesion_HW=lesion_HW, heat_HW=heat_HW, region=REGION, predicted=True)


def sees(lesion_HW: NDArray[np.bool_]):  # type: ignore[no-untyped-def]
    """A model whose probability is how bright the lesion's pixels are."""

    def score(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.array([image_HW[lesion_HW].mean() / 255 for image_HW in images], np.float32)

    return score


def test_a_map_that_is_the_lesion_has_all_its_energy_there_and_points_at_it() -> None:
    lesion_HW = lesion_at(12, 25)
    assert energy_inside(lesion_HW.astype(np.float32), lesion_HW) == 1
    assert points_inside(lesion_HW.astype(np.float32), lesion_HW) == 1
    assert energy_inside((~lesion_HW).astype(np.float32), lesion_HW) == 0
    assert points_inside((~lesion_HW).astype(np.float32), lesion_HW) == 0


def test_a_flat_map_scores_what_the_lesion_covers_and_an_empty_one_nothing() -> None:
    lesion_HW = lesion_at(12, 25)
    assert energy_inside(np.ones((SIDE, SIDE), np.float32), lesion_HW) == pytest.approx(lesion_HW.mean())
    assert points_inside(np.ones((SIDE, SIDE), np.float32), lesion_HW) == pytest.approx(lesion_HW.mean())
    assert energy_inside(np.zeros((SIDE, SIDE), np.float32), lesion_HW) == 0
    assert points_inside(np.zeros((SIDE, SIDE), np.float32), lesion_HW) == 0


@given(row=st.integers(6, 33), column=st.integers(8, 31), seed=st.integers(0, 1000))
def test_a_shift_moves_energy_about_and_keeps_it_in_the_region(row: int, column: int, seed: int) -> None:
    heat_HW = bell(row, column)
    moved_HW = shifted(heat_HW, REGION, np.random.default_rng(seed))
    assert np.sort(moved_HW, axis=None) == pytest.approx(np.sort(heat_HW, axis=None))
    outside = np.ones((SIDE, SIDE), np.bool_)
    outside[REGION.top : REGION.bottom, REGION.left : REGION.right] = False
    assert not moved_HW[outside].any()


def test_the_centre_prior_is_in_the_middle_and_as_wide_as_the_map() -> None:
    heat_HW = bell(12, 14, width=3.0)
    prior_HW = centre_prior(heat_HW, REGION)
    row, column = np.unravel_index(prior_HW.argmax(), prior_HW.shape)
    assert (abs(row - 19.5), abs(column - 19.5)) == (0.5, 0.5)
    strong, own = (prior_HW > prior_HW.max() / 2).sum(), (heat_HW > heat_HW.max() / 2).sum()
    assert strong == pytest.approx(own, rel=0.2)


def test_deletion_is_small_and_insertion_large_for_the_map_that_finds_what_the_model_sees() -> None:
    lesion_HW = lesion_at(12, 25)
    image_HW = np.where(lesion_HW, 250, 40).astype(np.uint8)
    good = deletion_insertion(image_HW, bell(12, 25), REGION, sees(lesion_HW))
    bad = deletion_insertion(image_HW, bell(30, 12), REGION, sees(lesion_HW))
    assert good[0] < bad[0] - 0.1
    assert good[1] > bad[1] + 0.1


def test_the_curves_begin_and_end_at_the_image_and_its_blur() -> None:
    seen: list[NDArray[np.uint8]] = []

    def score(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        seen.extend(images)
        return np.full(len(images), 0.5, np.float32)

    image_HW = np.where(lesion_at(12, 25), 250, 40).astype(np.uint8)
    assert deletion_insertion(image_HW, bell(12, 25), REGION, score) == (0.5, 0.5)
    deleted, inserted = seen[: NUM_STEPS + 1], seen[NUM_STEPS + 1 :]
    assert np.array_equal(deleted[0], image_HW)
    assert np.array_equal(inserted[-1], image_HW)
    inside = (slice(REGION.top, REGION.bottom), slice(REGION.left, REGION.right))
    assert np.array_equal(deleted[-1][inside], inserted[0][inside])
    assert np.array_equal(inserted[0][0], image_HW[0]), "outside the region nothing is taken away"


def test_maps_that_find_their_lesions_beat_both_baselines_and_blind_ones_do_not() -> None:
    spots = [(10, 12), (12, 28), (28, 12), (30, 28), (20, 30), (8, 20)]
    lesions = [lesion_at(*spot) for spot in spots]
    scores = [sees(lesion_HW) for lesion_HW in lesions]
    good = measure_explanations(
        [scan_with(bell(*spot), lesion_HW) for spot, lesion_HW in zip(spots, lesions, strict=True)],
        scores,
        num_curves=6,
        seed=1,
    )
    blind = measure_explanations(
        [scan_with(bell(39 - row, 39 - column), lesion) for (row, column), lesion in zip(spots, lesions, strict=True)],
        scores,
        num_curves=6,
        seed=1,
    )
    assert good.class_maps.pointing == 1 > good.random.pointing
    assert good.class_maps.energy > 2 * max(good.random.energy, good.centre.energy)
    assert good.class_maps.deletion < min(good.random.deletion, good.centre.deletion)
    assert good.class_maps.insertion > max(good.random.insertion, good.centre.insertion)
    assert blind.class_maps.pointing == 0
    assert blind.class_maps.energy < blind.random.energy
    assert good.random.energy == pytest.approx(good.lesion_share, abs=0.03), "a shifted map has no idea"
    low, high = good.energy_interval
    assert low <= good.class_maps.energy <= high
    assert good.to_json()["class_maps"]["energy"] == good.class_maps.energy


def test_the_same_scans_give_the_same_figures() -> None:
    scans = [scan_with(bell(12, 25), lesion_at(14, 25)), scan_with(bell(30, 12), lesion_at(28, 12))]
    scores = [sees(scan.lesion_HW) for scan in scans]
    assert measure_explanations(scans, scores, num_curves=1, seed=3) == measure_explanations(
        scans, scores, num_curves=1, seed=3
    )


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="lesion is empty"):
        scan_with(bell(12, 25), np.zeros((SIDE, SIDE), np.bool_))
    with pytest.raises(ValueError, match="not negative"):
        scan_with(bell(12, 25) - 1, lesion_at(12, 25))
    with pytest.raises(ValueError, match="one shape"):
        ExplainedScan(
            image_HW=np.zeros((3, 3), np.uint8),
            lesion_HW=lesion_at(12, 25),
            heat_HW=bell(12, 25),
            region=REGION,
            predicted=False,
        )
    with pytest.raises(ValueError, match="one score a scan"):
        measure_explanations([], [], num_curves=0, seed=1)
