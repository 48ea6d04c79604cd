"""How the endpoint starts, exchanges its models and ends; and what it does without."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def test_a_bundle_that_cannot_be_served_ends_the_command_with_the_reason(
    serve: Any, make_bundle: Any, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1] + b"\0")
    endpoint = serve(bundle, wait=None)
    assert endpoint.process.wait(30) == 1
    assert "model.onnx" in endpoint.log_file.read_text()


def test_told_to_stop_it_answers_what_is_under_way_and_exits_well(
    serve: Any, tiny_bundle: Path, slice_jpeg: bytes
) -> None:
    endpoint = serve(tiny_bundle)
    host, port = endpoint.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(slice_jpeg)}\r\n\r\n"
        connection.sendall(head.encode() + slice_jpeg[:10])
        time.sleep(0.3)
        endpoint.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(OSError):
            socket.create_connection((host, int(port)), timeout=5)
        connection.sendall(slice_jpeg[10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert endpoint.process.wait(20) == 0


def test_sighup_exchanges_a_model_and_a_bad_bundle_leaves_the_old_one(
    serve: Any, make_bundle: Any, tmp_path: Path, slice_jpeg: bytes
) -> None:
    first, second = make_bundle(tmp_path / "first"), make_bundle(tmp_path / "second", model_version="2", seed=4)
    damaged = tmp_path / "damaged"
    shutil.copytree(second, damaged)
    (damaged / "model.onnx").write_bytes(b"no model")
    current = tmp_path / "current"
    current.symlink_to(first)
    endpoint = serve(current)

    def point(target: Path, event: str) -> dict[str, Any]:
        seen = sum(line["event"] == event for line in endpoint.log())
        current.unlink()
        current.symlink_to(target)
        endpoint.process.send_signal(signal.SIGHUP)
        found: dict[str, Any] = endpoint.wait_for(event, seen + 1)
        return found

    with endpoint.client() as client:
        point(damaged, "model not loaded")
        assert client.post("/v1/predict", content=slice_jpeg).json()["model"]["version"] == "1"
        (slot,) = client.post("/v2/repository/index").json()
        assert slot["state"] == "READY" and "model.onnx" in slot["reason"]
        point(second, "model loaded")
        assert client.post("/v1/predict", content=slice_jpeg).json()["model"]["version"] == "2"
        assert client.get("/v2/models/tiny/versions/1/ready").status_code == 404
    released = endpoint.wait_for("model released")
    assert released["version"] == "1"
    assert endpoint.stop() == 0


def test_a_key_that_is_no_longer_trusted_takes_its_model_out_of_service(
    serve: Any, tiny_bundle: Path, signing_key: Any, tmp_path: Path, slice_jpeg: bytes
) -> None:
    keys = tmp_path / "trust"
    keys.mkdir()
    (keys / "partner.pub").write_bytes(signing_key.public.pem())
    endpoint = serve(tiny_bundle, settings={"trust": [str(keys)]})
    with endpoint.client() as client:
        assert client.post("/v1/predict", content=slice_jpeg).status_code == 200
        (keys / "partner.pub").unlink()
        endpoint.process.send_signal(signal.SIGHUP)
        endpoint.wait_for("model not loaded")
        refused = client.post("/v1/predict", content=slice_jpeg)
        assert refused.status_code == 503
        assert "--trust" in refused.json()["error"]
        assert client.get("/v2/health/ready").status_code != 200


def test_versions_side_by_side_and_their_control_by_clients(
    serve: Any, make_bundle: Any, tmp_path: Path, slice_jpeg: bytes
) -> None:
    bundles = [make_bundle(tmp_path / version, model_version=version, seed=int(version)) for version in ("9", "10")]
    endpoint = serve(*bundles, settings={"repository_control": True})
    with triton.InferenceServerClient(endpoint.address) as client, endpoint.client() as plain:
        assert client.get_model_metadata("tiny")["versions"] == ["9", "10"]
        assert plain.post("/v1/predict", content=slice_jpeg).json()["model"]["version"] == "10"
        assert plain.post("/v1/predict?version=9", content=slice_jpeg).json()["model"]["version"] == "9"
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        assert plain.post("/v1/predict", content=slice_jpeg).status_code == 503
        assert {slot["state"] for slot in client.get_model_repository_index()} == {"UNAVAILABLE"}
        client.load_model("tiny")
        assert client.is_model_ready("tiny", "9") and client.is_server_ready()
        with pytest.raises(InferenceServerException, match="unknown parameters"):
            client.load_model("tiny", config="{}")
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            client.load_model("other")


BLOCKED = ("torch", "torchvision", "ray", "flwr", "onnx", "scipy", "nibabel", "jinja2", "psutil")
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ImportError(f"{name} is not installed where gliofed serves")
sys.meta_path.insert(0, Blocker())
from service.__main__ import main
main()
"""


def test_it_serves_without_any_of_trainings_libraries(
    serve: Any, tiny_bundle: Path, slice_jpeg: bytes, tmp_path: Path
) -> None:
    endpoint = serve(tiny_bundle, settings={"dicom": dicom_settings(tmp_path)}, code=BLOCKER % (BLOCKED,))
    with endpoint.client() as client:
        assert client.post("/v1/predict", content=slice_jpeg).status_code == 200
        assert client.post("/v1/predict", content=bytes(128) + b"DICM").status_code == 400
        assert client.get("/viewer/").status_code == 200
    assert endpoint.stop() == 0


def dicom_settings(folder: Path) -> dict[str, Any]:
    return {"port": 0, "callers": ["PACS"], "spool": str(folder / "spool"), "store_in": str(folder / "results")}
