"""Arrays that the ops refuse, and what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels import _C, ops
from kernels.spec import CROP_SIZE, PreprocessSpec

SPEC = PreprocessSpec(size=8)
GRAY_HW = np.zeros((9, 9), np.uint8)


@pytest.mark.parametrize(
    ("gray", "error", "message"),
    [
        (np.zeros((9, 9), np.float32), TypeError, r"gray_HW is float32 \[9, 9\], expected .*uint8 \[H, W\]"),
        ([[1, 2], [3, 4]], TypeError, "gray_HW is a list"),
        (np.zeros((9, 9, 3), np.uint8), ValueError, r"uint8 \[9, 9, 3\]"),
        (np.zeros(9, np.uint8), ValueError, r"uint8 \[9\]"),
        (np.zeros((0, 9), np.uint8), ValueError, "0 rows and 9 columns"),
        (np.zeros((9, 0), np.uint8), ValueError, "9 rows and 0 columns"),
        (np.zeros((1, 2**20 + 1), np.uint8), ValueError, "1048577 columns"),
    ],
)
def test_arrays_that_are_no_grey_slice_are_refused(gray: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.crop_gray(gray)


def test_a_refusal_in_a_batch_names_the_image() -> None:
    with pytest.raises(TypeError, match=r"grays\[1\] is int64"):
        ops.preprocess([GRAY_HW, np.zeros((9, 9), np.int64)], SPEC)


def test_the_longest_allowed_row_is_accepted() -> None:
    assert ops.crop_gray(np.full((2, 2**20), 200, np.uint8)).box == (0, 0, 2**20 - 1, 1)


@pytest.mark.parametrize(
    ("crops", "error"),
    [
        (np.zeros((1, CROP_SIZE, CROP_SIZE), np.float32), TypeError),
        (np.zeros((CROP_SIZE, CROP_SIZE), np.uint8), ValueError),
        (np.zeros((1, CROP_SIZE, CROP_SIZE - 1), np.uint8), ValueError),
    ],
)
def test_arrays_that_are_no_crops_are_refused(crops: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"expected uint8 \[N, 256, 256\]"):
        ops.finish(crops, SPEC)


@pytest.mark.parametrize("num_threads", [0, -1, 257])
def test_thread_counts_out_of_range_are_refused(num_threads: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads is {num_threads}, expected 1 to 256"):
        ops.preprocess([GRAY_HW], SPEC, num_threads=num_threads)


def test_the_compiled_module_never_writes_into_outputs_of_another_size() -> None:
    numbers = {"channel": [0, 1, 2], "scale": 1.0, "mean": [0.0] * 3, "stddev": [1.0] * 3, "num_threads": 1}
    with pytest.raises(ValueError, match="must be 256x256"):
        _C.crop(GRAY_HW, np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"expected \[1, 3, S, S\]"):
        _C.preprocess([GRAY_HW], np.zeros((2, 3, 8, 8), np.float32), np.zeros(1, np.bool_), **numbers)
    with pytest.raises(ValueError, match="one flag for each image"):
        _C.preprocess([GRAY_HW], np.zeros((1, 3, 8, 8), np.float32), np.zeros(0, np.bool_), **numbers)
    with pytest.raises(ValueError, match="channel numbers"):
        _C.preprocess(
            [GRAY_HW],
            np.zeros((1, 3, 8, 8), np.float32),
            np.zeros(1, np.bool_),
            **{**numbers, "channel": [0, 1, 3]},
        )
    with pytest.raises(TypeError):
        _C.crop(GRAY_HW, np.zeros((256, 512), np.uint8)[:, ::2])
