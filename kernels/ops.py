"""Preprocessing by the compiled core: decoded grey slices in, network input out.

Suffixes: H, W image rows and columns; N images; C planes in the spec's channel order; S = spec.size.
The same functions in OpenCV calls are in kernels.reference; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import _C
from kernels.spec import CROP_SIZE, Box, Crop, PreprocessSpec

__all__ = ["Crop", "crop_gray", "finish", "preprocess"]


def crop_gray(gray_HW: NDArray[np.uint8]) -> Crop:
    """The head region of one slice, resized to 256x256 (SEED steps 1 and 2).

    gray_HW: uint8 [H, W], sides 1 to 2^20, any strides. Without a contour, or with one whose box is empty,
    the whole image is used and the result's box is None. Raises TypeError or ValueError for other arrays.
    """
    crop_HW = np.empty((CROP_SIZE, CROP_SIZE), np.uint8)
    corners = _C.crop(_require_gray("gray_HW", gray_HW), crop_HW)
    return Crop(crop_HW=crop_HW, box=None if corners is None else Box(*corners))


def finish(crops_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, num_threads: int = 1) -> NDArray[np.float32]:
    """Denoise, colour, resize and normalise crops (SEED steps 3 to 5, then spec.normalization).

    crops_NHW: uint8 [N, 256, 256]. Returns float32 [N, 3, S, S], C-contiguous. Raises TypeError or ValueError
    for other arrays, ValueError for num_threads outside 1..256.
    """
    if not isinstance(crops_NHW, np.ndarray) or crops_NHW.dtype != np.uint8:
        raise TypeError(f"crops_NHW is {_describe(crops_NHW)}, expected uint8 [N, {CROP_SIZE}, {CROP_SIZE}]")
    if crops_NHW.ndim != 3 or crops_NHW.shape[1:] != (CROP_SIZE, CROP_SIZE):
        raise ValueError(f"crops_NHW is {_describe(crops_NHW)}, expected uint8 [N, {CROP_SIZE}, {CROP_SIZE}]")
    images_NCHW = _allocate(len(crops_NHW), spec)
    _C.finish(np.ascontiguousarray(crops_NHW), images_NCHW, num_threads=num_threads, **_normalisation(spec))
    return images_NCHW


def preprocess(
    grays: Sequence[NDArray[np.uint8]], spec: PreprocessSpec, num_threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The whole way for a batch: crop_gray then finish, num_threads images at a time without the GIL.

    grays: one uint8 [H, W] array an image, sizes may differ. Returns images_NCHW float32 [N, 3, S, S] and
    found_N bool, False where no contour was found and the whole image was used. Errors as in crop_gray.
    """
    checked = [_require_gray(f"grays[{i}]", gray) for i, gray in enumerate(grays)]
    images_NCHW = _allocate(len(checked), spec)
    found_N = np.zeros(len(checked), np.bool_)
    _C.preprocess(checked, images_NCHW, found_N, num_threads=num_threads, **_normalisation(spec))
    return images_NCHW, found_N


def _allocate(num_images: int, spec: PreprocessSpec) -> NDArray[np.float32]:
    return np.empty((num_images, 3, spec.size, spec.size), np.float32)


def _normalisation(spec: PreprocessSpec) -> dict[str, Any]:
    normalization = spec.normalization
    bgr_index = {"b": 0, "g": 1, "r": 2}
    return {
        "channel": [bgr_index[c] for c in normalization.channel_order],
        "scale": normalization.scale,
        "mean": normalization.mean,
        "stddev": normalization.std,
    }


def _require_gray(name: str, gray_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    expected = "expected one grey plane, uint8 [H, W]; kernels.decode makes one"
    if not isinstance(gray_HW, np.ndarray) or gray_HW.dtype != np.uint8:
        raise TypeError(f"{name} is {_describe(gray_HW)}, {expected}")
    if gray_HW.ndim != 2:
        raise ValueError(f"{name} is {_describe(gray_HW)}, {expected}")
    height, width = gray_HW.shape
    if not (1 <= height <= _C.MAX_SIDE and 1 <= width <= _C.MAX_SIDE and height * width <= _C.MAX_PIXELS):
        raise ValueError(
            f"{name} has {height} rows and {width} columns, "
            f"expected 1 to {_C.MAX_SIDE} each and at most {_C.MAX_PIXELS} pixels"
        )
    return gray_HW if gray_HW.strides[1] == 1 else np.ascontiguousarray(gray_HW)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"
