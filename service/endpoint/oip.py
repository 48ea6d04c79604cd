"""Open Inference Protocol v2: bytes to tensors and tensors to bytes. Pure functions, no HTTP.

A body is a JSON header, followed by the bytes of those tensors that are not spelt out in it, little-endian and
row-major, in the header's order ("binary tensor data extension"). Source: github.com/kserve/open-inference-protocol,
docs of Triton's protocol extensions for binary data and classification.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.endpoint.errors import BadRequest

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}

_ELSEWHERE = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """An input or output of a model. shape: -1 where any length will do."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the tensor as the protocol's metadata has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedOutput:
    """One output a client asked for. classification: so many best classes instead of the tensor; 0: the tensor."""

    name: str
    binary: bool
    classification: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """What a client sent: tensors by name, and what it wants back."""

    id: str | None
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[WantedOutput, ...]


def decode_request(
    body: memoryview, header_length: int | None, inputs: Sequence[TensorSpec], outputs: Sequence[str]
) -> InferRequest:
    """Return the request in a body; binary tensors are views of the body, not copies.

    header_length: of the Inference-Header-Content-Length header; None where there is no such header, and the whole
    body is JSON. inputs: what the model takes, all of it needed. outputs: names of what it gives; a client that
    names none gets all. Raises BadRequest for anything that does not fit, and for values that are not finite.
    """
    length = len(body) if header_length is None else header_length
    if not 0 <= length <= len(body):
        raise BadRequest(f"Inference-Header-Content-Length is {length}; the body has {len(body)} bytes")
    header = _parse(bytes(body[:length]))
    tensors = _decode_inputs(_list(header, "inputs", needed=True), body[length:], inputs)
    default_binary = _flag(_parameters(header, "the request"), "binary_data_output", default=False)
    return InferRequest(
        id=_id(header),
        inputs=tensors,
        outputs=_decode_wanted(_list(header, "outputs", needed=False), outputs, default_binary),
    )


def encode_response(
    model_name: str,
    model_version: str,
    request: InferRequest,
    tensors: Mapping[str, NDArray[Any]],
    labels: Sequence[str] = (),
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of a response body, in order, and the length of its JSON header where binary tensors follow.

    labels: names of classes, for the classification extension.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    for wanted in request.outputs:
        entry, data = _encode_output(wanted, tensors[wanted.name], labels)
        described.append(entry)
        if data is not None:
            binary.append(data)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer, separators=(",", ":")).encode()
    return [header, *binary], len(header) if binary else None


# ---- requests ----


def _parse(header: bytes) -> dict[str, Any]:
    try:
        value = json.loads(header, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request's {len(header)} header bytes are not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the request's header is not a JSON object; expected {'inputs': [...]}")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number; expected finite values")


def _list(header: Mapping[str, Any], key: str, *, needed: bool) -> list[dict[str, Any]]:
    value = header.get(key)
    if value is None and not needed:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRequest(f"'{key}' must be a list of objects")
    for item in value:
        if not isinstance(item.get("name"), str):
            raise BadRequest(f"each of '{key}' needs a 'name', a string")
    names = [item["name"] for item in value]
    if len(set(names)) != len(names):
        raise BadRequest(f"'{key}' names a tensor twice: {', '.join(sorted(names))[:200]}")
    return value


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    value = holder.get("parameters", {})
    if not isinstance(value, dict):
        raise BadRequest(f"'parameters' of {what} must be an object")
    if found := [key for key in _ELSEWHERE if key in value]:
        raise BadRequest(f"{what}: {found[0]} is not supported; send the tensor in the request")
    return value


