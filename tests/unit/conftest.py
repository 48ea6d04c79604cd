"""A tiny bundle: what its model computes does not matter to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle import Golden, canonical_json, write_bundle
from export.confidence import Confidence
from export.signing import SigningKey
from kernels.spec import PreprocessSpec

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
SPEC = PreprocessSpec(size=64)
SHAPES: dict[str, list[str | int | None]] = {"logits": ["N", 4], "class_maps": ["N", 4, 2, 2], "embedding": ["N", 6]}


def tiny_onnx(spec: PreprocessSpec = SPEC, labels: tuple[str, ...] = LABELS, scale: float = 1.0) -> onnx.ModelProto:
    """Return a file that says what ours say."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32) * np.float32(scale), "head.weight")
    nodes = [helper.make_node("Identity", ["head.weight"], [name]) for name in SHAPES]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in SHAPES.items()]
    model = helper.make_model(helper.make_graph(nodes, "tiny", [], outputs, [weight]))
    properties = {"gliofed.preprocess": canonical_json(spec.to_json()), "gliofed.labels": json.dumps(labels)}
    helper.set_model_props(model, properties)
    return model


def tiny_golden(*, int8: bool = False) -> Golden:
    grays = np.random.default_rng(0).integers(0, 255, (2, 40, 50), np.uint8)
    scores = np.ones((2, 4), np.float32)
    return Golden(grays_NHW=grays, logits_NC=scores, int8_logits_NC=scores * np.float32(1.01) if int8 else None)


WriteBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def make_onnx() -> Callable[..., onnx.ModelProto]:
    return tiny_onnx


@pytest.fixture(scope="session")
def write(signing_key: SigningKey) -> WriteBundle:
    """Write a tiny signed bundle at a path, with `changes` of write_bundle's arguments."""

    def write_tiny(path: Path, **changes: Any) -> Path:
        arguments: dict[str, Any] = {
            "onnx_bytes": tiny_onnx().SerializeToString(deterministic=True),
            "preprocess": SPEC,
            "labels": LABELS,
            "metrics": {"test": {"as_published": {"accuracy": 0.9672, "confusion": [[3, 1], [0, 4]]}}},
            "provenance": {"seed": 7, "scenario": "iid"},
            "data_kind": "phantom",
            "key": signing_key,
            "golden": tiny_golden(),
        }
        return write_bundle(path, **(arguments | changes))

    return write_tiny


@pytest.fixture(scope="session")
def full() -> dict[str, Any]:
    """Arguments of `write` for a bundle that has everything a bundle can have."""
    return {
        "int8_onnx": tiny_onnx(scale=0.5).SerializeToString(deterministic=True),
        "golden": tiny_golden(int8=True),
        "engines": {"sm_90-fp16": b"engine for an H100", "sm_80-int8": b"for an A100"},
        "engine_report": {"sm_90-fp16": {"seconds": 12.5}},
        "confidence": Confidence(num_classes=4, temperature=1.5).to_files() | {"confidence.npz": b"arrays"},
    }
