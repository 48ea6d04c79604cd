"""kernels.cuda on a real GPU: the same bits as the CPU path. Skipped, with the reason, where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kernels import cuda, ops
from kernels.spec import CROP_SIZE, UNIT, Normalization, PreprocessSpec

from .images import IMAGENET

USABLE, REASON = cuda.available()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not USABLE, reason=f"kernels.cuda cannot run here: {REASON}"),
]


def head(height: int, width: int, seed: int, *, color: bool = False) -> NDArray[np.uint8]:
    """A bright ellipse on noise around the threshold, with dark holes in it."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows / height - 0.5) / 0.4) ** 2 + ((columns / width - 0.5) / 0.35) ** 2 < 1
    shape = (height, width, 3) if color else (height, width)
    image = random.integers(0, 60, shape, np.uint8)
    image[inside] += random.integers(60, 190, image[inside].shape, np.uint8)
    image[height // 2 : height // 2 + height // 8, width // 3 : width // 2] = 0
    return image


def awkward() -> list[NDArray[np.uint8]]:
    sizes = [(1, 1), (1, 300), (300, 1), (7, 83), (63, 65), (256, 256), (512, 512), (511, 513), (1024, 700)]
    images = [head(*size, seed=i) for i, size in enumerate(sizes)]
    images += [head(200, 301, 20, color=True), np.zeros((50, 60), np.uint8), np.full((90, 70), 255, np.uint8)]
    twice = np.random.default_rng(3).integers(0, 30, (560, 600), np.uint8)
    twice[20:533, 40:553] += 100
    return [*images, twice]


@pytest.mark.parametrize("channel_order", ["bgr", "rgb"])
def test_boxes_and_crops_are_the_cpus(channel_order: Any) -> None:
    images = awkward()
    crops_NHW, boxes_N4 = cuda.crop([torch.from_numpy(image).cuda() for image in images], channel_order=channel_order)
    for crop_HW, box, image in zip(crops_NHW.cpu().numpy(), boxes_N4.tolist(), images, strict=True):
        truth = ops.crop(image, channel_order=channel_order)
        assert tuple(box) == (truth.box or (0, 0, 0, 0))
        np.testing.assert_array_equal(crop_HW, truth.crop_HW)


@pytest.mark.parametrize("normalization", [UNIT, IMAGENET], ids=["unit", "imagenet"])
@pytest.mark.parametrize("size", [1, 7, 83, 128, 200, 224, 256, 512, 2048])
def test_finished_images_are_the_cpus_bit_for_bit(size: int, normalization: Normalization) -> None:
    crops_NHW = np.random.default_rng(size).integers(0, 256, (3, CROP_SIZE, CROP_SIZE), np.uint8)
    spec = PreprocessSpec(size=size, normalization=normalization)
    ours_NCHW = cuda.finish(torch.from_numpy(crops_NHW).cuda(), spec)
    np.testing.assert_array_equal(ours_NCHW.cpu().numpy(), ops.finish(crops_NHW, spec))
    smooth_NHW = cuda.denoise(torch.from_numpy(crops_NHW).cuda())
    np.testing.assert_array_equal(smooth_NHW.cpu().numpy(), ops.denoise(crops_NHW))
    np.testing.assert_array_equal(cuda.color(smooth_NHW, spec).cpu().numpy(), ops.finish(crops_NHW, spec))
    half_NCHW = cuda.finish(torch.from_numpy(crops_NHW).cuda(), spec, dtype="bfloat16")
    bits_NCHW = half_NCHW.view(torch.uint16).cpu().numpy()
    np.testing.assert_array_equal(bits_NCHW, ops.finish(crops_NHW, spec, dtype="bfloat16"))


def test_a_large_batch_on_a_stream_of_its_own_is_the_cpus() -> None:
    images = [head(180 + 3 * (i % 50), 150 + 7 * (i % 31), i) for i in range(300)]
    spec = PreprocessSpec(size=96, normalization=IMAGENET)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ours_NCHW, found_N = cuda.preprocess([torch.from_numpy(image).cuda() for image in images], spec)
    stream.synchronize()
    truth_NCHW, truth_found_N = ops.preprocess(images, spec, num_threads=4)
    np.testing.assert_array_equal(ours_NCHW.cpu().numpy(), truth_NCHW)
    np.testing.assert_array_equal(found_N.cpu().numpy(), truth_found_N)


def test_views_that_do_not_lie_together_give_the_same_as_their_copies() -> None:
    whole_HW = torch.from_numpy(head(300, 400, 1)).cuda()
    views = [whole_HW[::2], whole_HW[:, ::3], whole_HW.T, whole_HW[5:277, 9:383]]
    crops_NHW, _ = cuda.crop(views)
    for crop_HW, view in zip(crops_NHW.cpu().numpy(), views, strict=True):
        np.testing.assert_array_equal(crop_HW, ops.crop(np.ascontiguousarray(view.cpu().numpy())).crop_HW)


def test_a_call_never_waits_for_the_device() -> None:
    images = [torch.from_numpy(head(512, 512, i)).cuda() for i in range(4)]
    cuda.preprocess(images, PreprocessSpec(size=200))  # loads the kernels
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)
        cuda.preprocess(images, PreprocessSpec(size=200))
        assert not torch.cuda.current_stream().query(), "the call returned only after the device had finished"
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()
