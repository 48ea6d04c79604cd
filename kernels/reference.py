"""The slow truth: the same preprocessing in plain OpenCV calls, without IPP.

IPP's bilateral filter truncates where OpenCV's own rounds, so results with IPP depend on the build.
Used by tests and benchmarks; the product runs kernels.ops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from kernels.spec import CROP_SIZE, Box, Crop, PreprocessSpec

FOREGROUND_LEVEL = 45
DENOISE_DIAMETER = 2
DENOISE_SIGMA = 50.0


def largest_contour(mask_HW: NDArray[np.uint8]) -> Box | None:
    """Extreme columns and rows of the outer contour with the largest area; None for an empty mask.

    Equal areas: the first in OpenCV's order. Right and bottom are the contour's last column and row, so the
    half-open box leaves them out and may be empty.
    """
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    points = max(contours, key=cv2.contourArea).reshape(-1, 2)
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    return Box(int(left), int(top), int(right), int(bottom))


def find_box(gray_HW: NDArray[np.uint8]) -> Box | None:
    """Box of the head (SEED step 1); None when there is no contour or its box is empty."""
    blurred = cv2.GaussianBlur(gray_HW, (3, 3), 0)
    _, mask = cv2.threshold(blurred, FOREGROUND_LEVEL, 255, cv2.THRESH_BINARY)
    kernel = np.ones((3, 3), np.uint8)
    mask = cv2.dilate(cv2.erode(mask, kernel, iterations=2), kernel, iterations=2)
    box = largest_contour(mask.astype(np.uint8, copy=False))
    if box is None or box.left == box.right or box.top == box.bottom:
        return None
    return box


def crop(gray_HW: NDArray[np.uint8]) -> Crop:
    """As kernels.ops.crop, grey images only."""
    with _without_ipp():
        box = find_box(gray_HW)
        part = gray_HW if box is None else gray_HW[box.top : box.bottom, box.left : box.right]
        resized = cv2.resize(part, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_LINEAR)
    return Crop(crop_HW=resized.astype(np.uint8, copy=False), box=box)


def denoise(crops_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As kernels.ops.denoise."""
    smooth_NHW = np.empty_like(crops_NHW)
    with _without_ipp():
        for smooth_HW, crop_HW in zip(smooth_NHW, crops_NHW, strict=True):
            smooth_HW[:] = cv2.bilateralFilter(crop_HW, DENOISE_DIAMETER, DENOISE_SIGMA, DENOISE_SIGMA)
    return smooth_NHW


def color(smooth_NHW: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """As kernels.ops.color."""
    images_NCHW = np.empty((len(smooth_NHW), 3, spec.size, spec.size), np.float32)
    for image_CHW, smooth_HW in zip(images_NCHW, smooth_NHW, strict=True):
        image_CHW[:] = normalize(levels(smooth_HW, spec.size), spec)
    return images_NCHW


def finish(crops_NHW: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """As kernels.ops.finish."""
    return color(denoise(crops_NHW), spec)


def levels(smooth_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """BONE-mapped and resized smooth crop: uint8 [S, S, 3], blue green red (SEED steps 4 and 5)."""
    with _without_ipp():
        mapped = cv2.applyColorMap(smooth_HW, cv2.COLORMAP_BONE)
        resized = cv2.resize(mapped, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def normalize(levels_HWC: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """Normalised levels, planes in the spec's channel order: float32 [3, S, S] (see Normalization)."""
    normalization = spec.normalization
    scale, mean_C, std_C = (
        np.asarray(value, np.float32).astype(np.float64)
        for value in (normalization.scale, normalization.mean, normalization.std)
    )
    gain_C, offset_C = (scale / std_C).astype(np.float32), (-mean_C / std_C).astype(np.float32)
    ordered_HWC = levels_HWC if normalization.channel_order == "bgr" else levels_HWC[..., ::-1]
    # A float64 holds the product and nearly always the sum exactly, so the conversion at the end is the one rounding.
    normalized_HWC = ordered_HWC.astype(np.float64) * gain_C + offset_C
    return np.ascontiguousarray(normalized_HWC.transpose(2, 0, 1), np.float32)


def preprocess(
    grays: Sequence[NDArray[np.uint8]], spec: PreprocessSpec
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """As kernels.ops.preprocess, one image after the other."""
    crops = [crop(gray) for gray in grays]
    crops_NHW = np.empty((len(crops), CROP_SIZE, CROP_SIZE), np.uint8)
    for row_HW, one in zip(crops_NHW, crops, strict=True):
        row_HW[:] = one.crop_HW
    return finish(crops_NHW, spec), np.array([one.box is not None for one in crops], np.bool_)


@contextmanager
def _without_ipp() -> Iterator[None]:
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP(before)
