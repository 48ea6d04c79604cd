from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.endpoint.errors import BadRequest
from service.endpoint.oip import DATATYPES, InferRequest, TensorSpec, WantedOutput, decode_request, encode_response

IMAGES = TensorSpec(name="images", datatype="FP32", shape=(-1, 3, 2, 2))
OUTPUTS = ("logits", "class_maps")
TENSOR = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)


def body_of(header: Any, tail: bytes = b"") -> tuple[memoryview, int | None]:
    head = json.dumps(header).encode()
    return memoryview(head + tail), len(head) if tail else None


def image(**changes: Any) -> dict[str, Any]:
    entry = {"name": "images", "shape": [1, 3, 2, 2], "datatype": "FP32", "data": TENSOR.ravel().tolist()}
    return {key: value for key, value in (entry | changes).items() if value is not ...}


def decode(header: Any, tail: bytes = b"") -> InferRequest:
    return decode_request(*body_of(header, tail), [IMAGES], OUTPUTS)


def binary_image(size: Any = 48, **changes: Any) -> dict[str, Any]:
    return image(data=..., parameters={"binary_data_size": size}, **changes)


# ---- round trips ----


def _finite(dtype: np.dtype[Any]) -> st.SearchStrategy[Any] | None:
    if dtype.kind != "f":
        return None
    return st.floats(allow_nan=False, allow_infinity=False, width=dtype.itemsize * 8)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    dtype = DATATYPES[draw(st.sampled_from(sorted(DATATYPES)))]
    shape = draw(hnp.array_shapes(max_dims=4, max_side=5))
    return draw(hnp.arrays(dtype, shape, elements=_finite(dtype)))


@settings(deadline=None, max_examples=150)
@given(tensor=tensors(), binary=st.booleans(), nested=st.booleans(), id=st.none() | st.text(max_size=5))
def test_what_is_encoded_is_what_is_decoded(tensor: np.ndarray, binary: bool, nested: bool, id: str | None) -> None:
    """A response's tensor, sent back as an input, arrives bit by bit as it left."""
    wanted = InferRequest(id=id, inputs={}, outputs=(WantedOutput(name="images", binary=binary),))
    parts, header_length = encode_response("m", "1", wanted, {"images": tensor})
    data = b"".join(parts)
    header = json.loads(data[:header_length])
    assert (header_length is not None) == binary
    assert header.get("id") == id
    entry = header["outputs"][0]
    if nested and not binary:
        entry["data"] = np.reshape(np.array(entry["data"], object), entry["shape"]).tolist()
    spec = TensorSpec(name="images", datatype=entry["datatype"], shape=(-1,) * tensor.ndim)
    body = body_of({"inputs": [entry]}, data[header_length:] if binary else b"")
    back = decode_request(*body, [spec], OUTPUTS).inputs["images"]
    assert back.dtype == tensor.dtype and back.shape == tensor.shape
    assert back.tobytes() == tensor.tobytes()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_any_bytes_are_decoded_or_refused(data: bytes, header_length: int | None) -> None:
    with pytest.raises(BadRequest):
        decode_request(memoryview(data), header_length, [IMAGES], OUTPUTS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(
    key=st.sampled_from(["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id", "top"]),
    value=JSON,
)
def test_one_odd_value_anywhere_is_taken_or_refused_and_nothing_else(key: str, value: Any) -> None:
    header: Any = {"inputs": [image()]}
    if key == "top":
        header = value
    elif key in ("inputs", "outputs", "id"):
        header[key] = value
    else:
        header["inputs"][0][key] = value
    try:
        decoded = decode(header)
    except BadRequest as error:
        assert str(error)
    else:
        assert decoded.inputs["images"].shape == (1, 3, 2, 2)


# ---- requests ----


def test_a_binary_tensor_is_a_view_of_the_body() -> None:
    body, length = body_of({"inputs": [binary_image()]}, TENSOR.tobytes())
    tensor = decode_request(body, length, [IMAGES], OUTPUTS).inputs["images"]
    assert np.shares_memory(tensor, np.frombuffer(body, np.uint8))
    assert np.array_equal(tensor, TENSOR)


def test_outputs_are_those_asked_for_else_all_and_binary_as_asked() -> None:
    every = decode({"inputs": [image()]}).outputs
    assert every == tuple(WantedOutput(name=name, binary=False) for name in OUTPUTS)
    every = decode({"inputs": [image()], "parameters": {"binary_data_output": True}}).outputs
    assert all(output.binary for output in every)
    mixed = decode(
        {
            "inputs": [image()],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "class_maps"}, {"name": "logits", "parameters": {"binary_data": False}}],
        }
    ).outputs
    assert mixed == (WantedOutput(name="class_maps", binary=True), WantedOutput(name="logits", binary=False))


