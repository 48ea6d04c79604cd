"""Every JPEG that is decoded has OpenCV's pixels, whichever way it took; lost pixels are refused, oddities are not."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kernels.decode import UnreadableImage, decode_gray

SAMPLINGS = ["411", "420", "422", "440", "444"]
OPTIONS = [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2), (cv2.IMWRITE_JPEG_OPTIMIZE, 1)]
# OpenCV and Pillow write no arithmetic coding: 40 x 36 grey pixels by cjpeg.
ARITHMETIC = base64.b85decode(
    "|JeWA0D}+!pa5<FcmRw5cmQMopa6^jf&h#Fv;e9Apa8xA@Bxqk1OV^=+yLAF@B!)pUIB6eA_0&BL;?N+VggtKIsyIyFajn5fCA71"
    "m;(#~fC8ukW&*MTCIT=6AOu1KDg$N%wgc1z1_TfU1_EpY0t9LVx&&YY=mf9>m;>?z1_R#z$p8xo03-"
    "k?0Ra&J|I7de01yxb|Jncu0RaF2KLE`}Gm3VS2qa@Tg*ZKHM0@thyHOBqxXIPjv%>nMyd+H1{?@VB#J_4(Rpci!1Xk>UK>yh"
)


def encode(image: NDArray[np.uint8], *options: int) -> bytes:
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def encode_pillow(image: NDArray[np.uint8], mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def opencvs_gray(data: bytes) -> NDArray[np.uint8]:
    color_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(color_HWC, cv2.COLOR_BGR2GRAY)


def reason_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_gray(data)
    return caught.value.reason


def smooth_noise(seed: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (7, 7), 0), None, 0, 255, cv2.NORM_MINMAX)


COLOR_HWC = smooth_noise(1, 80, 112, 3)
JPEG = encode(COLOR_HWC)
RESTARTS = encode(COLOR_HWC, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
SCAN = JPEG.index(b"\xff\xda")
TABLES = JPEG.index(b"\xff\xdb")


def tinted(gray_HWC: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    return smooth_noise(seed, *gray_HWC.shape[:2], 3)


def neutral(gray_HWC: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    return gray_HWC.repeat(3, 2)


def one_level_off(gray_HWC: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    color_HWC = gray_HWC.repeat(3, 2)
    color_HWC[..., seed % 3] ^= 1
    return color_HWC


def neutral_on_average(gray_HWC: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Chroma of alternating sign: its DC coefficients vanish, its AC coefficients do not."""
    rows, columns = np.indices(gray_HWC.shape[:2]) // (1 + seed % 4) % 2
    wave_HW = np.where(rows == columns, 40, -40)
    color_HWC = (gray_HWC // 2 + 64).astype(np.int16).repeat(3, 2)
    color_HWC[..., 0] += wave_HW
    color_HWC[..., 2] -= wave_HW
    return color_HWC.astype(np.uint8)


def coding_options(quality: int, sampling: str, more: tuple[int, ...]) -> tuple[int, ...]:
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    return (cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, *more)


@settings(max_examples=150, deadline=None)
@given(
    tint=st.sampled_from([tinted, neutral, one_level_off, neutral_on_average]),
    size=st.tuples(st.integers(32, 70), st.integers(32, 70)),
    options=st.builds(coding_options, st.integers(1, 100), st.sampled_from(SAMPLINGS), st.sampled_from(OPTIONS)),
    seed=st.integers(0, 2**20),
)
def test_colour_gives_opencvs_grey_at_every_sampling_and_quality(
    tint: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]],
    size: tuple[int, int],
    options: tuple[int, ...],
    seed: int,
) -> None:
    color_HWC = tint(smooth_noise(seed, *size, 1).reshape(*size, 1), seed)
    data = encode(color_HWC, *options)
    np.testing.assert_array_equal(decode_gray(data), opencvs_gray(data))


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload


