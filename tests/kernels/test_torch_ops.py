"""The torch operators: what kernels.ops gives, kept whole by export and compilation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from kernels import cuda, ops, reference, torch_ops
from kernels.spec import CROP_SIZE, UNIT, Normalization, PreprocessSpec, SpecError

from .images import IMAGENET

SPEC = PreprocessSpec(size=24, normalization=IMAGENET)
SPEC_ARGUMENTS: dict[str, Any] = {
    "size": 24,
    "channel_order": "rgb",
    "scale": 1 / 255,
    "mean": list(IMAGENET.mean),
    "std": list(IMAGENET.std),
}
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def slices(*shape: int, seed: int = 0) -> Tensor:
    """Smooth slices uint8 [N, H, W] or [N, H, W, 3] with a bright head, the last one black."""
    levels = np.random.default_rng(seed).normal(120, 60, shape)
    for level in levels:
        level[: shape[1] // 4] = 0
        level[:] = cv2.GaussianBlur(level, (5, 5), 0)
    levels[-1:] = 0
    return torch.from_numpy(levels.clip(0, 255).astype(np.uint8))


def assert_same_bits(ours: Tensor, truth: Tensor) -> None:
    assert ours.dtype is truth.dtype and ours.shape == truth.shape
    assert torch.equal(ours.view(BITS[ours.dtype]), truth.view(BITS[truth.dtype]))


class Classifier(nn.Module):
    """The smallest model that begins with preprocessing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images_NCHW, found_N = torch_ops.preprocess(images, SPEC)
        return self.conv(images_NCHW).relu().mean(dim=(2, 3)), found_N


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 60, 50), (3, 60, 50, 3), (1, 1, 1), (0, 9, 9), (0, 9, 9, 3)], ids=str)
def test_opcheck_finds_no_fault_with_preprocess(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    options = {**SPEC_ARGUMENTS, "image_channel_order": "rgb", "dtype": dtype}
    result = torch.library.opcheck(torch.ops.gliofed.preprocess.default, (slices(*shape),), options)
    assert result == dict.fromkeys(OPCHECKS, "SUCCESS")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_crops", [2, 1, 0])
def test_opcheck_finds_no_fault_with_color(num_crops: int, dtype: torch.dtype) -> None:
    crops_NHW = slices(num_crops, CROP_SIZE, CROP_SIZE)
    result = torch.library.opcheck(torch.ops.gliofed.color.default, (crops_NHW,), {**SPEC_ARGUMENTS, "dtype": dtype})
    assert result == dict.fromkeys(OPCHECKS, "SUCCESS")


@pytest.mark.parametrize("channel_order", ["bgr", "rgb"])
@pytest.mark.parametrize("shape", [(3, 70, 50), (3, 70, 50, 3), (0, 70, 50)], ids=str)
def test_preprocess_gives_what_the_core_gives(shape: tuple[int, ...], channel_order: ops.ChannelOrder) -> None:
    images = slices(*shape)
    before = images.clone()
    truth_NCHW, truth_found_N = ops.preprocess(list(images.numpy()), SPEC, channel_order=channel_order)
    bits_NCHW, _ = ops.preprocess(list(images.numpy()), SPEC, dtype="bfloat16", channel_order=channel_order)
    float_NCHW, found_N = torch_ops.preprocess(images, SPEC, channel_order=channel_order)
    short_NCHW, _ = torch_ops.preprocess(images, SPEC, dtype=torch.bfloat16, channel_order=channel_order)
    assert_same_bits(float_NCHW, torch.from_numpy(truth_NCHW))
    assert_same_bits(short_NCHW, torch.from_numpy(bits_NCHW).view(torch.bfloat16))
    assert_same_bits(short_NCHW, float_NCHW.to(torch.bfloat16))
    assert found_N.tolist() == truth_found_N.tolist() == [True, True, False][: len(images)]
    assert float_NCHW.is_contiguous() and short_NCHW.is_contiguous()
    assert torch.equal(images, before)


@pytest.mark.parametrize("normalization", [UNIT, IMAGENET], ids=["unit", "imagenet"])
def test_both_operators_give_what_opencv_gives(normalization: Normalization) -> None:
    spec = PreprocessSpec(size=83, normalization=normalization)
    images_NHWC = slices(3, 90, 70, 3, seed=1)
    grays = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False) for image in images_NHWC.numpy()]
    truth, truth_found_N = reference.preprocess(grays, spec)
    smooth_NHW = torch.from_numpy(reference.denoise(np.stack([reference.crop(gray).crop_HW for gray in grays])))
    ours_NCHW, found_N = torch_ops.preprocess(images_NHWC, spec)
    for images_NCHW in (ours_NCHW, torch_ops.color(smooth_NHW, spec)):
        assert np.abs(images_NCHW.numpy() - truth).max() <= 1.01 * normalization.scale / min(normalization.std)
        assert (images_NCHW.numpy() == truth).mean() >= 0.9999
    assert found_N.tolist() == truth_found_N.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_color_of_denoised_crops_completes_the_whole_way(dtype: torch.dtype) -> None:
    images = slices(4, 60, 50)
    crops_NHW = np.empty((4, CROP_SIZE, CROP_SIZE), np.uint8)
    ops.crop_into(list(images.numpy()), crops_NHW)
    ours_NCHW = torch_ops.color(torch.from_numpy(ops.denoise(crops_NHW)), SPEC, dtype=dtype)
    assert_same_bits(ours_NCHW, torch_ops.preprocess(images, SPEC, dtype=dtype)[0])
    assert ours_NCHW.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "view"),
    [
        ((6, 60, 50), lambda a: a[::2]),
        ((3, 60, 50), lambda a: a[:, ::3, ::2]),
        ((3, 60, 50), lambda a: a.transpose(1, 2)),
        ((60, 50, 3), lambda a: a.permute(2, 0, 1)),
        ((1, 60, 50), lambda a: a.expand(3, 60, 50)),
        ((3, 60, 50, 3), lambda a: a.transpose(1, 2)),
        ((3, 60, 50, 3), lambda a: a.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)),
    ],
    ids=["every other image", "strided", "transposed", "images last", "one repeated", "colour turned", "planes first"],
)
def test_strided_views_give_the_same_as_their_copies(shape: tuple[int, ...], view: Callable[[Tensor], Tensor]) -> None:
    strided = view(slices(*shape))
    ours_NCHW, found_N = torch_ops.preprocess(strided, SPEC)
    truth_NCHW, truth_found_N = torch_ops.preprocess(strided.contiguous(memory_format=torch.contiguous_format), SPEC)
    assert_same_bits(ours_NCHW, truth_NCHW)
    assert torch.equal(found_N, truth_found_N) and ours_NCHW.is_contiguous()


