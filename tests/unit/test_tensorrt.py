"""TensorRT takes our files in every precision; engines are refused wherever they do not belong."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from export.children import run_module
from export.driver import Gpu, Machine
from export.errors import EngineError
from export.onnx import build_onnx
from export.parity import BOUNDS, Precision
from export.precision import narrow
from export.quantize import quantize
from export.tensorrt.check import check_parses
from export.tensorrt.engine import (
    Engine,
    EngineReport,
    build_engine,
    gather_engines,
    open_engine,
    precisions_for,
    read_engines,
    require_belongs,
    require_precision,
    write_engine,
)
from export.tensorrt.plan import BuildSettings
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from kernels.spec import PreprocessSpec
from service.ship import wide_head

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx, which parses without a GPU, is not installed",
)
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
        reason="needs an NVIDIA GPU and TensorRT",
    ),
]


KINDS: tuple[tuple[Precision, str], ...] = (("fp32", "FLOAT"), ("fp16", "HALF"), ("bf16", "BF16"), ("int8", "FLOAT"))


def build(head: str, size: int) -> bytes:
    options = {"random_features": 24, "frozen_through": "block4_conv3"} if head == "wide" else {}
    model = SplitVgg19(NetworkSettings.model_validate({"width": 0.125, "head": head, **options})).eval()
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    return build_onnx(
        model.features(), model.head, preprocess=PreprocessSpec(size=size), labels=LABELS, wide=wide_head(model)
    )


def make_images(size: int, num: int = 4) -> np.ndarray:
    return np.random.default_rng(1).random((num, 3, size, size), np.float32)


def file_of(precision: Precision, head: str, size: int) -> bytes:
    data = build(head, size)
    if precision == "int8":
        return quantize(data, [make_images(size)])
    return narrow(data, precision) if precision in ("fp16", "bf16") else data


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "convolutions", "head", "size"),
    [
        ("fp32", "FLOAT", "wide", 64),
        *((*kind, "average", 50) for kind in KINDS),
        *((*kind, "wide", 83) for kind in KINDS),  # an odd side: Slice and Pad come in
    ],
)
def test_tensorrt_takes_the_file_and_computes_in_its_types(
    precision: Precision, convolutions: str, head: str, size: int
) -> None:
    checked = check_parses(file_of(precision, head, size))

    require_precision(checked.layers, precision)
    assert checked.layers[f"CONVOLUTION {convolutions}"] == 16 + (head == "average" and convolutions == "FLOAT") * 2
    assert ("QUANTIZE INT8" in checked.layers) == (precision == "int8")
    assert checked.inputs == {"images": ("FLOAT", (-1, 3, size, size))}
    assert checked.outputs["logits"] == ("FLOAT", (-1, len(LABELS)))
    assert checked.outputs["class_maps"][1][:2] == (-1, len(LABELS))
    assert checked.plan_bytes > 0


@needs_rtx
def test_files_that_tensorrt_does_not_take_are_told_with_its_reason() -> None:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])
    node = helper.make_node("Unheard", ["images"], ["logits"], name="odd_one", domain="nobody")
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    for data, reason in (
        (b"junk", "cannot parse the file"),
        (helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), "Unheard|odd_one"),
    ):
        with pytest.raises(EngineError, match=reason):
            check_parses(data)


@needs_rtx
def test_a_check_that_takes_too_long_is_ended() -> None:
    with pytest.raises(EngineError, match=r"more than 0\.01 s"):
        check_parses(b"junk", timeout_seconds=0.01)


ASK_LIBRARY = """
import json, sys
from export.errors import EngineError
from export.tensorrt import api
from export.tensorrt.run import Runner

trt, texts = api.load("tensorrt_rtx"), []
builder = trt.Builder(api.collecting_logger(trt, texts))
told = {}
for tf32 in (False, True):
    config = api.configure(trt, builder, tf32=tf32)
    told[f"tf32 {tf32}"] = config.get_flag(trt.BuilderFlag.TF32)
