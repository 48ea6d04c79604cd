"""The endpoint's door and its log, against a real server: keys, client certificates, and what is written down."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from export.bundle import load_bundle
from fl.audit_chain import ChainedLog, verify
from service.endpoint.audit import SALT_NAME, read_salt, salted_hash
from service.endpoint.keys import new_key, revoke_key

INFER = "/v2/models/tiny/infer"
LABELS = ("glioma", "meningioma", "notumor", "pituitary")


@pytest.fixture(scope="module")
def keyed(serve_module: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An endpoint with keys and a log, and where both lie."""
    folder = tmp_path_factory.mktemp("keyed")
    keys, log = folder / "keys.json", folder / "audit" / "audit.jsonl"
    secrets = {role: new_key(keys, f"{role}-key", [role]) for role in ("predict", "admin", "metrics")}
    settings = {
        "access": {"api_keys": str(keys), "wrong_keys_a_minute": 5},
        "audit": {"path": str(log), "flush_seconds": 0.05},
        "repository_control": True,
    }
    return serve_module(tiny_bundle, settings=settings), secrets, keys, log


def test_every_route_needs_its_role_but_the_probes(keyed: Any, slice_jpeg: bytes) -> None:
    endpoint, secrets, _, _ = keyed
    routes = {
        ("POST", "/v1/predict"): "predict",
        ("GET", "/v2/models/tiny"): "predict",
        ("GET", "/openapi.json"): "predict",
        ("GET", "/metrics"): "metrics",
        ("POST", "/v2/repository/index"): "admin",
        ("POST", "/v2/repository/models/tiny/load"): "admin",
    }
    with endpoint.client() as client:
        for (method, path), needed in routes.items():
            body = slice_jpeg if path == "/v1/predict" else b""
            for role, secret in secrets.items():
                answer = client.request(method, path, content=body, headers={"x-api-key": secret})
                assert answer.status_code == (200 if role == needed else 403), (path, role, answer.text)
                bearer = client.request(method, path, content=body, headers={"authorization": f"Bearer {secret}"})
                assert bearer.status_code == answer.status_code
            refused = client.request(method, path, content=body)
            assert refused.status_code == 401 and set(refused.json()) == {"error"}
            assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200


def test_tritons_client_brings_its_key_as_a_header(keyed: Any) -> None:
    endpoint, secrets, _, _ = keyed
    images = triton.InferInput("images", [1, 3, 48, 48], "FP32")
    images.set_data_from_numpy(np.zeros((1, 3, 48, 48), np.float32))
    with triton.InferenceServerClient(endpoint.address) as client:
        result = client.infer("tiny", [images], headers={"Authorization": f"Bearer {secrets['predict']}"})
        assert result.as_numpy("logits").shape == (1, 4)
        with pytest.raises(triton.InferenceServerException, match="an API key is needed"):
            client.infer("tiny", [images])


def test_a_page_of_another_site_is_refused(keyed: Any, slice_jpeg: bytes) -> None:
    endpoint, secrets, _, _ = keyed
    with endpoint.client(headers={"x-api-key": secrets["predict"]}) as client:
        assert client.post("/v1/predict", content=slice_jpeg, headers={"origin": endpoint.url}).status_code == 200
        refused = client.post("/v1/predict", content=slice_jpeg, headers={"origin": "http://elsewhere.example"})
        assert refused.status_code == 403


def test_each_answer_is_one_line_that_names_no_patient_and_no_secret(keyed: Any, slice_jpeg: bytes) -> None:
    endpoint, secrets, _, log = keyed
    with endpoint.client(headers={"x-api-key": secrets["predict"]}) as client:
        files = {"file": ("DOE^JANE-19700101.jpg", slice_jpeg, "image/jpeg")}
        answer = client.post("/v1/predict", files=files)
    # on the disk before the answer left: no waiting here
    line = find(log, answer)
    image = hashlib.sha256(slice_jpeg).hexdigest()
    assert line["image"] == salted_hash(read_salt(salt_of(log)), "image", image) != image
    assert (line["event"], line["client"], line["route"]) == ("answered", "key:predict-key", "predict")
    assert (line["kind"], line["status"]) == ("jpeg", 200)
    said = answer.json()
    assert line["answers"] == [
        {"label": said["label"], "abstained": said["abstains"], "ood": said["out_of_distribution"]}
    ]
    assert line["model"] == {key: said["model"][key] for key in ("name", "version", "digest", "precision")}
    assert 0 < line["milliseconds"] < 30_000
    text = log.read_text()
    assert "DOE" not in text and image not in text and not any(secret in text for secret in secrets.values())


