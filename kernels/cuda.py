"""kernels.ops on an NVIDIA GPU: decoded slices that lie on the device in, network input on the device out.

The same bits as kernels.ops. Everything is put on torch's current stream of the images' device and nothing waits for
it: boxes stay on the device until the caller asks for them. Suffixes as in kernels.ops. An image is uint8 [H, W] or
[H, W, 3]: a torch tensor on the device, or whatever has __cuda_array_interface__ or __dlpack__ (nvImageCodec, CuPy,
DALI, JAX); it is not copied unless the pixels of a row lie apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernels.ops import ChannelOrder, DTypeName, is_bgr, normalisation_numbers, require_sides
from kernels.spec import CROP_SIZE, PreprocessSpec

_IMPORT_ERROR = ""
try:
    from kernels import _cuda
except ImportError as error:
    _cuda = None  # type: ignore[assignment]
    _IMPORT_ERROR = str(error)

if TYPE_CHECKING:
    import torch

__all__ = ["available", "color", "crop", "denoise", "finish", "preprocess"]


def available() -> tuple[bool, str]:
    """Whether this machine can run this module, and else why not. Imports torch only where there is a GPU."""
    if _cuda is None:
        advice = "install nvcc 12.4 or newer, then install gliofed again"
        return False, f"kernels was compiled without CUDA ({_IMPORT_ERROR}): {advice}"
    reason = _cuda.reason_unavailable()
    if reason:
        return False, reason
    import torch

    if not torch.cuda.is_available():
        return False, f"torch {torch.__version__} cannot use the GPU; install a build for CUDA"
    return True, ""


def crop(images: Sequence[Any], *, channel_order: ChannelOrder = "bgr") -> tuple[torch.Tensor, torch.Tensor]:
    """The head region of each slice at 256x256: crops_NHW uint8 [N, 256, 256] and boxes_N4 int32 [N, 4].

    A box is left, top, right, bottom as kernels.spec.Box; all zero where no contour was found and the whole image
    was used. Raises TypeError or ValueError for other arrays, RuntimeError where available() is false.
    """
    import torch

    bgr = is_bgr(channel_order)
    checked = _require_images(images)
    device = _require_device(checked)
    views = [_view(image) for image in checked]
    crops_NHW = torch.empty((len(views), CROP_SIZE, CROP_SIZE), dtype=torch.uint8, device=device)
    boxes_N4 = torch.empty((len(views), 4), dtype=torch.int32, device=device)
    workspace = _workspace(views, device)
    addresses = (crops_NHW.data_ptr(), boxes_N4.data_ptr(), workspace.data_ptr())
    _cuda.crop(views, bgr, *addresses, **_stream(device))
    return crops_NHW, boxes_N4


def denoise(crops_NHW: Any) -> torch.Tensor:
    """Smooth crops of crops, uint8 [N, 256, 256] both: the last that does not depend on a spec. Errors as in crop."""
    import torch

    crops = _require_crops("crops_NHW", crops_NHW)
    device = _require_device([crops])
    smooth_NHW = torch.empty_like(crops)
    _cuda.denoise(crops.data_ptr(), len(crops), smooth_NHW.data_ptr(), **_stream(device))
    return smooth_NHW


def color(smooth_NHW: Any, spec: PreprocessSpec, *, dtype: DTypeName = "float32") -> torch.Tensor:
    """Colour, resize and normalise smooth crops: images_NCHW float32 or bfloat16 [N, 3, S, S].

    smooth_NHW: uint8 [N, 256, 256] on the device. Errors as in crop.
    """
    smooth = _require_crops("smooth_NHW", smooth_NHW)
    return _finish({"float32": "color_float32", "bfloat16": "color_bfloat16"}, smooth, spec, dtype)


def finish(crops_NHW: Any, spec: PreprocessSpec, *, dtype: DTypeName = "float32") -> torch.Tensor:
    """`denoise` then `color`, in one pass. Arguments, result and errors as in color."""
    crops = _require_crops("crops_NHW", crops_NHW)
    return _finish({"float32": "finish_float32", "bfloat16": "finish_bfloat16"}, crops, spec, dtype)


def preprocess(
    images: Sequence[Any], spec: PreprocessSpec, *, dtype: DTypeName = "float32", channel_order: ChannelOrder = "bgr"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole way for a batch, crop then finish: images_NCHW as in finish, and found_N bool as in kernels.ops.

    images: sizes may differ. Errors as in crop.
    """
    import torch

    bgr, out_dtype = is_bgr(channel_order), _torch_dtype(dtype)
    checked = _require_images(images)
    device = _require_device(checked)
    views = [_view(image) for image in checked]
    images_NCHW = _allocate(len(views), spec, out_dtype, device)
    boxes_N4 = torch.empty((len(views), 4), dtype=torch.int32, device=device)
    workspace = _workspace(views, device)
    addresses = (images_NCHW.data_ptr(), boxes_N4.data_ptr(), spec.size, workspace.data_ptr())
    run = _cuda.preprocess_float32 if dtype == "float32" else _cuda.preprocess_bfloat16
    numbers = normalisation_numbers(spec) | _stream(device)
    run(views, bgr, *addresses, **numbers)
    return images_NCHW, boxes_N4[:, 2] > boxes_N4[:, 0]


