"""Which of ONNX Runtime's providers a bundle is served on: chosen once, said in the log, and held to afterwards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from export.card import INPUT_NAME
from export.driver import CPU, CUDA, TENSORRT, Machine, probe
from export.errors import PredictorError

ProviderChoice = Literal["auto", "cpu", "cuda", "tensorrt"]

_LOG = logging.getLogger("gliofed.providers")

_CHOICES: dict[ProviderChoice, tuple[str, ...]] = {"cpu": (CPU,), "cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}
"""TensorRT leaves nodes that it does not take to CUDA; nothing is left to the CPU."""


def resolve_providers(choice: ProviderChoice, machine: Machine | None = None) -> tuple[str, ...]:
    """Return the providers to serve on, for `open_session`, which starts these or fails.

    machine: what the probe found; None: it is asked now, except for cpu. auto: the best that the probe saw start,
    TensorRT before CUDA before the CPU; what was chosen and why nothing better is logged. Raises PredictorError where
    what was asked for cannot start here.
    """
    if choice not in get_args(ProviderChoice):
        raise PredictorError(f"provider is {choice!r}; expected one of {', '.join(get_args(ProviderChoice))}")
    if choice == "cpu":
        return _CHOICES[choice]
    machine = machine or probe()
    if choice != "auto":
        lacking = [name for name in _CHOICES[choice] if name not in machine.providers]
        if lacking:
            raise PredictorError(
                f"provider {choice} was asked for and cannot be used here: {_reasons(machine, lacking)}. Ask for "
                f"{_best(machine)}, or auto, which takes what works; `gliofed doctor` tells more"
            )
        return _CHOICES[choice]
    best = _best(machine)
    better = [name for name in (TENSORRT, CUDA) if name not in machine.providers]
    _LOG.info("provider auto: %s%s", best, f" ({_reasons(machine, better)})" if better else "")
    return _CHOICES[best]


def provider_options(
    *, image_size: int, max_batch: int = 32, cache: Path | None = None, fp16: bool = False
) -> dict[str, dict[str, str]]:
    """Return options by provider, for `open_session`.

    cache: folder for TensorRT's engines and timings; without one each start builds them again, which takes minutes.
    Only the server may write there, for engines are code. fp16: TensorRT may compute in fp16, which a bundle's golden
    scores then may refuse. max_batch: batches above it make TensorRT build anew. CUDA computes in float32, not TF32.
    """
    shapes = {
        f"trt_profile_{which}_shapes": f"{INPUT_NAME}:{batch}x3x{image_size}x{image_size}"
        for which, batch in (("min", 1), ("opt", min(8, max_batch)), ("max", max_batch))
    }
    tensorrt = {"trt_fp16_enable": _flag(fp16), "trt_engine_cache_enable": _flag(cache is not None), **shapes}
    if cache is not None:
        folder = str(cache)
        tensorrt |= {
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": _flag(True),
            "trt_timing_cache_path": folder,
        }
    return {TENSORRT: tensorrt, CUDA: {"use_tf32": _flag(False)}}


def _best(machine: Machine) -> ProviderChoice:
    ranked: tuple[ProviderChoice, ...] = ("tensorrt", "cuda")
    return next((choice for choice in ranked if set(_CHOICES[choice]) <= set(machine.providers)), "cpu")


def _reasons(machine: Machine, names: list[str]) -> str:
    absent: Mapping[str, str] = machine.absent
    facts = {name: absent.get(name, "not seen to start") for name in names}
    if "driver" in absent:
        return absent["driver"]
    return "; ".join(f"{name.removesuffix('ExecutionProvider')}: {why}" for name, why in facts.items())


def _flag(on: bool) -> str:
    return "1" if on else "0"