def test_inference_is_noted_a_little_later(keyed: Any, tiny_bundle: Path, trust: Any) -> None:
    endpoint, secrets, _, log = keyed
    images = np.random.default_rng(3).standard_normal((2, 3, 48, 48)).astype(np.float32)
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "datatype": "FP32",
                    "shape": list(images.shape),
                    "parameters": {"binary_data_size": images.nbytes},
                }
            ]
        }
    ).encode()
    with endpoint.client(headers={"x-api-key": secrets["predict"]}) as client:
        answer = client.post(
            INFER,
            content=header + images.tobytes(),
            headers={"inference-header-content-length": str(len(header))},
        )
        assert answer.status_code == 200
        bad = client.post(INFER, content=b"{")
    line, bad_line = wait_for(log, answer), wait_for(log, bad)
    salt = read_salt(salt_of(log))
    assert line["image"] == salted_hash(salt, "image", hashlib.sha256(images.tobytes()).hexdigest())
    (scores,) = (output["data"] for output in answer.json()["outputs"] if output["name"] == "logits")
    labels = load_bundle(tiny_bundle, trust).labels
    expected = [labels[index] for index in np.reshape(scores, (2, 4)).argmax(axis=1)]
    assert [verdict["label"] for verdict in line["answers"]] == expected
    assert (bad_line["status"], bad_line["answers"], bad_line["model"]) == (400, [], None)


def test_a_refusal_reaches_who_is_still_sending(keyed: Any) -> None:
    endpoint = keyed[0]
    with endpoint.client() as client:
        for _ in range(10):
            refused = client.post("/v1/predict", content=bytes(4 << 20))
            assert refused.status_code == 401 and "API key" in refused.json()["error"]


def test_a_revoked_key_is_refused_at_once_and_wrong_ones_are_slowed(keyed: Any) -> None:
    endpoint, secrets, keys, _ = keyed
    secret = new_key(keys, "leaving", ["predict"])
    with endpoint.client() as client:
        ask = lambda key: client.get("/v1/models", headers={"x-api-key": key}).status_code  # noqa: E731
        assert ask(secret) == 200
        revoke_key(keys, "leaving")
        assert ask(secret) == 401
        assert [ask("wrong") for _ in range(5)] == [401] * 4 + [429]
        assert ask(secrets["predict"]) == 200
        figures = client.get("/metrics", headers={"x-api-key": secrets["metrics"]}).text
    assert 'gliofed_refused_total{reason="too_many_wrong_keys"} 1.0' in figures
    assert 'gliofed_refused_total{reason="wrong_key"} 5.0' in figures


def test_the_log_is_one_chain_over_files_and_concurrent_answers_and_ends_with_the_server(
    serve: Any, tiny_bundle: Path, slice_png: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "log" / "audit.jsonl"
    endpoint = serve(tiny_bundle, settings={"audit": {"path": str(log), "max_bytes": 4096}})
    with endpoint.client() as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/predict", content=slice_png), range(24)))
    assert endpoint.stop() == 0
    lines = read_all(log)
    assert endpoint.wait_for("stopped")["audit_head"] == verify(log).head
    asked = [line["request"] for line in lines if line["event"] == "answered"]
    given = [answer.headers["gliofed-request"] for answer in answers if answer.status_code == 200]
    assert len(given) > 8 and sorted(asked) == sorted(given)
    assert {line["client"] for line in lines if line["event"] == "answered"} == {"local"}
    assert len(list(log.parent.glob("audit-*.jsonl"))) > 1
    assert stat.S_IMODE(salt_of(log).stat().st_mode) == stat.S_IMODE(log.stat().st_mode) == 0o600
    whole = gliofed("audit", "verify", log)
    assert whole.returncode == 0 and f"{len(lines)} lines" in whole.stdout and verify(log).head in whole.stdout
    oldest = min(log.parent.glob("audit-*.jsonl"))
    oldest.write_text(oldest.read_text().replace('"status": 200', '"status": 400', 1))
    broken = gliofed("audit", "verify", log)
    assert broken.returncode == 1 and "does not follow" in broken.stdout


def test_no_answer_leaves_while_the_log_cannot_be_written(
    serve: Any, tiny_bundle: Path, slice_png: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "log" / "audit.jsonl"
    endpoint = serve(tiny_bundle, settings={"audit": {"path": str(log)}})
    with endpoint.client() as client:
        assert client.post("/v1/predict", content=slice_png).status_code == 200
        moved = log.rename(log.with_name("moved.jsonl"))
        first = client.post("/v1/predict", content=slice_png)
        again = client.post("/v1/predict", content=slice_png)
        for refused in (first, again):
            assert refused.status_code == 503 and set(refused.json()) == {"error"}
            assert "audit log" in refused.json()["error"] and int(refused.headers["retry-after"]) > 0
        assert client.get("/v2/health/live").status_code == 200
        moved.rename(log)
        answer = poll(lambda: client.post("/v1/predict", content=slice_png), lambda one: one.status_code == 200)
    lines = read_all(log)
    events = [line["event"] for line in lines]
    assert events == ["started", "answered", "resumed", "answered"]
    assert "moved or removed" in endpoint.wait_for("audit log failed, no answer is given")["reason"]
    assert lines[2]["refused"] >= 2 and lines[3]["request"] == answer.headers["gliofed-request"]
    assert verify(log).fault is None


def test_a_killed_server_has_lost_no_line_of_an_answer_for_people_and_the_chain_goes_on(
    serve: Any, tiny_bundle: Path, slice_png: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    endpoint = serve(tiny_bundle, settings={"audit": {"path": str(log), "flush_seconds": 60}})
    with endpoint.client() as client:
        answers = [client.post("/v1/predict", content=slice_png) for _ in range(3)]
    endpoint.process.kill()
    endpoint.process.wait()
    assert [find(log, answer)["status"] for answer in answers] == [200] * 3
    with ChainedLog(log) as again:
        again.note("started")
    assert (verify(log).num_lines, verify(log).fault) == (5, None)


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"host": "0.0.0.0"}, 2, "api-keys new"),
        ({"audit": {"path": "{folder}/broken.jsonl"}}, 1, "changed after it was written"),
    ],
)
def test_what_would_be_open_or_broken_does_not_start(
    tiny_bundle: Path, tmp_path: Path, settings: dict[str, Any], code: int, message: str
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"number": 7}\n')
    filled = json.loads(json.dumps(settings).replace("{folder}", str(tmp_path)))
    options = [option for key, value in flat(filled) for option in ("--set", f"{key}={value}")]
    ended = gliofed("serve", "--bundle", tiny_bundle, "--set", "port=0", *options)
    assert ended.returncode == code and message in ended.stderr, ended.stderr


