"""Preprocessing as torch operators, which torch.compile and torch.export keep whole.

Importing this module defines torch.ops.gliofed.preprocess and torch.ops.gliofed.color; a program that holds them
loads only after that import. `preprocess` and `color` below call them with a PreprocessSpec. All give what
kernels.ops gives, for a batch of images of one size, on torch.get_num_threads() threads.

Suffixes: N images; H, W image rows and columns; C planes in the spec's channel order; S = spec.size.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from kernels import cuda, ops
from kernels.ops import ChannelOrder
from kernels.spec import CROP_SIZE, Normalization, PreprocessSpec

__all__ = ["color", "preprocess"]

_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16"]] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def preprocess(
    images: Tensor, spec: PreprocessSpec, *, dtype: torch.dtype = torch.float32, channel_order: ChannelOrder = "bgr"
) -> tuple[Tensor, Tensor]:
    """The whole way for a batch of slices of one size: head region, denoise, colour, normalise.

    images: uint8 [N, H, W] (grey) or [N, H, W, 3] (colour in channel_order), any strides, on the CPU or, where
    kernels.cuda is available, on CUDA; a batch with planes first goes in as images_NCHW.permute(0, 2, 3, 1). Returns
    images_NCHW [N, 3, S, S], contiguous, torch.float32 or torch.bfloat16, and found_N bool, False where no contour was
    found and the whole image was used. No gradient. Raises TypeError or ValueError for other tensors and dtypes,
    NotImplementedError for other devices. Does not take images of different sizes: kernels.ops.preprocess does.
    """
    result: tuple[Tensor, Tensor] = torch.ops.gliofed.preprocess(
        images, image_channel_order=channel_order, dtype=dtype, **_arguments(spec)
    )
    return result


def color(smooth_NHW: Tensor, spec: PreprocessSpec, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """What comes after denoising: colour, resize, normalise.

    smooth_NHW: uint8 [N, 256, 256] as kernels.ops.denoise makes them, any strides, on the CPU or, where kernels.cuda
    is available, on CUDA. Returns images_NCHW as preprocess does. Errors as in preprocess.
    """
    images_NCHW: Tensor = torch.ops.gliofed.color(smooth_NHW, dtype=dtype, **_arguments(spec))
    return images_NCHW


@torch.library.custom_op("gliofed::preprocess", mutates_args=())
def _preprocess(
    images: Tensor,
    *,
    size: int,
    channel_order: str,
    image_channel_order: str,
    scale: float,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    _require_cpu("preprocess", images)
    order = _require_images(images, image_channel_order)
    images_NCHW, found_N = ops.preprocess(
        list(images.numpy()),
        _spec(size, channel_order, scale, mean, std),
        dtype=_dtype_name(dtype),
        channel_order=order,
        num_threads=_num_threads(images),
    )
    return torch.from_numpy(images_NCHW).view(dtype), torch.from_numpy(found_N)


@_preprocess.register_fake
def _preprocess_shapes(
    images: Tensor, *, image_channel_order: str, dtype: torch.dtype, **spec: Any
) -> tuple[Tensor, Tensor]:
    _require_images(images, image_channel_order)
    return _empty(images, _spec(**spec), dtype), images.new_empty((images.shape[0],), dtype=torch.bool)


@torch.library.custom_op("gliofed::color", mutates_args=())
def _color(
    smooth_NHW: Tensor,
    *,
    size: int,
    channel_order: str,
    scale: float,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    _require_cpu("color", smooth_NHW)
    _require_crops(smooth_NHW)
    spec = _spec(size, channel_order, scale, mean, std)
    num_threads = _num_threads(smooth_NHW)
    images_NCHW = ops.color(smooth_NHW.numpy(), spec, dtype=_dtype_name(dtype), num_threads=num_threads)
    return torch.from_numpy(images_NCHW).view(dtype)


@_color.register_fake
def _color_shapes(smooth_NHW: Tensor, *, dtype: torch.dtype, **spec: Any) -> Tensor:
    _require_crops(smooth_NHW)
    return _empty(smooth_NHW, _spec(**spec), dtype)


if cuda.available()[0]:

    @_preprocess.register_kernel("cuda")
    def _preprocess_on_cuda(
        images: Tensor, *, image_channel_order: str, dtype: torch.dtype, **spec: Any
    ) -> tuple[Tensor, Tensor]:
        order = _require_images(images, image_channel_order)
        if not len(images):
            return _empty(images, _spec(**spec), dtype), images.new_empty((0,), dtype=torch.bool)
        return cuda.preprocess(list(images), _spec(**spec), dtype=_dtype_name(dtype), channel_order=order)

    @_color.register_kernel("cuda")
    def _color_on_cuda(smooth_NHW: Tensor, *, dtype: torch.dtype, **spec: Any) -> Tensor:
        _require_crops(smooth_NHW)
        if not len(smooth_NHW):
            return _empty(smooth_NHW, _spec(**spec), dtype)
        return cuda.color(smooth_NHW, _spec(**spec), dtype=_dtype_name(dtype))


def _arguments(spec: PreprocessSpec) -> dict[str, Any]:
    normalization = spec.normalization
    return {
        "size": spec.size,
        "channel_order": normalization.channel_order,
        "scale": float(normalization.scale),
        "mean": [float(value) for value in normalization.mean],
        "std": [float(value) for value in normalization.std],
    }


def _spec(size: int, channel_order: str, scale: float, mean: list[float], std: list[float]) -> PreprocessSpec:
    """The arguments as a spec, which checks them; raises SpecError."""
    normalization = Normalization(
        channel_order=cast("ChannelOrder", channel_order),
        scale=float(scale),
        mean=cast("tuple[float, float, float]", tuple(mean)),
        std=cast("tuple[float, float, float]", tuple(std)),
    )
    # While a graph is traced, size may be a symbol; int() fixes it, as a model has one size.
    return PreprocessSpec(size=int(size), normalization=normalization)


def _empty(inputs: Tensor, spec: PreprocessSpec, dtype: torch.dtype) -> Tensor:
    _dtype_name(dtype)
    return inputs.new_empty((inputs.shape[0], 3, spec.size, spec.size), dtype=dtype)


def _dtype_name(dtype: torch.dtype) -> Literal["float32", "bfloat16"]:
    if dtype not in _DTYPES:
        raise TypeError(f"dtype is {dtype}, expected torch.float32 or torch.bfloat16")
    return _DTYPES[dtype]


def _num_threads(inputs: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), len(inputs)))


def _require_cpu(name: str, inputs: Tensor) -> None:
    if inputs.device.type != "cpu":
        raise NotImplementedError(
            f"gliofed::{name} was given a tensor on {inputs.device}, but has no kernel for {inputs.device.type} here; "
            "call it with the tensor's .cpu() and move the result"
        )


def _require_images(images: Tensor, image_channel_order: str) -> ChannelOrder:
    expected = "expected uint8 [N, H, W] or [N, H, W, 3]"
    if images.dtype is not torch.uint8:
        raise TypeError(f"images is {_describe(images)}, {expected}")
    if images.ndim != 3 and (images.ndim != 4 or images.shape[3] != 3):
        raise ValueError(f"images is {_describe(images)}, {expected}; planes first: images.permute(0, 2, 3, 1)")
    if image_channel_order not in ("bgr", "rgb"):
        raise ValueError(f"image_channel_order is {image_channel_order!r}, expected 'bgr' or 'rgb'")
    return cast("ChannelOrder", image_channel_order)


def _require_crops(smooth_NHW: Tensor) -> None:
    expected = f"expected uint8 [N, {CROP_SIZE}, {CROP_SIZE}]; kernels.ops.denoise makes them"
    if smooth_NHW.dtype is not torch.uint8:
        raise TypeError(f"smooth_NHW is {_describe(smooth_NHW)}, {expected}")
    if smooth_NHW.ndim != 3 or tuple(smooth_NHW.shape[1:]) != (CROP_SIZE, CROP_SIZE):
        raise ValueError(f"smooth_NHW is {_describe(smooth_NHW)}, {expected}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