def _finish(names: dict[str, str], crops: torch.Tensor, spec: PreprocessSpec, dtype: DTypeName) -> torch.Tensor:
    out_dtype = _torch_dtype(dtype)
    device = _require_device([crops])
    images_NCHW = _allocate(len(crops), spec, out_dtype, device)
    numbers = normalisation_numbers(spec) | _stream(device)
    getattr(_cuda, names[dtype])(crops.data_ptr(), len(crops), images_NCHW.data_ptr(), spec.size, **numbers)
    return images_NCHW


def _torch_dtype(dtype: DTypeName) -> torch.dtype:
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise ValueError(f"dtype is {dtype!r}, expected one of {sorted(dtypes)}")
    return dtypes[dtype]


def _require_images(images: Sequence[Any]) -> list[torch.Tensor]:
    return [_require_image(f"images[{i}]", image) for i, image in enumerate(images)]


def _require_image(name: str, image: Any) -> torch.Tensor:
    tensor = _as_tensor(name, image)
    if tensor.ndim != 2 and (tensor.ndim != 3 or tensor.shape[2] != 3):
        raise ValueError(f"{name} is uint8 {list(tensor.shape)}, expected [H, W] or [H, W, 3]")
    require_sides(name, *tensor.shape[:2])
    adjacent = (1,) if tensor.ndim == 2 else (3, 1)
    return tensor if tensor.stride()[1:] == adjacent else tensor.contiguous()


def _as_tensor(name: str, array: Any) -> torch.Tensor:
    import torch
    from torch.utils.dlpack import from_dlpack

    if isinstance(array, torch.Tensor):
        tensor = array
    elif hasattr(array, "__cuda_array_interface__"):
        tensor = torch.as_tensor(array)
    elif hasattr(array, "__dlpack__"):
        tensor = from_dlpack(array)
    else:
        raise TypeError(f"{name} is a {type(array).__name__}, expected an array on the device")
    if tensor.dtype != torch.uint8:
        raise TypeError(f"{name} is {tensor.dtype}, expected torch.uint8")
    return tensor


def _require_crops(name: str, crops_NHW: Any) -> torch.Tensor:
    tensor = _as_tensor(name, crops_NHW)
    if tensor.ndim != 3 or tensor.shape[1:] != (CROP_SIZE, CROP_SIZE):
        raise ValueError(f"{name} is uint8 {list(tensor.shape)}, expected [N, {CROP_SIZE}, {CROP_SIZE}]")
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 4 == 0 else tensor.clone()


def _require_device(tensors: Sequence[torch.Tensor]) -> torch.device:
    """The one device of all tensors; the current one for an empty batch."""
    import torch

    devices = {tensor.device for tensor in tensors}
    if any(device.type != "cuda" for device in devices) or len(devices) > 1:
        names = sorted(str(device) for device in devices)
        raise ValueError(f"arrays lie on {names}, expected all on one CUDA device; kernels.ops takes those of the CPU")
    usable, reason = available()
    if not usable:
        raise RuntimeError(f"kernels.cuda cannot run here: {reason}")
    return devices.pop() if devices else torch.device("cuda", torch.cuda.current_device())


def _view(tensor: torch.Tensor) -> tuple[int, int, int, int, int]:
    height, width = tensor.shape[:2]
    channels = 1 if tensor.ndim == 2 else 3
    return tensor.data_ptr(), height, width, tensor.stride(0), channels


def _allocate(num_images: int, spec: PreprocessSpec, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch

    return torch.empty((num_images, 3, spec.size, spec.size), dtype=dtype, device=device)


def _workspace(views: Sequence[tuple[int, int, int, int, int]], device: torch.device) -> torch.Tensor:
    # Torch hands freed memory only to later work of the same stream, so it may be dropped once the work is queued.
    import torch

    return torch.empty(_cuda.workspace_bytes(views), dtype=torch.uint8, device=device)


def _stream(device: torch.device) -> dict[str, int]:
    import torch

    return {"device": device.index, "stream": torch.cuda.current_stream(device).cuda_stream}