REFUSED: dict[str, tuple[Any, bytes, str]] = {
    "no inputs": ({}, b"", "'inputs' must be a list"),
    "inputs of another kind": ({"inputs": {"images": 1}}, b"", "'inputs' must be a list"),
    "an empty list": ({"inputs": []}, b"", "missing input 'images'"),
    "no name": ({"inputs": [image(name=...)]}, b"", "needs a 'name'"),
    "unknown input": ({"inputs": [image(name="pixels")]}, b"", "unknown input 'pixels'; the model takes images"),
    "an input twice": ({"inputs": [image(), image()]}, b"", "twice"),
    "another datatype": ({"inputs": [image(datatype="FP64")]}, b"", "datatype 'FP64'; expected FP32"),
    "no datatype": ({"inputs": [image(datatype=...)]}, b"", "datatype None"),
    "no shape": ({"inputs": [image(shape=...)]}, b"", "shape None"),
    "another rank": ({"inputs": [image(shape=[12])]}, b"", r"expected \[-1, 3, 2, 2\]"),
    "another side": ({"inputs": [image(shape=[1, 3, 4, 1])]}, b"", "expected"),
    "no images": ({"inputs": [image(shape=[0, 3, 2, 2], data=[])]}, b"", "shape"),
    "a negative side": ({"inputs": [image(shape=[-1, 3, 2, 2])]}, b"", "shape"),
    "a side that is no whole number": ({"inputs": [image(shape=[1.0, 3, 2, 2])]}, b"", "shape"),
    "a side that is a truth value": ({"inputs": [image(shape=[True, 3, 2, 2])]}, b"", "shape"),
    "a shape past every memory": ({"inputs": [binary_image(shape=[2**62, 3, 2, 2])]}, b"x", "shape"),
    "a large shape and little data": ({"inputs": [binary_image(shape=[2**30, 3, 2, 2])]}, b"x", "binary_data_size"),
    "no data": ({"inputs": [image(data=...)]}, b"", "neither 'data'"),
    "data of another kind": ({"inputs": [image(data="1,2")]}, b"", "neither 'data'"),
    "texts as numbers": ({"inputs": [image(data=["1"] * 12)]}, b"", "other things than FP32"),
    "truth values as numbers": ({"inputs": [image(data=[True] * 12)]}, b"", "other things"),
    "nothing among the numbers": ({"inputs": [image(data=[None] * 12)]}, b"", "other things"),
    "too few numbers": ({"inputs": [image(data=[1.0] * 11)]}, b"", "has 11 values"),
    "nested otherwise": ({"inputs": [image(data=[[1.0] * 6, [1.0] * 6])]}, b"", r"shape \[2, 6\]"),
    "ragged": ({"inputs": [image(data=[[1.0], [1.0, 2.0]])]}, b"", "regular list"),
    "past float32": ({"inputs": [image(data=[1e39] * 12)]}, b"", "NaN or infinity"),
    "past every float": ({"inputs": [image(data=[10**400] * 12)]}, b"", "other things"),
    "both data and a size": ({"inputs": [image(parameters={"binary_data_size": 48})]}, bytes(48), "both"),
    "a size that is not the shape's": ({"inputs": [binary_image(44)]}, bytes(44), "has 48 bytes"),
    "a negative size": ({"inputs": [binary_image(-48)]}, bytes(48), "binary_data_size"),
    "a size as text": ({"inputs": [binary_image("48")]}, bytes(48), "binary_data_size"),
    "a size and no bytes": ({"inputs": [binary_image()]}, bytes(20), "20 are left"),
    "bytes too many": ({"inputs": [binary_image()]}, bytes(49), "1 bytes follow"),
    "not a number": ({"inputs": [binary_image()]}, np.full(12, np.nan, "<f4").tobytes(), "NaN or infinity"),
    "infinity": ({"inputs": [binary_image()]}, np.full(12, -np.inf, "<f4").tobytes(), "NaN or infinity"),
    "unknown output": ({"inputs": [image()], "outputs": [{"name": "mask"}]}, b"", "unknown output 'mask'"),
    "an output twice": ({"inputs": [image()], "outputs": [{"name": "logits"}] * 2}, b"", "twice"),
    "binary_data as a number": (
        {"inputs": [image()], "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]},
        b"",
        "true or false",
    ),
    "parameters of another kind": ({"inputs": [image()], "parameters": []}, b"", "must be an object"),
    "shared memory": ({"inputs": [image(parameters={"shared_memory_region": "r"})]}, b"", "not supported"),
    "an id of another kind": ({"inputs": [image()], "id": 7}, b"", "'id' must be a string"),
    "no object": ([image()], b"", "not a JSON object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(case: str) -> None:
    header, tail, reason = REFUSED[case]
    with pytest.raises(BadRequest, match=reason):
        decode(header, tail)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 100_000, b'{"inputs": NaN}', b"\xff\xfe", b'{"inputs": [' + b"9" * 5000 + b"]}"]
)
def test_what_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest, match=r"not JSON|must be a list"):
        decode_request(memoryview(text), None, [IMAGES], OUTPUTS)


