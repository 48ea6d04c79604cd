"""The coordinator's own scans teach how sure a model is; without any it says nothing."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from export.onnx import build_onnx
from fl.data.admission import pixels_digest
from fl.data.federation import Federation
from fl.types import CLASSES, Scan, Site
from kernels.spec import PreprocessSpec
from service.confidence import learn_confidence, strange_images

SPEC = PreprocessSpec(size=32)


def make_scan(folder: Path, label: int, index: int) -> Scan:
    """Write a noisy disc whose size tells its class."""
    gray_HW = np.zeros((72, 72), np.uint8)
    cv2.circle(gray_HW, (36, 36), 14 + 5 * label, 90 + 20 * label, -1)
    noise = np.random.default_rng([label, index]).integers(0, 40, gray_HW.shape)
    gray_HW = np.where(gray_HW > 0, gray_HW + noise, 0).astype(np.uint8)
    path = folder / f"{CLASSES[label]}-{index}.png"
    cv2.imwrite(str(path), gray_HW)
    return Scan(path=path, label=label, pixels_sha256=pixels_digest(gray_HW), phash=0, height=72, width=72)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder = tmp_path_factory.mktemp("scans")
    scans = [[make_scan(folder, label, index) for index in range(36)] for label in range(len(CLASSES))]
    sites = [Site(name=f"site-{label}", scans=tuple(of[:18])) for label, of in enumerate(scans)]
    return Federation(
        data_kind="phantom",
        sites=tuple(sites),
        shared_scans=(),
        validation_scans=tuple(scan for of in scans for scan in of[18:30]),
        test_scans=tuple(scan for of in scans for scan in of[30:]),
        near_copies_T=np.zeros(24, np.bool_),
        exact_copies_T=np.zeros(24, np.bool_),
        quarantined=(),
    )


@pytest.fixture(scope="module")
def onnx_bytes() -> bytes:
    torch.manual_seed(0)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, padding=1), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2)
    )
    return build_onnx(nn.Sequential(layers), nn.Linear(16, len(CLASSES)), preprocess=SPEC, labels=CLASSES)


def test_validation_scans_calibrate_and_test_scans_measure(federation: Federation, onnx_bytes: bytes) -> None:
    learnt = learn_confidence(onnx_bytes, SPEC, federation, int8_onnx=onnx_bytes)
    assert learnt is not None
    confidence, figures = learnt
    assert confidence.calibrated and confidence.familiarity is not None
    assert confidence.strange_above == confidence.strange_above_int8, "it is the same model here"
    assert figures["validation"]["num_validation_scans"] == 48 and figures["test"]["num_scans"] == 24
    assert figures["validation"]["num_reference_scans"] == 72
    assert figures["validation"]["strange_images"]["noise"]["num_images"] == 24
    again = learn_confidence(onnx_bytes, SPEC, federation, int8_onnx=onnx_bytes)
    assert again is not None and again[0].to_files() == confidence.to_files()


def test_a_coordinator_without_validation_scans_learns_nothing(federation: Federation, onnx_bytes: bytes) -> None:
    assert learn_confidence(onnx_bytes, SPEC, dataclasses.replace(federation, validation_scans=())) is None


def test_strange_images_are_no_slices_and_the_same_each_time() -> None:
    usual = [np.arange(40 * 60, dtype=np.uint16).reshape(40, 60).astype(np.uint8)] * 3
    kinds, again = dict(strange_images(usual)), dict(strange_images(usual))
    assert len(kinds) == 8
    for kind, images in kinds.items():
        assert len(images) == 3 and all(image.dtype == np.uint8 and image.size for image in images)
        assert all(np.array_equal(a, b) for a, b in zip(images, again[kind], strict=True))
        assert not any(np.array_equal(image, usual[0]) for image in images)
