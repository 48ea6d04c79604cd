"""The config.pbtxt of each model in the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.card import INPUT_NAME, OUTPUT_NAMES
from export.triton.pbtxt import Word, render
from export.triton.settings import TritonSettings

LABELS_FILE, WARMUP_FILE = "labels.txt", "golden_images"

ENCODED, BOXES = "encoded", "boxes"

_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int32)": "TYPE_INT32", "tensor(int64)": "TYPE_INT64"}

_ACCELERATOR = """
To let ONNX Runtime's TensorRT provider compile the network when Triton starts (minutes, once for each cache), add:
optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt"
  parameters { key: "precision_mode" value: "FP16" }
  parameters { key: "trt_engine_cache_enable" value: "true" }
  parameters { key: "trt_engine_cache_path" value: "/a/folder/that/only/the/server/can/write" } } ] } }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """A network's tensors without the batch. inputs, outputs: name to (ONNX Runtime's type, dims)."""

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


def network(name: str, signature: Signature, settings: TritonSettings, *, has_golden: bool, origin: str) -> str:
    """Return the config of a network that ONNX Runtime runs. origin: what it was made from, for the comment."""
    message = _head(name, settings, backend="onnxruntime") | _body(signature, settings, has_golden=has_golden)
    return render(message, origin + (_ACCELERATOR if settings.device == "gpu" else ""))


def engines(
    name: str,
    signature: Signature,
    settings: TritonSettings,
    files: Mapping[str, str],
    *,
    has_golden: bool,
    origin: str,
) -> str:
    """Return the config of a network that TensorRT runs. files: engine's file by compute capability ("9.0").

    There is no default file: on another GPU Triton refuses the model instead of taking an engine that is not for it.
    """
    message = _head(name, settings, backend="tensorrt") | _body(signature, settings, has_golden=has_golden)
    pairs = [{"key": capability, "value": file} for capability, file in sorted(files.items())]
    return render(message | {"cc_model_filenames": pairs}, origin)


def preprocessing(name: str, image: tuple[int, ...], settings: TritonSettings, origin: str) -> str:
    """Return the config of DALI's part: a JPEG's bytes to a prepared image and the head's box."""
    message = _head(name, settings, backend="dali") | {
        "input": [{"name": ENCODED, "data_type": Word("TYPE_UINT8"), "dims": [-1], "allow_ragged_batch": True}],
        "output": [
            {"name": INPUT_NAME, "data_type": Word("TYPE_FP32"), "dims": list(image)},
            {"name": BOXES, "data_type": Word("TYPE_INT32"), "dims": [4]},
        ],
        **_scheduling(settings),
        "parameters": [{"key": "num_threads", "value": {"string_value": str(settings.preprocessing_threads)}}],
    }
    return render(message, origin)


def ensemble(name: str, steps: tuple[str, str], signature: Signature, settings: TritonSettings, origin: str) -> str:
    """Return the config that leads JPEGs through preprocessing and network. steps: names of the two models."""
    before, after = steps
    same = [{"key": output, "value": output} for output in signature.outputs]
    message = {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": settings.max_batch,
        "version_policy": _versions(settings),
        "input": [{"name": ENCODED, "data_type": Word("TYPE_UINT8"), "dims": [-1]}],
        "output": [
            *_tensors(signature.outputs, labelled=True),
            {"name": BOXES, "data_type": Word("TYPE_INT32"), "dims": [4]},
        ],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": before,
                    "model_version": -1,
                    "input_map": [{"key": ENCODED, "value": ENCODED}],
                    "output_map": [{"key": INPUT_NAME, "value": "prepared"}, {"key": BOXES, "value": BOXES}],
                },
                {
                    "model_name": after,
                    "model_version": -1,
                    "input_map": [{"key": INPUT_NAME, "value": "prepared"}],
                    "output_map": same,
                },
            ]
        },
    }
    return render(message, origin)


def _head(name: str, settings: TritonSettings, *, backend: str) -> dict[str, Any]:
    return {
        "name": name,
        "backend": backend,
        "max_batch_size": settings.max_batch,
        "version_policy": _versions(settings),
    }


def _body(signature: Signature, settings: TritonSettings, *, has_golden: bool) -> dict[str, Any]:
    return {
        "input": _tensors(signature.inputs, labelled=False),
        "output": _tensors(signature.outputs, labelled=True),
        **_scheduling(settings),
        "model_warmup": [
            _warmup(batch, signature, has_golden=has_golden) for batch in sorted({1, *settings.preferred_batches})
        ],
    }


def _versions(settings: TritonSettings) -> dict[str, Any]:
    return {"specific": {"versions": [settings.version]}}


def _tensors(tensors: Mapping[str, tuple[str, tuple[int, ...]]], *, labelled: bool) -> list[dict[str, Any]]:
    listed = []
    for name, (kind, dims) in tensors.items():
        tensor: dict[str, Any] = {"name": name, "data_type": Word(_TYPES[kind]), "dims": list(dims)}
        if labelled and name == OUTPUT_NAMES[0]:
            tensor["label_filename"] = LABELS_FILE
        listed.append(tensor)
    return listed


def _scheduling(settings: TritonSettings) -> dict[str, Any]:
    preferred: Sequence[int] = settings.preferred_batches
    return {
        "instance_group": [{"count": settings.instances, "kind": Word(f"KIND_{settings.device.upper()}")}],
        "dynamic_batching": {
            "preferred_batch_size": list(preferred),
            "max_queue_delay_microseconds": settings.max_queue_delay_us,
            "default_queue_policy": {
                "timeout_action": Word("REJECT"),
                "default_timeout_microseconds": settings.queue_timeout_us,
                "allow_timeout_override": True,
                "max_queue_size": settings.max_queue_size,
            },
        },
    }


def _warmup(batch: int, signature: Signature, *, has_golden: bool) -> dict[str, Any]:
    """Return a warm-up of `batch` requests, each of the one stored image, or of zeros without golden images."""
    ((name, (kind, dims)),) = signature.inputs.items()
    data: dict[str, Any] = {"input_data_file": WARMUP_FILE} if has_golden else {"zero_data": True}
    value = {"data_type": Word(_TYPES[kind]), "dims": list(dims), **data}
    return {"name": f"batch_{batch}", "batch_size": batch, "inputs": [{"key": name, "value": value}]}
