"""Images that several test files need: shapes hard on contours, as strategies, and what a comparison demands."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import ops, reference
from kernels.spec import Normalization

IMAGENET = Normalization(channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_CPU_FMA3 = 12  # OpenCV's number for the feature
OPENCV_FUSES = cv2.checkHardwareSupport(_CPU_FMA3)
"""Without fused multiply-add OpenCV's own bilateral filter rounds otherwise, and only then may we be one level off."""

Stencil = NDArray[np.uint8]


def _drawn(*rows: str) -> Stencil:
    return np.array([[pixel == "#" for pixel in row] for row in rows], np.uint8)


def _diamond(radius: int, *, hollow: bool) -> Stencil:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = abs(y) + abs(x)
    return np.asarray(distance == radius if hollow else distance <= radius, np.uint8)


def _disc(diameter: int, rim: int) -> Stencil:
    stencil = np.zeros((diameter, diameter), np.uint8)
    return np.asarray(cv2.circle(stencil, (diameter // 2, diameter // 2), diameter // 2, 1, rim), np.uint8)


def _nested_frames(side: int) -> Stencil:
    y, x = np.mgrid[:side, :side]
    depth = np.minimum(np.minimum(y, side - 1 - y), np.minimum(x, side - 1 - x))
    return np.asarray(depth % 2 == 0, np.uint8)


def _spiral(side: int) -> Stencil:
    """One line, two apart from itself, that winds inwards."""
    stencil = np.zeros((side, side), np.uint8)
    y = x = 0
    stencil[0, 0] = 1
    dy, dx = 0, 1
    for length in [side - 1, *(n for n in range(side - 1, 0, -2) for _ in range(2))]:
        for _ in range(length):
            y, x = y + dy, x + dx
            stencil[y, x] = 1
        dy, dx = dx, -dy
    return stencil


STENCILS: dict[str, Stencil] = {
    "pixel": _drawn("#"),
    "row": np.ones((1, 6), np.uint8),
    "column": np.ones((6, 1), np.uint8),
    "lying": np.ones((3, 5), np.uint8),
    "standing": np.ones((5, 3), np.uint8),
    "square": np.ones((9, 9), np.uint8),
    "frame": _drawn("#####", "#...#", "#...#", "#####"),
    "corners": _drawn("#..", ".#.", "#.#"),
    "cross": _drawn(".#.", "###", ".#."),
    "hook": _drawn("####", "#...", "#..#", "####"),
    "legs": _drawn("#....", "#....", "#####"),
    "comb": _drawn("#########", "#.#.#.#.#", "#.#.#.#.#"),
    "checkers": _drawn("#.#.#.", ".#.#.#", "#.#.#.", ".#.#.#"),
    "diagonal": np.eye(7, dtype=np.uint8),
    "diamond": _diamond(4, hollow=False),
    "ring of corners": _diamond(4, hollow=True),
    "disc": _disc(11, -1),
    "ring": _disc(13, 1),
    "frames in frames": _nested_frames(13),
    "spiral": _spiral(13),
}


@st.composite
def _stamps(draw: st.DrawFn, image_HW: NDArray[np.uint8], zooms: list[int], levels: list[int]) -> None:
    """Stamp up to ten shapes anywhere, also across the rim. Few kinds at a time, so that areas tie often."""
    kinds = draw(st.lists(st.sampled_from(sorted(STENCILS)), min_size=1, max_size=3))
    zoom = draw(st.sampled_from(zooms))
    for _ in range(draw(st.integers(0, 10))):
        stencil = np.kron(STENCILS[draw(st.sampled_from(kinds))], np.ones((zoom, zoom), np.uint8))
        if draw(st.booleans()):
            stencil = stencil.T
        top = draw(st.integers(-len(stencil) + 1, image_HW.shape[0] - 1))
        left = draw(st.integers(-stencil.shape[1] + 1, image_HW.shape[1] - 1))
        inside_HW = image_HW[max(top, 0) : top + len(stencil), max(left, 0) : left + stencil.shape[1]]
        seen = stencil[max(-top, 0) :, max(-left, 0) :][: inside_HW.shape[0], : inside_HW.shape[1]]
        inside_HW[seen != 0] = draw(st.sampled_from(levels))


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Small 0/255 masks: scattered pixels, and shapes set or dug out."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 140))
    mask_HW = np.zeros((height, width), np.uint8)
    share = draw(st.sampled_from([0.0, 0.0, 0.02, 0.2, 0.45, 0.6, 0.95, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask_HW[random.random((height, width)) < share] = 255
    draw(_stamps(mask_HW, [1, 1, 2, 3], [255, 255, 0]))
    return mask_HW


@st.composite
def grays(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Slices with shapes that survive the opening, at levels around the threshold of 45, on noise or none."""
    height, width = draw(st.integers(1, 160)), draw(st.integers(1, 160))
    noise = np.random.default_rng(draw(st.integers(0, 2**32)))
    gray_HW = noise.integers(0, draw(st.sampled_from([1, 40, 60, 120, 256])), (height, width), np.uint8)
    draw(_stamps(gray_HW, [1, 5, 6, 7], [0, 44, 45, 46, 47, 90, 255]))
    return gray_HW


@st.composite
def colors(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Colour images of such slices: grey in three channels, lightly tinted, or with channels of their own."""
    gray_HW = draw(grays())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    tint = draw(st.sampled_from([0, 3, 255]))
    shifted_HWC = gray_HW[..., None] + random.integers(-tint, tint + 1, (*gray_HW.shape, 3))
    return np.asarray(shifted_HWC.clip(0, 255), np.uint8)


def assert_same_crop(image: NDArray[np.uint8]) -> None:
    """Box and crop of a grey or BGR image are OpenCV's."""
    gray_HW = image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    ours, truth = ops.crop(image), reference.crop(gray_HW)
    assert ours.box == truth.box
    np.testing.assert_array_equal(ours.crop_HW, truth.crop_HW)


def assert_same_images(ours_NCHW: NDArray[np.float32], truth_NCHW: NDArray[np.float32], level: float) -> None:
    """Final images are OpenCV's; `level` is the largest distance of two neighbouring levels after normalisation."""
    if OPENCV_FUSES:
        np.testing.assert_array_equal(ours_NCHW, truth_NCHW)
        return
    assert ours_NCHW.shape == truth_NCHW.shape
    assert np.abs(ours_NCHW - truth_NCHW).max() <= level * 1.01
    assert (ours_NCHW == truth_NCHW).mean() >= 0.9999
