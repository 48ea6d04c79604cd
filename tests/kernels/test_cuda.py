"""What kernels.cuda refuses, on any machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernels import cuda
from kernels.spec import PreprocessSpec

SPEC = PreprocessSpec(size=8)
GRAY_HW = torch.zeros((9, 9), dtype=torch.uint8)


def test_without_a_gpu_the_reason_is_told() -> None:
    usable, reason = cuda.available()
    assert usable == (reason == "")
    if not usable:
        assert "CUDA" in reason or "GPU" in reason


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (GRAY_HW.float(), TypeError, r"images\[1\] is torch.float32, expected torch.uint8"),
        ([[1, 2]], TypeError, r"images\[1\] is a list, expected an array on the device"),
        (torch.zeros(9, dtype=torch.uint8), ValueError, r"images\[1\] is uint8 \[9\], expected \[H, W\]"),
        (torch.zeros((9, 9, 4), dtype=torch.uint8), ValueError, r"uint8 \[9, 9, 4\]"),
        (torch.zeros((0, 9), dtype=torch.uint8), ValueError, "0 rows and 9 columns"),
        (torch.empty((1, 2**20 + 1), dtype=torch.uint8, device="meta"), ValueError, "1048577 columns"),
    ],
)
def test_arrays_that_are_no_slice_are_refused(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cuda.preprocess([GRAY_HW, image], SPEC)


@pytest.mark.parametrize("array", [GRAY_HW, np.zeros((9, 9), np.uint8)], ids=["torch", "numpy"])
def test_arrays_of_the_cpu_are_sent_to_the_cpu_path(array: Any) -> None:
    with pytest.raises(ValueError, match=r"lie on \['cpu'\], expected all on one CUDA device; kernels.ops takes"):
        cuda.crop([array])


def test_arrays_that_are_no_crops_and_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"crops_NHW is uint8 \[9, 9\], expected \[N, 256, 256\]"):
        cuda.finish(GRAY_HW, SPEC)
    with pytest.raises(TypeError, match=r"smooth_NHW is torch\.float32, expected torch\.uint8"):
        cuda.color(torch.zeros((1, 256, 256)), SPEC)
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        cuda.finish(torch.zeros((1, 256, 256), dtype=torch.uint8), SPEC, dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channel_order is 'gbr'"):
        cuda.preprocess([GRAY_HW], SPEC, channel_order="gbr")  # type: ignore[arg-type]


@pytest.mark.skipif(cuda.available()[0], reason="this machine has a GPU")
def test_an_empty_batch_without_a_gpu_says_why_it_cannot_run() -> None:
    with pytest.raises(RuntimeError, match=r"kernels\.cuda cannot run here"):
        cuda.preprocess([], SPEC)
