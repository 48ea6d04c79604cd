"""The endpoint under Ray Serve: the same app, in replicas behind Ray's proxy, on loopback alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml

pytest.importorskip("grpc_reflection", reason="Ray Serve needs gliofed[ray-serve]")

from fl.audit_chain import verify
from service.endpoint.keys import new_key

PATIENCE_SECONDS = 90.0
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
DRIVER = """
import sys
from fl.runtime.cluster import RaySettings, prepare_environment
prepare_environment(RaySettings())
import ray
from ray import serve
ray.init(address="local", include_dashboard=False, num_cpus=2, num_gpus=0, object_store_memory=80 << 20)
from service.endpoint.ray_serve import build
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build({"config": sys.argv[1]}))
print("ready", flush=True)
sys.stdin.readline()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture
def ray_folder() -> Iterator[str]:
    # Ray's sockets lie under its folder, and a socket's path may have 107 characters
    folder = tempfile.mkdtemp(prefix="gf", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_replica_answers_for_who_has_a_key_and_writes_it_down(
    tiny_bundle: Path, slice_jpeg: bytes, tmp_path: Path, ray_folder: str
) -> None:
    keys, log, port = tmp_path / "keys.json", tmp_path / "log" / "audit.jsonl", free_port()
    secret = new_key(keys, "ward", ["predict"])
    settings = {
        "bundles": [{"path": str(tiny_bundle)}],
        "access": {"api_keys": str(keys)},
        "audit": {"path": str(log)},
        "limits": {"max_concurrent": 1},
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(settings))
    driver = start(tmp_path, ray_folder, str(tmp_path / "serve.yaml"), str(port))
    family: list[psutil.Process] = []
    try:
        wait_until_ready(driver, tmp_path)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert {address for process in family for address in listening(process)} <= LOOPBACK
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            assert client.get("/v2/health/ready").status_code == 200
            assert client.post("/v1/predict", content=slice_jpeg).status_code == 401
            client.headers["x-api-key"] = secret
            answer = client.post("/v1/predict", content=slice_jpeg)
            assert answer.status_code == 200 and answer.json()["model"]["name"] == "tiny"
            logits = infer(client)
        (own,) = log.parent.glob("audit.*.jsonl")
        assert answer.headers["gliofed-request"] in own.read_text()
        assert logits.shape == (1, 4) and np.isfinite(logits).all()
        driver.communicate(b"\n", timeout=30)
        assert driver.returncode == 0
    finally:
        end(driver, family)
    events = [json.loads(line)["event"] for line in own.read_text().splitlines()]
    assert events[:3] == ["started", "answered", "answered"] and verify(own).fault is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "access.api_keys"),
        ({"tls": {"certificate": "a", "key": "b"}}, "tls: Ray's proxy"),
        ({"grpc_port": 0}, "grpc_port"),
    ],
)
def test_settings_that_have_no_meaning_behind_rays_proxy_are_told(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"bundles": [{"path": "x"}], **settings}))
    code = f"from service.endpoint.ray_serve import build; build({{'config': {str(path)!r}}})"
    ended = subprocess.run([sys.executable, *flags(), "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and message in ended.stderr


def infer(client: httpx.Client) -> np.ndarray:
    image = {"name": "images", "datatype": "FP32", "shape": [1, 3, 48, 48], "data": [0.5] * (3 * 48 * 48)}
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [image], "outputs": [{"name": "logits"}]})
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return np.reshape(output["data"], output["shape"])


def start(folder: Path, ray_folder: str, *arguments: str) -> subprocess.Popen[bytes]:
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"RAY_TMPDIR": ray_folder, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (folder / "driver.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *flags(), "-c", DRIVER, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_until_ready(driver: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while "ready\n" not in (told := (folder / "driver.log").read_text()):
        assert driver.poll() is None and time.monotonic() < until, told
        time.sleep(0.1)


def end(driver: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
    """End the driver and, once it had its time, whatever of Ray it left behind."""
    assert driver.stdin is not None
    driver.stdin.close()
    if driver.poll() is None:
        family += psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        process.kill()


def listening(process: psutil.Process) -> list[str]:
    try:
        connections = process.net_connections("inet")
    except psutil.NoSuchProcess:
        return []
    return [one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def flags() -> list[str]:
    return ["-P"] * sys.flags.safe_path + ["-S"] * sys.flags.no_site
