"""What this machine has of what gliofed can use, and what each absence means."""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from export.driver import CUDA, TENSORRT, Machine, probe
from service.extras import HOW_TO_TRAIN, TRAINING

HUB = "https://download.pytorch.org"
HUB_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked for, what was found, and what that means for a user."""

    what: str
    here: str
    meaning: str


def examine() -> list[Finding]:
    """Look at everything; nothing is changed, and nothing takes longer than a few seconds.

    Without the training packages nothing is asked of them, nor of any network.
    """
    return [probe() for probe in (*PROBES, *(() if _absent() else TRAINING_PROBES))]


def _training() -> Finding:
    if absent := _absent():
        meaning = f"predict, serve and bundle work here; without {', '.join(absent)} nothing is trained: {HOW_TO_TRAIN}"
        return Finding(what="training packages", here="no", meaning=meaning)
    return Finding(what="training packages", here="yes", meaning="every command works here")


def _absent() -> list[str]:
    return sorted(name for name in TRAINING if find_spec(name) is None)


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
    flags = Path("/proc/cpuinfo").read_text().split()
    found = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    cores = len(os.sched_getaffinity(0))
    return Finding(
        what="CPU",
        here=f"{cores} cores, {' '.join(found) or 'no AVX2'}",
        meaning="workers and served calls: one a core",
    )


def _bfloat16() -> Finding:
    import torch

    from fl.model.speed import has_fast_bfloat16

    fast = has_fast_bfloat16(torch.device("cpu"))
    meaning = (
        "precision auto computes in bfloat16" if fast else "precision auto computes in float32, about half as fast"
    )
    return Finding(what="bfloat16 on the CPU", here=_yes(fast), meaning=meaning)


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(
            what="CUDA GPU", here=torch.cuda.get_device_name(), meaning="workers use it; torch.compile is on"
        )
    return Finding(what="CUDA GPU", here="no", meaning="training and serving run on the CPU; nothing else changes")


def _nvcc() -> Finding:
    found = shutil.which("nvcc")
    meaning = "make setup builds the CUDA kernels" if found else "CUDA kernels are left out of the build; no other loss"
    return Finding(what="CUDA compiler (nvcc)", here=found or "no", meaning=meaning)


def _driver() -> Finding:
    machine = _machine()
    if machine.driver is None:
        return Finding(what="NVIDIA driver", here="no", meaning=machine.absent["driver"])
    gpus = ", ".join(f"{gpu.name} ({gpu.architecture})" for gpu in machine.gpus) or "no GPU visible"
    return Finding(
        what="NVIDIA driver",
        here=f"{machine.driver}, CUDA {machine.cuda}: {gpus}",
        meaning="engines are for the first GPU",
    )


def _providers() -> Finding:
    machine = _machine()
    absent = [f"{name}: {machine.absent[name]}" for name in (TENSORRT, CUDA) if name in machine.absent]
    return Finding(
        what="ONNX Runtime's providers",
        here=", ".join(name.removesuffix("ExecutionProvider") for name in machine.providers),
        meaning="; ".join(["bundles are served on the first, unless told otherwise", *absent]),
    )


def _dali() -> Finding:
    from kernels import dali

    usable, reason = dali.available()
    on_gpu, gpu_reason = dali.available("gpu")
    here = "CPU and GPU" if on_gpu else "CPU" if usable else "no"
    gpu = "" if on_gpu else f"; kernels.dali has no GPU: {gpu_reason}"
    return Finding(what="NVIDIA DALI", here=here, meaning=f"preprocess.backend may be dali{gpu}" if usable else reason)


def _tensorrt() -> Finding:
    machine = _machine()
    if machine.tensorrt is None:
        return Finding(what="TensorRT", here="no", meaning=f"no engines are built here: {machine.absent['tensorrt']}")
    meaning = "builds engines for the GPU" if machine.gpus else "builds engines where there is a GPU; here is none"
    return Finding(what="TensorRT", here=machine.tensorrt, meaning=meaning)


def _tensorrt_rtx() -> Finding:
    machine = _machine()
    if machine.tensorrt_rtx is None:
        return Finding(what="TensorRT-RTX", here="no", meaning=machine.absent["tensorrt_rtx"])
    return Finding(
        what="TensorRT-RTX", here=machine.tensorrt_rtx, meaning="checks, without a GPU, that TensorRT takes our files"
    )


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


@cache
def _machine() -> Machine:
    return probe()


def _yes(found: bool) -> str:
    return "yes" if found else "no"


PROBES: tuple[Callable[[], Finding], ...] = (
    _training,
    _kernels,
    _cuda_kernels,
    _cpu,
    _nvcc,
    _driver,
    _providers,
    _dali,
    _tensorrt,
    _tensorrt_rtx,
)
TRAINING_PROBES: tuple[Callable[[], Finding], ...] = (_bfloat16, _cuda, _hub)
