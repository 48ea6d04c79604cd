"""The kernels against OpenCV on real MRI slices of many sizes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels import ops, reference
from kernels.decode import decode_gray
from kernels.spec import UNIT, Normalization, PreprocessSpec

DEFAULT_FOLDER = Path(__file__).parents[2].parent / "shared" / "data"
FOLDER = Path(os.environ.get("GLIOFED_REAL_DATA", DEFAULT_FOLDER)) / "mri-fullres"
FILES = sorted(FOLDER.glob("*/*.jpg"))
IMAGENET = Normalization(channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FILES, reason=f"no JPEG slices under {FOLDER}; set GLIOFED_REAL_DATA to their parent"),
]


@pytest.fixture(scope="module")
def slices() -> list[NDArray[np.uint8]]:
    return [decode_gray(path.read_bytes(), source=str(path)) for path in FILES]


def test_boxes_and_crops_are_identical(slices: list[NDArray[np.uint8]]) -> None:
    for gray_HW in slices:
        ours, truth = ops.crop_gray(gray_HW), reference.crop_gray(gray_HW)
        assert ours.box is not None and ours.box == truth.box
        np.testing.assert_array_equal(ours.crop_HW, truth.crop_HW)


@pytest.mark.parametrize(("size", "normalization"), [(200, UNIT), (224, IMAGENET)], ids=["study", "imagenet"])
def test_final_levels_are_exact_or_one_off(
    slices: list[NDArray[np.uint8]], size: int, normalization: Normalization
) -> None:
    spec = PreprocessSpec(size=size, normalization=normalization)
    ours_NCHW, found_N = ops.preprocess(slices, spec, num_threads=2)
    truth_NCHW, truth_found_N = reference.preprocess(slices, spec)
    np.testing.assert_array_equal(found_N, truth_found_N)
    assert np.abs(ours_NCHW - truth_NCHW).max() <= 1.01 * normalization.scale / min(normalization.std)
    assert (ours_NCHW == truth_NCHW).mean() >= 0.9999
