"""Preprocessing by the compiled core: decoded slices in, network input out.

Suffixes: H, W image rows and columns; N images; C planes in the spec's channel order; S = spec.size.
An image is uint8 [H, W] (grey) or [H, W, 3] (colour in channel_order, made grey as OpenCV does), sides 1 to 2^20,
at most 2^30 pixels, any strides. The same functions in OpenCV calls are in kernels.reference; tests hold the two
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from kernels import _C
from kernels.spec import CROP_SIZE, Box, Crop, PreprocessSpec

__all__ = ["ChannelOrder", "Crop", "color", "crop", "crop_into", "denoise", "finish", "gray", "preprocess"]

ChannelOrder = Literal["bgr", "rgb"]
DTypeName = Literal["float32", "bfloat16"]

_EXPECTED_IMAGE = "expected uint8 [H, W] or [H, W, 3]; kernels.decode makes one"
CACHE_LINE_BYTES = 64
# NumPy has no bfloat16: its bits travel as uint16.
_STORED = {"float32": np.float32, "bfloat16": np.uint16}


def gray(color_HWC: NDArray[np.uint8], *, channel_order: ChannelOrder = "bgr") -> NDArray[np.uint8]:
    """Return gray_HW uint8 [H, W] of a colour image uint8 [H, W, 3], by the arithmetic of OpenCV's BGR2GRAY."""
    image = _require_image("color_HWC", color_HWC)
    if image.ndim != 3:
        raise ValueError(f"color_HWC is {_describe(color_HWC)}, expected uint8 [H, W, 3]")
    gray_HW = np.empty(image.shape[:2], np.uint8)
    _C.gray(image, gray_HW, bgr=is_bgr(channel_order))
    return gray_HW


def crop(image: NDArray[np.uint8], *, channel_order: ChannelOrder = "bgr") -> Crop:
    """The head region of one slice, resized to 256x256 (SEED steps 1 and 2).

    Without a contour, or with one whose box is empty, the whole image is used and the result's box is None.
    Raises TypeError or ValueError for other arrays.
    """
    crops_NHW = np.empty((1, CROP_SIZE, CROP_SIZE), np.uint8)
    box = crop_into([image], crops_NHW, channel_order=channel_order)[0]
    return Crop(crop_HW=crops_NHW[0], box=box)


def crop_into(
    images: Sequence[NDArray[np.uint8]],
    crops_NHW: NDArray[np.uint8],
    *,
    channel_order: ChannelOrder = "bgr",
    num_threads: int = 1,
) -> list[Box | None]:
    """`crop` for a batch, straight into crops_NHW uint8 [N, 256, 256], C-contiguous and writable.

    num_threads (of which at most 256 are started) images at a time without the GIL. Returns each image's box, None as
    in crop. Raises TypeError or ValueError for other arrays, for images that share memory with crops_NHW, and for
    num_threads below 1; nothing is written then.
    """
    _require_crops(crops_NHW)
    if len(crops_NHW) != len(images) or not crops_NHW.flags.c_contiguous or not crops_NHW.flags.writeable:
        raise ValueError(
            f"crops_NHW is {_describe(crops_NHW)}, expected room for {len(images)} crops, C-contiguous and writable"
        )
    checked = _require_images(images)
    for i, image in enumerate(checked):
        if np.may_share_memory(image, crops_NHW):
            raise ValueError(f"images[{i}] shares memory with crops_NHW, which would be overwritten while it is read")
    boxes = _C.crop(checked, crops_NHW, bgr=is_bgr(channel_order), num_threads=usable_threads(num_threads))
    return [None if corners is None else Box(*corners) for corners in boxes]


def denoise(crops_NHW: NDArray[np.uint8], *, num_threads: int = 1) -> NDArray[np.uint8]:
    """Smooth crops of crops (SEED step 3): uint8 [N, 256, 256] both.

    They are the last that does not depend on a spec: worth keeping where images are wanted more than once. Errors
    as in finish.
    """
    crops = _require_crops(crops_NHW)
    smooth_NHW = np.empty_like(crops)
    _C.denoise(crops, smooth_NHW, num_threads=usable_threads(num_threads))
    return smooth_NHW


@overload
def color(
    smooth_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, dtype: Literal["float32"] = ..., num_threads: int = ...
) -> NDArray[np.float32]: ...
@overload
def color(
    smooth_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, dtype: Literal["bfloat16"], num_threads: int = ...
) -> NDArray[np.uint16]: ...
def color(
    smooth_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, dtype: DTypeName = "float32", num_threads: int = 1
) -> NDArray[Any]:
    """Colour, resize and normalise smooth crops (SEED steps 4 and 5, then spec.normalization).

    smooth_NHW: uint8 [N, 256, 256]. Returns images_NCHW [N, 3, S, S], C-contiguous: float32, or for bfloat16 its
    bits as uint16, rounded to nearest even. Raises TypeError or ValueError for other arrays, ValueError for
    num_threads below 1.
    """
    smooth = _require_crops(smooth_NHW)
    images_NCHW = _allocate(len(smooth), spec, dtype)
    _C.color(smooth, images_NCHW, num_threads=usable_threads(num_threads), **normalisation_numbers(spec))
    return images_NCHW


