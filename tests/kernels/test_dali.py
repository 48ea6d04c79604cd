"""DALI gives what kernels.decode and kernels.ops give, bit for bit, or names the file that it cannot."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kernels import dali, ops
from kernels.decode import UnreadableImage, decode_gray
from kernels.spec import CROP_SIZE, UNIT, PreprocessSpec

from .images import IMAGENET

USABLE, REASON = dali.available()
USABLE_ON_GPU, REASON_ON_GPU = dali.available("gpu")
pytestmark = pytest.mark.skipif(not USABLE, reason=f"DALI cannot be used: {REASON}")


def head(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A textured ellipse on black."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    mask_HW = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask_HW, (width // 2, height // 2), (width // 3, height // 3), 20, 0, 360, 1, -1)
    return np.asarray(cv2.GaussianBlur(levels, (5, 5), 0) * mask_HW)


def encode(image: Image.Image | NDArray[Any], kind: str = "JPEG", orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


GRAY_HW = head(131, 173, 0)
# Tints that clip: there a file's luma is not the grey of its colours.
TINTED_HWC = np.clip(GRAY_HW[:, :, None] * np.array([1.6, 1.0, 0.3]), 0, 255).astype(np.uint8)
FILES = {
    "grey": encode(GRAY_HW, quality=90),
    "grey, progressive": encode(GRAY_HW, progressive=True),
    "no head": encode(np.zeros((70, 90), np.uint8)),
    "grey as colour, 4:4:4": encode(np.dstack([GRAY_HW] * 3), subsampling=0),
    "grey as colour, 4:2:0": encode(np.dstack([GRAY_HW] * 3), subsampling=2),
    "tinted, 4:4:4": encode(TINTED_HWC, subsampling=0),
    "tinted, 4:2:0": encode(TINTED_HWC, subsampling=2),
    "tinted, progressive": encode(TINTED_HWC, progressive=True),
    "tinted, stored as RGB": encode(TINTED_HWC, keep_rgb=True),
    "tinted, stored as CMYK": encode(Image.fromarray(TINTED_HWC).convert("CMYK")),
    "grey, turned": encode(GRAY_HW, orientation=6),
    "tinted, turned": encode(TINTED_HWC, orientation=7),
    "PNG": encode(GRAY_HW, "PNG"),
    "PNG, tinted": encode(TINTED_HWC, "PNG"),
    "PNG, alpha": encode(np.dstack([TINTED_HWC, GRAY_HW]), "PNG"),
    "PNG, 16 bits": encode(GRAY_HW.astype(np.uint16) * 255 + 200, "PNG"),
}
TRUNCATED = FILES["grey"][: len(FILES["grey"]) // 2]


def assert_crops_are_direct(files: Sequence[bytes], batches: Sequence[dali.CropBatch]) -> None:
    grays = [decode_gray(data) for data in files]
    crops_NHW = np.empty((len(files), CROP_SIZE, CROP_SIZE), np.uint8)
    boxes = ops.crop_into(grays, crops_NHW)
    found = [gray_HW for batch in batches for gray_HW in batch.grays]
    for gray_HW, expected_HW in zip(found, grays, strict=True):
        np.testing.assert_array_equal(gray_HW, expected_HW)
    np.testing.assert_array_equal(np.concatenate([batch.crops_NHW for batch in batches]), crops_NHW)
    assert [box for batch in batches for box in batch.boxes] == boxes


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_gives_the_direct_paths_plane_crop_and_box(name: str) -> None:
    batches = list(dali.crops([FILES[name]], batch_size=1, num_threads=1, with_grays=True))
    assert_crops_are_direct([FILES[name]], batches)


@pytest.mark.parametrize(("batch_size", "num_threads"), [(3, 1), (8, 2), (100, 2)])
def test_batches_of_mixed_kinds_keep_their_order_and_the_last_one_is_whole(batch_size: int, num_threads: int) -> None:
    files = list(FILES.values()) * 2 + [FILES["grey"]]
    batches = list(dali.crops(files, batch_size=batch_size, num_threads=num_threads, with_grays=True))
    sizes = [len(batch.crops_NHW) for batch in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1) and sum(sizes) == len(files)
    # Only now, after all others were made: a batch stays what it was.
    assert_crops_are_direct(files, batches)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_any_jpeg_gives_the_direct_paths_result(data: st.DataObject, seed: int) -> None:
    files = []
    for i in range(data.draw(st.integers(1, 5))):
        gray_HW = head(data.draw(st.integers(32, 90)), data.draw(st.integers(32, 90)), seed + i)
        gains = data.draw(st.sampled_from([None, (1.0, 1.0, 1.0), (2.5, 0.4, 1.0), (0.0, 1.9, 0.7)]))
        image = gray_HW if gains is None else np.clip(gray_HW[:, :, None] * np.array(gains), 0, 255).astype(np.uint8)
        quality, progressive = data.draw(st.integers(30, 100)), data.draw(st.booleans())
        files.append(encode(image, quality=quality, progressive=progressive, subsampling=data.draw(st.integers(0, 2))))
    assert_crops_are_direct(files, list(dali.crops(files, batch_size=2, num_threads=1, with_grays=True)))


@pytest.mark.parametrize("spec", [PreprocessSpec(size=200), PreprocessSpec(size=97, normalization=IMAGENET)])
def test_images_are_those_of_preprocess(spec: PreprocessSpec) -> None:
    files = list(FILES.values())
    batches = list(dali.images(files, spec, batch_size=7, num_threads=2))
    images_NCHW, found_N = ops.preprocess([decode_gray(data) for data in files], spec)
    np.testing.assert_array_equal(np.concatenate([batch.images_NCHW for batch in batches]), images_NCHW)
    np.testing.assert_array_equal(np.concatenate([batch.found_N for batch in batches]), found_N)


def test_files_may_be_paths_and_there_may_be_none(tmp_path: Path) -> None:
    path = tmp_path / "scan.jpg"
    path.write_bytes(FILES["grey"])
    batches = list(dali.crops(iter([path, FILES["PNG"]]), batch_size=4, num_threads=1, with_grays=True))
    assert_crops_are_direct([FILES["grey"], FILES["PNG"]], batches)
    assert list(dali.crops([], batch_size=4, num_threads=1)) == []


@pytest.mark.parametrize("data", [TRUNCATED, b"GIF89a", encode(GRAY_HW[:31]), FILES["PNG"][:-20]])
def test_a_file_that_the_direct_path_refuses_is_refused_in_the_same_words(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "scan.jpg"
    path.write_bytes(data)
    for bad, name in ((data, "encoded[4]"), (path, str(path))):
        with pytest.raises(UnreadableImage) as expected:
            decode_gray(data, source=name)
        with pytest.raises(UnreadableImage) as caught:
            list(dali.crops([FILES["grey"]] * 4 + [bad, FILES["grey"]], batch_size=2, num_threads=2))
        assert str(caught.value) == str(expected.value)


def test_damage_that_libjpeg_conceals_shows_in_the_plane() -> None:
    damaged = FILES["grey"][:-60] + FILES["grey"][-50:]
    with pytest.raises(UnreadableImage, match="corrupt"):
        decode_gray(damaged)
    (batch,) = dali.crops([damaged], batch_size=1, num_threads=1, with_grays=True)
    assert not np.array_equal(batch.grays[0], decode_gray(FILES["grey"]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        list(dali.crops([tmp_path / "gone.jpg"], batch_size=2, num_threads=1))


def test_what_the_callers_iterable_raises_passes_as_it_is() -> None:
    def files() -> Iterator[bytes]:
        yield FILES["grey"]
        raise KeyError("patient 7")

    with pytest.raises(KeyError, match="patient 7"):
        list(dali.crops(files(), batch_size=2, num_threads=1))


def test_what_is_neither_bytes_nor_a_path_is_named() -> None:
    with pytest.raises(TypeError, match=r"encoded\[1\] is a str, expected bytes or a pathlib.Path"):
        list(dali.crops([FILES["grey"], "ward/7.jpg"], batch_size=2, num_threads=1))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected an int of 1 to 65536"),
        ({"num_threads": 0}, "num_threads is 0, expected an int of at least 1"),
        ({"device": "tpu"}, "device is 'tpu', expected 'cpu' or 'gpu'"),
        ({"device": "gpu", "with_grays": True}, "with_grays needs device 'cpu'"),
    ],
)
def test_arguments_are_judged_at_the_call(changed: dict[str, Any], message: str) -> None:
    arguments = {"batch_size": 2, "num_threads": 1} | changed
    with pytest.raises(ValueError, match=message):
        dali.crops([FILES["grey"]], **arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not USABLE_ON_GPU, reason=f"DALI has no GPU: {REASON_ON_GPU}")
def test_on_a_gpu_files_without_a_jpegs_rounding_give_the_direct_paths_result() -> None:
    files = [FILES[name] for name in FILES if name.startswith("PNG")] * 3
    batches = list(dali.crops(files, batch_size=5, num_threads=2, device="gpu"))
    grays = [decode_gray(data) for data in files]
    crops_NHW = np.empty((len(files), CROP_SIZE, CROP_SIZE), np.uint8)
    assert [box for batch in batches for box in batch.boxes] == ops.crop_into(grays, crops_NHW)
    np.testing.assert_array_equal(np.concatenate([batch.crops_NHW for batch in batches]), crops_NHW)


@pytest.mark.gpu
@pytest.mark.skipif(not USABLE_ON_GPU, reason=f"DALI has no GPU: {REASON_ON_GPU}")
def test_on_a_gpu_jpegs_are_within_rounding_of_the_direct_path() -> None:
    spec = PreprocessSpec(size=200, normalization=UNIT)
    (batch,) = dali.images([FILES["grey"], FILES["tinted, 4:4:4"]], spec, batch_size=2, num_threads=1, device="gpu")
    images_NCHW, found_N = ops.preprocess([decode_gray(FILES[name]) for name in ("grey", "tinted, 4:4:4")], spec)
    np.testing.assert_array_equal(batch.found_N, found_N)
    assert np.abs(np.asarray(batch.images_NCHW.as_cpu()) - images_NCHW).mean() * 255 < 1.0
