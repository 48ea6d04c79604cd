"""An ONNX file parsed and compiled: the one way that engines and the check without a GPU share."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from export.errors import EngineError
from export.tensorrt import api


class BuildSettings(BaseModel):
    """How engines are built. Batches are images per call: engines take any from min to max, and are tuned for opt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_batch: int = Field(default=1, ge=1, description="Smallest batch that an engine takes.")
    opt_batch: int = Field(default=8, ge=1, description="Batch that kernels are chosen for.")
    max_batch: int = Field(default=32, ge=1, le=1024, description="Largest batch that an engine takes.")

    @model_validator(mode="after")
    def _ordered(self) -> BuildSettings:
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"min_batch, opt_batch, max_batch are {self.min_batch}, {self.opt_batch}, {self.max_batch}; "
                "expected them in rising order"
            )
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A compiled network. version: the library's. layers: how many of each kind and output type the parser made.

    inputs, outputs: name to (type, shape), -1 being the batch. notes: the library's warnings.
    """

    data: bytes
    version: str
    onnx_sha256: str
    layers: Mapping[str, int]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    seconds: float
    notes: tuple[str, ...]


def compile_plan(
    trt: Any, onnx_bytes: bytes, settings: BuildSettings, *, tf32: bool = False, stored_timings: bytes = b""
) -> tuple[Plan, bytes]:
    """Return the compiled network and the timing cache to store, empty with TensorRT-RTX.

    trt: a module of `api.load`. tf32: float32 convolutions round their inputs to 10 bits. Raises EngineError with what
    the library said, and the node it stopped at.
    """
    started, texts = time.perf_counter(), list[str]()
    logger = api.collecting_logger(trt, texts)
    builder = trt.Builder(logger)
    network = api.create_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_bytes):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{fault.desc()} (node {fault.node_name() or '?'})" for fault in faults) or "; ".join(texts)
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot parse the file: {said}")
    config = api.configure(trt, builder, tf32=tf32)
    config.add_optimization_profile(_profile(builder, network, settings))
    caching = nullcontext(list[bytes]()) if api.is_rtx(trt) else api.timing_cache(config, stored_timings)
    with caching as timings:
        compiled = builder.build_serialized_network(network, config)
    if compiled is None:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot compile the file: {'; '.join(texts) or 'no reason'}"
        )
    plan = Plan(
        data=bytes(memoryview(compiled)),
        version=str(trt.__version__),
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        layers=_count_layers(network),
        inputs={value.name: _describe(value) for value in map(network.get_input, range(network.num_inputs))},
        outputs={value.name: _describe(value) for value in map(network.get_output, range(network.num_outputs))},
        seconds=time.perf_counter() - started,
        notes=tuple(texts),
    )
    return plan, timings[0] if timings else b""


def _profile(builder: Any, network: Any, settings: BuildSettings) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        rest = tuple(value.shape)[1:]
        batches = (settings.min_batch, settings.opt_batch, settings.max_batch)
        profile.set_shape(value.name, *((batch, *rest) for batch in batches))
    return profile


def _count_layers(network: Any) -> dict[str, int]:
    """Return how many layers there are of each kind and type of output, as "CONVOLUTION HALF"."""
    layers = map(network.get_layer, range(network.num_layers))
    kinds = Counter(f"{layer.type.name} {layer.get_output(0).dtype.name}" for layer in layers)
    return dict(sorted(kinds.items()))


def _describe(value: Any) -> tuple[str, tuple[int, ...]]:
    return value.dtype.name, tuple(value.shape)
