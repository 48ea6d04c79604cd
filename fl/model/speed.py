"""How fast, not what: precision, memory layout and compilation, in one place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from fl.model.vgg import SplitVgg19


class SpeedSettings(BaseModel):
    """Speed-only switches; none of them changes what is computed beyond the stated precision."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 where the CPU (AVX512-BF16, AMX) or GPU computes in it, else float32.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile of prefix and tail, once per worker. auto: on CUDA only."
    )
    channels_last: bool = Field(True, description="NHWC memory layout of images, features and convolutions.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Speed settings resolved for one machine."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool
    memory_format: torch.memory_format

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context under which the network runs: bfloat16 autocast, or nothing in float32."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def resolve_execution(settings: SpeedSettings) -> Execution:
    """Decide device, dtype, compilation and layout for the machine that this process runs on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low_precision = settings.precision == "bfloat16" or (settings.precision == "auto" and has_fast_bfloat16(device))
    return Execution(
        device=device,
        dtype=torch.bfloat16 if low_precision else torch.float32,
        compiled=settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda"),
        memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format,
    )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def place(model: SplitVgg19, execution: Execution) -> SplitVgg19:
    """Move the model to its device and layout; compile prefix and tail in place where asked.

    `nn.Module.compile` keeps the module and its parameter names, so checkpoints and exports see no difference.
    """
    model.to(device=execution.device)
    model.to(memory_format=execution.memory_format)
    if execution.compiled:
        parts: tuple[nn.Module, ...] = (model.prefix, model.tail)
        for part in parts:
            if list(part.children()):
                part.compile()  # a second batch size makes one kernel for any: sites' last batches have many sizes
    return model
