"""A model repository that Triton would load: configs that its own schema reads, and files that fit them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export.bundle import Bundle, Golden, load_bundle, write_bundle
from export.errors import TritonError
from export.signing import SigningKey, Trust
from export.tensorrt.engine import Engine, EngineReport, report_json
from export.triton import TritonSettings, write_triton_repository
from export.triton.pbtxt import render
from kernels import dali
from kernels.decode import decode_gray
from kernels.ops import crop, preprocess
from kernels.spec import Normalization, PreprocessSpec

grpc = pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient[grpc], which has Triton's schema, is not installed"
)

LABELS = ("glioma", "meningioma", 'no tumour "0"', "pituitary")
SPEC = PreprocessSpec(
    size=50,
    normalization=Normalization(
        channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
)
TYPES = {TensorProto.FLOAT: "TYPE_FP32"}
HAS_DALI, WHY_NOT = dali.available()
needs_dali = pytest.mark.skipif(not HAS_DALI, reason=f"DALI cannot be used: {WHY_NOT}")
SETTINGS = TritonSettings(preprocessing=HAS_DALI)


def make_model(scale: float = 1.0, kernel: int = 1) -> bytes:
    """A network of our inputs and outputs, whatever it computes, and one output more."""
    weight = numpy_helper.from_array(np.full((len(LABELS), 3, kernel, kernel), scale, np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["class_maps"], kernel_shape=[kernel, kernel]),
        helper.make_node("GlobalAveragePool", ["class_maps"], ["average"]),
        helper.make_node("Flatten", ["average"], ["logits"]),
        helper.make_node("ReduceMean", ["logits"], ["embedding"], axes=[1]),
    ]
    size, side, classes = SPEC.size, SPEC.size - kernel + 1, len(LABELS)
    shapes: dict[str, list[str | int]] = {
        "images": ["batch", 3, size, size],
        "logits": ["batch", classes],
        "class_maps": ["batch", classes, side, side],
        "embedding": ["batch", 1],
    }
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    outputs = [values[name] for name in ("logits", "class_maps", "embedding")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [values["images"]], outputs, [weight]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    said = {"gliofed.labels": json.dumps(list(LABELS)), "gliofed.preprocess": json.dumps(SPEC.to_json())}
    helper.set_model_props(model, said)
    return model.SerializeToString(deterministic=True)


def make_head(height: int = 120, width: int = 100, seed: int = 0) -> np.ndarray:
    gray = np.zeros((height, width), np.uint8)
    cv2.ellipse(gray, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 160, -1)
    noise = np.random.default_rng(seed).integers(-40, 40, gray.shape)
    return np.where(gray > 0, gray + noise, 0).astype(np.uint8)


BundleMaker = Callable[..., Bundle]


@pytest.fixture(scope="module")
def write_and_load(tmp_path_factory: pytest.TempPathFactory, signing_key: SigningKey, trust: Trust) -> BundleMaker:
    """Return a loaded bundle of the small network, with other arguments of write_bundle."""

    def make(**more: Any) -> Bundle:
        path = write_bundle(
            tmp_path_factory.mktemp("bundles") / "bundle",
            onnx_bytes=make_model(),
            preprocess=SPEC,
            labels=LABELS,
            metrics={},
            provenance={},
            data_kind="phantom",
            key=signing_key,
            **more,
        )
        return load_bundle(path, trust)

    return make


def make_golden(**more: Any) -> Golden:
    grays = np.stack([make_head(seed=seed) for seed in range(2)])
    return Golden(grays_NHW=grays, logits_NC=np.ones((2, len(LABELS)), np.float32), **more)


@pytest.fixture(scope="module")
def bundle(write_and_load: BundleMaker) -> Bundle:
    return write_and_load(golden=make_golden())


def make_engine(source: bytes, architecture: str = "sm_90", **changes: Any) -> Engine:
    data = f"plan of {architecture}".encode()
    report = EngineReport(
        precision="fp16",
        architecture=architecture,
        gpu="a GPU",
        driver="580.82.07",
        tensorrt="10.16.1.11",
        onnx_sha256=hashlib.sha256(source).hexdigest(),
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        batches=(1, 8, 32),
        build_seconds=1.0,
        parsed_layers={},
        engine_layers={},
        inputs={},
        outputs={},
        parity={},
        parity_images=1,
        notes=(),
    )
    return Engine(report=dataclasses.replace(report, **changes), data=data)


def read_configs(root: Path) -> dict[str, Any]:
    """Return every model's config as Triton's schema reads it; a name or type that it does not know raises."""
    return {
        path.parent.name: text_format.Parse(path.read_text(), grpc.model_config_pb2.ModelConfig())
        for path in sorted(root.glob("*/config.pbtxt"))
    }


def type_name(kind: int) -> str:
    return str(grpc.model_config_pb2.DataType.Name(kind))


def tensors(side: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {value.name: (type_name(value.data_type), tuple(value.dims)) for value in side}


def onnx_tensors(side: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        value.name: (
            TYPES[value.type.tensor_type.elem_type],
            tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]),
        )
        for value in side
    }


def assert_complete(root: Path) -> None:
    """Every config's name, files, labels, batches and connections fit the folder and the ONNX files."""
    configs = read_configs(root)
    assert sorted(path.name for path in root.iterdir()) == sorted(configs)
    for name, config in configs.items():
        folder, version = root / name, config.version_policy.specific.versions[0]
        assert config.name == name and config.max_batch_size > 0 and (folder / str(version)).is_dir()
        for output in config.output:
            if output.label_filename:
                assert output.name == "logits"
                assert (folder / output.label_filename).read_text().splitlines() == list(LABELS)
        assert all(1 <= size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size)
        if config.backend == "onnxruntime":
            graph = onnx.load(folder / str(version) / "model.onnx").graph
            assert tensors(config.input) == onnx_tensors(graph.input)
            assert tensors(config.output) == onnx_tensors(graph.output)
            assert all(value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output))
        for file in config.cc_model_filenames.values():
            assert (folder / str(version) / file).is_file()
        for sample in config.model_warmup:
            ((key, value),) = sample.inputs.items()
            assert (type_name(value.data_type), tuple(value.dims)) == tensors(config.input)[key]
            if value.input_data_file:
                data = (folder / "warmup" / value.input_data_file).read_bytes()
                assert len(data) == 4 * np.prod(value.dims), "Triton wants one request's data, whatever the batch"
        if config.platform == "ensemble":
            assert_connected(config, configs)


