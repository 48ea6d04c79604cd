"""What an image's header says of its pixels, checked before one of them is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from service.dicom.errors import UnreadableDicom
from service.dicom.settings import DicomLimits

MANUFACTURER = "gliofed"
MR_CLASSES: tuple[UID, ...] = (
    MRImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    EnhancedMRColorImageStorage,
)
SECONDARY_CAPTURES: tuple[UID, ...] = (
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
IMAGE_CLASSES = MR_CLASSES + SECONDARY_CAPTURES
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_MAX_FRAMES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFormat:
    """Shape and meaning of stored values. frame_bytes: of one frame, native."""

    rows: int
    columns: int
    samples: int
    num_frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str

    @property
    def frame_bytes(self) -> int:
        subsampled = self.photometric == "YBR_FULL_422"
        samples = 2 if subsampled else self.samples
        return self.rows * self.columns * samples * self.bits_allocated // 8


def text(header: Dataset, keyword: str) -> str:
    """Return an element as text, empty where it is missing or cannot be understood."""
    try:
        return str(header.get(keyword, "") or "")
    except Exception:  # pydicom converts a value when it is asked for, and raises whatever that raises
        return ""


def integer(header: Dataset, keyword: str, default: int | None = None) -> int:
    """Return a whole number of the header; raises UnreadableDicom where it is missing (no default) or is none."""
    value = header.get(keyword)
    if value is None or value == "":
        if default is None:
            raise UnreadableDicom(f"{keyword} is missing; an image cannot be read without it")
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableDicom(f"{keyword} is {str(value)[:40]!r}; expected one whole number") from error


def pixel_format(header: Dataset, limits: DicomLimits) -> PixelFormat:
    """Return how the pixels are stored. Raises UnreadableDicom for what cannot be read or is past the limits."""
    photometric = str(header.get("PhotometricInterpretation", "")).strip().upper()[:16]
    found = PixelFormat(
        rows=integer(header, "Rows"),
        columns=integer(header, "Columns"),
        samples=integer(header, "SamplesPerPixel", 1),
        num_frames=integer(header, "NumberOfFrames", 1),
        bits_allocated=integer(header, "BitsAllocated"),
        bits_stored=integer(header, "BitsStored", integer(header, "BitsAllocated")),
        high_bit=integer(header, "HighBit", integer(header, "BitsStored", integer(header, "BitsAllocated")) - 1),
        signed=integer(header, "PixelRepresentation", 0) == 1,
        photometric=photometric,
    )
    if not (1 <= found.rows <= limits.max_side and 1 <= found.columns <= limits.max_side):
        raise UnreadableDicom(
            f"frames are {found.columns}x{found.rows} pixels (columns x rows); expected 1 to {limits.max_side} each"
        )
    if not 1 <= found.num_frames <= _MAX_FRAMES:
        raise UnreadableDicom(f"NumberOfFrames is {found.num_frames}; expected 1 to {_MAX_FRAMES}")
    if photometric not in (_GREY if found.samples == 1 else _COLOUR) or found.samples not in {1, 3}:
        raise UnreadableDicom(
            f"{found.samples} samples a pixel as {photometric or 'nothing'}; expected 1 as {', '.join(_GREY)} or 3 as "
            f"{', '.join(_COLOUR)}"
        )
    if found.bits_allocated not in ((8, 16) if found.samples == 1 else (8,)):
        raise UnreadableDicom(f"BitsAllocated is {found.bits_allocated}; expected 8 or 16, and 8 for colour")
    if not 1 <= found.bits_stored <= found.high_bit + 1 <= found.bits_allocated:
        raise UnreadableDicom(
            f"BitsStored {found.bits_stored} and HighBit {found.high_bit} do not fit into {found.bits_allocated} bits"
        )
    return found


def remarks_on_kind(header: Dataset, limits: DicomLimits) -> list[str]:
    """Return what deserves a remark about what the object is. Raises UnreadableDicom for what we do not answer."""
    sop_class, modality = UID(str(header.get("SOPClassUID", ""))), str(header.get("Modality", "") or "").strip()[:16]
    made_by_us = str(header.get("Manufacturer", "")).strip() == MANUFACTURER
    if made_by_us and "DERIVED" in str(header.get("ImageType", "")):
        raise UnreadableDicom("this is a result of gliofed; results are not answered again, route only originals here")
    if sop_class in MR_CLASSES and modality == "MR":
        return []
    if sop_class in SECONDARY_CAPTURES and modality in {"MR", "OT", "SC", ""}:
        said = "" if modality == "MR" else f" and modality {modality or 'unsaid'}"
        return [f"Secondary Capture{said}: whether it shows an MR slice cannot be told"]
    kind = sop_class.name if sop_class and sop_class.is_valid else "not given"
    what = f"modality is {modality or 'not given'}, class {kind}"
    if limits.other_modalities == "refuse":
        raise UnreadableDicom(
            f"{what}; the model was made for MR images (MR, Enhanced MR or Secondary Capture). Send those only, or set "
            f"other_modalities: caution"
        )
    return [f"{what}: the model was made for MR images"]
