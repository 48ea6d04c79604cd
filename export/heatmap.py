"""A class map laid over the slice that it explains. Needs NumPy and OpenCV.

Shape legend: C classes, h w class map, H W original image, K BGR channels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from export.errors import PredictorError
from kernels.spec import Box

_HEAT_ALPHA = 0.65
"""Opacity where the map is strongest: anatomy must stay visible below it."""


def grad_cam(class_maps_Chw: NDArray[np.float32], label: int) -> NDArray[np.float32]:
    """Return one image's Grad-CAM for a label, float32 [h,w], divided by its maximum so that it spans 0..1.

    All zeros where nothing speaks for the label. Equals Grad-CAM at the last convolution (see export/onnx.py)
    up to the scale; maps of different images or labels must not be compared by their brightness.
    """
    if not 0 <= label < len(class_maps_Chw):
        raise PredictorError(f"label is {label}; the class maps are for 0..{len(class_maps_Chw) - 1}")
    cam_hw: NDArray[np.float32] = np.maximum(class_maps_Chw[label], np.float32(0))
    peak = cam_hw.max()
    if peak > 0:
        cam_hw /= peak
    return cam_hw


def overlay_heatmap(
    gray_HW: NDArray[np.uint8],
    cam_hw: NDArray[np.float32],
    box: Box | None,
    *,
    image_size: int,
) -> NDArray[np.uint8]:
    """Return the original image with the map laid over the region the network saw, uint8 BGR [H,W,3].

    cam_hw: 0..1, of `grad_cam`. box: left, top, right, bottom in the original (right and bottom excluded), as
    `kernels.ops.crop` gives it; None if the whole image was used. image_size: the spec's side S, which
    tells where the map's cells lie. Opacity follows the strength (at most 65 %), so anatomy shows through and
    weak areas stay grey; outside the box the image is untouched. Smooth between cells: detail finer than a
    cell is not evidence.
    """
    height, width = gray_HW.shape
    left, top, right, bottom = box if box is not None else (0, 0, width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise PredictorError(f"box is {box}; expected left, top, right, bottom inside the {width}x{height} image")
    heat_hw = spread(cam_hw, bottom - top, right - left, image_size)
    levels_hw = np.rint(heat_hw * 255).astype(np.uint8)
    colours_hwK = cv2.applyColorMap(levels_hw, cv2.COLORMAP_INFERNO).astype(np.float32)
    picture_HWK: NDArray[np.uint8] = np.repeat(gray_HW[:, :, None], 3, axis=2)
    region_hwK = picture_HWK[top:bottom, left:right]
    alpha_hw1 = (_HEAT_ALPHA * heat_hw)[:, :, None]
    region_hwK[:] = np.rint(region_hwK * (1 - alpha_hw1) + colours_hwK * alpha_hw1).astype(np.uint8)
    return picture_HWK


def encode_png(image_HWK: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of a BGR or grey uint8 image; the same image gives the same bytes."""
    written, data = cv2.imencode(".png", image_HWK, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not written:
        raise PredictorError(f"OpenCV cannot write {image_HWK.dtype} of shape {image_HWK.shape} as PNG")
    return bytes(data)


def spread(cam_hw: NDArray[np.float32], height: int, width: int, image_size: int) -> NDArray[np.float32]:
    """Return the map over a crop of height x width pixels, 0..1, cubic between the centres of its cells.

    Each pooling halves the side and drops an odd last row and column, so the map covers only the first cells
    * 2**pools pixels of the S that the network saw (192 of 200): stretching it over all would shift it. What
    lies beyond the last centres repeats the border cell.
    """
    stride = stride_of(image_size, cam_hw.shape[0])
    scale_x, scale_y = image_size / (width * stride), image_size / (height * stride)
    to_cells = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5]])
    heat_hw = cv2.warpAffine(
        cam_hw,
        to_cells,
        (width, height),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.clip(heat_hw, 0, 1).astype(np.float32)


def stride_of(image_size: int, num_cells: int) -> int:
    """Return how many input pixels apart the centres of neighbouring cells are: 2**pools."""
    for num_pools in range(image_size.bit_length()):
        if image_size >> num_pools == num_cells:
            return 1 << num_pools
    raise PredictorError(f"a map {num_cells} cells wide cannot come from images of {image_size} pixels by halving")
