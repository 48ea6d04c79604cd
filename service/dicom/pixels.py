"""Frames of stored values out of native or compressed pixel data.

Each codestream is asked for its own size before a decoder allocates for it, and must end with its end marker: some
decoders give a truncated frame's missing part as black without a word.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder

from kernels.decode import MAX_SCANS
from service.dicom.errors import UnreadableDicom
from service.dicom.header import PixelFormat
from service.dicom.jpeg2000 import MAX_BLOCKS, read_codestream
from service.dicom.parse import Parsed

_END, _SCAN = b"\xff\xd9", b"\xff\xda"
_DECODERS: Mapping[uid.UID, str] = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pillow",
    uid.JPEG2000: "pillow",
    uid.RLELossless: "pydicom",
}
"""Which decoder reads a compressed syntax: one each, so that an answer does not depend on what else is installed."""

_NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)
SYNTAXES: tuple[uid.UID, ...] = (*_NATIVE, uid.ExplicitVRBigEndian, *_DECODERS)
"""Transfer syntaxes that are read; of JPEG Extended only 8 bits, for lack of a decoder that is free to ship."""


def require_readable_syntax(syntax: uid.UID) -> None:
    """Raise UnreadableDicom, naming the syntax and what to do, for one that is not read."""
    if syntax not in SYNTAXES:
        raise UnreadableDicom(
            f"transfer syntax {syntax.name} ({syntax}) is not read; let the sender convert it to Explicit VR Little "
            f"Endian, for example with dcmconv or dcmdjpeg"
        )


def check_pixels(parsed: Parsed, form: PixelFormat) -> None:
    """Raise UnreadableDicom unless there are bytes for all frames; decodes nothing."""
    require_readable_syntax(parsed.syntax)
    if parsed.syntax in _DECODERS:
        return
    needed, given = form.frame_bytes * form.num_frames, len(parsed.pixels.PixelData)
    if given < needed:
        raise UnreadableDicom(
            f"pixel data is truncated: {given} bytes for {form.num_frames} frames of {form.columns}x{form.rows}, "
            f"which need {needed}; copy the file again from where it came"
        )


def stored_frame(parsed: Parsed, form: PixelFormat, frame: int) -> NDArray[Any]:
    """Return one frame's stored values, integers [H,W], or RGB uint8 [H,W,3]; frame counts from 0.

    Bits outside BitsStored (overlays of old files) are dropped. Raises UnreadableDicom.
    """
    source, index = _one_frame(parsed, form, frame), frame
    if parsed.syntax in _DECODERS:
        _check_codestream(parsed, form, frame)
    try:
        plugin = _DECODERS.get(parsed.syntax, "")
        array, _ = get_decoder(parsed.syntax).as_array(source, index=index, decoding_plugin=plugin)
    except Exception as error:  # each decoder raises its own
        raise UnreadableDicom(
            f"frame {frame} cannot be decoded as {parsed.syntax.name} ({type(error).__name__}); it is damaged, copy "
            f"the file again from where it came"
        ) from error
    expected = (form.rows, form.columns) + ((3,) if form.samples == 3 else ())
    if array.shape != expected:
        raise UnreadableDicom(f"frame {frame} decodes to {array.shape}; the header says {expected}")
    return array if form.samples == 3 else _stored_bits(array, form)


def _one_frame(parsed: Parsed, form: PixelFormat, frame: int) -> Dataset:
    source = Dataset()
    source.file_meta = parsed.header.file_meta
    source.update({element.tag: element for element in parsed.header.group_dataset(0x0028)})
    source.update({element.tag: element for element in parsed.pixels})
    source.NumberOfFrames = form.num_frames
    source.PhotometricInterpretation = form.photometric
    if parsed.syntax not in _DECODERS:
        needed = form.frame_bytes * form.num_frames
        source.PixelData = source.PixelData[: needed + needed % 2]
    source.set_original_encoding(parsed.syntax.is_implicit_VR, parsed.syntax.is_little_endian)
    return source


def _stored_bits(array: NDArray[Any], form: PixelFormat) -> NDArray[np.int32]:
    values = array.astype(np.int32) >> (form.high_bit + 1 - form.bits_stored)
    values &= (1 << form.bits_stored) - 1
    if form.signed:
        sign = 1 << (form.bits_stored - 1)
        values = (values ^ sign) - sign
    return values


# ---- codestreams ----


def _check_codestream(parsed: Parsed, form: PixelFormat, frame: int) -> None:
    try:
        data = get_frame(parsed.pixels.PixelData, frame, number_of_frames=form.num_frames)
    except Exception as error:  # pydicom raises ValueError, struct.error and others
        raise UnreadableDicom(
            f"frame {frame} of {form.num_frames} is not in the pixel data; the file is truncated, copy it again"
        ) from error
    if parsed.syntax == uid.RLELossless:
        _check_rle(data, form, frame)
        return
    if not data.rstrip(b"\0").endswith(_END):
        raise UnreadableDicom(f"frame {frame} has no end marker: its {parsed.syntax.name} is truncated; copy it again")
    try:
        if parsed.syntax in {uid.JPEG2000, uid.JPEG2000Lossless}:
            *found, num_pieces = read_codestream(data)
            most, pieces = MAX_BLOCKS, "code blocks"
        else:
            found, num_pieces = [*_size_of_jpeg(data)], data.count(_SCAN)
            most, pieces = MAX_SCANS, "scans"
    except (struct.error, IndexError, ValueError) as error:
        raise UnreadableDicom(f"frame {frame} holds no {parsed.syntax.name}: its header is damaged") from error
    width, height, components, bits = found
    if parsed.syntax == uid.JPEGExtended12Bit and bits != 8:
        raise UnreadableDicom(
            f"{bits}-bit {parsed.syntax.name} is not read; let the sender convert it to Explicit VR Little Endian, for "
            f"example with dcmdjpeg"
        )
    if (width, height, components) != (form.columns, form.rows, form.samples) or bits > form.bits_allocated:
        raise UnreadableDicom(
            f"frame {frame} is coded as {width}x{height}, {components} samples of {bits} bits; the header says "
            f"{form.columns}x{form.rows}, {form.samples} of {form.bits_allocated}. Nothing was decoded"
        )
    if num_pieces > most:
        raise UnreadableDicom(
            f"frame {frame} is cut into {num_pieces} {pieces}, at most {most} are decoded; let the sender convert it "
            f"to Explicit VR Little Endian"
        )


def _size_of_jpeg(data: bytes) -> tuple[int, int, int, int]:
    """Return width, height, components and bits from the frame header (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    at = 2
    while True:
        marker, length = struct.unpack_from(">xBH", data, at)
        if data[at] != 0xFF or length < 2:
            raise ValueError("no marker where one must be")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return width, height, components, bits
        at += 2 + length


def _check_rle(data: bytes, form: PixelFormat, frame: int) -> None:
    """Raise UnreadableDicom unless every segment unpacks to one plane of bytes (PS3.5 Annex G); unpacks nothing."""
    num_planes, plane_bytes = form.samples * form.bits_allocated // 8, form.rows * form.columns
    if len(data) < 64 or struct.unpack_from("<I", data)[0] != num_planes:
        raise UnreadableDicom(f"frame {frame} has no RLE header for {num_planes} planes; it is damaged, copy it again")
    offsets = [*struct.unpack_from(f"<{num_planes}I", data, 4), len(data)]
    for start, stop in pairwise(offsets):
        if not 64 <= start <= stop <= len(data) or _rle_length(data, start, stop, plane_bytes) < plane_bytes:
            raise UnreadableDicom(
                f"frame {frame}: an RLE segment does not hold {plane_bytes} bytes; the file is truncated or damaged"
            )


def _rle_length(data: bytes, start: int, stop: int, enough: int) -> int:
    """Return how many bytes a segment unpacks to; 0 where it goes on past `enough` and the padding behind it."""
    at, length = start, 0
    while at < stop and length < enough:
        control = data[at]
        if control < 128:
            at, length = at + control + 2, length + control + 1
        else:
            at, length = at + (1 if control == 128 else 2), length + (0 if control == 128 else 257 - control)
    return length if stop - 2 <= at <= stop else 0
