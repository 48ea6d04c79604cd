"""The endpoint over gRPC, asked by Triton's own client: same answers, limits, keys and log as over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="needs gliofed[grpc]")
triton = pytest.importorskip("tritonclient.grpc", reason="needs gliofed[grpc]")

from tritonclient.grpc import service_pb2 as pb  # noqa: E402

from export.bundle import load_bundle  # noqa: E402
from export.predictor import open_session  # noqa: E402
from service.endpoint.keys import new_key  # noqa: E402

METHOD = "/inference.GRPCInferenceService/ModelInfer"
MAX_BODY = 1 << 20
SIZE = (1, 3, 48, 48)


@pytest.fixture(scope="module")
def door(serve_module: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Address of the door, the audit log, and keys by role."""
    folder = tmp_path_factory.mktemp("grpc")
    keys = {role: new_key(folder / "keys.json", role, [role]) for role in ("predict", "admin")}
    endpoint = serve_module(
        tiny_bundle,
        settings={
            "grpc_port": 0,
            "access": {"api_keys": str(folder / "keys.json")},
            "audit": {"path": str(folder / "audit.jsonl"), "flush_seconds": 0.02},
            "limits": {"max_body_bytes": MAX_BODY, "max_images": 4, "max_queue": 4, "body_seconds": 1},
        },
    )
    port = endpoint.wait_for("listening for gRPC")["port"]
    return f"127.0.0.1:{port}", folder / "audit.jsonl", keys


@pytest.fixture(scope="module")
def client(door: tuple[str, Path, Any]) -> Iterator[Any]:
    with triton.InferenceServerClient(door[0]) as client:
        yield client


@pytest.fixture(scope="module")
def key(door: tuple[str, Path, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {door[2]['predict']}"}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((2, *SIZE[1:])).astype(np.float32)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, trust: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    session = open_session(load_bundle(tiny_bundle, trust).model_onnx)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def tensor(images: np.ndarray, name: str = "images", datatype: str = "FP32") -> Any:
    sent = triton.InferInput(name, list(images.shape), datatype)
    sent.set_data_from_numpy(images)
    return sent


def test_tritons_own_client_gets_the_models_outputs(
    client: Any, key: dict[str, str], images: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in expected]
    for outputs in (None, wanted, wanted[:1]):
        result = client.infer("tiny", [tensor(images)], outputs=outputs, headers=key, request_id="a-7")
        for name in expected if outputs is None else [output.name() for output in outputs]:
            assert np.array_equal(result.as_numpy(name), expected[name])
        assert result.get_response().id == "a-7"
    best = client.infer(
        "tiny", [tensor(images)], outputs=[triton.InferRequestedOutput("logits", class_count=2)], headers=key
    ).as_numpy("logits")
    assert best.shape == (2, 2)
    assert [int(text.split(b":")[1]) for text in best[:, 0]] == expected["logits"].argmax(axis=1).tolist()


def test_numbers_that_are_spelt_out_are_read_too(
    door: tuple[str, Path, Any], key: dict[str, str], images: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    request = pb.ModelInferRequest(model_name="tiny")
    spelt = request.inputs.add(name="images", datatype="FP32", shape=images.shape)
    spelt.contents.fp32_contents.extend(images.ravel().tolist())
    answer = pb.ModelInferResponse.FromString(ask(door[0], METHOD, request.SerializeToString(), key))
    logits = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 4)
    assert answer.outputs[0].name == "logits" and np.array_equal(logits, expected["logits"])


def test_health_metadata_and_repository(client: Any, key: dict[str, str], door: tuple[str, Path, Any]) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny", headers=key) and client.is_model_ready("tiny", "1", headers=key)
    assert client.get_server_metadata(headers=key).name == "gliofed"
    metadata = client.get_model_metadata("tiny", headers=key)
    assert (metadata.name, list(metadata.versions)) == ("tiny", ["1"])
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("images", "FP32", [-1, *SIZE[1:]])
    ]
    with pytest.raises(triton.InferenceServerException, match="role 'admin'"):
        client.get_model_repository_index(headers=key)
    index = client.get_model_repository_index(headers={"x-api-key": door[2]["admin"]})
    assert [(one.name, one.version, one.state) for one in index.models] == [("tiny", "1", "READY")]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"model_name": "none"}, "NOT_FOUND", "unknown model"),
        ({"model_version": "9"}, "NOT_FOUND", "unknown model"),
        ({"inputs": []}, "INVALID_ARGUMENT", "missing input"),
        ({"inputs": [("pixels", "FP32", SIZE)]}, "INVALID_ARGUMENT", "unknown input"),
        ({"inputs": [("images", "FP64", SIZE)]}, "INVALID_ARGUMENT", "expected FP32"),
        ({"inputs": [("images", "FP32", (1, 3, 47, 48))]}, "INVALID_ARGUMENT", "expected"),
        ({"inputs": [("images", "FP32", (-1, 3, 48, 48))]}, "INVALID_ARGUMENT", "expected"),
        ({"inputs": [("images", "FP32", (2**62, 3, 48, 48))]}, "INVALID_ARGUMENT", "expected"),
        ({"inputs": [("images", "FP32", (2, 3, 48, 48))]}, "INVALID_ARGUMENT", "bytes"),
        ({"raw": []}, "INVALID_ARGUMENT", "bytes"),
        ({"raw": [b"", b""]}, "INVALID_ARGUMENT", "2 entries for 1 inputs"),
        ({"raw": [b"\xff" * 27648]}, "INVALID_ARGUMENT", "NaN"),
        ({"outputs": ["heat"]}, "INVALID_ARGUMENT", "unknown output"),
    ],
)
def test_a_request_that_does_not_fit_is_told_and_never_a_fault(
    door: tuple[str, Path, Any], key: dict[str, str], change: dict[str, Any], code: str, message: str
) -> None:
    request = pb.ModelInferRequest(
        model_name=change.get("model_name", "tiny"), model_version=change.get("model_version", "")
    )
    for name, datatype, shape in change.get("inputs", [("images", "FP32", SIZE)]):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in change.get("outputs", ()):
        request.outputs.add(name=name)
    request.raw_input_contents.extend(change.get("raw", [bytes(27648)] * len(request.inputs)))
    with pytest.raises(grpc.RpcError, match=message) as caught:
        ask(door[0], METHOD, request.SerializeToString(), key)
    assert caught.value.code().name == code


