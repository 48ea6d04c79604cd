"""Stored values as the grey levels that a radiologist sees (PS3.3 C.11.1, C.11.2; PS3.4 N.2).

modality transformation (rescale or table) → value of interest (table, or window) → inversion of MONOCHROME1.
A file of more than 8 bits without a window is spread between robust percentiles of its own values, one of 8 bits is
shown as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut

from service.dicom.errors import UnreadableDicom
from service.dicom.header import PixelFormat, integer

PERCENTILES = (0.5, 99.5)
"""Grey runs between these percentiles of all values but padding where a file has no window of its own."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shown:
    """gray_HW: uint8. how: which window or table gave it, for people."""

    gray_HW: NDArray[np.uint8]
    how: str


def macro(header: Dataset, frame: int, sequence: str) -> Dataset | None:
    """Return a functional group's item for a frame: its own, else the shared one, else None (PS3.3 C.7.6.16.1)."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        items = groups.get(sequence)
        if items:
            item: Dataset = items[0]
            return item
    return None


def number(item: Dataset, keyword: str) -> float | None:
    """Return the first value of a number, None where there is none. Raises UnreadableDicom where it is no number."""
    value = item.get(keyword)
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise UnreadableDicom(f"{keyword} is {str(value)[:40]!r}; expected a number") from error
    if not math.isfinite(found):
        raise UnreadableDicom(f"{keyword} is {found}; expected a finite number")
    return found


def show(stored: NDArray[Any], header: Dataset, form: PixelFormat, frame: int) -> Shown:
    """Return a frame's grey picture. stored: integers [H,W], or RGB uint8 [H,W,3]. Raises UnreadableDicom."""
    if form.samples == 3:
        return Shown(gray_HW=_gray_of(stored), how="colour made grey")
    if form.photometric == "PALETTE COLOR":
        return Shown(gray_HW=_gray_of(_through_palette(stored, header)), how="palette made grey")
    padding_HW = _padding(stored, header)
    values_HW = _modality(stored, header, frame)
    levels_HW, how = _value_of_interest(values_HW, header, form, frame, padding_HW)
    gray_HW: NDArray[np.uint8] = np.rint(np.clip(levels_HW, 0, 1) * 255).astype(np.uint8)
    if form.photometric == "MONOCHROME1":
        gray_HW = 255 - gray_HW
    if padding_HW is not None:
        gray_HW[padding_HW] = 0
    return Shown(gray_HW=gray_HW, how=how)


def _gray_of(rgb_HWK: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb_HWK, np.uint8), cv2.COLOR_RGB2GRAY), np.uint8)


def _through_palette(stored: NDArray[Any], header: Dataset) -> NDArray[np.uint8]:
    try:
        colours = apply_color_lut(stored.astype(np.uint16), header)
    except Exception as error:  # pydicom's own mix for missing and inconsistent tables
        raise UnreadableDicom(f"palette cannot be used ({type(error).__name__}); send the image as grey") from error
    wide = colours.dtype.itemsize == 2
    rgb_HWK: NDArray[np.uint8] = (colours[..., :3] // (256 if wide else 1)).astype(np.uint8)
    return rgb_HWK


def _padding(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_] | None:
    if header.get("PixelPaddingValue") in {None, ""}:
        return None
    one = integer(header, "PixelPaddingValue")
    other = integer(header, "PixelPaddingRangeLimit", one)
    low, high = min(one, other), max(one, other)
    mask: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return mask


def _modality(stored: NDArray[Any], header: Dataset, frame: int) -> NDArray[np.float64]:
    if header.get("ModalityLUTSequence"):
        levels, _ = _through_table(stored, header.ModalityLUTSequence[0], "modality LUT")
        return levels
    item = macro(header, frame, "PixelValueTransformationSequence") or header
    slope, intercept = number(item, "RescaleSlope"), number(item, "RescaleIntercept")
    return stored.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def _value_of_interest(
    values_HW: NDArray[np.float64],
    header: Dataset,
    form: PixelFormat,
    frame: int,
    padding_HW: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float64], str]:
    item = macro(header, frame, "FrameVOILUTSequence") or header
    if item.get("VOILUTSequence"):
        levels, largest = _through_table(values_HW, item.VOILUTSequence[0], "VOI LUT")
        return levels / largest, "VOI LUT of the file"
    centre, width = number(item, "WindowCenter"), number(item, "WindowWidth")
    function = str(item.get("VOILUTFunction") or "LINEAR").strip().upper()
    unusable = ""
    if centre is not None and width is not None:
        if width >= 1 or (width > 0 and function != "LINEAR"):
            return _window(values_HW, centre, width, function), f"window {centre:g} / {width:g} {function} of the file"
        unusable = f"; the file's window of width {width:g} is not usable"
    if form.bits_stored == 8 and not form.signed and item.get("RescaleSlope") is None:
        return values_HW / 255, f"8 bits as stored{unusable}"
    return _spread(values_HW, padding_HW), f"percentiles {PERCENTILES[0]} to {PERCENTILES[1]}, no window{unusable}"


def _window(values_HW: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """Return levels from 0 to 1, clipped by the caller (PS3.3 C.11.2.1.2.1, C.11.2.1.3)."""
    if function == "LINEAR":
        if width == 1:
            return (values_HW > centre - 0.5).astype(np.float64)
        return (values_HW - (centre - 0.5)) / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        return (values_HW - centre) / width + 0.5
    if function == "SIGMOID":
        levels: NDArray[np.float64] = 1 / (1 + np.exp(np.clip(-4 * (values_HW - centre) / width, -700, 700)))
        return levels
    raise UnreadableDicom(f"VOI LUT function is {function[:40]!r}; expected LINEAR, LINEAR_EXACT or SIGMOID")


def _spread(values_HW: NDArray[np.float64], padding_HW: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    shown = values_HW if padding_HW is None else values_HW[~padding_HW]
    if shown.size == 0:
        return np.zeros_like(values_HW)
    low, high = np.percentile(shown, PERCENTILES)
    if high <= low:
        low, high = float(shown.min()), float(shown.max())
    return (values_HW - low) / (high - low) if high > low else np.zeros_like(values_HW)


def _through_table(values_HW: NDArray[Any], item: Dataset, name: str) -> tuple[NDArray[np.float64], float]:
    """Return the values' entries in a lookup table and the largest entry that its bits allow (PS3.3 C.11.1.1.1)."""
    try:
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        data = item.LUTData
        raw = data if isinstance(data, bytes) else None
        table = np.frombuffer(raw, "<u2") if raw is not None else np.asarray(data, np.int64) & 0xFFFF
    except (AttributeError, TypeError, ValueError) as error:
        raise UnreadableDicom(
            f"{name} cannot be read ({type(error).__name__}); send the image with a window"
        ) from error
    count = count or 65536
    if raw is not None and bits <= 8 and len(raw) < 2 * count:
        table = np.frombuffer(raw, np.uint8)
    if len(table) < count or not 8 <= bits <= 16:
        raise UnreadableDicom(f"{name} has {len(table)} entries of {bits} bits; its descriptor says {count}, 8 to 16")
    index_HW = np.clip(np.rint(values_HW) - first, 0, count - 1).astype(np.intp)
    return table[index_HW].astype(np.float64), float((1 << bits) - 1)
