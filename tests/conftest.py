"""Keys of the session, a tiny bundle, and the endpoint as a process of its own: for every test that asks a model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import yaml

from export.signing import SigningKey, Trust, new_key

ALONE = frozenset({"dicom_peers", "endpoint", "readme", "viewer", "ray_serve", "bad_input", "bad_dicom", "schema_fuzz"})
"""Tests under e2e that train no job of the session: files named test_<one of these>[_...].py."""

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
PATIENCE_SECONDS = 60.0


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share the session's jobs: `make test` gives them a process of their own."""
    for item in items:
        name = item.path.stem.removeprefix("test_")
        alone = any(name == other or name.startswith(f"{other}_") for other in ALONE)
        if item.path.parent.name == "e2e" and not alone:
            item.add_marker(pytest.mark.jobs)


def draw_head(height: int = 120, width: int = 100, seed: int = 0) -> np.ndarray:
    """Return a noisy bright ellipse on black, uint8 [H,W]: a slice that preprocessing finds a head in."""
    gray = np.zeros((height, width), np.uint8)
    cv2.ellipse(gray, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 160, -1)
    noise = np.random.default_rng(seed).integers(-40, 40, gray.shape)
    return np.where(gray > 0, gray + noise, 0).astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigningKey]:
    """The machine's key as long as tests run, in this process and in others: none touches those of a person."""
    folder = tmp_path_factory.mktemp("machine") / "keys"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIOFED_KEYS", str(folder))
        yield new_key(folder)


@pytest.fixture(scope="session")
def trust(signing_key: SigningKey) -> Trust:
    """Trust in that key alone."""
    return Trust.of(signing_key)


BundleMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_bundle(signing_key: SigningKey) -> BundleMaker:
    """Write a small untrained network's bundle: make_bundle(path, name="tiny", model_version="1", seed=3, size=48)."""

    def make(path: Path, *, name: str = "tiny", model_version: str = "1", seed: int = 3, size: int = 48) -> Path:
        import torch
        from torch import nn

        from export.bundle import write_bundle
        from export.onnx import build_onnx
        from export.predictor import make_golden
        from kernels.spec import Normalization, PreprocessSpec

        spec = PreprocessSpec(
            size=size,
            normalization=Normalization(
                channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
            ),
        )
        generator = torch.Generator().manual_seed(seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for block, (channels, out) in enumerate([(3, 8), (8, 12)], 1):
            layers[f"block{block}_conv1"] = nn.Conv2d(channels, out, 3, padding=1)
            layers[f"block{block}_relu1"] = nn.ReLU()
            layers[f"block{block}_pool"] = nn.MaxPool2d(2)
        network, head = nn.Sequential(layers), nn.Linear(12, len(LABELS))
        with torch.no_grad():
            for parameter in (*network.parameters(), *head.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model = build_onnx(network, head, preprocess=spec, labels=LABELS)
        grays = np.stack([draw_head(seed=index) for index in range(2)])
        return write_bundle(
            path,
            onnx_bytes=model,
            preprocess=spec,
            labels=LABELS,
            metrics={},
            provenance={},
            data_kind="phantom",
            key=signing_key,
            golden=make_golden(model, grays, spec),
            name=name,
            model_version=model_version,
        )

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: BundleMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of model `tiny`, version 1; four classes, images of 48 pixels."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def slice_jpeg() -> bytes:
    """A drawn slice as a JPEG file."""
    return cv2.imencode(".jpg", draw_head())[1].tobytes()


@pytest.fixture(scope="session")
def slice_png() -> bytes:
    """A drawn slice as a PNG file."""
    return cv2.imencode(".png", draw_head())[1].tobytes()


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running `gliofed serve`. address: host:port. log_file: its JSON lines."""

    process: subprocess.Popen[bytes]
    address: str
    log_file: Path

    @property
    def url(self) -> str:
        """Where it listens, without TLS."""
        return f"http://{self.address}"

    def client(self, **options: Any) -> httpx.Client:
        """Return an HTTP client for it; close it."""
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def log(self) -> list[dict[str, Any]]:
        """Return what it has logged so far."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, event: str, number: int = 1) -> dict[str, Any]:
        """Return the number-th log line of an event, waiting for it."""
        began = time.monotonic()
        while time.monotonic() < began + PATIENCE_SECONDS:
            found = [line for line in self.log() if line["event"] == event]
            if len(found) >= number:
                return found[number - 1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {event!r} in the log:\n{self.log_file.read_text()}")

    def stop(self) -> int:
        """Tell it to stop and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


Serve = Callable[..., Endpoint]


def _serving(folder: Path) -> Iterator[Serve]:
    running: list[Endpoint] = []

    def serve(
        *bundles: Path,
        settings: Mapping[str, Any] | None = None,
        wait: str | None = "ready",
        code: str | None = None,
        **environment: str,
    ) -> Endpoint:
        number = len(running)
        config, log_file = folder / f"serve{number}.yaml", folder / f"serve{number}.log"
        config.write_text(yaml.safe_dump({"port": 0, **(settings or {})}))
        options = [option for bundle in bundles for option in ("--bundle", str(bundle))]
        program = ["-m", "service"] if code is None else ["-c", code]
        command = [sys.executable, *_flags(), *program, "serve", "--config", str(config), *options]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command, stderr=log, stdout=log, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
            )
        endpoint = Endpoint(process=process, address="", log_file=log_file)
        running.append(endpoint)
        address = endpoint.wait_for("listening")["address"].partition("://")[2]
        running[-1] = endpoint = Endpoint(process=process, address=address, log_file=log_file)
        if wait is not None:
            endpoint.wait_for(wait)
        return endpoint

    yield serve
    for endpoint in running:
        if endpoint.process.poll() is None:
            endpoint.process.kill()
            endpoint.process.wait()


def _flags() -> list[str]:
    """Return this interpreter's own flags that decide where imports come from."""
    return ["-P"] * sys.flags.safe_path + ["-S"] * sys.flags.no_site


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start an endpoint on a free port: serve(bundle, ..., settings={"limits": {...}}); ended with the test."""
    yield from _serving(tmp_path)


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """`serve`, ended with the module: for tests that only ask."""
    yield from _serving(tmp_path_factory.mktemp("endpoint"))