@pytest.mark.parametrize(
    "data",
    [
        encode_pillow(COLOR_HWC, keep_rgb=True),
        encode_pillow(COLOR_HWC, "CMYK"),
        encode_pillow(COLOR_HWC, "L", progressive=True),
        encode_pillow(COLOR_HWC, icc_profile=bytes(70_000)),
        encode_pillow(COLOR_HWC, comment=b"\xff\xd9\xff\xda\xff\xe1 \x12\x01"),
        ARITHMETIC,
        JPEG[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") + JPEG[TABLES:],
        JPEG[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07") + JPEG[TABLES:],
        JPEG[:TABLES] + b"\xff\xff" + JPEG[TABLES:],
        JPEG[:TABLES] + b"???" + JPEG[TABLES:],
        JPEG[:TABLES]
        + b"\0"
        + segment(0xC0, struct.pack(">BHHB", 8, 30_000, 30_000, 1) + bytes(9))[1:]
        + JPEG[TABLES:],
        JPEG[:-2] + bytes(range(50)) + JPEG[-2:],
        JPEG + b"left over",
        JPEG.replace(b"JFIF\0\x01", b"JFIF\0\x09"),
    ],
    ids=[
        *("rgb", "cmyk", "grey progressive", "icc", "comment like markers", "arithmetic", "adobe rgb", "adobe unknown"),
        *(
            "fill bytes",
            "bytes before tables",
            "a frame's bytes without marker",
            "bytes before end",
            "bytes after end",
            "jfif 9",
        ),
    ],
)
def test_unusual_files_of_sound_pixels_are_decoded(data: bytes) -> None:
    np.testing.assert_array_equal(decode_gray(data), opencvs_gray(data))


def exif(orientation: int, *, byte_order: str = "<") -> bytes:
    order = {"<": b"II", ">": b"MM"}[byte_order]
    entry = struct.pack(byte_order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    directory = struct.pack(byte_order + "HIH", 42, 8, 1) + entry + bytes(4)
    return segment(0xE1, b"Exif\0\0" + order + directory)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_applied_as_opencv_does(orientation: int, byte_order: str) -> None:
    data = JPEG[:2] + exif(orientation, byte_order=byte_order) + JPEG[2:]
    gray_HW = decode_gray(data)
    np.testing.assert_array_equal(gray_HW, opencvs_gray(data))
    assert gray_HW.shape == ((112, 80) if orientation in {5, 6, 7, 8} else (80, 112))


@pytest.mark.parametrize("metadata", [exif(1) + exif(6), exif(6) + exif(1), exif(6).replace(b"Exif", b"Nexi")])
def test_metadata_that_readers_disagree_about_is_read_as_opencv_does(metadata: bytes) -> None:
    data = JPEG[:2] + metadata + JPEG[2:]
    np.testing.assert_array_equal(decode_gray(data), opencvs_gray(data))


@pytest.mark.parametrize("start", [JPEG[:2], JPEG[:2] + exif(6)], ids=["upright", "turned"])
@pytest.mark.parametrize("kept", [-1, -2, -3, -40])
def test_a_file_without_its_last_bytes_is_truncated(start: bytes, kept: int) -> None:
    assert reason_of(start + JPEG[2:kept]) == "truncated"


@pytest.mark.parametrize("start", [JPEG[:2], JPEG[:2] + exif(6)], ids=["upright", "turned"])
def test_a_gap_inside_a_scan_is_corrupt(start: bytes) -> None:
    middle = (SCAN + len(JPEG)) // 2
    assert reason_of(start + JPEG[2:middle] + JPEG[middle + 400 :]) == "corrupt"
    assert reason_of(start + JPEG[2:middle] + JPEG[-2:]) == "corrupt"


def test_a_lost_restart_interval_is_corrupt() -> None:
    first, second = (RESTARTS.index(marker) for marker in (b"\xff\xd0", b"\xff\xd1"))
    assert reason_of(RESTARTS[:first] + RESTARTS[second:]) == "corrupt"


def test_a_nonsense_code_inside_a_scan_is_corrupt() -> None:
    middle = (SCAN + len(JPEG)) // 2
    assert reason_of(JPEG[:middle] + b"\xff\x00" * 8 + JPEG[middle + 16 :]) == "corrupt"


def with_frame(*, bits: int = 8, width: int = 112, height: int = 80) -> bytes:
    frame = JPEG.index(b"\xff\xc0") + 4
    return JPEG[:frame] + struct.pack(">BHH", bits, height, width) + JPEG[frame + 5 :]


def test_a_jpegs_header_alone_decides_about_its_size() -> None:
    assert reason_of(with_frame(width=65_500, height=65_500)) == "too_large"
    assert reason_of(with_frame(height=0)) == "too_small"
    assert reason_of(with_frame(width=31)) == "too_small"
    assert reason_of(with_frame(height=2000)) == "corrupt"


def test_twelve_bit_files_are_corrupt_to_us() -> None:
    assert reason_of(with_frame(bits=12)) == "corrupt"


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from([JPEG, RESTARTS, encode(COLOR_HWC, *OPTIONS[1]), JPEG[:2] + exif(1) + JPEG[2:]]),
    share=st.floats(0, 1, exclude_max=True),
    patch=st.binary(max_size=12),
    removed=st.integers(0, 12),
)
def test_what_damage_leaves_readable_has_opencvs_pixels(data: bytes, share: float, patch: bytes, removed: int) -> None:
    position = int(share * len(data))
    damaged = data[:position] + patch + data[position + removed :]
    try:
        gray_HW = decode_gray(damaged)
    except UnreadableImage:
        return
    np.testing.assert_array_equal(gray_HW, opencvs_gray(damaged))
