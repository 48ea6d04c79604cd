"""DICOM images as the grey slices that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from service.dicom.errors import UnreadableDicom
from service.dicom.header import PixelFormat, pixel_format, remarks_on_kind
from service.dicom.parse import Parsed, parse
from service.dicom.pixels import check_pixels, stored_frame
from service.dicom.settings import DicomLimits
from service.dicom.windows import show

Frames = Literal["middle", "all"] | int

_LOSSY = {"01"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DicomSlices:
    """Frames of one DICOM image, as a radiologist would see them.

    grays: uint8 [H,W] each. frames: their numbers, from 0. num_frames: how many the object has. windows: for each
    frame, what turned stored values into grey. remarks: what a reader of an answer should know of the image.
    header: every element but the pixel data; it may name the patient.
    """

    grays: tuple[NDArray[np.uint8], ...]
    frames: tuple[int, ...]
    num_frames: int
    windows: tuple[str, ...]
    remarks: tuple[str, ...]
    header: Dataset


def read_slices(data: bytes, limits: DicomLimits, *, frames: Frames = "middle") -> DicomSlices:
    """Return the frames of a DICOM file, windowed, uint8.

    data: a file with preamble and meta information (PS3.10). frames: the middle one, all of them, or one by its number
    from 0. Memory: about three times the file, and the frames asked for. Overlay planes are not drawn; pixel padding
    is black. Raises UnreadableDicom, and nothing else, for whatever cannot be answered.
    """
    parsed, form, remarks = _checked(data, limits)
    chosen = _choose(frames, form.num_frames, limits)
    try:
        shown = [show(stored_frame(parsed, form, frame), parsed.header, form, frame) for frame in chosen]
    except UnreadableDicom:
        raise
    except Exception as error:  # values of the header are converted as they are asked for, by pydicom
        raise _not_understood(error) from error
    if form.samples == 3:
        remarks.append("colour was made grey")
    if str(parsed.header.get("LossyImageCompression", "")).strip() in _LOSSY:
        remarks.append("the image was compressed with loss before it came here")
    remarks += dict.fromkeys(one.how for one in shown if "no window" in one.how or "not usable" in one.how)
    return DicomSlices(
        grays=tuple(one.gray_HW for one in shown),
        frames=tuple(chosen),
        num_frames=form.num_frames,
        windows=tuple(one.how for one in shown),
        remarks=tuple(remarks),
        header=parsed.header,
    )


def check_dicom(data: bytes, limits: DicomLimits) -> Dataset:
    """Return a DICOM file's header where it could be answered, without decoding a pixel. Raises UnreadableDicom."""
    return _checked(data, limits)[0].header


def _checked(data: bytes, limits: DicomLimits) -> tuple[Parsed, PixelFormat, list[str]]:
    parsed = parse(data, limits)
    try:
        remarks = remarks_on_kind(parsed.header, limits)
        form = pixel_format(parsed.header, limits)
        check_pixels(parsed, form)
    except UnreadableDicom:
        raise
    except Exception as error:  # as in read_slices
        raise _not_understood(error) from error
    return parsed, form, remarks


def _not_understood(error: Exception) -> UnreadableDicom:
    return UnreadableDicom(
        f"an element of the header cannot be understood ({type(error).__name__}); the file is damaged, copy it again"
    )


def _choose(frames: Frames, num_frames: int, limits: DicomLimits) -> Sequence[int]:
    if frames == "middle":
        return [num_frames // 2]
    if frames == "all":
        if num_frames > limits.max_frames:
            raise UnreadableDicom(
                f"image has {num_frames} frames, at most {limits.max_frames} are answered at once; ask for single "
                f"frames, or raise max_frames"
            )
        return range(num_frames)
    if not 0 <= frames < num_frames:
        raise UnreadableDicom(f"frame {frames} was asked for; the image has frames 0 to {num_frames - 1}")
    return [frames]
