"""Vectorised twins against the scalar code, bit by bit, and one way through the ops against another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import _C, ops
from kernels.dispatch import Isa, isas, using_isa
from kernels.ops import DTypeName
from kernels.spec import CROP_SIZE, UNIT, PreprocessSpec

from .images import IMAGENET, colors, grays

pytestmark = pytest.mark.skipif(len(isas()) == 1, reason="this CPU carries out the scalar code only")
twins = pytest.mark.parametrize("twin", isas()[1:])

Arrays = list[NDArray[Any]]


def assert_twin_does_the_same(twin: Isa, work: Callable[[], Arrays]) -> None:
    with using_isa("scalar"):
        truth = work()
    with using_isa(twin):
        ours = work()
    for ours_array, truth_array in zip(ours, truth, strict=True):
        # Bits, not numbers: a sign of zero must not differ either.
        np.testing.assert_array_equal(ours_array.view(np.uint8), truth_array.view(np.uint8))


def crop_arrays(image: NDArray[np.uint8]) -> Arrays:
    crop = ops.crop(image)
    return [crop.crop_HW, np.array(crop.box or (-1,) * 4)]


def finish_arrays(crops_NHW: NDArray[np.uint8], spec: PreprocessSpec, dtype: DTypeName) -> Arrays:
    return [ops.finish(crops_NHW, spec, dtype=dtype)]


@twins
@settings(max_examples=150, deadline=None)
@given(image=grays() | colors())
def test_crops(twin: Isa, image: NDArray[np.uint8]) -> None:
    assert_twin_does_the_same(twin, lambda: crop_arrays(image))


@twins
def test_crops_of_every_width_and_of_thin_images(twin: Isa) -> None:
    random = np.random.default_rng(0)
    for width in [*range(1, 200), *range(252, 260), *range(508, 518), 1023, 1024, 1025]:
        for height in (1, 2, 3, 6, 41):
            gray_HW = random.integers(30, 62, (height, width), np.uint8)
            assert_twin_does_the_same(twin, partial(crop_arrays, gray_HW))
        assert_twin_does_the_same(twin, partial(crop_arrays, gray_HW.T))


@twins
@settings(max_examples=150, deadline=None)
@given(
    source=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    halves=st.booleans(),
)
def test_resize(twin: Isa, source: tuple[int, int], target: tuple[int, int], halves: bool) -> None:
    height, width = (2 * target[0], 2 * target[1]) if halves else source
    gray_HW = np.random.default_rng(height).integers(0, 256, (height, width), np.uint8)

    def resize() -> Arrays:
        out_HW = np.empty(target, np.uint8)
        _C.resize(gray_HW, out_HW)
        return [out_HW]

    assert_twin_does_the_same(twin, resize)


@twins
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("normalization", [UNIT, IMAGENET], ids=["unit", "imagenet"])
def test_finish_at_any_size(twin: Isa, dtype: DTypeName, normalization: Any) -> None:
    crops_NHW = np.random.default_rng(6).integers(0, 256, (2, CROP_SIZE, CROP_SIZE), np.uint8)
    crops_NHW[1] = np.sort(crops_NHW[1], axis=0)
    for size in [*range(1, 36), 63, 64, 65, 127, 128, 129, 199, 200, 224, 256, 257, 511, 512, 513]:
        spec = PreprocessSpec(size=size, normalization=normalization)
        assert_twin_does_the_same(twin, partial(finish_arrays, crops_NHW, spec, dtype))


@twins
def test_a_weight_of_one_is_exact_too(twin: Isa) -> None:
    """Some fractions of the largest outputs round up to a whole weight, 2048, which fills 16 bits when scaled."""
    crops_NHW = np.random.default_rng(8).integers(0, 256, (1, CROP_SIZE, CROP_SIZE), np.uint8)
    assert_twin_does_the_same(twin, lambda: [ops.finish(crops_NHW, PreprocessSpec(size=2047))])


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [200, 224])
def test_finish_of_many_at_once_is_that_of_each(size: int, dtype: DTypeName) -> None:
    """Above some size of output a twin may write past the caches."""
    crops_NHW = np.random.default_rng(7).integers(0, 256, (20, CROP_SIZE, CROP_SIZE), np.uint8)
    spec = PreprocessSpec(size=size)
    many_NCHW = ops.finish(crops_NHW, spec, dtype=dtype, num_threads=3)
    np.testing.assert_array_equal(ops.color(ops.denoise(crops_NHW), spec, dtype=dtype), many_NCHW)
    for one_NHW, image_CHW in zip(crops_NHW[:, None], many_NCHW, strict=True):
        np.testing.assert_array_equal(ops.finish(one_NHW, spec, dtype=dtype)[0], image_CHW)


@pytest.fixture
def batch() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(9)
    sizes = [(64, 80), (300, 200), (1, 9), (257, 255), (9, 1, 3), (120, 90, 3), (512, 512)]
    return [random.integers(0, 120, size, np.uint8) for size in sizes]


@pytest.mark.usefixtures("every_isa")
def test_crop_into_preprocess_and_single_calls_agree_on_any_number_of_threads(batch: list[NDArray[np.uint8]]) -> None:
    spec = PreprocessSpec(size=50, normalization=IMAGENET)
    single = [ops.crop(image) for image in batch]
    single_NHW = np.stack([crop.crop_HW for crop in single])
    truth_NCHW = ops.finish(single_NHW, spec)
    for num_threads in (1, 3):
        crops_NHW = np.empty_like(single_NHW)
        boxes = ops.crop_into(batch, crops_NHW, num_threads=num_threads)
        assert boxes == [crop.box for crop in single]
        np.testing.assert_array_equal(crops_NHW, single_NHW)
        images_NCHW, found_N = ops.preprocess(batch, spec, num_threads=num_threads)
        np.testing.assert_array_equal(images_NCHW, truth_NCHW)
        np.testing.assert_array_equal(ops.finish(crops_NHW, spec, num_threads=num_threads), truth_NCHW)
        assert found_N.tolist() == [box is not None for box in boxes]


@pytest.mark.usefixtures("every_isa")
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(*[st.sampled_from([3, 9, 40, 200, 512])] * 2), min_size=2, max_size=6),
    level=st.sampled_from([40, 250]),
)
def test_what_one_image_leaves_in_the_buffers_never_shows_in_the_next(sizes: list[tuple[int, int]], level: int) -> None:
    images = [np.random.default_rng(k).integers(level // 2, level, size, np.uint8) for k, size in enumerate(sizes)]
    crops_NHW = np.empty((len(images), CROP_SIZE, CROP_SIZE), np.uint8)
    boxes = ops.crop_into(images, crops_NHW)
    for image, box, crop_HW in zip(images, boxes, crops_NHW, strict=True):
        alone = ops.crop(image)
        assert box == alone.box
        np.testing.assert_array_equal(crop_HW, alone.crop_HW)


def test_another_instruction_set_chosen_meanwhile_leaves_running_batches_alone(batch: list[NDArray[np.uint8]]) -> None:
    spec = PreprocessSpec(size=50)
    truth_NCHW, _ = ops.preprocess(batch, spec)
    many = 12 * batch
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ops.preprocess, many, spec, num_threads=2)
        for name in cycle(isas()):
            with using_isa(name):
                if running.done():
                    break
        images_NCHW, _ = running.result()
    np.testing.assert_array_equal(images_NCHW, np.concatenate(12 * [truth_NCHW]))
