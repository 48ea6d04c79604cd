"""The endpoint as a hospital meets it: a process of its own, asked over loopback."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pydicom
import pytest
import tritonclient.http as triton
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from tritonclient.utils import InferenceServerException

from export.bundle import load_bundle
from export.predictor import Predictor, open_session
from export.signing import Trust
from kernels.decode import decode_gray

COMPRESSIONS = (None, "gzip", "deflate")


@pytest.fixture(scope="module")
def endpoint(serve_module: Any, tiny_bundle: Path) -> Any:
    return serve_module(tiny_bundle)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((2, 3, 48, 48)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, images: np.ndarray, trust: Trust) -> dict[str, np.ndarray]:
    session = open_session(load_bundle(tiny_bundle, trust).model_onnx)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


WAYS = list(itertools.product((True, False), (True, False), COMPRESSIONS, COMPRESSIONS, (False, True)))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
def test_tritons_own_client_gets_the_models_outputs(
    endpoint: Any, images: np.ndarray, expected: dict[str, np.ndarray], way: tuple[Any, ...]
) -> None:
    binary_in, binary_out, request_compression, response_compression, is_async = way
    sent = triton.InferInput("images", list(images.shape), "FP32")
    sent.set_data_from_numpy(images, binary_data=binary_in)
    options = {
        "model_name": "tiny",
        "inputs": [sent],
        "outputs": [triton.InferRequestedOutput(name, binary_data=binary_out) for name in expected],
        "request_id": "a-7",
        "request_compression_algorithm": request_compression,
        "response_compression_algorithm": response_compression,
    }
    with triton.InferenceServerClient(endpoint.address) as client:
        result = client.async_infer(**options).get_result() if is_async else client.infer(**options)
        for name, tensor in expected.items():
            assert np.array_equal(result.as_numpy(name), tensor)
        assert result.get_response()["id"] == "a-7"


# ---- files to answers ----


def test_a_file_gets_the_predictors_answer_however_it_comes(
    endpoint: Any, tiny_bundle: Path, trust: Any, slice_jpeg: bytes, slice_png: bytes
) -> None:
    predictor = Predictor(load_bundle(tiny_bundle, trust))
    with endpoint.client() as client:
        for kind, data in (("jpeg", slice_jpeg), ("png", slice_png)):
            (expected,) = predictor.answer([decode_gray(data)])
            raw = client.post("/v1/predict", content=data).json()
            form = client.post("/v1/predict", files={"file": ("../../Secret^Name.jpg", data)}).json()
            packed = client.post(
                "/v1/predict", content=gzip.compress(data), headers={"content-encoding": "gzip"}
            ).json()
            assert raw == form == packed
            assert {key: raw[key] for key in expected.to_json()} == json.loads(json.dumps(expected.to_json()))
            assert raw["image"] == {
                "sha256": hashlib.sha256(data).hexdigest(),
                "kind": kind,
                "frame": 0,
                "num_frames": 1,
                "remarks": [],
            }
            assert raw["model"]["name"] == "tiny" and raw["model"]["labels"] == list(expected.labels)
            maps = np.array([raw["heatmap"]["maps"][label] for label in expected.labels], np.float32)
            assert np.array_equal(maps, expected.class_maps_Chw)
            assert raw["heatmap"]["shape"] == list(maps.shape[1:])


def test_the_slice_and_the_overlay_come_only_where_asked_for(endpoint: Any, slice_png: bytes) -> None:
    with endpoint.client() as client:
        plain = client.post("/v1/predict", content=slice_png).json()
        full = client.post("/v1/predict?slice=true&overlay=true", content=slice_png).json()
    assert plain.keys() == full.keys() - {"slice_png", "overlay_png"}
    gray = decode_gray(slice_png)
    assert np.array_equal(decode_gray(base64.b64decode(full["slice_png"])), gray)
    overlay = cv2.imdecode(np.frombuffer(base64.b64decode(full["overlay_png"]), np.uint8), cv2.IMREAD_COLOR)
    assert overlay.shape == (*gray.shape, 3) and (np.ptp(overlay.astype(int), axis=2) > 0).any()


def test_what_is_served_is_told_with_its_limits(endpoint: Any) -> None:
    with endpoint.client() as client:
        (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["version"], model["data_kind"]) == ("tiny", "1", "phantom")
    assert model["limits"] and model["intended_use"] and model["input_size"] == 48


BAD_FILES = {
    "nothing": (b"", 400, "empty"),
    "text": (b"%PDF-1.4 a report of Secret^Name", 415, "expected a JPEG or PNG"),
    "half a jpeg": (b"\xff\xd8\xff\xe0 half", 400, "corrupt|truncated"),
    "dicom in name only": (bytes(128) + b"DICM" + bytes(200), 400, "."),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_the_reason(endpoint: Any, case: str) -> None:
    data, status, reason = BAD_FILES[case]
    with endpoint.client() as client:
        for answer in (client.post("/v1/predict", content=data), client.post("/v1/predict", files={"file": data})):
            assert answer.status_code == status
            assert re.search(reason, answer.json()["error"])


ODD_REQUESTS = [
    ("POST", "/v1/predict?frame=-1", {}, 400),
    ("POST", "/v1/predict?frame=one", {}, 400),
    ("POST", "/v1/predict?model=other", {}, 404),
    ("POST", "/v1/predict", {"files": {"image": b"x"}}, 400),
    ("POST", "/v1/predict", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
    ("POST", "/v1/predict", {"content": b"x", "headers": {"content-encoding": "br"}}, 415),
    ("POST", "/v1/predict", {"content": b"x", "headers": {"content-encoding": "gzip"}}, 400),
    ("POST", "/v1/predict", {"content": gzip.compress(b"x")[:-4], "headers": {"content-encoding": "gzip"}}, 400),
    ("POST", "/v1/predict", {"content": zlib.compress(b"x") + b"y", "headers": {"content-encoding": "deflate"}}, 400),
    ("GET", "/v1/predict", {}, 405),
    ("DELETE", "/v2", {}, 405),
    ("GET", "/v2/models/other", {}, 404),
    ("GET", "/v2/models/tiny/versions/9", {}, 404),
    ("GET", "/v2/models/tiny/versions/9/ready", {}, 404),
    ("POST", "/v2/models/other/infer", {"content": b"{}"}, 404),
    ("POST", "/v2/models/tiny/infer", {"content": b""}, 400),
    ("POST", "/v2/models/tiny/infer", {"content": b"{}", "headers": {"inference-header-content-length": "-2"}}, 400),
    ("POST", "/v2/models/tiny/infer", {"content": b"{}", "headers": {"inference-header-content-length": "3"}}, 400),
    ("POST", "/v2/repository/models/tiny/load", {"content": b"{}"}, 409),
    ("POST", "/v2/repository/index", {"content": b"[]"}, 400),
    ("GET", "/v2/..%2f..%2fetc/passwd", {}, 404),
    ("GET", "/no%ff\ud7ff", {}, 404),
]


@pytest.mark.parametrize(("method", "path", "options", "status"), ODD_REQUESTS)
def test_odd_requests_are_refused_with_an_error_body(
    endpoint: Any, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    with endpoint.client() as client:
        answer = client.request(method, path, **options)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"} and answer.json()["error"]


def test_the_protocols_metadata_and_health_are_as_tritons_client_expects(endpoint: Any) -> None:
    with triton.InferenceServerClient(endpoint.address) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "gliofed"
        metadata = client.get_model_metadata("tiny")
        assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 48, 48]}]
        assert {output["name"] for output in metadata["outputs"]} >= {"logits", "class_maps"}
        assert client.get_model_config("tiny")["input"][0]["dims"] == [3, 48, 48]
        assert client.get_model_repository_index() == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
        (count,) = [one["inference_count"] for one in client.get_inference_statistics("tiny")["model_stats"]]
        assert count >= 0


def test_classes_come_by_name_where_asked_for(endpoint: Any, images: np.ndarray, expected: Any) -> None:
    sent = triton.InferInput("images", list(images.shape), "FP32")
    sent.set_data_from_numpy(images)
    wanted = triton.InferRequestedOutput("logits", class_count=2)
    with triton.InferenceServerClient(endpoint.address) as client:
        texts = client.infer("tiny", [sent], outputs=[wanted]).as_numpy("logits")
    best = expected["logits"].argmax(axis=1)
    assert [int(row[0].split(b":")[1]) for row in texts] == best.tolist()


def test_values_without_a_finite_answer_and_too_many_images_are_refused(endpoint: Any) -> None:
    huge = np.full((1, 3, 48, 48), 3e38, np.float32)
    many = np.zeros((17, 3, 48, 48), np.float32)
    with triton.InferenceServerClient(endpoint.address) as client:
        for images, reason in ((huge, "no finite answer"), (many, "at most 16")):
            sent = triton.InferInput("images", list(images.shape), "FP32")
            sent.set_data_from_numpy(images)
            with pytest.raises(InferenceServerException, match=reason):
                client.infer("tiny", [sent])


def test_the_figures_count_what_was_asked(endpoint: Any, slice_jpeg: bytes) -> None:
    def figures(client: httpx.Client) -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    counted = 'gliofed_requests_total{method="POST",route="/v1/predict",status="200"}'
    with endpoint.client() as client:
        before = figures(client)
        label = client.post("/v1/predict", content=slice_jpeg).json()["label"]
        client.get("/a/path/of/Secret^Name")
        after = figures(client)
    assert after[counted] == before.get(counted, 0) + 1
    answered = f'gliofed_answers_total{{label="{label}",model="tiny",version="1"}}'
    assert after[answered] == before.get(answered, 0) + 1
    assert after["gliofed_ready"] == 1 and after["gliofed_queue_depth"] == 0
    assert not any("Secret" in key for key in after)
    assert "Secret" not in endpoint.log_file.read_text()


def dicom_file(frames_NHW: np.ndarray) -> bytes:
    """Return an MR image of several frames that names a patient."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = uid.MRImageStorage, "1.2.826.0.1.3680043.8.498.77"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = "1.2.826.0.1.3680043.8.498.5", "1.2.3.6", "MR"
    image.PatientName, image.PatientID = "Secret^Name", "SECRET-77"
    image.NumberOfFrames, image.Rows, image.Columns = frames_NHW.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.WindowCenter, image.WindowWidth = 128, 256
    image.add_new("PixelData", "OB", frames_NHW.tobytes())
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, image, enforce_file_format=True)
    return buffer.getvalue()


def test_a_dicom_file_is_answered_frame_by_frame_and_names_nobody(endpoint: Any, slice_png: bytes) -> None:
    gray = decode_gray(slice_png)
    data = dicom_file(np.stack([gray, gray[::-1], gray[:, ::-1]]))
    with endpoint.client() as client:
        middle = client.post("/v1/predict", content=data)
        first = client.post("/v1/predict?frame=0&slice=true", files={"file": ("Secret^Name.dcm", data)})
        beyond = client.post("/v1/predict?frame=3", content=data)
    assert middle.json()["image"] | {"sha256": ""} == {
        "sha256": "",
        "kind": "dicom",
        "frame": 1,
        "num_frames": 3,
        "remarks": [],
    }
    assert first.json()["image"]["frame"] == 0
    shown = decode_gray(base64.b64decode(first.json()["slice_png"]))
    assert np.abs(shown.astype(int) - gray).max() <= 1
    assert beyond.status_code == 400 and "0 to 2" in beyond.json()["error"]
    told = middle.text + first.text + beyond.text + endpoint.log_file.read_text()
    assert "secret" not in told.lower() and "1.2.826" not in told
