"""The compiled ops against OpenCV, on every instruction set of this CPU: boxes, crops and final images identical."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import _C, ops, reference
from kernels.spec import CROP_SIZE, MAX_SIZE, UNIT, Normalization, PreprocessSpec

from .images import IMAGENET, OPENCV_FUSES, assert_same_crop, assert_same_images, colors, grays

pytestmark = pytest.mark.usefixtures("every_isa")

AWKWARD_SIZES = [
    (1, 1), (1, 2), (2, 1), (2, 2), (1, 769), (769, 1), (7, 7), (83, 7), (7, 83), (63, 65), (64, 64),
    (128, 129), (256, 256), (257, 255), (512, 512), (511, 512), (512, 511), (769, 83), (1024, 1024),
    (5125, 9),
]  # fmt: skip


def test_gray_of_every_colour_is_opencvs() -> None:
    green_red_HWC = np.stack(np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2), axis=-1)
    plane_HWC = np.empty((256, 256, 3), np.uint8)
    plane_HWC[..., 1:] = green_red_HWC
    for blue in range(256):
        plane_HWC[..., 0] = blue
        assert np.array_equal(ops.gray(plane_HWC), cv2.cvtColor(plane_HWC, cv2.COLOR_BGR2GRAY))


@pytest.mark.parametrize("width", [1, 2, 5, 15, 16, 17, 21, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300])
def test_gray_of_any_rows_is_opencvs(width: int) -> None:
    color_HWC = np.random.default_rng(width).integers(0, 256, (9, width + 3, 3), np.uint8)
    for view_HWC in (color_HWC[:, 3:], color_HWC[::-2, :width], color_HWC[:, width - 1 :: -1], color_HWC[..., ::-1]):
        copy_HWC = np.ascontiguousarray(view_HWC)
        np.testing.assert_array_equal(ops.gray(view_HWC), cv2.cvtColor(copy_HWC, cv2.COLOR_BGR2GRAY))
        from_rgb_HW = ops.gray(view_HWC, channel_order="rgb")
        np.testing.assert_array_equal(from_rgb_HW, cv2.cvtColor(copy_HWC, cv2.COLOR_RGB2GRAY))


@settings(max_examples=150, deadline=None)
@given(grays())
def test_boxes_and_crops_of_adversarial_slices_are_identical(gray_HW: NDArray[np.uint8]) -> None:
    assert_same_crop(gray_HW)


@settings(max_examples=75, deadline=None)
@given(colors())
def test_boxes_and_crops_of_colour_slices_are_those_of_their_grey(color_HWC: NDArray[np.uint8]) -> None:
    assert_same_crop(color_HWC)
    bgr, rgb = ops.crop(color_HWC), ops.crop(color_HWC[..., ::-1], channel_order="rgb")
    assert bgr.box == rgb.box
    np.testing.assert_array_equal(bgr.crop_HW, rgb.crop_HW)


@pytest.mark.parametrize(("height", "width"), AWKWARD_SIZES)
@pytest.mark.parametrize("content", ["noise", "near the threshold", "black", "white", "half"])
def test_crops_of_awkward_sizes_are_identical(height: int, width: int, content: str) -> None:
    random = np.random.default_rng(height)
    gray_HW = np.zeros((height, width), np.uint8)
    if content == "noise":
        gray_HW = random.integers(0, 256, (height, width), np.uint8)
    elif content == "near the threshold":
        gray_HW = random.integers(42, 51, (height, width), np.uint8)
    elif content == "white":
        gray_HW[:] = 255
    elif content == "half":
        gray_HW[:, width // 2 :] = 200
    assert_same_crop(gray_HW)


def test_box_of_exactly_twice_the_crop_takes_opencvs_two_by_two_mean() -> None:
    gray_HW = np.random.default_rng(3).integers(0, 30, (560, 600), np.uint8)
    gray_HW[20:533, 40:553] += 100  # 513 pixels: the half-open box leaves 512
    assert ops.crop(gray_HW).box == (40, 20, 552, 532)
    assert_same_crop(gray_HW)


@pytest.mark.parametrize(("rows", "columns"), [(512, 511), (511, 512), (512, 256), (256, 512), (256, 256)])
def test_boxes_of_nearly_twice_the_crop_and_of_its_very_size_are_identical(rows: int, columns: int) -> None:
    gray_HW = np.zeros((530, 540), np.uint8)
    gray_HW[7 : 8 + rows, 11 : 12 + columns] = np.random.default_rng(rows).integers(100, 140, (rows + 1, columns + 1))
    assert ops.crop(gray_HW).box == (11, 7, 11 + columns, 7 + rows)
    assert_same_crop(gray_HW)


@pytest.mark.parametrize(
    "gray_HW",
    [np.zeros((50, 60), np.uint8), np.full((1, 300), 255, np.uint8), np.full((300, 1), 255, np.uint8)],
    ids=["black", "one row", "one column"],
)
def test_without_a_usable_box_the_whole_image_is_used_and_counted(gray_HW: NDArray[np.uint8]) -> None:
    crop = ops.crop(gray_HW)
    assert crop.box is None
    np.testing.assert_array_equal(crop.crop_HW, cv2.resize(gray_HW, (CROP_SIZE, CROP_SIZE)))
    _, found_N = ops.preprocess([gray_HW], PreprocessSpec(size=16))
    assert found_N.tolist() == [False]


@settings(max_examples=100, deadline=None)
@given(
    source=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    seed=st.integers(0, 99),
)
def test_resize_is_bit_exact_for_any_pair_of_sizes(source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    gray_HW = np.random.default_rng(seed).integers(0, 256, source, np.uint8)
    ours_HW = np.empty(target, np.uint8)
    _C.resize(gray_HW, ours_HW)
    np.testing.assert_array_equal(ours_HW, cv2.resize(gray_HW, target[::-1]))


@pytest.mark.skipif(not OPENCV_FUSES, reason="OpenCV rounds its sums twice on CPUs without FMA")
def test_denoise_is_bit_exact_even_where_the_mean_lies_between_two_levels() -> None:
    random = np.random.default_rng(5)
    for _ in range(8):  # noise: about five pixels an image lie within rounding error of a tie
        crops_NHW = random.integers(0, 256, (8, CROP_SIZE, CROP_SIZE), np.uint8)
        np.testing.assert_array_equal(ops.denoise(crops_NHW), reference.denoise(crops_NHW))


def test_bone_table_is_opencvs() -> None:
    levels = np.arange(256, dtype=np.uint8)[:, None]
    table = np.frombuffer(_C.bone_table(), np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(table, cv2.applyColorMap(levels, cv2.COLORMAP_BONE)[:, 0])


@pytest.mark.parametrize("normalization", [UNIT, IMAGENET], ids=["unit", "imagenet"])
@pytest.mark.parametrize("size", [1, 2, 7, 15, 33, 83, 127, 128, 129, 200, 224, 255, 256, 257, 512, 769])
def test_finished_images_are_equal_at_any_size(size: int, normalization: Normalization) -> None:
    crops_NHW = np.random.default_rng(size).integers(0, 256, (2, CROP_SIZE, CROP_SIZE), np.uint8)
    crops_NHW[1] = cv2.GaussianBlur(crops_NHW[1], (9, 9), 0)
    spec = PreprocessSpec(size=size, normalization=normalization)
    level = normalization.scale / min(normalization.std)
    assert_same_images(ops.finish(crops_NHW, spec), reference.finish(crops_NHW, spec), level)


def test_largest_output_is_finished_without_harm() -> None:
    crops_NHW = np.random.default_rng(1).integers(0, 256, (1, CROP_SIZE, CROP_SIZE), np.uint8)
    spec = PreprocessSpec(size=MAX_SIZE)
    assert_same_images(ops.finish(crops_NHW, spec), reference.finish(crops_NHW, spec), 1 / 255)


@pytest.mark.parametrize(
    "normalization",
    [
        UNIT,
        IMAGENET,
        Normalization(channel_order="bgr", scale=257.0, mean=(0.0, 1e6, -7.5), std=(1.0, 1e-6, 3.0)),
    ],
    ids=["unit", "imagenet", "ties and large numbers"],
)
def test_bfloat16_is_float32_rounded_to_nearest_even(normalization: Normalization) -> None:
    import torch  # here, because importing it takes long

    crops_NHW = np.random.default_rng(8).integers(0, 256, (2, CROP_SIZE, CROP_SIZE), np.uint8)
    crops_NHW[1] = np.arange(256, dtype=np.uint8)  # every level
    spec = PreprocessSpec(size=256, normalization=normalization)
    rounded = torch.from_numpy(ops.finish(crops_NHW, spec)).to(torch.bfloat16)
    bits_NCHW = ops.finish(crops_NHW, spec, dtype="bfloat16")
    np.testing.assert_array_equal(bits_NCHW, rounded.view(torch.uint16).numpy())


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::2], lambda a: a[:, ::3], lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.swapaxes(0, 1),
     np.asfortranarray, lambda a: a[5:77, 9:83], lambda a: np.broadcast_to(a[:1], (40, *a.shape[1:]))],
    ids=["rows", "columns", "upside down", "mirrored", "transposed", "fortran", "window", "one row repeated"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(97, 131), (97, 131, 3)], ids=["gray", "colour"])
def test_strided_views_give_the_same_as_their_copies(
    view: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], shape: tuple[int, ...]
) -> None:
    whole = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 140, shape, np.uint8), (5, 5), 0)
    strided = view(np.asarray(whole, np.uint8))
    copy = np.array(strided, order="C")
    ours, truth = ops.crop(strided), ops.crop(copy)
    assert ours.box == truth.box
    np.testing.assert_array_equal(ours.crop_HW, truth.crop_HW)
    assert_same_crop(copy)


@pytest.mark.parametrize("num_threads", [1, 2, 5, 64])
def test_a_batch_of_mixed_sizes_keeps_its_order_on_any_number_of_threads(num_threads: int) -> None:
    random = np.random.default_rng(4)
    batch = [random.integers(0, 256, size, np.uint8) for size in AWKWARD_SIZES[:14]]
    batch[3] = np.zeros((30, 40), np.uint8)
    spec = PreprocessSpec(size=48, normalization=IMAGENET)
    ours_NCHW, found_N = ops.preprocess(batch, spec, num_threads=num_threads)
    truth_NCHW, truth_found_N = reference.preprocess(batch, spec)
    np.testing.assert_array_equal(found_N, truth_found_N)
    assert_same_images(ours_NCHW, truth_NCHW, 1 / 255 / 0.224)
    assert ours_NCHW.dtype == np.float32 and ours_NCHW.flags.c_contiguous


def test_an_empty_batch_gives_no_images() -> None:
    spec = PreprocessSpec(size=8)
    images_NCHW, found_N = ops.preprocess([], spec)
    assert images_NCHW.shape == (0, 3, 8, 8) and found_N.shape == (0,)
    no_crops_NHW = np.empty((0, CROP_SIZE, CROP_SIZE), np.uint8)
    assert ops.finish(no_crops_NHW, spec).shape == ops.color(no_crops_NHW, spec).shape == (0, 3, 8, 8)
    assert ops.denoise(no_crops_NHW).shape == no_crops_NHW.shape
    assert ops.crop_into([], no_crops_NHW) == []
