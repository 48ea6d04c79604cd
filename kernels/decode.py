"""From the bytes of a JPEG or PNG file to one grey plane, or a refusal that says why.

Pillow judges first, because it reads the header without decoding and treats truncation as an error; OpenCV,
whose decoder and grey conversion define the semantics, only sees files that passed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin
from PIL.ImageFile import ImageFile

Reason = Literal["not_an_image", "truncated", "too_small", "too_large", "corrupt"]

# OpenCV's decoder and the kernels stop here.
MAX_SIDE_PIXELS = 1 << 20
PNG_END = b"IEND\xaeB`\x82"

# Plugins by signature, not Image.open: that would try every format Pillow knows on hostile bytes, and warn
# about large images through process-wide filters before our own limits have a say.
_OPENERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
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


_DEFAULT_LIMITS = DecodeLimits()


def decode_gray(data: bytes, *, limits: DecodeLimits = _DEFAULT_LIMITS, source: str = "image") -> NDArray[np.uint8]:
    """Decode a JPEG or PNG to uint8 [H, W]; `source` names the file in messages.

    Colour is decoded as OpenCV's IMREAD_COLOR does (EXIF orientation applied, alpha dropped, 16 bits cut to
    the upper 8) and turned grey by its BGR2GRAY. Raises UnreadableImage, whose reason is "not_an_image",
    "truncated", "too_small", "too_large" or "corrupt". Does not judge what the image shows, nor find damage
    inside a complete JPEG scan: libjpeg conceals it, notes it on stderr and tells neither library.
    """
    if len(data) > limits.max_bytes:
        detail = f"file has {len(data)} bytes, the limit is {limits.max_bytes}"
        raise UnreadableImage(source, "too_large", detail)
    image = _open(data, source)
    size = image.size
    _check_size(size, limits, source)
    _check_complete(image, data, source)
    return _decode_opencv(data, size, source)


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
    cut_short = isinstance(error, EOFError) or "truncated" in text or "incomplete" in text
    reason: Reason = "truncated" if cut_short else "corrupt"
    return UnreadableImage(source, reason, f"the {part} is {reason}: {error}")