def test_bytes_that_are_no_message_too_many_too_large_or_compressed_are_refused(
    door: tuple[str, Path, Any], key: dict[str, str]
) -> None:
    with pytest.raises(grpc.RpcError, match=r"no inference\.ModelInferRequest"):
        ask(door[0], METHOD, b"\xff\xff", key)
    with pytest.raises(grpc.RpcError) as caught:
        ask(door[0], METHOD, bytes(MAX_BODY + 1), key)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError) as caught:
        ask(door[0], METHOD, bytes(64 * MAX_BODY), key, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        ask(door[0], METHOD.replace("ModelInfer", "ModelStatistics"), b"", key)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(door[0]) as channel, pytest.raises(grpc.RpcError, match="several messages"):
        channel.stream_unary(METHOD)(iter([b"", b""]), metadata=list(key.items()), timeout=20)


def test_without_a_key_no_message_is_read_and_one_that_does_not_come_is_not_waited_for(
    door: tuple[str, Path, Any], client: Any, key: dict[str, str], images: np.ndarray
) -> None:
    def never() -> Iterator[bytes]:
        time.sleep(30)
        yield b""

    with grpc.insecure_channel(door[0]) as channel:
        call = channel.stream_unary(METHOD)
        with pytest.raises(grpc.RpcError) as caught:
            call(never(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        began = time.monotonic()
        stuck = [call.future(never(), metadata=list(key.items()), timeout=20) for _ in range(4)]
        time.sleep(0.3)
        with pytest.raises(triton.InferenceServerException, match="max_queue"):
            client.infer("tiny", [tensor(images)], headers=key)
        assert client.is_server_live()
        assert {one.code() for one in stuck} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert time.monotonic() - began < 10
    assert client.infer("tiny", [tensor(images)], headers=key).as_numpy("logits").shape == (2, 4)


def test_answers_are_written_down_like_those_over_http(
    door: tuple[str, Path, Any], client: Any, key: dict[str, str], images: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    before = len(door[1].read_text().splitlines())
    client.infer("tiny", [tensor(images)], headers=key)
    until = time.monotonic() + 20
    while len(lines := door[1].read_text().splitlines()) == before:
        assert time.monotonic() < until
        time.sleep(0.02)
    line = json.loads(lines[-1])
    assert (line["route"], line["client"], line["status"], line["kind"]) == ("infer", "key:predict", 200, "tensor")
    assert len(line["answers"]) == len(images) and line["image"] and line["model"]["name"] == "tiny"


def test_many_callers_get_their_own_answers(
    client: Any, key: dict[str, str], images: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    def ask_for(index: int) -> np.ndarray:
        one = images[index : index + 1]
        while True:
            try:
                return client.infer("tiny", [tensor(one)], headers=key).as_numpy("logits")
            except triton.InferenceServerException as error:
                assert "max_queue" in str(error)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask_for, [0, 1] * 10))
    for number, answer in enumerate(answers):
        np.testing.assert_allclose(answer[0], expected["logits"][number % 2], rtol=1e-4, atol=1e-5)


def ask(address: str, method: str, message: bytes, metadata: dict[str, str], **options: Any) -> bytes:
    with grpc.insecure_channel(address) as channel:
        answer: bytes = channel.unary_unary(method)(message, metadata=list(metadata.items()), timeout=20, **options)
        return answer
