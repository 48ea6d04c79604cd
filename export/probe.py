"""What export.driver runs in a process of its own: `python -m export.probe STEP...`, one JSON line for each step.

Each line is written before the next step begins, so that a step that ends the process takes no other's answer along.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_CUDA, _NVIDIA = "libcuda.so.1", Path("/proc/driver/nvidia/version")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

RELU = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""An ONNX file of one ReLU, enough to see a provider start; written out, for onnx is not installed where we serve."""


def _driver() -> dict[str, Any]:
    try:
        cuda = ctypes.CDLL(_CUDA)
    except OSError as error:
        return {"why": f"{_CUDA} does not load ({error}): no NVIDIA driver is installed, or passed to this container"}
    if (status := cuda.cuInit(0)) != 0:
        return {"why": f"{_CUDA} is there but cuInit fails with status {status}: see dmesg and nvidia-smi"}
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return {
        "cuda": f"{number.value // 1000}.{number.value % 1000 // 10}",
        "driver": _driver_version() or "unknown",
        "gpus": [_gpu(cuda, index) for index in range(count.value)],
    }


def _gpu(cuda: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return {
        "name": name.value.decode(errors="replace"),
        "architecture": f"sm_{major.value}{minor.value}",
        "memory_bytes": memory.value,
    }


def _driver_version() -> str | None:
    try:
        found = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _NVIDIA.read_text())
    except OSError:
        return None
    return found.group(1) if found else None


def _library(name: str) -> dict[str, Any]:
    if find_spec(name) is None:
        return {"why": f"the package {name} is not installed"}
    return {"version": str(import_module(name).__version__)}


def _provider(name: str) -> dict[str, Any]:
    runtime = import_module("onnxruntime")
    if name not in runtime.get_available_providers():
        return {"why": f"this ONNX Runtime was built without it; it has {', '.join(runtime.get_available_providers())}"}
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(RELU, options, providers=[name])
    if name not in session.get_providers():
        return {"why": "it does not start: its libraries (CUDA, cuDNN, TensorRT) or the driver are missing or too old"}
    return {"version": str(runtime.__version__)}


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "driver": _driver,
    "tensorrt_rtx": lambda: _library("tensorrt_rtx"),
    "tensorrt": lambda: _library("tensorrt"),
    "CUDAExecutionProvider": lambda: _provider("CUDAExecutionProvider"),
    "TensorrtExecutionProvider": lambda: _provider("TensorrtExecutionProvider"),
}


def main(steps: list[str]) -> None:
    """Carry the steps out in order and print what each found."""
    for step in steps:
        try:
            found = STEPS[step]()
        except Exception as error:  # whatever a library throws is an answer: it cannot be used here
            found = {"why": f"{type(error).__name__}: {error}"}
        print(json.dumps({"step": step, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