def assert_connected(ensemble: Any, configs: dict[str, Any]) -> None:
    flowing = tensors(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        inner = configs[step.model_name]
        assert inner.max_batch_size == ensemble.max_batch_size
        taken, given_out = tensors(inner.input), tensors(inner.output)
        assert set(step.input_map) == set(taken), "every input is fed"
        for name, source in step.input_map.items():
            assert taken[name] == flowing[source], (step.model_name, name)
        flowing |= {target: given_out[name] for name, target in step.output_map.items()}
    assert tensors(ensemble.output).items() <= flowing.items()


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_repository_fits_tritons_schema_and_its_own_files(bundle: Bundle, device: str, tmp_path: Path) -> None:
    chosen = TritonSettings.model_validate(
        {"device": device, "preprocessing": HAS_DALI, "version": 3, "name": "job-1_of-2"}
    )
    root = write_triton_repository(bundle, tmp_path / "models", settings=chosen)
    assert_complete(root)
    config = read_configs(root)["job-1_of-2"]
    assert (root / "job-1_of-2/3/model.onnx").read_bytes() == bundle.model_onnx
    assert [str(group) for group in config.instance_group] == [f"count: 1\nkind: KIND_{device.upper()}\n"]
    queue = config.dynamic_batching.default_queue_policy
    assert queue.timeout_action == grpc.model_config_pb2.ModelQueuePolicy.REJECT
    assert queue.default_timeout_microseconds > 0 and queue.max_queue_size > 0
    assert {sample.batch_size for sample in config.model_warmup} == {1, 8, 16, 32}
    assert config.dynamic_batching.max_queue_delay_microseconds == chosen.max_queue_delay_us


def test_warm_up_is_the_first_golden_image_as_the_network_takes_it(bundle: Bundle, tmp_path: Path) -> None:
    root = write_triton_repository(bundle, tmp_path / "models", settings=SETTINGS)
    stored = np.frombuffer((root / "gliofed/warmup/golden_images").read_bytes(), "<f4").reshape(3, 50, 50)
    assert bundle.golden is not None
    np.testing.assert_array_equal(stored, preprocess([bundle.golden.grays_NHW[0]], SPEC)[0][0])
    bare = write_triton_repository(dataclasses.replace(bundle, golden=None), tmp_path / "bare", settings=SETTINGS)
    assert_complete(bare)
    assert all(value.zero_data for s in read_configs(bare)["gliofed"].model_warmup for value in s.inputs.values())


def test_int8_and_engines_stand_beside_the_network_and_engines_answer_the_ensemble(
    write_and_load: BundleMaker, tmp_path: Path
) -> None:
    int8 = make_model(scale=0.5)
    bundle = write_and_load(int8_onnx=int8)
    engines = {
        "sm_90-fp16": make_engine(bundle.model_onnx),
        "sm_120-fp16": make_engine(bundle.model_onnx, "sm_120"),
        "sm_90-int8": make_engine(int8, precision="int8"),
    }
    root = write_triton_repository(bundle, tmp_path / "m", settings=SETTINGS, engines=engines)
    assert_complete(root)
    configs = read_configs(root)
    assert (root / "gliofed_int8/1/model.onnx").read_bytes() == int8
    built = configs["gliofed_trt"]
    assert built.backend == "tensorrt" and not built.default_model_filename
    assert dict(built.cc_model_filenames) == {"9.0": "sm_90-fp16.plan", "12.0": "sm_120-fp16.plan"}
    assert (root / "gliofed_trt/1/sm_120-fp16.plan").read_bytes() == engines["sm_120-fp16"].data
    assert tensors(built.output) == tensors(configs["gliofed"].output)
    assert "TensorRT 10.16.1.11" in (root / "gliofed_trt/config.pbtxt").read_text()
    if HAS_DALI:
        steps = configs["gliofed_from_jpeg"].ensemble_scheduling.step
        assert [step.model_name for step in steps] == ["gliofed_preprocess", "gliofed_trt"]

    chosen = SETTINGS.model_copy(update={"engine_precision": "int8"})
    root = write_triton_repository(bundle, tmp_path / "i", settings=chosen, engines=engines)
    assert dict(read_configs(root)["gliofed_trt"].cc_model_filenames) == {"9.0": "sm_90-int8.plan"}


def test_engines_that_do_not_fit_are_refused_and_leave_nothing(bundle: Bundle, tmp_path: Path) -> None:
    model = bundle.model_onnx
    for engine, reason in (
        (make_engine(b"another model"), "Build the engines from this bundle"),
        (make_engine(model, batches=(1, 8, 16)), "takes 1 to 16 images"),
        (make_engine(model, batches=(2, 8, 32)), "takes 2 to 32 images"),
        (dataclasses.replace(make_engine(model), data=b"altered"), "not the one that its report names"),
    ):
        with pytest.raises(Exception, match=reason):
            write_triton_repository(bundle, tmp_path / "m", settings=SETTINGS, engines={"e": engine})
    assert not list(tmp_path.iterdir())


def test_a_twin_of_another_shape_is_refused(write_and_load: BundleMaker, tmp_path: Path) -> None:
    holding = write_and_load(int8_onnx=make_model(kernel=3))
    with pytest.raises(TritonError, match="other inputs or outputs"):
        write_triton_repository(holding, tmp_path / "m", settings=SETTINGS)
    assert not list(tmp_path.iterdir())


def test_engines_of_the_bundle_are_used_unless_others_are_given(write_and_load: BundleMaker, tmp_path: Path) -> None:
    engine = make_engine(make_model())
    holding = write_and_load(engines={engine.report.name: engine.data}, engine_report=report_json([engine.report]))
    own = write_triton_repository(holding, tmp_path / "own", settings=SETTINGS)
    assert (own / "gliofed_trt/1/sm_90-fp16.plan").read_bytes() == engine.data
    others = {"sm_80-fp16": make_engine(make_model(), "sm_80")}
    given = write_triton_repository(holding, tmp_path / "given", settings=SETTINGS, engines=others)
    assert dict(read_configs(given)["gliofed_trt"].cc_model_filenames) == {"8.0": "sm_80-fp16.plan"}
    none = write_triton_repository(holding, tmp_path / "none", settings=SETTINGS, engines={})
    assert "gliofed_trt" not in read_configs(none)


def test_same_bundle_same_bytes_and_nothing_is_overwritten(bundle: Bundle, tmp_path: Path) -> None:
    roots = [write_triton_repository(bundle, tmp_path / name, settings=SETTINGS) for name in ("a", "b")]
    first, second = (
        {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in roots
    )
    assert first == second
    assert not [name for name, data in first.items() if str(tmp_path).encode() in data or b".py" in data]
    with pytest.raises(TritonError, match="exists"):
        write_triton_repository(bundle, roots[0], settings=SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "values",
    [{"name": "../up"}, {"name": ""}, {"preferred_batches": (8, 64)}, {"preferred_batches": (8, 4)}, {"unknown": 1}],
)
def test_settings_that_make_no_repository_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TritonSettings.model_validate(values)


def encode(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@needs_dali
def test_stored_preprocessing_gives_the_kernels_tensors_bit_for_bit(bundle: Bundle, tmp_path: Path) -> None:
    from nvidia.dali import Pipeline

    chosen = TritonSettings(device="cpu", preprocessing_threads=1, max_batch=4, preferred_batches=(4,))
    root = write_triton_repository(bundle, tmp_path / "m", settings=chosen)
    stored = (root / "gliofed_preprocess/1/model.dali").read_bytes()
    gray_HW = make_head(131, 173)
    tinted_HWC = np.clip(gray_HW[:, :, None] * np.array([1.6, 1.0, 0.3]), 0, 255).astype(np.uint8)
    files = [
        encode(gray_HW, quality=90),
        encode(gray_HW, progressive=True),
        encode(tinted_HWC, subsampling=2),
        encode(np.zeros((70, 90), np.uint8)),
    ]
    pipeline = Pipeline.deserialize(serialized_pipeline=stored)
    pipeline.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in files])
    images, boxes = (np.asarray(output.as_tensor()) for output in pipeline.run())

    grays = [decode_gray(data) for data in files]
    np.testing.assert_array_equal(images, preprocess(grays, SPEC)[0])
    assert boxes.tolist() == [list(crop(gray).box or (0, 0, 0, 0)) for gray in grays]


@needs_dali
def test_preprocessing_for_a_gpu_is_stored_without_one_and_differs_in_its_devices_only() -> None:
    stored = {
        device: dali.serialized(SPEC, batch_size=8, num_threads=2, device=device)  # type: ignore[arg-type]
        for device in ("cpu", "gpu")
    }
    assert b"mixed" in stored["gpu"] and b"mixed" not in stored["cpu"]
    for data in stored.values():
        assert b"gliofed__Crop" in data and b"gliofed__Finish" in data and b"_origin_stack" not in data


words = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(texts=st.dictionaries(words, words, max_size=3), sizes=st.lists(st.integers(1, 2**31 - 1), max_size=4))
def test_any_text_and_number_is_read_back_by_protobuf(texts: dict[str, str], sizes: list[int]) -> None:
    parameters = [{"key": key, "value": {"string_value": value}} for key, value in texts.items()]
    text = render({"dynamic_batching": {"preferred_batch_size": sizes}, "parameters": parameters}, "two\nlines")
    read = text_format.Parse(text, grpc.model_config_pb2.ModelConfig())
    assert {key: value.string_value for key, value in read.parameters.items()} == texts
    assert list(read.dynamic_batching.preferred_batch_size) == sizes
