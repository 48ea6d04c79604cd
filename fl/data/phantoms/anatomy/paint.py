"""Small pieces that anatomy and lesions are painted with.

Legend: H W image; a leading 3 holds MNI millimetres.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def edge(signed_HW: Image, width: float) -> Image:
    """Coverage in [0, 1] of the places where `signed_HW` is positive, with a ramp of `width` in its units."""
    coverage_HW: Image = np.clip(signed_HW / np.float32(width) + np.float32(0.5), 0, 1)
    return coverage_HW


def band(position_HW: Image, low: float, high: float, width: float) -> Image:
    """Coverage in [0, 1] of the places where low < position < high."""
    return edge(position_HW - np.float32(low), width) * edge(np.float32(high) - position_HW, width)


def paint(image_HW: Image, level: float | Image, coverage_HW: Image) -> None:
    """Blend `level` over the image in place, as opaque as `coverage_HW` says."""
    image_HW += (level - image_HW) * coverage_HW


def hypot(first_HW: Image, second_HW: Image) -> Image:
    """Length of the vector of two components."""
    return np.asarray(np.hypot(first_HW, second_HW), dtype=np.float32)


def spread(image_HW: Image, sigma_pixels: float) -> Image:
    """Gaussian blur."""
    return np.asarray(cv2.GaussianBlur(image_HW, (0, 0), sigma_pixels), dtype=np.float32)


def ellipsoid_depth(
    points_3HW: Image, centre_mm: tuple[float, float, float], radii_mm: tuple[float, float, float]
) -> Image:
    """About how many millimetres each point lies inside an ellipsoid (negative outside); float32 [H, W]."""
    squared_HW = np.zeros(points_3HW.shape[1:], dtype=np.float32)
    for axis in range(3):
        squared_HW += ((points_3HW[axis] - np.float32(centre_mm[axis])) / np.float32(radii_mm[axis])) ** 2
    return (1 - np.sqrt(squared_HW)) * np.float32(min(radii_mm))


def capsule_depth(
    points_3HW: Image,
    start_mm: tuple[float, float, float],
    end_mm: tuple[float, float, float],
    radius_mm: float,
) -> Image:
    """Millimetres that each point lies inside a tube with round ends (negative outside); float32 [H, W]."""
    start, along = np.array(start_mm, dtype=np.float32), np.subtract(end_mm, start_mm).astype(np.float32)
    share_HW = np.tensordot(along, points_3HW - start[:, None, None], axes=1) / np.float32(along @ along)
    share_HW = np.clip(share_HW, 0, 1)
    squared_HW = np.zeros(points_3HW.shape[1:], dtype=np.float32)
    for axis in range(3):
        squared_HW += (points_3HW[axis] - start[axis] - share_HW * along[axis]) ** 2
    return np.float32(radius_mm) - np.sqrt(squared_HW)
