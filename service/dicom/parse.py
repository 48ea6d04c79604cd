"""A DICOM file's bytes as a header and its still encoded pixel data, with everything bounded beforehand.

pydicom inflates, recurses and builds elements for as long as a file asks it to; so the file is cut up here first, and
only a header of bounded size is handed to it.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from io import BytesIO

import pydicom.config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from service.dicom.errors import UnreadableDicom
from service.dicom.kind import PREFIX, is_dicom
from service.dicom.settings import MIB, DicomLimits

# pydicom's remarks on odd values quote them, and a patient's name or identifier has no place on standard error.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

PIXEL_DATA = 0x7FE00010
_PIXEL_GROUP = 0x7FE00000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parsed:
    """header: all elements before the pixel data, and the syntax. pixels: the pixel data's own elements, encoded."""

    header: Dataset
    syntax: UID
    pixels: Dataset


def parse(data: bytes, limits: DicomLimits) -> Parsed:
    """Return a DICOM file's header and encoded pixel data. Raises UnreadableDicom; decodes no pixel."""
    if len(data) > limits.max_file_bytes:
        raise UnreadableDicom(
            f"file has {len(data)} bytes, the limit is {limits.max_file_bytes}; raise max_file_bytes if it is wanted"
        )
    if not is_dicom(data):
        raise UnreadableDicom("not a DICOM file: no DICM at byte 128; send a file with preamble and meta information")
    try:
        return _parse(data, limits)
    except UnreadableDicom:
        raise
    except RecursionError as error:
        raise UnreadableDicom("sequences are nested too deeply; no MR image needs that") from error
    except Exception as error:  # pydicom raises whatever its struct and codec calls raise
        raise UnreadableDicom(
            f"damaged or truncated header ({type(error).__name__}); copy the file again from where it came"
        ) from error


def _parse(data: bytes, limits: DicomLimits) -> Parsed:
    stream = BytesIO(data)
    stream.seek(PREFIX.stop)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    syntax = UID(str(meta.get("TransferSyntaxUID", "")))
    if not syntax.is_valid or not syntax.is_transfer_syntax:
        said = str(syntax) if syntax.is_valid and syntax else "missing or damaged"
        raise UnreadableDicom(f"transfer syntax is {said}, none that DICOM knows; let the sender convert the file")
    body = data[stream.tell() :]
    if syntax == DeflatedExplicitVRLittleEndian:
        body = _inflate(body, limits.max_file_bytes)
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    stream = BytesIO(body[: limits.max_header_bytes])
    pixels_at: list[int] = []

    def at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        if tag >= _PIXEL_GROUP:
            pixels_at.append(tag)
        return bool(pixels_at)

    header = read_dataset(stream, implicit, little, stop_when=at_pixels)
    if not pixels_at or pixels_at[0] > PIXEL_DATA:
        raise UnreadableDicom(_no_pixels(len(body), limits))
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    after = BytesIO(body[stream.tell() :])
    pixels = read_dataset(after, implicit, little, stop_when=lambda tag, _vr, _length: tag > PIXEL_DATA)
    _require_whole(pixels)
    return Parsed(header=header, syntax=syntax, pixels=pixels)


def _inflate(body: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(body, max_bytes + 1)
    if len(inflated) > max_bytes:
        raise UnreadableDicom(f"deflated file inflates to more than {max_bytes} bytes; raise max_file_bytes")
    if not inflater.eof:
        raise UnreadableDicom("deflated file ends early: it is truncated; copy it again from where it came")
    return inflated


def _no_pixels(num_bytes: int, limits: DicomLimits) -> str:
    if num_bytes > limits.max_header_bytes:
        return (
            f"no pixel data within the first {limits.max_header_bytes // MIB} MiB; raise max_header_bytes if the "
            f"header is that large"
        )
    return "no pixel data: the file is truncated or no image; send the image itself"


def _require_whole(pixels: Dataset) -> None:
    if "PixelData" not in pixels:
        kind = next((e.keyword for e in pixels if e.keyword.endswith("FloatPixelData")), None)
        raise UnreadableDicom(
            f"pixels are {kind}; only integer Pixel Data is read" if kind else "no pixel data: the file is truncated"
        )
    element = pixels.get_item(PIXEL_DATA)
    length = getattr(element, "length", None)
    value = element.value if element is not None else None
    if not isinstance(value, bytes) or not value:
        raise UnreadableDicom("pixel data is empty; send the image again")
    if length not in {None, 0xFFFFFFFF} and len(value) < length:
        raise UnreadableDicom(f"pixel data is truncated: {len(value)} of {length} bytes; copy the file again")