@pytest.mark.parametrize("length", [-1, 13, 10**12])
def test_a_header_longer_than_the_body_is_refused(length: int) -> None:
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        decode_request(memoryview(b"{}"), length, [IMAGES], OUTPUTS)


def test_large_finite_values_are_not_taken_for_infinite() -> None:
    huge = np.full((1, 3, 2, 2), np.finfo(np.float32).max, "<f4")
    with np.errstate(over="ignore"):
        assert np.isinf(huge.sum())
    decoded = decode({"inputs": [binary_image()]}, huge.tobytes())
    assert np.array_equal(decoded.inputs["images"], huge)


# ---- responses ----


def test_the_parts_of_a_response_are_its_header_and_its_binary_tensors_in_order() -> None:
    logits, maps = np.ones((2, 4), np.float32), np.zeros((2, 4, 3, 3), np.float32)
    outputs = (WantedOutput(name="class_maps", binary=True), WantedOutput(name="logits", binary=False))
    wanted = InferRequest(id=None, inputs={}, outputs=outputs)
    parts, length = encode_response("m", "2", wanted, {"logits": logits, "class_maps": maps})
    header = json.loads(bytes(parts[0]))
    assert length == len(parts[0]) and [bytes(part) for part in parts[1:]] == [maps.tobytes()]
    assert (header["model_name"], header["model_version"]) == ("m", "2")
    assert [output["name"] for output in header["outputs"]] == ["class_maps", "logits"]
    assert header["outputs"][0]["parameters"] == {"binary_data_size": maps.nbytes}
    assert header["outputs"][1]["data"] == [1.0] * 8


@pytest.mark.parametrize("binary", [False, True])
def test_classification_gives_the_best_classes_by_name(binary: bool) -> None:
    scores = np.array([[0.5, 3.0, -1.0], [2.0, 1.0, 9.0]], np.float32)
    outputs = (WantedOutput(name="logits", binary=binary, classification=2),)
    parts, _ = encode_response("m", "1", InferRequest(id=None, inputs={}, outputs=outputs), {"logits": scores}, "abc")
    (entry,) = json.loads(bytes(parts[0]))["outputs"]
    assert (entry["datatype"], entry["shape"]) == ("BYTES", [2, 2])
    expected = ["3.000000:1:b", "0.500000:0:a", "9.000000:2:c", "2.000000:0:a"]
    if binary:
        assert bytes(parts[1]) == b"".join(len(text).to_bytes(4, "little") + text.encode() for text in expected)
    else:
        assert entry["data"] == expected


def test_classes_of_a_map_are_refused() -> None:
    outputs = (WantedOutput(name="class_maps", binary=False, classification=1),)
    with pytest.raises(BadRequest, match="no list of scores"):
        encode_response(
            "m", "1", InferRequest(id=None, inputs={}, outputs=outputs), {"class_maps": np.zeros((1, 2, 3, 3), "f4")}
        )


@pytest.mark.parametrize("count", [-1, True, 1.5, "3", math.inf])
def test_an_odd_number_of_classes_is_refused(count: Any) -> None:
    with pytest.raises(BadRequest):
        decode({"inputs": [image()], "outputs": [{"name": "logits", "parameters": {"classification": count}}]})