def test_strided_crops_give_the_same_as_their_copies() -> None:
    crops_NHW = slices(4, CROP_SIZE, CROP_SIZE)[::2].transpose(1, 2)
    assert_same_bits(torch_ops.color(crops_NHW, SPEC), torch_ops.color(crops_NHW.contiguous(), SPEC))


@pytest.mark.usefixtures("threads")
def test_any_number_of_torch_threads_gives_the_same() -> None:
    images_NHW = slices(260, 3, 2)
    torch.set_num_threads(1)
    truth_NCHW, _ = torch_ops.preprocess(images_NHW, PreprocessSpec(size=1))
    torch.set_num_threads(300)  # more than the core takes
    ours_NCHW, _ = torch_ops.preprocess(images_NHW, PreprocessSpec(size=1))
    assert_same_bits(ours_NCHW, truth_NCHW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_without_data_give_the_shapes_of_tensors_with_data(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        images_NCHW, found_N = torch_ops.preprocess(
            torch.empty(5, 40, 30, 3, dtype=torch.uint8, device="cuda"), SPEC, dtype=dtype
        )
        finished_NCHW = torch_ops.color(torch.empty(5, CROP_SIZE, CROP_SIZE, dtype=torch.uint8), SPEC, dtype=dtype)
    for fake_NCHW, device in ((images_NCHW, "cuda"), (finished_NCHW, "cpu")):
        assert fake_NCHW.shape == (5, 3, 24, 24) and fake_NCHW.dtype is dtype and fake_NCHW.is_contiguous()
        assert fake_NCHW.device.type == device
    assert found_N.shape == (5,) and found_N.dtype is torch.bool and found_N.device.type == "cuda"


def test_an_exported_program_takes_any_batch_before_and_after_its_file() -> None:
    model = Classifier().eval()
    program = torch.export.export(
        model, (slices(3, 40, 30),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=True
    )
    assert [node.target for node in program.graph.nodes].count(torch.ops.gliofed.preprocess.default) == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for module in (program.module(), torch.export.load(file).module()):
        for batch in (1, 2, 5, 40, 0):
            images = slices(batch, 40, 30, seed=batch)
            logits_NK, found_N = module(images)
            truth_NK, truth_found_N = model(images)
            torch.testing.assert_close(logits_NK, truth_NK)
            assert torch.equal(found_N, truth_found_N)


def test_exported_programs_take_images_of_any_size() -> None:
    sizes = {axis: torch.export.Dim(name) for axis, name in enumerate(("batch", "height", "width"))}
    program = torch.export.export(Classifier().eval(), (slices(3, 40, 30, 3),), dynamic_shapes=(sizes,))
    for shape in ((1, 1, 1, 3), (2, 99, 7, 3)):
        assert program.module()(slices(*shape))[0].shape == (shape[0], 4)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_is_one_graph_for_all_batch_sizes() -> None:
    model = Classifier().eval()
    # The default backend compiles C++ for half a minute; graph, guards and shapes are the same in this one.
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(slices(4, 40, 30))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 3, 7):
            images = slices(batch, 40, 30, seed=batch)
            logits_NK, found_N = compiled(images)
            truth_NK, truth_found_N = model(images)
            torch.testing.assert_close(logits_NK, truth_NK)
            assert torch.equal(found_N, truth_found_N)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_themselves_bound_no_size(dtype: torch.dtype) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def both(images: Tensor, crops_NHW: Tensor, spec: PreprocessSpec) -> tuple[Tensor, Tensor]:
        images_NCHW, _ = torch_ops.preprocess(images, spec, dtype=dtype)
        return images_NCHW + 1, torch_ops.color(crops_NHW, spec, dtype=dtype) + 1

    crops_NHW = slices(17, CROP_SIZE, CROP_SIZE)
    both(slices(4, 40, 30), slices(3, CROP_SIZE, CROP_SIZE), SPEC)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 40, 30), (100, 5, 4), (3, 400, 300)):
            ours = both(slices(*shape), crops_NHW, SPEC)
            assert_same_bits(ours[0], torch_ops.preprocess(slices(*shape), SPEC, dtype=dtype)[0] + 1)
            assert_same_bits(ours[1], torch_ops.color(crops_NHW, SPEC, dtype=dtype) + 1)
    assert both(slices(2, 40, 30), crops_NHW, PreprocessSpec(size=9))[0].shape == (2, 3, 9, 9)


