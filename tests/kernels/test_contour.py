"""The largest contour of a mask against OpenCV's findContours and contourArea, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from kernels import _C, reference

from .images import STENCILS, masks

pytestmark = pytest.mark.usefixtures("every_isa")


def assert_same_box(mask_HW: NDArray[np.uint8]) -> None:
    assert _C.largest_contour(mask_HW) == reference.largest_contour(mask_HW)


@settings(max_examples=250, deadline=None)
@given(masks())
def test_largest_contour_of_any_mask_is_the_one_opencv_users_pick(mask_HW: NDArray[np.uint8]) -> None:
    assert_same_box(mask_HW)


def test_equal_areas_are_decided_by_opencvs_order_of_contours() -> None:
    mask_HW = np.zeros((40, 90), np.uint8)
    for top, left in [(2, 60), (2, 3), (20, 40), (20, 5), (21, 70)]:
        mask_HW[top : top + 6, left : left + 6] = 255
    assert_same_box(mask_HW)
    assert _C.largest_contour(mask_HW) == (70, 21, 75, 26)


@pytest.mark.parametrize("name", STENCILS)
def test_two_of_a_kind_anywhere_around_each_other_agree(name: str) -> None:
    stencil = STENCILS[name]
    rows, columns = stencil.shape
    for top in range(2 * rows + 2):
        for left in range(2 * columns + 2):
            mask_HW = np.zeros((3 * rows + 2, 3 * columns + 2), np.uint8)
            mask_HW[rows + 1 : 2 * rows + 1, columns + 1 : 2 * columns + 1] = stencil
            mask_HW[top : top + rows, left : left + columns] |= stencil
            assert_same_box(mask_HW)


def test_what_lies_inside_a_ring_never_beats_the_ring() -> None:
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[4:60, 4:60] = 255
    mask_HW[6:58, 6:58] = 0
    mask_HW[8:56, 8:56] = 255
    assert_same_box(mask_HW)
    assert _C.largest_contour(mask_HW) == (4, 4, 59, 59)


def _within_bounds(height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """Shapes with the same bounds whose areas go from nothing to all of them."""
    full = np.ones((height + 1, width + 1), np.uint8)
    frame, notched, legs, line = full.copy(), full.copy(), np.zeros_like(full), np.zeros_like(full)
    frame[1:-1, 1:-1] = 0
    notched[0, 0] = 0
    legs[:, 0] = legs[-1, :] = 1
    steps = max(height, width) + 1
    line[np.linspace(0, height, steps).round().astype(int), np.linspace(0, width, steps).round().astype(int)] = 1
    return {"full": full, "frame": frame, "notched": notched, "legs": legs, "line": line}


@pytest.mark.parametrize("squares", [1, 2, 6, 12, 24, 36, 64])
def test_areas_that_bounds_alone_can_barely_tell_apart_agree(squares: int) -> None:
    """The walk along borders is skipped where one component's 2x2 blocks outweigh all other bounds: never wrongly."""
    sides = [(h, w) for h in range(1, 66) for w in range(1, 66) if abs(h * w - squares) <= 1 and max(h, w) <= 36]
    for height, width in [side for side in sides if side[0] * side[1] == squares]:
        for other_height, other_width in sides:
            for first in _within_bounds(height, width).values():
                for second in _within_bounds(other_height, other_width).values():
                    mask_HW = np.zeros((max(len(first), len(second)) + 1, width + other_width + 3), np.uint8)
                    mask_HW[: len(first), : width + 1] = first
                    mask_HW[-len(second) :, width + 2 : width + other_width + 3] = second
                    assert_same_box(mask_HW)
                    assert_same_box(np.ascontiguousarray(mask_HW[::-1]))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.42, 0.5, 0.9])
def test_noise_masks_of_many_components_agree(share: float) -> None:
    mask_HW = (np.random.default_rng(0).random((300, 333)) < share).astype(np.uint8)
    assert_same_box(mask_HW)
