"""From the bytes of a JPEG or PNG file to one grey plane, or a refusal that says why.

OpenCV's colour decoding and grey conversion define the pixels. Two ways lead there (docs/decoding.md):
- fast, for a JPEG whose header holds nothing unusual: simplejpeg decodes it once, a grey one straight to grey. It
  has the libjpeg-turbo that OpenCV has, but reports the damage that OpenCV conceals.
- careful, for every other file: Pillow judges first, because it reads the header without decoding and treats
  truncation as an error; OpenCV only sees files that passed.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin
from PIL.ImageFile import ImageFile

from kernels.ops import gray

Reason = Literal["not_an_image", "truncated", "too_small", "too_large", "corrupt"]

# Decides the pixels and the refusals: whoever remembers either must remember this with them.
DECODER = f"opencv {cv2.__version__}, simplejpeg {simplejpeg.__version__}"
MAX_SIDE_PIXELS = 1 << 20  # OpenCV's decoder and the kernels stop here
MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each costs a pass over all blocks for a few bytes of file."""
JPEG_START = b"\xff\xd8\xff"
PNG_END = b"IEND\xaeB`\x82"

# Second bytes of JPEG markers. Frames: baseline, extended and progressive, all Huffman-coded.
_PROGRESSIVE = 0xC2
_FRAMES = frozenset({0xC0, 0xC1, _PROGRESSIVE})
_SCAN, _APP1 = 0xDA, 0xE1
_SCAN_MARKER = b"\xff\xda"  # in coded data a 0xFF is followed by other bytes
_TABLES_AND_NOTES = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# An EXIF entry, in either byte order, that says "upright", and the tag that it begins with.
_UPRIGHT = {
    b"\x12\x01": b"\x12\x01\x03\x00\x01\x00\x00\x00\x01\x00",
    b"\x01\x12": b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01",
}
# libjpeg's warnings of lost pixels. Others ("extraneous bytes before marker") are met in sound files too.
_LOSSES = ("premature end", "bad huffman code", "instead of rst")
_CUT_SHORT = ("truncated", "incomplete", "premature end of jpeg file")

# Plugins by signature, not Image.open: that would try every format Pillow knows on hostile bytes, and warn
# about large images through process-wide filters before our own limits have a say.
_OPENERS: dict[bytes, type[ImageFile]] = {
    JPEG_START: JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
}


class UnreadableImage(ValueError):
    """A file that is not used. The message is complete: source, what was found, what was expected."""

    def __init__(self, source: str, reason: Reason, detail: str) -> None:
        super().__init__(f"{source}: {detail}")
        self.source = source
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, Reason, str]]:
        # By default an exception is rebuilt from its message alone, which fails between processes.
        return type(self), (self.source, self.reason, self.detail)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimits:
    """What a file may cost: checked against its length and its header, before anything is decoded."""

    min_side_pixels: int = 32
    max_pixels: int = 64_000_000
    max_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("min_side_pixels", "max_pixels", "max_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, expected an int of at least 1")
        if self.min_side_pixels**2 > self.max_pixels:
            raise ValueError(
                f"min_side_pixels {self.min_side_pixels} squared exceeds max_pixels {self.max_pixels}: "
                "no image could pass"
            )


DEFAULT_LIMITS = DecodeLimits()


def decode_gray(data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS, source: str = "image") -> NDArray[np.uint8]:
    """Decode a JPEG or PNG to uint8 [H, W]; `source` names the file in messages.

    Colour is decoded as OpenCV's IMREAD_COLOR does (EXIF orientation applied, alpha dropped, 16 bits cut to the
    upper 8) and turned grey by its BGR2GRAY. Raises UnreadableImage, whose reason is "not_an_image", "truncated",
    "too_small", "too_large" or "corrupt". Does not judge what the image shows, nor find every damage inside a
    complete JPEG scan: lost data is found, a changed bit that still decodes is not.
    """
    frame = _checked_frame(data, limits, source)
    if frame is not None:
        gray_HW = _decode_strictly(data, frame, source)
        if gray_HW is not None and not frame.may_be_turned:
            return gray_HW
    image = _open(data, source)
    size = image.size
    _check_size(size, limits, source)
    _check_complete(image, data, source)
    return _decode_opencv(data, size, source)


def usual_frame(data: bytes, *, limits: DecodeLimits = DEFAULT_LIMITS, source: str = "image") -> Frame | None:
    """Return the frame of a JPEG that leaves a decoder no choice of pixels; None for every other file.

    Reads the header only: other decoders than decode_gray may take such a file and give its pixels. Raises
    UnreadableImage with reason "too_small" or "too_large", as decode_gray does.
    """
    frame = _checked_frame(data, limits, source)
    return None if frame is None or frame.may_be_turned else frame


def _checked_frame(data: bytes, limits: DecodeLimits, source: str) -> Frame | None:
    if len(data) > limits.max_bytes:
        detail = f"file has {len(data)} bytes, the limit is {limits.max_bytes}"
        raise UnreadableImage(source, "too_large", detail)
    frame = _read_frame(data)
    if frame is not None:
        _check_size((frame.width, frame.height), limits, source)
    if data.startswith(JPEG_START) and (frame is None or frame.is_progressive):
        _check_scans(data, source)
    return frame