stored = b""
for name in ("new", "again"):
    with api.timing_cache(api.configure(trt, builder, tf32=False), stored) as kept:
        pass
    (stored,) = kept
    told[name] = len(stored)
with api.timing_cache(api.configure(trt, builder, tf32=False), b"not a cache") as kept:
    pass
told["replaced"] = len(kept[0])
try:
    Runner(trt, b"not an engine")
except EngineError as error:
    told["refused"] = str(error)
print(json.dumps(told))
"""


@needs_rtx
def test_tf32_is_only_as_asked_a_bad_timing_cache_is_begun_anew_and_a_bad_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the library itself, in a process of its own."""
    (tmp_path / "ask_library.py").write_text(ASK_LIBRARY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = run_module("ask_library", timeout_seconds=120)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["tf32 False"] is False and told["tf32 True"] is True
    assert told["new"] == told["again"] == told["replaced"] > 0
    assert "does not load the engine" in told["refused"]


@pytest.mark.parametrize(
    ("layers", "precision"),
    [
        ({"CONVOLUTION FLOAT": 16}, "fp16"),
        ({"CONVOLUTION HALF": 16}, "fp32"),
        ({"CONVOLUTION HALF": 15, "CONVOLUTION BF16": 1}, "fp16"),
        ({"CONVOLUTION FLOAT": 16}, "int8"),
        ({"CONVOLUTION FLOAT": 16, "QUANTIZE INT8": 9}, "fp32"),
    ],
)
def test_a_file_of_another_precision_is_no_engine_of_this_one(layers: dict[str, int], precision: Precision) -> None:
    with pytest.raises(EngineError, match=f"an {precision} engine was asked for"):
        require_precision(layers, precision)


@pytest.mark.parametrize("batches", [(0, 1, 2), (4, 2, 8), (1, 9, 8)])
def test_batches_out_of_order_are_refused(batches: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"min_batch|rising order"):
        BuildSettings(min_batch=batches[0], opt_batch=batches[1], max_batch=batches[2])


def make_machine(**changes: Any) -> Machine:
    card = Gpu(name="NVIDIA H100", architecture="sm_90", memory_bytes=80 << 30)
    machine = Machine(
        driver="580.82.07",
        cuda="13.0",
        gpus=(card,),
        tensorrt="10.16.1.11",
        tensorrt_rtx=None,
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
        absent={},
    )
    return dataclasses.replace(machine, **changes)


def make_engine(source: bytes = b"model", data: bytes = b"plan", **changes: Any) -> Engine:
    report = EngineReport(
        precision="fp16",
        architecture="sm_90",
        gpu="NVIDIA H100",
        driver="580.82.07",
        tensorrt="10.16.1.11",
        onnx_sha256=hashlib.sha256(source).hexdigest(),
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        batches=(1, 8, 32),
        build_seconds=61.5,
        parsed_layers={"CONVOLUTION HALF": 16},
        engine_layers={"CaskConvolution": 16},
        inputs={"images": ("FLOAT", (-1, 3, 64, 64))},
        outputs={"logits": ("FLOAT", (-1, 4))},
        parity={"logits": 1e-3},
        parity_images=4,
        notes=(),
    )
    return Engine(report=dataclasses.replace(report, **changes), data=data)


def test_engines_are_read_back_as_they_were_written_and_one_replaces_its_namesake(tmp_path: Path) -> None:
    first, second = make_engine(data=b"old"), make_engine(architecture="sm_120", data=b"other")
    for engine in (first, second, make_engine(data=b"new")):
        write_engine(tmp_path / "engines", engine.report, engine.data)
    found = read_engines(tmp_path / "engines")
    assert {name: engine.data for name, engine in found.items()} == {"sm_90-fp16": b"new", "sm_120-fp16": b"other"}
    assert found["sm_120-fp16"].report == second.report
    assert found["sm_120-fp16"].report.compute_capability == "12.0"
    inside = {path.name: path.read_bytes() for path in (tmp_path / "engines").iterdir()}
    assert {name: engine.data for name, engine in gather_engines(inside.__getitem__).items()} == {
        name: engine.data for name, engine in found.items()
    }
    names = sorted(path.name for path in (tmp_path / "engines").iterdir())
    assert names == ["report.json", "sm_120-fp16.engine", "sm_90-fp16.engine"]


@pytest.mark.parametrize("damage", ["altered", "missing", "no report", "odd report", "renamed"])
def test_damaged_engines_are_refused(damage: str, tmp_path: Path) -> None:
    engine = make_engine()
    write_engine(tmp_path, engine.report, engine.data)
    report = tmp_path / "report.json"
    if damage == "altered":
        (tmp_path / "sm_90-fp16.engine").write_bytes(b"evil")
    elif damage == "missing":
        (tmp_path / "sm_90-fp16.engine").unlink()
    elif damage == "no report":
        report.unlink()
    elif damage == "odd report":
        report.write_text('{"format_version": 1, "engines": {"sm_90-fp16": {}}}')
    else:
        report.write_text(report.read_text().replace('"sm_90-fp16"', '"../sm_90-fp16"'))
    with pytest.raises(EngineError, match=r"build|expected|not ours"):
        read_engines(tmp_path)


def test_an_engine_runs_only_where_and_for_what_it_was_built() -> None:
    engine, machine = make_engine(), make_machine()
    require_belongs(engine.report, b"model", machine)
    other = Gpu(name="NVIDIA L4", architecture="sm_89", memory_bytes=1)
    for source, here, what in (
        (b"another model", machine, "the model of SHA-256"),
        (b"model", make_machine(tensorrt="11.4.0"), "TensorRT 10.16.1.11; here it is 11.4.0"),
        (b"model", make_machine(gpus=(other,)), "GPU architecture sm_90; here it is sm_89"),
    ):
        with pytest.raises(EngineError, match=what):
            require_belongs(engine.report, source, here)


def test_bf16_is_built_only_where_the_gpu_has_it() -> None:
    card = Gpu(name="a GPU", architecture="sm_75", memory_bytes=1)
    assert precisions_for(make_machine(gpus=(card,))) == ("fp32", "fp16")
    for architecture in ("sm_80", "sm_90", "sm_120"):
        newer = dataclasses.replace(card, architecture=architecture)
        assert precisions_for(make_machine(gpus=(newer,))) == ("fp32", "fp16", "bf16")


def test_without_gpu_or_tensorrt_nothing_is_built_and_the_reason_is_told(tmp_path: Path) -> None:
    bare = make_machine(gpus=(), driver=None, absent={"driver": "no libcuda", "tensorrt": "not installed"})
    for machine in (bare, make_machine(tensorrt=None, absent={"tensorrt": "not installed"})):
        with pytest.raises(EngineError, match="not installed"):
            build_engine(b"model", "fp16", make_images(64), tmp_path, machine=machine)
        with pytest.raises(EngineError, match="not installed"):
            open_engine(make_engine(), b"model", machine=machine)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ["average", "wide"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8"])
@pytest.mark.filterwarnings("ignore")
class TestOnGpu:
    pytestmark = gpu

    def test_an_engine_is_built_agrees_with_onnx_runtime_and_is_opened_again(
        self, precision: Precision, head: str, tmp_path: Path
    ) -> None:
        from export.driver import probe

        size, machine = 64, probe()
        data = build(head, size)
        source = quantize(data, [make_images(size)]) if precision == "int8" else data
        report = build_engine(source, precision, make_images(size), tmp_path / "engines", machine=machine)
        assert all(worst <= max(BOUNDS[precision].values, BOUNDS[precision].maps) for worst in report.parity.values())
        assert (tmp_path / "engines" / f"{report.architecture}.timings").stat().st_size > 0
        runner = open_engine(read_engines(tmp_path / "engines")[report.name], source, machine=machine)
        for num in (1, 7):
            assert runner.run(make_images(size, num))["logits"].shape == (num, len(LABELS))
        with pytest.raises(EngineError, match="the engine takes"):
            runner.run(make_images(size, 33))
