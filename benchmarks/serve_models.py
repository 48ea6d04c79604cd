"""The bundles that suite `serve` serves: VGG19 with random weights, because speed does not depend on training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.inputs import Slices
from export.bundle import write_bundle
from export.onnx import export_onnx
from export.predictor import make_golden
from export.quantize import quantize
from export.signing import new_key
from fl.model.vgg import NetworkSettings, SplitVgg19
from fl.types import CLASSES
from kernels.ops import preprocess
from kernels.spec import UNIT, PreprocessSpec

SIZE = 224
SMALL_WIDTH = 0.125


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A signed bundle and what it was made of. settings: how an endpoint is told to accept it."""

    bundle: Path
    name: str
    preprocess: PreprocessSpec
    model: bytes
    int8_model: bytes | None
    settings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Side of the network's input."""
        return self.preprocess.size


def make_small(folder: Path, slices: Slices) -> Served:
    """A narrow network: what is around it shows better beside little work."""
    return _make(folder / "small", slices, NetworkSettings(width=SMALL_WIDTH), with_int8=False)


def make_full(folder: Path, slices: Slices) -> Served:
    """The study's network at full width, in float32 and int8."""
    return _make(folder / "full", slices, NetworkSettings(), with_int8=True)


def make_network(network: NetworkSettings) -> SplitVgg19:
    """The network with its random weights, the same every time, in evaluation mode."""
    torch.manual_seed(7)
    return SplitVgg19(network).eval()


def _make(folder: Path, slices: Slices, network: NetworkSettings, *, with_int8: bool) -> Served:
    spec = PreprocessSpec(size=SIZE, normalization=UNIT)
    images_NCHW, _ = preprocess(slices.grays(), spec)
    model = make_network(network)
    onnx_bytes, _ = export_onnx(
        model.features(), model.head, preprocess=spec, labels=CLASSES, images_NCHW=images_NCHW[:2]
    )
    int8 = quantize(onnx_bytes, [images_NCHW[at : at + 1] for at in range(len(images_NCHW))]) if with_int8 else None
    key = new_key(folder / "keys")
    bundle = write_bundle(
        folder / "bundle",
        onnx_bytes=onnx_bytes,
        int8_onnx=int8,
        preprocess=spec,
        labels=CLASSES,
        metrics={},
        provenance={"weights": "random"},
        data_kind="phantom",
        key=key,
        golden=make_golden(onnx_bytes, slices.grays()[0][None], spec, int8_onnx=int8),
        name=folder.name,
    )
    return Served(
        bundle=bundle,
        name=folder.name,
        preprocess=spec,
        model=onnx_bytes,
        int8_model=int8,
        settings=(f"trust=[{folder / 'keys' / 'signing.pub'}]",),
    )