class Frame(NamedTuple):
    """What a JPEG header says; may_be_turned: whether its metadata could hold an orientation other than upright."""

    width: int
    height: int
    num_components: int
    may_be_turned: bool
    is_progressive: bool


def _read_frame(data: bytes) -> Frame | None:
    """Read the segments of a JPEG up to its first scan; None where there is anything that the fast way is not for.

    Where each segment follows the one before and is of a known kind, no decoder can read another header.
    """
    if not data.startswith(JPEG_START):
        return None
    bits = height = width = num_components = 0
    may_be_turned, is_progressive, position = False, False, 2
    while position + 4 <= len(data):
        start, kind, length = struct.unpack_from(">BBH", data, position)
        end = position + 2 + length
        if start != 0xFF or length < 2 or end > len(data):
            return None
        if kind == _SCAN and bits == 8 and num_components in (1, 3):
            return Frame(width, height, num_components, may_be_turned, is_progressive)
        if kind in _FRAMES and length >= 8 and not bits:
            bits, height, width, num_components = struct.unpack_from(">BHHB", data, position + 4)
            is_progressive = kind == _PROGRESSIVE
        elif kind not in _TABLES_AND_NOTES:
            return None
        elif kind == _APP1:
            may_be_turned |= _may_turn(data[position:end])
        position = end
    return None


def _may_turn(metadata: bytes) -> bool:
    """Whether some reader of EXIF could find an orientation tag that is not followed by "upright"."""
    return any(metadata.count(tag) != metadata.count(upright) for tag, upright in _UPRIGHT.items())


def _decode_strictly(data: bytes, frame: Frame, source: str) -> NDArray[np.uint8] | None:
    """Decode in one pass that refuses lost pixels; None where another decoder has to judge."""
    try:
        colorspace = "GRAY" if frame.num_components == 1 else "BGR"
        image_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace, strict=True)
    except ValueError as error:
        if any(loss in str(error).lower() for loss in _LOSSES):
            raise _broken(source, "pixel data", error) from error
        return None
    if frame.num_components == 1:
        return image_HWC.reshape(frame.height, frame.width)
    return gray(image_HWC)


def _open(data: bytes, source: str) -> ImageFile:
    opener = next((opener for start, opener in _OPENERS.items() if data.startswith(start)), None)
    if opener is None:
        detail = f"expected a JPEG or PNG file, found {len(data)} bytes that begin with {data[:8]!r}"
        raise UnreadableImage(source, "not_an_image", detail)
    try:
        return opener(io.BytesIO(data))
    except Exception as error:  # the plugins raise a dozen kinds for broken headers
        raise _broken(source, "header", error) from error


def _check_size(size: tuple[int, int], limits: DecodeLimits, source: str) -> None:
    width, height = size
    if min(width, height) < limits.min_side_pixels:
        detail = f"image is {width}x{height} pixels, each side must have at least {limits.min_side_pixels}"
        raise UnreadableImage(source, "too_small", detail)
    if width * height > limits.max_pixels or max(width, height) > MAX_SIDE_PIXELS:
        detail = (
            f"image is {width}x{height} pixels, at most {limits.max_pixels} in all and {MAX_SIDE_PIXELS} "
            "a side are decoded"
        )
        raise UnreadableImage(source, "too_large", detail)


def _check_scans(data: bytes, source: str) -> None:
    if (num_scans := data.count(_SCAN_MARKER)) > MAX_SCANS:
        detail = f"the JPEG has {num_scans} scans, at most {MAX_SCANS} are decoded; save it as a baseline JPEG"
        raise UnreadableImage(source, "too_large", detail)


def _check_complete(image: ImageFile, data: bytes, source: str) -> None:
    if isinstance(image, PngImagePlugin.PngImageFile) and PNG_END not in data:
        raise UnreadableImage(source, "truncated", "the PNG file stops before its end chunk")
    try:
        # A JPEG is then decoded at an eighth of its size: every byte is still read, at half the cost.
        image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
    except Exception as error:  # as for the header
        raise _broken(source, "pixel data", error) from error


def _decode_opencv(data: bytes, size: tuple[int, int], source: str) -> NDArray[np.uint8]:
    try:
        image_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise _broken(source, "pixel data", error) from error
    if image_HWC is None:
        raise UnreadableImage(source, "corrupt", "OpenCV cannot decode the pixel data")
    if sorted(image_HWC.shape[:2]) != sorted(size):
        detail = f"header says {size[0]}x{size[1]} pixels, decoded {image_HWC.shape[1]}x{image_HWC.shape[0]}"
        raise UnreadableImage(source, "corrupt", detail)
    return cv2.cvtColor(image_HWC, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)


def _broken(source: str, part: str, error: Exception) -> UnreadableImage:
    text = str(error).lower()
    cut_short = isinstance(error, EOFError) or any(word in text for word in _CUT_SHORT)
    reason: Reason = "truncated" if cut_short else "corrupt"
    return UnreadableImage(source, reason, f"the {part} is {reason}: {error}")
