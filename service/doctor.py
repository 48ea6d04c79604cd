"""What this machine has of what gliofed can use, and what each absence means."""

from __future__ import annotations

import importlib.util
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import onnxruntime
import torch

from fl.model.speed import has_fast_bfloat16
from fl.runtime.cluster import num_cores

HUB = "https://download.pytorch.org"
HUB_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked for, what was found, and what that means for a user."""

    what: str
    here: str
    meaning: str


def examine() -> list[Finding]:
    """Look at everything; nothing is changed, and nothing takes longer than a few seconds."""
    return [probe() for probe in PROBES]


def _kernels() -> Finding:
    from kernels import dispatch

    isas = dispatch.isas()
    meaning = "preprocessing in C++" if len(isas) > 1 else "preprocessing in C++, several times slower than with AVX2"
    return Finding(what="compiled kernels", here=f"{dispatch.isa()} (of {', '.join(isas)})", meaning=meaning)


def _cuda_kernels() -> Finding:
    from kernels import cuda

    usable, reason = cuda.available()
    meaning = "kernels.cuda and torch.ops.gliofed preprocess on the GPU" if usable else reason
    return Finding(what="CUDA kernels", here=_yes(usable), meaning=meaning)


def _cpu() -> Finding:
    flags = torch.cpu.get_capabilities()
    found = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if flags.get(name)]
    return Finding(
        what="CPU", here=f"{num_cores()} cores, {' '.join(found) or 'no AVX2'}", meaning="workers: one a core"
    )


def _bfloat16() -> Finding:
    fast = has_fast_bfloat16(torch.device("cpu"))
    meaning = (
        "precision auto computes in bfloat16" if fast else "precision auto computes in float32, about half as fast"
    )
    return Finding(what="bfloat16 on the CPU", here=_yes(fast), meaning=meaning)


def _cuda() -> Finding:
    if torch.cuda.is_available():
        return Finding(
            what="CUDA GPU", here=torch.cuda.get_device_name(), meaning="workers use it; torch.compile is on"
        )
    return Finding(what="CUDA GPU", here="no", meaning="training and serving run on the CPU; nothing else changes")


def _nvcc() -> Finding:
    found = shutil.which("nvcc")
    meaning = "make setup builds the CUDA kernels" if found else "CUDA kernels are left out of the build; no other loss"
    return Finding(what="CUDA compiler (nvcc)", here=found or "no", meaning=meaning)


def _providers() -> Finding:
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Finding(
        what="ONNX Runtime",
        here=", ".join(providers),
        meaning="built-in providers; bundles are served on CPU",
    )


def _dali() -> Finding:
    from kernels import dali

    usable, reason = dali.available()
    on_gpu, gpu_reason = dali.available("gpu")
    here = "CPU and GPU" if on_gpu else "CPU" if usable else "no"
    gpu = "" if on_gpu else f"; kernels.dali has no GPU: {gpu_reason}"
    return Finding(what="NVIDIA DALI", here=here, meaning=f"preprocess.backend may be dali{gpu}" if usable else reason)


def _tensorrt() -> Finding:
    return _package("tensorrt", "TensorRT", "bundles run in ONNX Runtime, which always works")


def _package(module: str, name: str, without: str) -> Finding:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    return Finding(what=name, here=_yes(found), meaning="installed; not used by this version" if found else without)


def _hub() -> Finding:
    try:
        with urllib.request.urlopen(HUB, timeout=HUB_TIMEOUT_SECONDS):
            reached = True
    except OSError as error:
        # an answer of any status is an answer: the host is in reach
        reached = isinstance(error, urllib.request.HTTPError)
    meaning = (
        "model.weights.source torchvision downloads ImageNet weights"
        if reached
        else "set model.weights to a file, or to random with a warm-up of all layers"
    )
    return Finding(what="PyTorch's model hub", here="reached" if reached else "not reached", meaning=meaning)


def _yes(found: bool) -> str:
    return "yes" if found else "no"


PROBES: tuple[Callable[[], Finding], ...] = (
    _kernels,
    _cuda_kernels,
    _cpu,
    _bfloat16,
    _cuda,
    _nvcc,
    _providers,
    _dali,
    _tensorrt,
    _hub,
)
