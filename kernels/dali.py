"""Preprocessing by DALI: encoded files in, crops or network input out, on DALI's threads or on a GPU.

The graph: bytes, DALI's image decoder, our operators (a plugin over the core, fn.gliofed.*), arrays. On the CPU the
result is that of kernels.decode and kernels.ops, bit for bit, by two rules:
- DALI decodes only JPEGs that leave a decoder no choice; kernels.decode decodes all other files (PNG, CMYK, turned,
  odd headers), one at a time, and hands DALI their plane.
- A JPEG of one component is decoded to grey, one of three to RGB, which the core makes grey: DALI's own grey differs
  where a colour was clipped. ANY_DATA is never asked for: with it DALI 2.4.0 writes past the end of its buffer.
One difference remains: damage inside a scan that libjpeg conceals is concealed here, while kernels.decode refuses it.
So this is for files that passed kernels.decode once; with_grays lets the caller see whether they still are the same.

On a GPU nvJPEG decodes. Its inverse cosine transform is another, so a level may be one off, and crops with it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels import _C
from kernels.decode import DEFAULT_LIMITS, JPEG_START, DecodeLimits, UnreadableImage, decode_gray, usual_frame
from kernels.ops import normalisation_numbers, usable_threads
from kernels.spec import Box, PreprocessSpec

Device = Literal["cpu", "gpu"]

_MAX_BATCH = 65536
_PLUGIN = "libgliofed_dali-{version}.so"
_MEND = "install the package and build again: make setup"
_DALI_FAILS = "Critical error in pipeline"
# What DALI says about a failure, without the traceback of our graph's definition.
_CAUSE = re.compile(r"encountered:\s*(.*?)\s*(?:\nStacktrace|Current pipeline|$)", re.DOTALL)


class DaliUnavailable(RuntimeError):
    """DALI cannot be used on this machine; the message says why, as available() does."""


class DaliFailure(RuntimeError):
    """DALI could not carry out a batch that kernels.decode reads; the message names its files."""


class CropBatch(NamedTuple):
    """crops_NHW uint8 [N, 256, 256]; boxes as in kernels.ops.crop_into; grays: N planes uint8 [H, W], or none."""

    crops_NHW: NDArray[np.uint8]
    boxes: list[Box | None]
    grays: list[NDArray[np.uint8]]


class ImageBatch(NamedTuple):
    """images_NCHW float32 [N, 3, S, S]; found_N bool, False where the whole image was used.

    On the CPU images_NCHW is a NumPy array, on a GPU a tensor of DALI's, for torch.from_dlpack.
    """

    images_NCHW: Any
    found_N: NDArray[np.bool_]


def available(device: Device = "cpu") -> tuple[bool, str]:
    """Whether DALI can be used on `device`, and else what is missing and how to mend it.

    Where DALI is installed this imports it (0.4 s, 75 MB) and loads the plugin.
    """
    reason = _missing(device)
    return reason is None, reason or ""


def crops(
    encoded: Iterable[bytes | Path],
    *,
    batch_size: int,
    num_threads: int,
    device: Device = "cpu",
    limits: DecodeLimits = DEFAULT_LIMITS,
    with_grays: bool = False,
) -> Iterator[CropBatch]:
    """Decode files and crop them to the head region: kernels.decode.decode_gray, then kernels.ops.crop.

    encoded: JPEG or PNG files, by content or by path, read when their batch is due. Yields their batches in order,
    of batch_size, the last one of what is left; arrays stay valid. num_threads and limits as in kernels.ops and
    kernels.decode. with_grays: also the decoded planes (CPU only). Raises DaliUnavailable or ValueError at once; later
    UnreadableImage, TypeError or OSError, which name the file by its path or as encoded[i], a batch or two before that
    file's turn, and DaliFailure.
    """
    if with_grays and device == "gpu":
        raise ValueError("with_grays needs device 'cpu': planes decoded on a GPU are not those of kernels.decode")
    job = _Job(
        batch_size=batch_size, num_threads=num_threads, device=device, limits=limits, spec=None, with_grays=with_grays
    )
    return map(_crop_batch, _run(encoded, job))


def images(
    encoded: Iterable[bytes | Path],
    spec: PreprocessSpec,
    *,
    batch_size: int,
    num_threads: int,
    device: Device = "cpu",
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> Iterator[ImageBatch]:
    """Decode files and preprocess them: kernels.decode.decode_gray, then kernels.ops.preprocess.

    Arguments, order and errors as in crops. Float32 only, for DALI has no bfloat16.
    """
    job = _Job(
        batch_size=batch_size, num_threads=num_threads, device=device, limits=limits, spec=spec, with_grays=False
    )
    return map(partial(_image_batch, device=device), _run(encoded, job))


def serialized(spec: PreprocessSpec, *, batch_size: int, num_threads: int, device: Device = "cpu") -> bytes:
    """The graph as DALI stores it, for a server that runs it without Python, such as Triton's DALI backend.

    Its input is "encoded", a JPEG's bytes, uint8 [any]; its outputs are an image, float32 [3, S, S], and a box, int32
    [4], all zeros where no head was found. Every file is decoded to RGB, which for a grey JPEG gives the same grey. The
    server must load our plugin, and sets the device, the threads and the batch's size itself. The same arguments give
    the same bytes, and device "gpu" needs no GPU here. Raises DaliUnavailable or ValueError.

    The server decodes what it is sent: files that kernels.decode refuses or turns (CMYK, EXIF) may be answered all the
    same, so whoever faces strangers checks files first.
    """
    usable, reason = available("cpu")
    if not usable:
        raise DaliUnavailable(f"DALI cannot be used: {reason}")
    job = _Job(
        batch_size=batch_size,
        num_threads=num_threads,
        device=device,
        limits=DEFAULT_LIMITS,
        spec=spec,
        with_grays=False,
    )
    dali, trace = import_module("nvidia.dali"), import_module("nvidia.dali._utils.dali_trace")
    define = dali.pipeline_def(batch_size=batch_size, num_threads=usable_threads(num_threads), device_id=None)
    traced = trace.is_tracing_enabled()
    trace.set_tracing(enabled=False)  # else the file would hold paths and lines of this machine's Python code
    try:
        stored = define(_served_graph)(dali.fn, dali.types, job).serialize()
    finally:
        trace.set_tracing(enabled=traced)
    return bytes(stored)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    batch_size: int
    num_threads: int
    device: Device
    limits: DecodeLimits
    spec: PreprocessSpec | None  # None: crops are asked for
    with_grays: bool

    def __post_init__(self) -> None:
        if type(self.batch_size) is not int or not 1 <= self.batch_size <= _MAX_BATCH:
            raise ValueError(f"batch_size is {self.batch_size!r}, expected an int of 1 to {_MAX_BATCH}")
        usable_threads(self.num_threads)
        if self.device not in ("cpu", "gpu"):
            raise ValueError(f"device is {self.device!r}, expected 'cpu' or 'gpu'")


class _File(NamedTuple):
    source: str
    data: bytes
    is_color: bool


def _run(encoded: Iterable[bytes | Path], job: _Job) -> Iterator[tuple[Any, ...]]:
    usable, reason = available(job.device)
    if not usable:
        raise DaliUnavailable(f"DALI cannot be used: {reason}")
    dali = import_module("nvidia.dali")
    waiting: deque[list[_File]] = deque()
    define = dali.pipeline_def(
        batch_size=job.batch_size,
        num_threads=usable_threads(job.num_threads),
        device_id=0 if job.device == "gpu" else None,  # the first of CUDA_VISIBLE_DEVICES
        enable_conditionals=True,
    )(_graph)
    return _outputs(define(dali.fn, dali.types, _feed(encoded, job, waiting), job), job, waiting)


def _served_graph(fn: Any, types: Any, job: _Job) -> tuple[Any, ...]:
    """What a server carries out: images and boxes of JPEGs."""
    assert job.spec is not None
    data = fn.external_source(name="encoded", device="cpu", dtype=types.UINT8, ndim=1)
    cropped, box = fn.gliofed.crop(fn.decoders.image(data, output_type=types.RGB, **_decoder(job)))
    return fn.gliofed.finish(cropped, size=job.spec.size, **normalisation_numbers(job.spec)), box


def _decoder(job: _Job) -> dict[str, Any]:
    return {"device": "mixed" if job.device == "gpu" else "cpu", "jpeg_fancy_upsampling": True}


def _graph(fn: Any, types: Any, feed: Iterator[Any], job: _Job) -> tuple[Any, ...]:
    """What DALI carries out: crops or images, boxes, and decoded planes if asked for."""
    decoder = _decoder(job)
    data, is_color = fn.external_source(feed, num_outputs=2, batch=True, dtype=[types.UINT8, types.BOOL], ndim=[1, 0])
    # An operation of DALI, sample by sample, not of Python: pipeline_def rewrites it.
    if is_color:
        image = fn.decoders.image(data, output_type=types.RGB, **decoder)
    else:
        image = fn.decoders.image(data, output_type=types.GRAY, **decoder)
    result, box = fn.gliofed.crop(image)
    if job.spec is not None:
        result = fn.gliofed.finish(result, size=job.spec.size, **normalisation_numbers(job.spec))
    return (result, box, fn.gliofed.gray(image)) if job.with_grays else (result, box)


def _feed(encoded: Iterable[bytes | Path], job: _Job, waiting: deque[list[_File]]) -> Iterator[Any]:
    """What DALI asks for a batch at a time, ahead of what it gives back; `waiting` keeps what is under way."""
    files = (_read(item, f"encoded[{i}]", job.limits) for i, item in enumerate(encoded))
    while batch := list(islice(files, job.batch_size)):
        waiting.append(batch)
        yield [np.frombuffer(file.data, np.uint8) for file in batch], [np.array(file.is_color) for file in batch]


def _read(item: bytes | Path, name: str, limits: DecodeLimits) -> _File:
    if not isinstance(item, bytes | Path):
        raise TypeError(f"{name} is a {type(item).__name__}, expected bytes or a pathlib.Path")
    source = str(item) if isinstance(item, Path) else name
    data = item.read_bytes() if isinstance(item, Path) else item
    frame = usual_frame(data, limits=limits, source=source)
    if frame is not None:
        return _File(source, data, is_color=frame.num_components == 3)
    gray_HW = decode_gray(data, limits=limits, source=source)
    height, width = gray_HW.shape
    return _File(source, b"P5 %d %d 255\n" % (width, height) + gray_HW.tobytes(), is_color=False)


def _outputs(pipeline: Any, job: _Job, waiting: deque[list[_File]]) -> Iterator[tuple[Any, ...]]:
    while True:
        try:
            outputs = pipeline.run()
        except StopIteration:
            return
        except Exception as error:
            # What reading raised passes as it is; DALI's own failures come in half a dozen kinds.
            if not str(error).startswith(_DALI_FAILS):
                raise
            raise _fault(waiting[0], job.limits, error) from error
        waiting.popleft()
        yield outputs


def _fault(batch: list[_File], limits: DecodeLimits, error: Exception) -> Exception:
    """The file that a batch failed for, in the words of kernels.decode where it refuses it as well."""
    for file in batch:
        try:
            if file.data.startswith(JPEG_START):
                decode_gray(file.data, limits=limits, source=file.source)
        except UnreadableImage as refusal:
            return refusal
    # The samples that DALI numbers are those of a branch of the graph, not of the batch.
    where = (
        batch[0].source if len(batch) == 1 else f"one of {len(batch)} files, {batch[0].source} to {batch[-1].source}"
    )
    cause = _CAUSE.search(str(error))
    text = cause.group(1) if cause else str(error)
    return DaliFailure(f"{where}: DALI fails ({text}), kernels.decode does not; use kernels.decode and kernels.ops")


def _crop_batch(outputs: tuple[Any, ...]) -> CropBatch:
    crops_NHW, corners_N4, *grays = outputs
    return CropBatch(
        crops_NHW=_on_host(crops_NHW),
        boxes=[Box(*corners) if any(corners) else None for corners in _on_host(corners_N4).tolist()],
        grays=[np.array(plane) for planes in grays for plane in planes],
    )


def _image_batch(outputs: tuple[Any, ...], device: Device) -> ImageBatch:
    images_NCHW, corners_N4 = outputs
    return ImageBatch(
        images_NCHW=images_NCHW.as_tensor() if device == "gpu" else _on_host(images_NCHW),
        found_N=np.asarray(_on_host(corners_N4).any(axis=1)),
    )


def _on_host(batch: Any) -> NDArray[Any]:
    # A view: DALI's default execution gives every batch memory of its own.
    return np.asarray(batch.as_cpu().as_tensor())


@cache
def _missing(device: Device) -> str | None:
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return f"the package nvidia-dali-cuda130 is not installed; {_MEND}"
    dali = import_module("nvidia.dali")
    plugin = Path(str(_C.__file__)).with_name(_PLUGIN.format(version=dali.__version__))
    if not plugin.exists():
        others = sorted(path.name for path in plugin.parent.glob(_PLUGIN.format(version="*")))
        return f"{plugin.name} is not in {plugin.parent} (there: {', '.join(others) or 'no plugin'}); {_MEND}"
    try:
        import_module("nvidia.dali.plugin_manager").load_library(str(plugin))
    except RuntimeError as error:
        return f"{plugin} does not load ({error}); {_MEND}"
    if device == "cpu":
        return None
    if "gliofed__Crop" not in dali.backend.RegisteredGPUOps():
        return "the plugin was built without CUDA; build it where nvcc is on the PATH: make setup"
    return None if dali.backend.GetCUDADeviceCount() else "no CUDA device is visible"