def test_what_the_dicom_side_answers_is_written_down_before_it_leaves(
    serve: Any, tiny_bundle: Path, slice_png: bytes, tmp_path: Path
) -> None:
    log, results = tmp_path / "log" / "audit.jsonl", tmp_path / "results"
    dicom = {"port": 0, "callers": ["PACS"], "spool": str(tmp_path / "spool"), "store_in": str(results)}
    endpoint = serve(tiny_bundle, settings={"audit": {"path": str(log)}, "dicom": dicom}, wait="listening for DICOM")
    sent, study = dicom_file(slice_png)
    kept = log.rename(log.with_name("kept.jsonl"))
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + sent + b"\r\n--b--\r\n"
    headers = {"content-type": 'multipart/related; type="application/dicom"; boundary=b'}
    with endpoint.client(headers=headers) as client:
        assert client.post("/dicom-web/studies", content=body).status_code == 503
        kept.rename(log)
        poll(lambda: client.post("/dicom-web/studies", content=body), lambda answer: answer.status_code == 200)
    poll(lambda: list(results.rglob("*.dcm")), bool)
    lines = [line for line in read_all(log) if line["event"] == "answered"]
    (line,) = [line for line in lines if line["route"] == "dicom"]
    salt = read_salt(salt_of(log))
    assert line["study"] == salted_hash(salt, "study", study)
    assert line["image"] == salted_hash(salt, "image", hashlib.sha256(sent).hexdigest())
    assert line["answers"][0]["label"] in LABELS and line["client"] == "dicom"
    assert [other["client"] for other in lines if other["route"] == "stow"] == ["local"]
    assert study not in log.read_text() and "DOE" not in log.read_text()


def dicom_file(png: bytes) -> tuple[bytes, str]:
    """Return a DICOM file of the slice, and its study's UID."""
    gray = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = "DOE^JANE", "4711", "MR"
    dataset.StudyID = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = dataset.Manufacturer = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.Rows, dataset.Columns = gray.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = gray.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue(), dataset.StudyInstanceUID


def find(log: Path, answer: httpx.Response) -> dict[str, Any]:
    (line,) = [line for line in read_all(log) if line.get("request") == answer.headers["gliofed-request"]]
    return line


def wait_for(log: Path, answer: httpx.Response) -> dict[str, Any]:
    poll(log.read_text, lambda text: answer.headers["gliofed-request"] in text)
    return find(log, answer)


def poll(get: Callable[[], Any], is_enough: Callable[[Any], bool]) -> Any:
    until = datetime.now(UTC) + timedelta(seconds=20)
    while not is_enough(found := get()):
        assert datetime.now(UTC) < until, found
        time.sleep(0.02)
    return found


def read_all(log: Path) -> list[dict[str, Any]]:
    files = [*sorted(log.parent.glob(f"{log.stem}-*{log.suffix}")), log]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def salt_of(log: Path) -> Path:
    return log.with_name(SALT_NAME)


def flat(settings: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        found += flat(value, f"{above}{key}.") if isinstance(value, dict) else [(f"{above}{key}", value)]
    return found


def gliofed(*arguments: Any) -> subprocess.CompletedProcess[str]:
    flags = ["-P"] * sys.flags.safe_path + ["-S"] * sys.flags.no_site
    command = [sys.executable, *flags, "-m", "service", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
