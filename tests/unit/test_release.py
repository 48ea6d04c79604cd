"""What a release does where a part of it cannot be had: it says so, or leaves out what may be left out."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from export.driver import probe
from export.errors import EngineError, Int8Rejected
from export.onnx import build_onnx
from export.predictor import open_session
from export.signing import SigningKey
from export.triton import TritonSettings
from fl.data.admission import pixels_digest
from fl.data.federation import Federation
from fl.errors import DataError
from fl.types import CLASSES, Scan, Site
from kernels.ops import preprocess
from kernels.spec import PreprocessSpec
from service.release import Order, judged_twin, quantized_twin, require_targets, triton_name

SPEC = PreprocessSpec(size=32)
NOTHING = np.zeros(0, np.bool_)


def make_scan(folder: Path, gray_HW: NDArray[np.uint8], name: str, label: int) -> Scan:
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), gray_HW)
    height, width = gray_HW.shape
    return Scan(path=path, label=label, pixels_sha256=pixels_digest(gray_HW), phash=0, height=height, width=width)


def draw(seed: int) -> NDArray[np.uint8]:
    """Return a disc with a texture of its own."""
    disc_HW = cv2.circle(np.zeros((48, 48), np.uint8), (24, 24), 20, 1, -1)
    rng = np.random.default_rng(seed)
    return (disc_HW * rng.integers(120, 250, disc_HW.shape)).astype(np.uint8)


def network(bias_C: Sequence[float]) -> bytes:
    """Return a small network that nobody trained, in ONNX; its second convolution can be quantised."""
    torch.manual_seed(1)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        block1_conv1=nn.Conv2d(3, 8, 3, padding=1),
        block1_relu1=nn.ReLU(),
        block2_conv1=nn.Conv2d(8, 12, 3, padding=1),
        block2_relu1=nn.ReLU(),
        block2_pool=nn.MaxPool2d(2),
    )
    head = nn.Linear(12, len(CLASSES))
    with torch.no_grad():
        head.bias.copy_(torch.tensor(bias_C))
    return build_onnx(nn.Sequential(layers), head, preprocess=SPEC, labels=CLASSES)


def scores(onnx_bytes: bytes, grays: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    session = open_session(onnx_bytes, num_threads=1)
    images_NCHW, _ = preprocess(grays, SPEC)
    logits_NC: NDArray[np.float32] = session.run(["logits"], {session.get_inputs()[0].name: images_NCHW})[0]
    return logits_NC


@pytest.fixture(scope="module")
def grays() -> list[NDArray[np.uint8]]:
    return [draw(seed) for seed in range(24)]


@pytest.fixture(scope="module")
def sure() -> bytes:
    """A network that gives one answer to everything, whatever rounding does."""
    return network([9.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def torn(grays: list[NDArray[np.uint8]]) -> bytes:
    """A network for which all classes are about as likely, so that rounding decides."""
    return network((-scores(network([0.0] * 4), grays).mean(axis=0)).tolist())


FederationOf = Callable[[bytes], Federation]


@pytest.fixture(scope="module")
def federation_of(grays: list[NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> FederationOf:
    """Scans whose true classes are those that a network names."""

    def make(onnx_bytes: bytes) -> Federation:
        folder = tmp_path_factory.mktemp("scans")
        named = scores(onnx_bytes, grays).argmax(axis=1)
        scans = [make_scan(folder, gray, f"{at}", int(named[at])) for at, gray in enumerate(grays)]
        return Federation(
            data_kind="phantom",
            sites=(Site(name="site-0", scans=tuple(scans[:8])),),
            shared_scans=(),
            validation_scans=tuple(scans[8:]),
            test_scans=(),
            near_copies_T=NOTHING,
            exact_copies_T=NOTHING,
            quarantined=(),
        )

    return make


def order(tmp_path: Path, key: SigningKey, said: list[object], *, insists: bool) -> Order:
    return Order(
        targets=frozenset({"onnx", "int8"}),
        model_version="1",
        folder=tmp_path / "bundle",
        triton=tmp_path / "triton",
        key=key,
        insists=insists,
        say=said.append,
    )


def test_a_twin_that_answers_alike_is_kept_with_what_it_costs(
    sure: bytes, federation_of: FederationOf, tmp_path: Path, signing_key: SigningKey
) -> None:
    said: list[object] = []
    int8, cost = judged_twin(sure, SPEC, federation_of(sure), order(tmp_path, signing_key, said, insists=True))
    assert int8 is not None and int8 != sure
    assert cost["accepted"] and cost["agreement"] == 1 and cost["num_images"] == 16
    assert len(said) == 1 and "+0.00 points on 16 validation scans" in str(said[0])


def test_a_twin_that_loses_too_much_is_left_out_and_told_of_unless_it_was_insisted_on(
    torn: bytes, federation_of: FederationOf, tmp_path: Path, signing_key: SigningKey
) -> None:
    said: list[object] = []
    federation = federation_of(torn)
    int8, cost = judged_twin(torn, SPEC, federation, order(tmp_path, signing_key, said, insists=False))
    assert int8 is None
    assert not cost["accepted"] and cost["drop_points"] >= 0.5 and cost["agreement"] < 1
    assert len(said) == 1 and "int8 is left out" in str(said[0])
    with pytest.raises(Int8Rejected, match=r"allowed are less than 0\.5"):
        judged_twin(torn, SPEC, federation, order(tmp_path, signing_key, said, insists=True))
    assert len(said) == 1


@pytest.mark.parametrize("missing", ["sites", "validation_scans"])
def test_int8_without_scans_to_calibrate_or_judge_on_says_what_to_do(
    sure: bytes, federation_of: FederationOf, missing: str
) -> None:
    nothing: dict[str, Any] = {missing: ()}
    federation = dataclasses.replace(federation_of(sure), **nothing)
    with pytest.raises(DataError, match=r"here are \d+ and \d+\. .*leave int8 out of export\.to"):
        quantized_twin(sure, SPEC, federation)


def test_engines_are_refused_before_the_work_where_there_is_no_gpu() -> None:
    require_targets(["onnx", "int8", "triton"])
    if probe().gpus:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="Run this on the GPU host"):
        require_targets(["onnx", "tensorrt"])


@pytest.mark.parametrize(("name", "expected"), [("zero-real", "zero_real"), ("7b", "m_7b"), ("demo", "demo")])
def test_a_jobs_name_becomes_one_that_triton_takes(name: str, expected: str) -> None:
    assert triton_name(name) == expected


@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,40}", fullmatch=True))
def test_every_name_of_a_job_is_taken(name: str) -> None:
    assert TritonSettings(name=triton_name(name)).name
