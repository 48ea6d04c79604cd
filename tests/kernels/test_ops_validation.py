"""Arrays that the ops refuse, and what they say."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels import _C, ops
from kernels.dispatch import Isa, isa, isas, using_isa
from kernels.spec import CROP_SIZE, PreprocessSpec

SPEC = PreprocessSpec(size=8)
GRAY_HW = np.zeros((9, 9), np.uint8)


@pytest.mark.parametrize(
    ("gray", "error", "message"),
    [
        (np.zeros((9, 9), np.float32), TypeError, r"images\[0\] is float32 \[9, 9\], expected uint8 \[H, W\]"),
        ([[1, 2], [3, 4]], TypeError, r"images\[0\] is a list"),
        (np.zeros((9, 9, 4), np.uint8), ValueError, r"uint8 \[9, 9, 4\]"),
        (np.zeros((9, 9, 3, 1), np.uint8), ValueError, r"uint8 \[9, 9, 3, 1\]"),
        (np.zeros(9, np.uint8), ValueError, r"uint8 \[9\]"),
        (np.zeros((0, 9), np.uint8), ValueError, "0 rows and 9 columns"),
        (np.zeros((9, 0), np.uint8), ValueError, "9 rows and 0 columns"),
        (np.zeros((1, 2**20 + 1), np.uint8), ValueError, "1048577 columns"),
    ],
)
def test_arrays_that_are_no_slice_are_refused(gray: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.crop(gray)


def test_a_refusal_in_a_batch_names_the_image() -> None:
    with pytest.raises(TypeError, match=r"images\[1\] is int64"):
        ops.preprocess([GRAY_HW, np.zeros((9, 9), np.int64)], SPEC)


def test_the_longest_allowed_row_is_accepted() -> None:
    assert ops.crop(np.full((2, 2**20), 200, np.uint8)).box == (0, 0, 2**20 - 1, 1)


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


@pytest.mark.parametrize("num_threads", [0, -1, 2.0, True])
def test_thread_counts_that_make_no_sense_are_refused(num_threads: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads is {num_threads}, expected an int of at least 1"):
        ops.preprocess([GRAY_HW], SPEC, num_threads=num_threads)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="channel_order is 'grb', expected 'bgr' or 'rgb'"):
        ops.crop(GRAY_HW, channel_order="grb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype is 'float16', expected one of"):
        ops.preprocess([GRAY_HW], SPEC, dtype="float16")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"color_HWC is uint8 \[9, 9\], expected uint8 \[H, W, 3\]"):
        ops.gray(GRAY_HW)


@pytest.mark.parametrize(
    "crops_NHW",
    [
        np.zeros((2, CROP_SIZE, CROP_SIZE), np.uint8),
        np.zeros((1, CROP_SIZE, 2 * CROP_SIZE), np.uint8)[..., ::2],
        np.broadcast_to(np.zeros(CROP_SIZE, np.uint8), (1, CROP_SIZE, CROP_SIZE)),
    ],
    ids=["another number", "strided", "read-only"],
)
def test_crops_go_only_into_arrays_that_can_take_them(crops_NHW: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="expected room for 1 crops, C-contiguous and writable"):
        ops.crop_into([GRAY_HW], crops_NHW)


def test_an_instruction_set_that_does_not_exist_is_refused_and_the_one_in_use_stays() -> None:
    before = isa()
    with pytest.raises(ValueError, match="isa is 'mmx', expected scalar, avx2 or avx512"), using_isa("mmx"):  # type: ignore[arg-type]
        pass
    assert isa() == before == isas()[-1]


def test_the_compiled_module_never_writes_into_outputs_of_another_size() -> None:
    numbers: dict[str, Any] = {
        "bgr": True,
        "channel": [0, 1, 2],
        "scale": 1.0,
        "mean": [0.0] * 3,
        "stddev": [1.0] * 3,
        "num_threads": 1,
    }
    crops_NHW = np.zeros((1, 256, 256), np.uint8)
    with pytest.raises(ValueError, match="room for 2 crops"):
        _C.denoise(crops_NHW, np.zeros((2, 256, 256), np.uint8), num_threads=1)
    with pytest.raises(ValueError, match="must not be the input itself"):
        _C.denoise(crops_NHW, crops_NHW, num_threads=1)
    with pytest.raises(ValueError, match="room for 2 crops, expected one for each of 1 images"):
        _C.crop([GRAY_HW], np.zeros((2, 256, 256), np.uint8), bgr=True, num_threads=1)
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
        _C.crop([GRAY_HW], np.zeros((1, 256, 512), np.uint8)[..., ::2], bgr=True, num_threads=1)


def test_more_threads_than_can_be_of_use_are_not_started() -> None:
    crops_NHW = np.empty((2, CROP_SIZE, CROP_SIZE), np.uint8)
    assert ops.crop_into([GRAY_HW, GRAY_HW], crops_NHW, num_threads=10**12) == [None, None]


def test_crops_never_go_where_an_image_is_read() -> None:
    crops_NHW = np.zeros((2, CROP_SIZE, CROP_SIZE), np.uint8)
    with pytest.raises(ValueError, match=r"images\[1\] shares memory with crops_NHW"):
        ops.crop_into([GRAY_HW, crops_NHW[1]], crops_NHW)


def test_blocks_of_several_threads_leave_the_instruction_set_as_it_was() -> None:
    before, both_inside = isa(), threading.Barrier(2, timeout=0.2)

    def use(name: Isa) -> None:
        with using_isa(name), contextlib.suppress(threading.BrokenBarrierError):
            both_inside.wait()

    threads = [threading.Thread(target=use, args=(name,)) for name in ("scalar", isas()[-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isa() == before
