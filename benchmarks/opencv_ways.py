"""The preprocessing as one writes it without us: bare OpenCV calls, and the usual chain of OpenCV and NumPy.

kernels.reference is the slow truth for tests; these are peers, so they are as fast as such code can plainly be. They
expect a head in every image and raise where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.agreement import (
    IPP_LEVELS,
    IPP_LEVELS_BFLOAT16,
    SAME_LEVEL,
    SAME_LEVEL_BFLOAT16,
    within_levels,
)
from benchmarks.case import Peer, Run
from kernels.spec import CROP_SIZE, PreprocessSpec

Pixels = NDArray[np.uint8]


def with_and_without_ipp(
    name: str, run: Run, spec: PreprocessSpec, dtype: Literal["float32", "bfloat16"] = "float32"
) -> tuple[Peer, Peer]:
    """The same calls as two peers. Without IPP they must give our levels; its rounding may cost some."""
    off, on = (SAME_LEVEL, IPP_LEVELS) if dtype == "float32" else (SAME_LEVEL_BFLOAT16, IPP_LEVELS_BFLOAT16)
    return (
        Peer(name=f"{name}, IPP off", run=_ipp(False, run), differs=within_levels(spec, off)),
        Peer(name=f"{name}, IPP on", run=_ipp(True, run), differs=within_levels(spec, on)),
    )


def read_color(path: Path) -> Pixels:
    """uint8 [H, W, 3], blue green red, of a file."""
    return np.asarray(cv2.imread(str(path)), np.uint8)


def read_gray(path: Path) -> Pixels:
    """uint8 [H, W] of a file, decoded grey at once: equal to colour turned grey only where nothing is tinted."""
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)


def decode_gray(data: bytes) -> Pixels:
    """read_gray for bytes."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)


def decode_color_to_gray(data: bytes) -> Pixels:
    """uint8 [H, W] of an encoded image by way of its colours, right for tinted images too."""
    color_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(np.asarray(color_HWC), cv2.COLOR_BGR2GRAY), np.uint8)


def levels(gray_HW: Pixels, size: int) -> Pixels:
    """SEED steps 1 to 5 in the fewest OpenCV calls, up to BONE levels: uint8 [S, S, 3], blue green red."""
    crop_HW = cv2.resize(_cut(gray_HW, gray_HW), (CROP_SIZE, CROP_SIZE))
    return finish_levels(np.asarray(crop_HW, np.uint8), size)


def finish_levels(crop_HW: Pixels, size: int) -> Pixels:
    """Steps 3 to 5 of a crop: uint8 [S, S, 3], blue green red."""
    return color_levels(np.asarray(cv2.bilateralFilter(crop_HW, 2, 50, 50), np.uint8), size)


def color_levels(smooth_HW: Pixels, size: int) -> Pixels:
    """Steps 4 and 5 of a denoised crop: uint8 [S, S, 3], blue green red."""
    return np.asarray(cv2.resize(cv2.applyColorMap(smooth_HW, cv2.COLORMAP_BONE), (size, size)), np.uint8)


def chain(color_HWC: Pixels, spec: PreprocessSpec) -> NDArray[np.float32]:
    """From what cv2.imread returns to float32 [3, S, S]; colour until the crop is made, as in the study's scripts."""
    gray_HW = np.asarray(cv2.cvtColor(color_HWC, cv2.COLOR_BGR2GRAY), np.uint8)
    crop_HWC = cv2.resize(_cut(gray_HW, color_HWC), (CROP_SIZE, CROP_SIZE))
    return finish_chain(np.asarray(cv2.cvtColor(crop_HWC, cv2.COLOR_BGR2GRAY), np.uint8), spec)


def finish_chain(crop_HW: Pixels, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Steps 3 to 5 of a crop, then NumPy: float32 [3, S, S]."""
    return normalize(finish_levels(crop_HW, spec.size), spec)


def color_chain(smooth_HW: Pixels, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Steps 4 and 5 of a denoised crop, then NumPy: float32 [3, S, S]."""
    return normalize(color_levels(smooth_HW, spec.size), spec)


def normalize(levels_HWC: Pixels, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Scale, subtract the mean, divide by the deviation, planes first, as one writes it in NumPy: float32 [3, S, S]."""
    normalization = spec.normalization
    if normalization.channel_order == "rgb":
        levels_HWC = np.asarray(cv2.cvtColor(levels_HWC, cv2.COLOR_BGR2RGB), np.uint8)
    scaled_HWC = levels_HWC.astype(np.float32) * np.float32(normalization.scale)
    mean_C, std_C = (np.array(values, np.float32) for values in (normalization.mean, normalization.std))
    return np.ascontiguousarray(((scaled_HWC - mean_C) / std_C).transpose(2, 0, 1), np.float32)


def to_bfloat16(images: NDArray[np.float32]) -> torch.Tensor:
    """The same shape as torch.bfloat16, rounded to nearest even."""
    return torch.from_numpy(images).to(torch.bfloat16)


def _cut(gray_HW: Pixels, image: Pixels) -> Pixels:
    blurred_HW = cv2.GaussianBlur(gray_HW, (3, 3), 0)
    _, mask_HW = cv2.threshold(blurred_HW, 45, 255, cv2.THRESH_BINARY)
    square = np.ones((3, 3), np.uint8)
    mask_HW = cv2.dilate(cv2.erode(mask_HW, square, iterations=2), square, iterations=2)
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    left, top, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    # The last column and row are left out, as in the study.
    return image[top : top + height - 1, left : left + width - 1]


def _ipp(on: bool, run: Run) -> Run:
    def run_so() -> Any:
        with _use_ipp(on):
            return run()

    return run_so


@contextmanager
def _use_ipp(on: bool) -> Iterator[None]:
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(on)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP(before)
