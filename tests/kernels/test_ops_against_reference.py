"""The compiled ops against OpenCV: boxes and crops identical, final levels exact or one off."""

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

IMAGENET = Normalization(channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CPU_FMA3 = 12  # OpenCV's number for the feature
AWKWARD_SIZES = [
    (1, 1), (1, 2), (2, 1), (2, 2), (1, 769), (769, 1), (7, 7), (83, 7), (7, 83), (63, 65), (64, 64),
    (128, 129), (256, 256), (257, 255), (512, 512), (511, 512), (512, 511), (769, 83), (1024, 1024),
    (5125, 9),
]  # fmt: skip


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Small 0/255 masks: scattered pixels, or rectangles and frames of few sizes, so that areas tie often."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 140))
    mask_HW = np.zeros((height, width), np.uint8)
    if draw(st.booleans()):
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        mask_HW[random.random((height, width)) < draw(st.sampled_from([0.02, 0.2, 0.45, 0.6, 0.95]))] = 255
        return mask_HW
    for _ in range(draw(st.integers(0, 12))):
        rows, columns = draw(st.sampled_from([(1, 1), (1, 6), (6, 1), (3, 5), (5, 3), (9, 9)]))
        _rectangle(draw, mask_HW, rows, columns, 255)
    return mask_HW


@st.composite
def grays(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Slices with bright rectangles and frames on noise whose level lies around the threshold of 45."""
    height, width = draw(st.integers(1, 96)), draw(st.integers(1, 96))
    noise = np.random.default_rng(draw(st.integers(0, 2**32)))
    gray_HW = noise.integers(0, draw(st.sampled_from([1, 40, 60, 120, 256])), (height, width), np.uint8)
    for _ in range(draw(st.integers(0, 8))):
        rows, columns = draw(st.sampled_from([(5, 5), (5, 30), (30, 5), (12, 12), (40, 41)]))
        _rectangle(draw, gray_HW, rows, columns, draw(st.sampled_from([0, 44, 45, 46, 47, 90, 255])))
    return gray_HW


def _rectangle(draw: st.DrawFn, image_HW: NDArray[np.uint8], rows: int, columns: int, level: int) -> None:
    top = draw(st.integers(-rows + 1, image_HW.shape[0] - 1))
    left = draw(st.integers(-columns + 1, image_HW.shape[1] - 1))
    inside = image_HW[max(top, 0) : top + rows, max(left, 0) : left + columns]
    before = inside.copy()
    inside[:] = level
    rim = draw(st.integers(1, 6))
    if draw(st.booleans()) and min(inside.shape) > 2 * rim:  # a frame: what was there stays visible within it
        inside[rim:-rim, rim:-rim] = before[rim:-rim, rim:-rim]


def assert_same_crop(gray_HW: NDArray[np.uint8]) -> None:
    ours, truth = ops.crop_gray(gray_HW), reference.crop_gray(gray_HW)
    assert ours.box == truth.box
    np.testing.assert_array_equal(ours.crop_HW, truth.crop_HW)


def assert_same_images(ours_NCHW: NDArray[np.float32], truth_NCHW: NDArray[np.float32], level: float) -> None:
    assert ours_NCHW.shape == truth_NCHW.shape
    assert np.abs(ours_NCHW - truth_NCHW).max() <= level * 1.01
    assert (ours_NCHW == truth_NCHW).mean() >= 0.9999


@settings(max_examples=400, deadline=None)
@given(masks())
def test_largest_contour_of_any_mask_is_the_one_opencv_users_pick(mask_HW: NDArray[np.uint8]) -> None:
    assert _C.largest_contour(mask_HW) == reference.largest_contour(mask_HW)


def test_equal_areas_are_decided_by_opencvs_order_of_contours() -> None:
    mask_HW = np.zeros((40, 90), np.uint8)
    for top, left in [(2, 60), (2, 3), (20, 40), (20, 5), (21, 70)]:
        mask_HW[top : top + 6, left : left + 6] = 255
    assert _C.largest_contour(mask_HW) == reference.largest_contour(mask_HW) == (70, 21, 75, 26)


def test_what_lies_inside_a_ring_never_beats_the_ring() -> None:
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[4:60, 4:60] = 255
    mask_HW[6:58, 6:58] = 0
    mask_HW[8:56, 8:56] = 255
    assert _C.largest_contour(mask_HW) == reference.largest_contour(mask_HW) == (4, 4, 59, 59)


def test_noise_masks_of_many_components_agree() -> None:
    random = np.random.default_rng(0)
    for share in (0.01, 0.1, 0.3, 0.42, 0.5, 0.9):
        mask_HW = (random.random((300, 333)) < share).astype(np.uint8)
        assert _C.largest_contour(mask_HW) == reference.largest_contour(mask_HW)


@settings(max_examples=200, deadline=None)
@given(grays())
def test_boxes_and_crops_of_adversarial_slices_are_identical(gray_HW: NDArray[np.uint8]) -> None:
    assert_same_crop(gray_HW)


@pytest.mark.parametrize(("height", "width"), AWKWARD_SIZES)
@pytest.mark.parametrize("content", ["noise", "black", "white", "half"])
def test_crops_of_awkward_sizes_are_identical(height: int, width: int, content: str) -> None:
    gray_HW = np.zeros((height, width), np.uint8)
    if content == "noise":
        gray_HW = np.random.default_rng(height).integers(0, 256, (height, width), np.uint8)
    elif content == "white":
        gray_HW[:] = 255
    elif content == "half":
        gray_HW[:, width // 2 :] = 200
    assert_same_crop(gray_HW)


def test_box_of_exactly_twice_the_crop_takes_opencvs_two_by_two_mean() -> None:
    gray_HW = np.random.default_rng(3).integers(0, 30, (560, 600), np.uint8)
    gray_HW[20:533, 40:553] += 100  # 513 pixels: the half-open box leaves 512
    assert ops.crop_gray(gray_HW).box == (40, 20, 552, 532)
    assert_same_crop(gray_HW)


@pytest.mark.parametrize(
    "gray_HW",
    [np.zeros((50, 60), np.uint8), np.full((1, 300), 255, np.uint8), np.full((300, 1), 255, np.uint8)],
    ids=["black", "one row", "one column"],
)
def test_without_a_usable_box_the_whole_image_is_used_and_counted(gray_HW: NDArray[np.uint8]) -> None:
    crop = ops.crop_gray(gray_HW)
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


@pytest.mark.skipif(not cv2.checkHardwareSupport(CPU_FMA3), reason="OpenCV rounds its sums twice on CPUs without FMA")
def test_denoise_is_bit_exact_even_where_the_mean_lies_between_two_levels() -> None:
    random = np.random.default_rng(5)
    ours_HW = np.empty((CROP_SIZE, CROP_SIZE), np.uint8)
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        for _ in range(64):  # noise: about five pixels an image lie within rounding error of a tie
            crop_HW = random.integers(0, 256, (CROP_SIZE, CROP_SIZE), np.uint8)
            _C.denoise(crop_HW, ours_HW)
            np.testing.assert_array_equal(ours_HW, cv2.bilateralFilter(crop_HW, 2, 50, 50))
    finally:
        cv2.ipp.setUseIPP(before)


def test_bone_table_is_opencvs() -> None:
    levels = np.arange(256, dtype=np.uint8)[:, None]
    table = np.frombuffer(_C.bone_table(), np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(table, cv2.applyColorMap(levels, cv2.COLORMAP_BONE)[:, 0])


@pytest.mark.parametrize("normalization", [UNIT, IMAGENET], ids=["unit", "imagenet"])
@pytest.mark.parametrize("size", [1, 7, 83, 128, 200, 224, 256, 512, 769])
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
    "view",
    [lambda a: a[::2], lambda a: a[:, ::3], lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.T,
     np.asfortranarray, lambda a: a[5:77, 9:83], lambda a: np.broadcast_to(a[:1], (40, a.shape[1]))],
    ids=["rows", "columns", "upside down", "mirrored", "transposed", "fortran", "window", "one row repeated"],
)  # fmt: skip
def test_strided_views_give_the_same_as_their_copies(
    view: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    whole_HW = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 140, (97, 131), np.uint8), (5, 5), 0)
    strided_HW = view(whole_HW)
    copy_HW = np.array(strided_HW, order="C")
    ours, truth = ops.crop_gray(strided_HW), ops.crop_gray(copy_HW)
    assert ours.box == truth.box
    np.testing.assert_array_equal(ours.crop_HW, truth.crop_HW)
    assert_same_crop(copy_HW)


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
    assert ops.finish(np.empty((0, CROP_SIZE, CROP_SIZE), np.uint8), spec).shape == (0, 3, 8, 8)
