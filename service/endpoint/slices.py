"""Files as they are uploaded, to one grey image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernels.decode import JPEG_START, DecodeLimits, UnreadableImage, decode_gray
from service.dicom.kind import is_dicom
from service.dicom.settings import DicomLimits
from service.endpoint.errors import BadRequest, EndpointError, TooLarge, UnsupportedMedia

Kind = Literal["jpeg", "png", "dicom"]

SOURCE = "image"
"""What messages call the file; its own name may be a patient's."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slice:
    """One grey image out of a file. sha256: of the file.

    remarks: what a reader of the answer should know of a DICOM image. study_uid, sop_uid: for the audit log only.
    """

    gray_HW: NDArray[np.uint8]
    kind: Kind
    sha256: str
    frame: int = 0
    num_frames: int = 1
    remarks: tuple[str, ...] = ()
    study_uid: str | None = None
    sop_uid: str | None = None


def read_slice(data: bytes | memoryview, frame: int | None, max_bytes: int, dicom: DicomLimits) -> Slice:
    """Return one image of a JPEG, PNG or DICOM file.

    frame: of a DICOM object with several; None: the middle one. Raises EndpointError, which quotes no name.
    """
    data = bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    if is_dicom(data):
        return _read_dicom(data, frame, sha256, dicom)
    if frame:
        raise BadRequest(f"frame is {frame}; a JPEG or PNG has frame 0 only")
    try:
        gray_HW = decode_gray(data, limits=DecodeLimits(max_bytes=max_bytes), source=SOURCE)
    except UnreadableImage as error:
        raise _refused(error) from error
    return Slice(gray_HW=gray_HW, kind="jpeg" if data.startswith(JPEG_START) else "png", sha256=sha256)


def _refused(error: UnreadableImage) -> EndpointError:
    kinds: dict[str, type[EndpointError]] = {"not_an_image": UnsupportedMedia, "too_large": TooLarge}
    return kinds.get(error.reason, BadRequest)(str(error))


def _read_dicom(data: bytes, frame: int | None, sha256: str, limits: DicomLimits) -> Slice:
    from service.dicom.errors import UnreadableDicom  # with pydicom: half a second that JPEGs need not wait for
    from service.dicom.header import text
    from service.dicom.read import read_slices

    try:
        slices = read_slices(data, limits, frames="middle" if frame is None else frame)
    except UnreadableDicom as error:
        raise BadRequest(error.reason) from error
    return Slice(
        gray_HW=slices.grays[0],
        kind="dicom",
        sha256=sha256,
        frame=slices.frames[0],
        num_frames=slices.num_frames,
        remarks=slices.remarks,
        study_uid=text(slices.header, "StudyInstanceUID") or None,
        sop_uid=text(slices.header, "SOPInstanceUID") or None,
    )
