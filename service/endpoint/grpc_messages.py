"""Between gRPC's messages and the bodies of the same protocol over HTTP, which one codec reads and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from service.endpoint.body import ALIGNMENT_BYTES
from service.endpoint.errors import BadRequest


def as_body(request: Any) -> tuple[memoryview, int]:
    """Return a ModelInferRequest as the body that the same request has over HTTP, and the length of its header.

    So one decoder judges both. It costs a copy of the tensors: 0.1 ms for an image.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; expected one each"
        )
    if not raw:
        raw = [_contents(tensor) for tensor in request.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": _parameters(tensor.parameters) | {"binary_data_size": len(data)},
        }
        for tensor, data in zip(request.inputs, raw, strict=True)
    ]
    outputs = [
        {"name": output.name, "parameters": _parameters(output.parameters) | {"binary_data": True}}
        for output in request.outputs
    ]
    parameters = _parameters(request.parameters) | {"binary_data_output": True}
    values = {"id": request.id, "parameters": parameters, "inputs": inputs, "outputs": outputs}
    header = json.dumps(values).encode()
    header += b" " * (-len(header) % ALIGNMENT_BYTES)
    return memoryview(b"".join([header, *raw])), len(header)


def _contents(tensor: Any) -> bytes:
    """Return the numbers of a tensor that was spelt out."""
    if tensor.datatype != "FP32":
        raise BadRequest(f"input '{tensor.name[:80]}' has datatype {tensor.datatype[:80]}; expected FP32")
    return np.asarray(tensor.contents.fp32_contents, "<f4").tobytes()


def _parameters(given: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param") for name, value in given.items()}


def as_response(parts: Sequence[bytes | memoryview], _: int | None) -> Any:
    """Return the parts of a body over HTTP as a ModelInferResponse."""
    header, *tensors = parts
    answer = json.loads(bytes(header))
    return pb.ModelInferResponse(
        model_name=answer["model_name"],
        model_version=answer["model_version"],
        id=answer["id"],
        outputs=[{key: output[key] for key in ("name", "datatype", "shape")} for output in answer["outputs"]],
        raw_output_contents=[bytes(tensor) for tensor in tensors],
    )
