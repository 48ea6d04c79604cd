"""Where a network's first weights come from, and what input each source expects.

A source fills the convolutions; the head is always drawn fresh from the job's seed.
"""

from __future__ import annotations

import pickle
import re
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fl.errors import WeightsError
from fl.model.vgg import BLOCKS, SplitVgg19, initialise_from_nothing, initialise_head
from fl.random import derive_seed
from kernels.spec import UNIT, Normalization

IMAGENET_TORCHVISION = Normalization(
    channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""Input convention of torchvision's ImageNet weights."""

IMAGENET_CAFFE = Normalization(channel_order="bgr", scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
"""Input convention of the original VGG weights (Caffe, Keras): BGR levels minus the ImageNet mean."""

HEAD_SLICES = Normalization(channel_order="bgr", scale=1 / 255, mean=(0.25, 0.25, 0.25), std=(0.25, 0.25, 0.25))
"""For a network that starts from nothing: about zero mean and unit spread over cropped head slices."""

NORMALIZATIONS: dict[str, Normalization] = {
    "torchvision": IMAGENET_TORCHVISION,
    "caffe": IMAGENET_CAFFE,
    "unit": UNIT,
}

HUB_TIMEOUT_SECONDS = 30.0

_HUB_FAULTS = (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError, TypeError)
"""No way to the hub, a broken answer, or a file in its cache that is no checkpoint of this network."""


class WeightSettings(BaseModel):
    """Source of the convolutions' first weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["torchvision", "file", "random"] = Field(
        "torchvision",
        description="torchvision: ImageNet VGG19 from PyTorch's hub (cached). file: a safetensors file. "
        "random: nothing pretrained; needs a warm-up of all layers.",
    )
    path: Path | None = Field(None, description="The safetensors file, for source `file`.")
    normalization: Literal["torchvision", "caffe", "unit"] | None = Field(
        None, description="Input convention of the file's weights; required for source `file`."
    )

    @model_validator(mode="after")
    def _file_is_complete(self) -> Self:
        if (self.source == "file") != (self.path is not None):
            raise ValueError(
                f"path goes with source `file` and with no other; got source {self.source!r}, path {self.path}"
            )
        if (self.source == "file") != (self.normalization is not None):
            raise ValueError(
                "normalization goes with source `file` and with no other: torchvision (RGB, ImageNet mean and std), "
                "caffe (BGR 0-255 minus mean) or unit (0-1)"
            )
        return self

    def input_normalization(self) -> Normalization:
        """Return the input convention of the weights that this source gives."""
        if self.source == "file":
            assert self.normalization is not None
            return NORMALIZATIONS[self.normalization]
        return IMAGENET_TORCHVISION if self.source == "torchvision" else HEAD_SLICES


def load_weights(model: SplitVgg19, settings: WeightSettings, *, seed: int) -> None:
    """Fill the model in place: convolutions from the source, the head fresh from the seed.

    Raises WeightsError where the source cannot be had or does not fit, saying what to do.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "initial-weights"))
    if settings.source == "random":
        initialise_from_nothing(model, generator)
        return
    state = _from_hub() if settings.source == "torchvision" else read_convolutions(_existing(settings.path))
    _fill(model.features(), state, str(settings.path or "torchvision"))
    initialise_head(model, generator)


def read_convolutions(path: Path) -> dict[str, Tensor]:
    """Read `block{b}_conv{c}.weight|bias` in float32 from a safetensors file, completing a VGG16 to VGG19.

    VGG19 has one more convolution in blocks 3, 4 and 5 than VGG16. Where a block's fourth is absent it becomes the
    identity (Dirac kernel, zero bias), which passes the non-negative output of the ReLU before it through
    unchanged: the VGG19 then computes exactly the VGG16's function (Net2Net, Chen et al. 2015).
    """
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); give a file with tensors block1_conv1.weight ..."
        ) from error
    present = {name.removesuffix(".weight") for name in state if re.fullmatch(r"block\d_conv\d\.weight", name)}
    for block, (depth, _) in enumerate(BLOCKS, 1):
        last = f"block{block}_conv{depth}"
        if depth == 4 and last not in present and f"block{block}_conv3" in present:
            weight = torch.zeros_like(state[f"block{block}_conv3.weight"])
            nn.init.dirac_(weight)
            state[f"{last}.weight"] = weight
            state[f"{last}.bias"] = torch.zeros(weight.shape[0])
    return state


def _existing(path: Path | None) -> Path:
    if path is None or not path.is_file():
        raise WeightsError(
            f"model.weights.path: no file at {path}; give an existing .safetensors file or another source"
        )
    return path


def _fill(features: nn.Sequential, state: dict[str, Tensor], source: str) -> None:
    convolutions = {name: layer for name, layer in features.named_children() if isinstance(layer, nn.Conv2d)}
    for name, layer in convolutions.items():
        for part in ("weight", "bias"):
            target: Tensor = getattr(layer, part)
            found = state.get(f"{name}.{part}")
            if found is None or found.shape != target.shape:
                have = "nothing" if found is None else f"shape {tuple(found.shape)}"
                raise WeightsError(
                    f"{source}: {name}.{part} has {have}, the network needs {tuple(target.shape)}; "
                    "pretrained VGG weights fit model.network.width 1.0 only"
                )
            target.data.copy_(found)


def _from_hub() -> dict[str, Tensor]:
    """Return torchvision's ImageNet VGG19 convolutions under the layers' own names."""
    from torchvision.models import VGG19_Weights, vgg19

    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HUB_TIMEOUT_SECONDS)  # urllib would wait for ever on a firewalled host
    try:
        network = vgg19(weights=VGG19_Weights.IMAGENET1K_V1)
    except _HUB_FAULTS as error:
        raise WeightsError(
            f"torchvision's VGG19 weights could not be had ({error or type(error).__name__}). Either copy a whole "
            f"vgg19-dcbb9e9d.pth from a machine with access into {Path(torch.hub.get_dir()) / 'checkpoints'}, or set "
            "model.weights to {source: file, path: ..., normalization: ...}, or to {source: random} with "
            "fl.warmup.layers: all"
        ) from error
    finally:
        socket.setdefaulttimeout(previous)
    names = [f"block{block}_conv{conv}" for block, (depth, _) in enumerate(BLOCKS, 1) for conv in range(1, depth + 1)]
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    return {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in zip(names, convolutions, strict=True)
        for part in ("weight", "bias")
    }