@pytest.mark.parametrize("device", [None, "meta"], ids=["with data", "without"])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 9, 9), TypeError, r"images is torch.float32 \[2, 9, 9\], expected uint8 \[N, H, W\]"),
        (torch.zeros(9, 9, dtype=torch.uint8), ValueError, r"images is torch.uint8 \[9, 9\]"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.uint8), ValueError, r"\[2, 3, 9, 9\].*permute\(0, 2, 3, 1\)"),
        (torch.zeros(2, 9, 9, 3, 1, dtype=torch.uint8), ValueError, r"\[2, 9, 9, 3, 1\]"),
    ],
    ids=["floats", "one image", "planes first", "five axes"],
)  # fmt: skip
def test_tensors_that_are_no_batch_of_slices_are_refused(
    images: Tensor, error: type[Exception], message: str, device: str | None
) -> None:
    with pytest.raises(error, match=message):
        torch_ops.preprocess(images.to(device), SPEC)


@pytest.mark.parametrize("device", [None, "meta"], ids=["with data", "without"])
def test_tensors_that_are_no_crops_are_refused(device: str | None) -> None:
    for shape in ((CROP_SIZE, CROP_SIZE), (1, CROP_SIZE, CROP_SIZE - 1), (1, CROP_SIZE, CROP_SIZE, 3)):
        with pytest.raises(ValueError, match=r"expected uint8 \[N, 256, 256\]; kernels.ops.denoise makes them"):
            torch_ops.color(torch.zeros(shape, dtype=torch.uint8, device=device), SPEC)
    with pytest.raises(TypeError, match=r"smooth_NHW is torch\.float32"):
        torch_ops.color(torch.zeros(1, CROP_SIZE, CROP_SIZE, device=device), SPEC)