def _flag(parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter '{key}' must be true or false")
    return value


def _id(header: Mapping[str, Any]) -> str | None:
    value = header.get("id")
    if value is not None and not isinstance(value, str):
        raise BadRequest("'id' must be a string")
    return value


def _decode_inputs(
    given: Sequence[dict[str, Any]], tail: memoryview, specs: Sequence[TensorSpec]
) -> dict[str, NDArray[Any]]:
    known = {spec.name: spec for spec in specs}
    tensors, position = {}, 0
    for item in given:
        if (spec := known.get(item["name"])) is None:
            raise BadRequest(f"unknown input '{item['name'][:80]}'; the model takes {', '.join(known)}")
        shape = _shape(item, spec)
        size = _parameters(item, f"input '{spec.name}'").get("binary_data_size")
        if size is None:
            tensors[spec.name] = _from_json(item, spec, shape)
            continue
        _check_binary_size(size, item, spec, shape, len(tail) - position)
        tensors[spec.name] = np.frombuffer(tail[position : position + size], DATATYPES[spec.datatype]).reshape(shape)
        position += size
    if missing := known.keys() - tensors.keys():
        raise BadRequest(f"missing input '{min(missing)}'")
    if position != len(tail):
        raise BadRequest(f"{len(tail) - position} bytes follow the last binary tensor; expected none")
    for name, tensor in tensors.items():
        _require_finite(name, tensor)
    return tensors


def _shape(item: Mapping[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    """Return the tensor's shape, which fits the spec and is not empty."""
    if item.get("datatype") != spec.datatype:
        raise BadRequest(f"input '{spec.name}' has datatype {_short(item.get('datatype'))}; expected {spec.datatype}")
    shape = item.get("shape")
    fits = (
        isinstance(shape, list)
        and len(shape) == len(spec.shape)
        and all(type(side) is int and 0 < side < 1 << 31 for side in shape)
        and all(wanted in (-1, side) for side, wanted in zip(shape, spec.shape, strict=True))
    )
    if not fits:
        raise BadRequest(
            f"input '{spec.name}' has shape {_short(shape)}; expected {list(spec.shape)}, where -1 is any length >= 1"
        )
    assert isinstance(shape, list)
    return tuple(shape)


def _check_binary_size(
    size: object, item: Mapping[str, Any], spec: TensorSpec, shape: Sequence[int], num_left: int
) -> None:
    needed = math.prod(shape) * DATATYPES[spec.datatype].itemsize
    if type(size) is not int or size != needed:
        raise BadRequest(
            f"binary_data_size of input '{spec.name}' is {_short(size)}; {spec.datatype} of shape {list(shape)} has "
            f"{needed} bytes"
        )
    if "data" in item:
        raise BadRequest(f"input '{spec.name}' has both 'data' and binary_data_size; send one of them")
    if size > num_left:
        raise BadRequest(f"input '{spec.name}' needs {size} binary bytes; {num_left} are left in the body")


def _from_json(item: Mapping[str, Any], spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor spelt out as numbers, flat or nested as its shape says."""
    data, dtype = item.get("data"), DATATYPES[spec.datatype]
    if not isinstance(data, list):
        raise BadRequest(f"input '{spec.name}' has neither 'data', a list, nor binary_data_size")
    try:
        given = np.asarray(data)
        if dtype.kind in "iu" and given.dtype.kind in "fO":  # where some need 64 bits, NumPy takes floats or objects
            given = _whole_numbers(data, dtype)
    except (ValueError, OverflowError, TypeError) as error:
        raise BadRequest(f"'data' of input '{spec.name}' is not a regular list of numbers: {error}") from error
    if given.dtype.kind not in ("b" if dtype.kind == "b" else "iuf" if dtype.kind == "f" else "iu"):
        raise BadRequest(f"'data' of input '{spec.name}' holds other things than {spec.datatype} numbers")
    if given.shape not in (shape, (math.prod(shape),)):
        raise BadRequest(
            f"'data' of input '{spec.name}' has {given.size} values in shape {list(given.shape)[:8]}; expected "
            f"{math.prod(shape)}, flat or in shape {list(shape)}"
        )
    with np.errstate(over="ignore"):  # an overflow is infinite, which is refused below with all that is not finite
        return np.ascontiguousarray(given, dtype).reshape(shape)


def _whole_numbers(data: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers that are whole as they were sent, without a way over floats. Raises TypeError, OverflowError."""
    given = np.asarray(data, dtype=object)
    if not all(type(value) is int for value in given.flat):
        raise TypeError("some are not whole")
    return given.astype(dtype)


def _require_finite(name: str, tensor: NDArray[Any]) -> None:
    if tensor.dtype.kind != "f":
        return
    # One pass and no array of flags: a sum is finite unless a value is not, or the values are huge.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(tensor.sum()):
            return
    if not np.isfinite(tensor).all():
        raise BadRequest(f"input '{name}' holds NaN or infinity; expected finite values")


def _decode_wanted(
    given: Sequence[dict[str, Any]], known: Sequence[str], default_binary: bool
) -> tuple[WantedOutput, ...]:
    if not given:
        return tuple(WantedOutput(name=name, binary=default_binary) for name in known)
    wanted = []
    for item in given:
        if (name := item["name"]) not in known:
            raise BadRequest(f"unknown output '{name[:80]}'; the model gives {', '.join(known)}")
        parameters = _parameters(item, f"output '{name}'")
        count = parameters.get("classification", 0)
        if type(count) is not int or count < 0:
            raise BadRequest(f"parameter 'classification' of output '{name}' must be a whole number of classes")
        wanted.append(
            WantedOutput(
                name=name,
                binary=_flag(parameters, "binary_data", default=default_binary),
                classification=count,
            )
        )
    return tuple(wanted)


def _short(value: object) -> str:
    return repr(value)[:80]


# ---- responses ----


def _encode_output(
    wanted: WantedOutput, tensor: NDArray[Any], labels: Sequence[str]
) -> tuple[dict[str, Any], bytes | memoryview | None]:
    if wanted.classification:
        return _encode_classes(wanted, tensor, labels)
    entry = {"name": wanted.name, "datatype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
    if not wanted.binary:
        return entry | {"data": tensor.ravel().tolist()}, None
    data = np.ascontiguousarray(tensor).data.cast("B")
    return entry | {"parameters": {"binary_data_size": data.nbytes}}, data


def _encode_classes(
    wanted: WantedOutput, scores_NC: NDArray[Any], labels: Sequence[str]
) -> tuple[dict[str, Any], bytes | None]:
    """Encode the best classes as texts `score:index:label`, best first."""
    if scores_NC.ndim != 2:
        raise BadRequest(f"output '{wanted.name}' is no list of scores; 'classification' is not for it")
    count = min(wanted.classification, scores_NC.shape[1])
    best_NK = np.argsort(-scores_NC, axis=1, kind="stable")[:, :count]
    texts = [
        ":".join([f"{scores_NC[row, index]:f}", str(index), *labels[index : index + 1]])
        for row, best_K in enumerate(best_NK)
        for index in best_K
    ]
    entry: dict[str, Any] = {"name": wanted.name, "datatype": "BYTES", "shape": [len(scores_NC), count]}
    if not wanted.binary:
        return entry | {"data": texts}, None
    encoded = [text.encode() for text in texts]
    data = b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    return entry | {"parameters": {"binary_data_size": len(data)}}, data