@overload
def finish(
    crops_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, dtype: Literal["float32"] = ..., num_threads: int = ...
) -> NDArray[np.float32]: ...
@overload
def finish(
    crops_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, dtype: Literal["bfloat16"], num_threads: int = ...
) -> NDArray[np.uint16]: ...
def finish(
    crops_NHW: NDArray[np.uint8], spec: PreprocessSpec, *, dtype: DTypeName = "float32", num_threads: int = 1
) -> NDArray[Any]:
    """`denoise` then `color`, in one pass over each crop. Arguments, result and errors as in color."""
    crops = _require_crops(crops_NHW)
    images_NCHW = _allocate(len(crops), spec, dtype)
    _C.finish(crops, images_NCHW, num_threads=usable_threads(num_threads), **normalisation_numbers(spec))
    return images_NCHW


@overload
def preprocess(
    images: Sequence[NDArray[np.uint8]],
    spec: PreprocessSpec,
    *,
    dtype: Literal["float32"] = ...,
    channel_order: ChannelOrder = ...,
    num_threads: int = ...,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...
@overload
def preprocess(
    images: Sequence[NDArray[np.uint8]],
    spec: PreprocessSpec,
    *,
    dtype: Literal["bfloat16"],
    channel_order: ChannelOrder = ...,
    num_threads: int = ...,
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]: ...
def preprocess(
    images: Sequence[NDArray[np.uint8]],
    spec: PreprocessSpec,
    *,
    dtype: DTypeName = "float32",
    channel_order: ChannelOrder = "bgr",
    num_threads: int = 1,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The whole way for a batch: crop then finish, num_threads images at a time without the GIL.

    images: sizes may differ. Returns images_NCHW as finish does and found_N bool, False where no contour was found
    and the whole image was used. Errors as in crop_into.
    """
    checked = _require_images(images)
    images_NCHW = _allocate(len(checked), spec, dtype)
    found_N = np.zeros(len(checked), np.bool_)
    bgr = is_bgr(channel_order)
    _C.preprocess(
        checked, images_NCHW, found_N, bgr=bgr, num_threads=usable_threads(num_threads), **normalisation_numbers(spec)
    )
    return images_NCHW, found_N


def normalisation_numbers(spec: PreprocessSpec) -> dict[str, Any]:
    """The spec's normalisation as the compiled ops take it: channel (indices into blue, green, red), scale, ..."""
    normalization = spec.normalization
    bgr_index = {"b": 0, "g": 1, "r": 2}
    return {
        "channel": [bgr_index[c] for c in normalization.channel_order],
        "scale": normalization.scale,
        "mean": normalization.mean,
        "stddev": normalization.std,
    }


def _allocate(num_images: int, spec: PreprocessSpec, dtype: DTypeName) -> NDArray[Any]:
    """An output that begins on a cache line, as NumPy's own need not: large ones are then written past the caches."""
    if dtype not in _STORED:
        raise ValueError(f"dtype is {dtype!r}, expected one of {sorted(_STORED)}")
    shape = (num_images, 3, spec.size, spec.size)
    num_bytes = math.prod(shape) * np.dtype(_STORED[dtype]).itemsize
    memory = np.empty(num_bytes + CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[start : start + num_bytes].view(_STORED[dtype]).reshape(shape)


def usable_threads(num_threads: int) -> int:
    """Return the number of threads that are started: num_threads, at most MAX_THREADS. Raises ValueError below 1."""
    if type(num_threads) is not int or num_threads < 1:
        raise ValueError(f"num_threads is {num_threads!r}, expected an int of at least 1")
    return min(num_threads, _C.MAX_THREADS)


def require_sides(name: str, height: int, width: int) -> None:
    """Raise ValueError for sides that the core does not take; `name` says whose they are."""
    if not (1 <= height <= _C.MAX_SIDE and 1 <= width <= _C.MAX_SIDE and height * width <= _C.MAX_PIXELS):
        raise ValueError(
            f"{name} has {height} rows and {width} columns, "
            f"expected 1 to {_C.MAX_SIDE} each and at most {_C.MAX_PIXELS} pixels"
        )


def is_bgr(channel_order: ChannelOrder) -> bool:
    """Whether blue comes first. Raises ValueError for an order that is neither."""
    if channel_order not in ("bgr", "rgb"):
        raise ValueError(f"channel_order is {channel_order!r}, expected 'bgr' or 'rgb'")
    return channel_order == "bgr"


def _require_images(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [_require_image(f"images[{i}]", image) for i, image in enumerate(images)]


def _require_image(name: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise TypeError(f"{name} is {_describe(image)}, {_EXPECTED_IMAGE}")
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
        raise ValueError(f"{name} is {_describe(image)}, {_EXPECTED_IMAGE}")
    require_sides(name, *image.shape[:2])
    adjacent = (1,) if image.ndim == 2 else (3, 1)
    return image if image.strides[1:] == adjacent else np.ascontiguousarray(image)


def _require_crops(crops_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    expected = f"expected uint8 [N, {CROP_SIZE}, {CROP_SIZE}]"
    if not isinstance(crops_NHW, np.ndarray) or crops_NHW.dtype != np.uint8:
        raise TypeError(f"crops_NHW is {_describe(crops_NHW)}, {expected}")
    if crops_NHW.ndim != 3 or crops_NHW.shape[1:] != (CROP_SIZE, CROP_SIZE):
        raise ValueError(f"crops_NHW is {_describe(crops_NHW)}, {expected}")
    return np.ascontiguousarray(crops_NHW)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"