def test_sides_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images\[0\] has 0 rows and 9 columns"):
        torch_ops.preprocess(torch.zeros(2, 0, 9, dtype=torch.uint8), SPEC)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": torch.float16}, TypeError, "dtype is torch.float16, expected torch.float32 or torch.bfloat16"),
        ({"size": 0}, SpecError, "size is 0, expected an int of 1 to 2048"),
        ({"channel_order": "grb"}, SpecError, "channel_order is 'grb', expected 'rgb' or 'bgr'"),
        ({"image_channel_order": "grb"}, ValueError, "image_channel_order is 'grb', expected 'bgr' or 'rgb'"),
        ({"mean": [0.0, 0.0]}, SpecError, r"mean is \(0.0, 0.0\), expected a tuple of three"),
        ({"std": [1.0, 0.0, 1.0]}, SpecError, "std is"),
        ({"scale": float("nan")}, SpecError, "scale is nan"),
    ],
)
def test_options_out_of_range_are_refused(
    change: dict[str, Any], error: type[Exception], message: str, device: str
) -> None:
    images = torch.zeros(1, 9, 9, dtype=torch.uint8, device=device)
    options = {**SPEC_ARGUMENTS, "image_channel_order": "bgr", "dtype": torch.float32, **change}
    with pytest.raises(error, match=message):
        torch.ops.gliofed.preprocess(images, **options)


class Elsewhere(torch.Tensor):
    """A tensor on a device that this machine lacks."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


def test_tensors_on_a_device_without_a_kernel_are_refused() -> None:
    images = torch.Tensor._make_wrapper_subclass(Elsewhere, (1, CROP_SIZE, CROP_SIZE), dtype=torch.uint8, device="xpu")
    with pytest.raises(NotImplementedError, match=r"gliofed::preprocess was given a tensor on xpu.*\.cpu\(\)"):
        torch_ops.preprocess(images, SPEC)
    with pytest.raises(NotImplementedError, match="gliofed::color was given a tensor on xpu"):
        torch_ops.color(images, SPEC)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda.available()[0], reason=f"kernels.cuda cannot run here: {cuda.available()[1]}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 200, 180), (3, 64, 65, 3), (0, 9, 9)], ids=str)
def test_on_a_gpu_both_operators_give_the_cpus_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images, smooth_NHW = slices(*shape), slices(shape[0], CROP_SIZE, CROP_SIZE)
    ours_NCHW, found_N = torch_ops.preprocess(images.cuda(), SPEC, dtype=dtype)
    truth_NCHW, truth_found_N = torch_ops.preprocess(images, SPEC, dtype=dtype)
    assert_same_bits(ours_NCHW.cpu(), truth_NCHW)
    assert found_N.tolist() == truth_found_N.tolist()
    assert_same_bits(
        torch_ops.color(smooth_NHW.cuda(), SPEC, dtype=dtype).cpu(), torch_ops.color(smooth_NHW, SPEC, dtype=dtype)
    )
