"""Which files become grey planes, and why others do not."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kernels.decode import DecodeLimits, UnreadableImage, decode_gray

GRAY_HW = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8), (5, 5), 0)
COLOR_HWC = np.random.default_rng(1).integers(0, 256, (40, 52, 3), np.uint8)


def encode(suffix: str, image: NDArray[np.uint8], *options: int) -> bytes:
    return cv2.imencode(suffix, image, options)[1].tobytes()


JPEG = encode(".jpg", GRAY_HW)
PROGRESSIVE = encode(".jpg", COLOR_HWC, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
PNG = encode(".png", GRAY_HW)


def png_with_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return PNG[:8] + chunk + PNG[33:]


def reason_of(data: bytes, limits: DecodeLimits | None = None) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_gray(data, limits=limits or DecodeLimits(), source="ward/7.jpg")
    assert str(caught.value).startswith("ward/7.jpg: ")
    return caught.value.reason


def test_a_grey_png_comes_back_pixel_for_pixel() -> None:
    np.testing.assert_array_equal(decode_gray(PNG), GRAY_HW)


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, encode(".jpg", COLOR_HWC)], ids=["grey", "progressive", "colour"])
def test_a_jpeg_is_grey_by_opencvs_colour_decoding_and_conversion(data: bytes) -> None:
    color_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    gray_HW = decode_gray(data)
    assert gray_HW.dtype == np.uint8 and gray_HW.ndim == 2
    np.testing.assert_array_equal(gray_HW, cv2.cvtColor(color_HWC, cv2.COLOR_BGR2GRAY))


def test_alpha_is_dropped_and_sixteen_bits_keep_the_upper_eight() -> None:
    alpha_HWC = np.dstack([COLOR_HWC, np.full(COLOR_HWC.shape[:2], 3, np.uint8)])
    np.testing.assert_array_equal(decode_gray(encode(".png", alpha_HWC)), decode_gray(encode(".png", COLOR_HWC)))
    deep_HW = GRAY_HW.astype(np.uint16) * 256
    ok, data = cv2.imencode(".png", deep_HW)
    assert ok
    np.testing.assert_array_equal(decode_gray(data.tobytes()), GRAY_HW)


def test_orientation_in_exif_is_applied() -> None:
    image = Image.fromarray(GRAY_HW)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert decode_gray(buffer.getvalue()).shape == (64, 48)


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), b"%PDF-1.7", b"\xff\xd8", bytes(1000)])
def test_other_files_are_not_images(data: bytes) -> None:
    assert reason_of(data) == "not_an_image"


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG], ids=["jpeg", "progressive", "png"])
@pytest.mark.parametrize("share_kept", [0.3, 0.5, 0.9, 0.999])
def test_files_cut_short_are_truncated_not_padded(data: bytes, share_kept: float) -> None:
    assert reason_of(data[: int(len(data) * share_kept)]) == "truncated"


def many_scans(num_scans: int, frame: int = 0xC2) -> bytes:
    """A black progressive JPEG of 64 pixels a side: a scan of DC values, then scans that each say "nothing more"."""

    def segment(kind: int, content: bytes) -> bytes:
        return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content

    one_code = bytes([1] + [0] * 15)  # a table with a single symbol, coded as 0
    scan = bytes([1, 1, 0])
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, bytes([0] + [1] * 64)),
            segment(frame, struct.pack(">BHHB", 8, 64, 64, 1) + bytes([1, 0x11, 0])),
            segment(0xC4, b"\x00" + one_code + b"\x00") + segment(0xDA, scan + bytes([0, 0, 0])) + bytes(8),
            segment(0xC4, b"\x10" + one_code + b"\x60"),  # end of 64 blocks and six bits more: of all
            (segment(0xDA, scan + bytes([1, 63, 0])) + b"\x01") * num_scans,
            b"\xff\xd9",
        ]
    )


@pytest.mark.parametrize("frame", [0xC2, 0xCA], ids=["Huffman", "arithmetic"])
def test_a_progressive_jpeg_whose_scans_cost_more_than_they_hold_is_refused(frame: int) -> None:
    assert decode_gray(many_scans(20)).shape == (64, 64)
    assert reason_of(many_scans(1000, frame)) == "too_large"


def test_damaged_compressed_data_of_a_png_is_corrupt() -> None:
    middle = len(PNG) // 2
    assert reason_of(PNG[:middle] + b"\x00\x55\xaa" + PNG[middle + 3 :]) == "corrupt"


def test_a_header_that_breaks_off_in_nonsense_is_refused() -> None:
    assert reason_of(b"\xff\xd8\xff\xe0" + bytes(300)) in {"corrupt", "truncated"}


def test_sides_and_bytes_are_limited() -> None:
    assert reason_of(encode(".png", GRAY_HW[:31])) == "too_small"
    assert decode_gray(encode(".png", GRAY_HW[:32])).shape == (32, 64)
    assert decode_gray(encode(".png", GRAY_HW[:2]), limits=DecodeLimits(min_side_pixels=1)).shape == (2, 64)
    assert reason_of(PNG, DecodeLimits(max_pixels=64 * 48 - 1)) == "too_large"
    assert reason_of(PNG, DecodeLimits(max_bytes=len(PNG) - 1)) == "too_large"


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2_000_000, 32), (1_500_000, 40)])
def test_decompression_bombs_are_refused_by_their_header_alone(width: int, height: int) -> None:
    assert reason_of(png_with_header(width, height)) == "too_large"


def test_a_refusal_crosses_process_borders_whole() -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode_gray(b"nothing", source="x.png")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason, again.source) == (str(caught.value), "not_an_image", "x.png")


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from([JPEG, PROGRESSIVE, PNG]),
    position=st.integers(0, 2000),
    patch=st.binary(max_size=12),
    removed=st.integers(0, 12),
)
def test_damage_anywhere_gives_a_plane_or_a_refusal_and_nothing_else(
    data: bytes, position: int, patch: bytes, removed: int
) -> None:
    position %= len(data)
    damaged = data[:position] + patch + data[position + removed :]
    try:
        assert decode_gray(damaged).ndim == 2
    except UnreadableImage as refusal:
        assert refusal.detail


@pytest.mark.parametrize(
    "change", [{"min_side_pixels": 0}, {"max_pixels": 1.5}, {"max_bytes": 0}, {"max_pixels": 1023}]
)
def test_limits_that_make_no_sense_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected an int|no image could pass"):
        DecodeLimits(**change)
