"""The int8 file has the form that ONNX Runtime and TensorRT take, answers like its float32 file, or is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import NodeProto, TensorProto, numpy_helper

from export.acceptance import accept, compare
from export.errors import Int8Rejected, UnsupportedModel
from export.onnx import build_onnx
from export.predictor import open_session
from export.quantize import quantize
from fl.evaluation.metrics import confusion_matrix, metrics_from_confusion
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from kernels.spec import PreprocessSpec
from service.ship import wide_head

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
SIZE = 48


def make_images(num: int, seed: int = 1) -> np.ndarray:
    """Dark noise with a bright square, signed as normalised images are."""
    generator = np.random.default_rng(seed)
    images = generator.random((num, 3, SIZE, SIZE), np.float32) * 40 - 110
    for image in images:
        top, left = generator.integers(0, SIZE // 2, 2)
        image[:, top : top + SIZE // 2, left : left + SIZE // 2] += 150
    return images


def build(head: str) -> bytes:
    wide_settings = {"random_features": 24, "frozen_through": "block4_conv3"} if head == "wide" else {}
    model = SplitVgg19(NetworkSettings(width=0.125, head=head, **wide_settings)).eval()
    initialise_from_nothing(model, torch.Generator().manual_seed(3))
    wide = wide_head(model)
    assert (wide is not None) == (head == "wide")
    return build_onnx(model.features(), model.head, preprocess=PreprocessSpec(size=SIZE), labels=LABELS, wide=wide)


@pytest.fixture(scope="module", params=["average", "wide"])
def exact(request: pytest.FixtureRequest) -> bytes:
    return build(request.param)


@pytest.fixture(scope="module")
def int8(exact: bytes) -> bytes:
    return quantize(exact, [make_images(8), make_images(3, seed=2)])


def macro_f1(true_N: np.ndarray, predicted_N: np.ndarray) -> float:
    return metrics_from_confusion(confusion_matrix(true_N, predicted_N, len(LABELS)), LABELS).macro_f1


def decisions(data: bytes, images_NCHW: np.ndarray) -> np.ndarray:
    (logits_NC,) = open_session(data).run(["logits"], {"images": images_NCHW})
    classes_N: np.ndarray = logits_NC.argmax(axis=1)
    return classes_N


def test_same_file_and_images_give_the_same_bytes_and_images_are_read_once(exact: bytes) -> None:
    images = make_images(6)

    def once() -> Iterator[np.ndarray]:
        yield from (images[:4], images[4:])

    assert quantize(exact, once()) == quantize(exact, once()) == quantize(exact, [images[:4], images[4:]])


def test_inputs_outputs_metadata_and_the_heads_weights_stay(exact: bytes, int8: bytes) -> None:
    before, after = onnx.load_model_from_string(exact), onnx.load_model_from_string(int8)

    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    assert list(before.metadata_props) == list(after.metadata_props)
    stored = {tensor.name: tensor for tensor in after.graph.initializer}
    assert len(stored) == len(after.graph.initializer), "no weight is stored twice"
    kept = [tensor for tensor in before.graph.initializer if not tensor.name.startswith("block")]
    assert all(stored[tensor.name] == tensor for tensor in kept)
    assert not any(tensor.data_location == TensorProto.EXTERNAL for tensor in stored.values())
    assert len(int8) < 0.5 * len(exact)


def test_every_convolution_but_the_first_and_the_heads_multiplies_symmetric_int8(exact: bytes, int8: bytes) -> None:
    graph = onnx.load_model_from_string(int8).graph
    made_by = {output: node for node in graph.node for output in node.output}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def quantised(node: NodeProto) -> bool:
        return all(made_by.get(name, node).op_type == "DequantizeLinear" for name in node.input[:2])

    layers = [node for node in graph.node if node.op_type == "Conv" and node.name.startswith("block")]
    assert [node.name for node in layers if not all(name in made_by for name in node.input[:2])] == ["block1_conv1"]
    for conv in layers[1:]:
        assert quantised(conv), conv.name
        activation, weight = made_by[conv.input[0]], made_by[conv.input[1]]
        assert stored[activation.input[1]].shape == () and stored[activation.input[2]].dtype == np.uint8
        steps = stored[weight.input[0]]
        assert steps.dtype == np.int8 and np.abs(steps.astype(int)).max() == 127
        assert stored[weight.input[1]].shape == steps.shape[:1]
        assert {attribute.name: attribute.i for attribute in weight.attribute} == {"axis": 0}
        assert stored[conv.input[2]].dtype == np.float32, "TensorRT takes no int32 bias"
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not stored[node.input[2]].any() and (stored[node.input[1]] > 0).all()
    assert not [node.name for node in graph.node if node.op_type in ("Gemm", "MatMul") and quantised(node)]


def test_onnx_runtime_runs_every_such_convolution_and_pool_in_int8(int8: bytes, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    ort.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node

    kinds = [node.op_type for node in nodes if node.name.startswith(("block", "Max")) or node.op_type == "QLinearConv"]
    assert kinds.count("QLinearConv") == 15
    assert kinds.count("MaxPool") == 0, "pools run on whole numbers"
    assert [node.name for node in nodes if node.op_type == "Relu" and "random" not in node.name] == []


def test_answers_stay_close_and_calibrated_values_reach_but_do_not_pass_127(exact: bytes, int8: bytes) -> None:
    images = make_images(12, seed=5)
    names = [output.name for output in open_session(exact).get_outputs()]
    truth, found = (open_session(data).run(names, {"images": images}) for data in (exact, int8))

    for name, expected, actual in zip(names, truth, found, strict=True):
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert 0 < error < (0.6 if name == "class_maps" else 0.2), name

    probe = onnx.load_model_from_string(int8)
    levels = [node.output[0] for node in probe.graph.node if node.op_type == "QuantizeLinear"]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in levels)
    values = open_session(probe.SerializeToString()).run(levels, {"images": make_images(8)})
    assert max(value.max() for value in values) in range(120, 136), "the first layer is exact, later ones nearly so"
    assert values[0].max() <= 127


def test_the_same_answers_for_any_batch_and_number_of_threads(int8: bytes) -> None:
    images = make_images(5)
    one, two = open_session(int8), open_session(int8, num_threads=2)
    whole = one.run(["logits"], {"images": images})[0]

    np.testing.assert_array_equal(whole, one.run(["logits"], {"images": images})[0])
    np.testing.assert_allclose(whole, two.run(["logits"], {"images": images})[0], rtol=1e-2, atol=1e-3)
    singly = np.concatenate([one.run(["logits"], {"images": image[None]})[0] for image in images])
    np.testing.assert_allclose(whole, singly, rtol=1e-2, atol=1e-3)


def test_a_bias_far_above_its_weights_and_a_channel_of_zeros_survive() -> None:
    model = onnx.load_model_from_string(build("average"))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(stored[f"block2_conv1.{key}"]).copy() for key in ("weight", "bias"))
    weight[0], weight[1], bias[:2] = 0, 1e-12, 50
    stored["block2_conv1.weight"].CopyFrom(numpy_helper.from_array(weight, "block2_conv1.weight"))
    stored["block2_conv1.bias"].CopyFrom(numpy_helper.from_array(bias, "block2_conv1.bias"))
    exact, images = model.SerializeToString(), make_images(4)

    truth, found = (
        open_session(data).run(["logits"], {"images": images})[0] for data in (exact, quantize(exact, [images]))
    )

    assert np.linalg.norm(found - truth) < 0.2 * np.linalg.norm(truth)


def test_a_channel_that_is_far_darker_than_the_others_is_not_lost() -> None:
    """The same function, every other channel 1/64 as bright and read 64 times as strongly: rounding hurts as little."""
    model, images = onnx.load_model_from_string(build("average")), make_images(6)
    same = onnx.load_model_from_string(model.SerializeToString())
    stored = {tensor.name: tensor for tensor in same.graph.initializer}
    for name, axis, factor in (
        ("block3_conv2.weight", 0, 1 / 64),
        ("block3_conv2.bias", 0, 1 / 64),
        ("block3_conv3.weight", 1, 64),
    ):
        values = numpy_helper.to_array(stored[name]).copy()
        values.swapaxes(0, axis)[::2] *= np.float32(factor)
        stored[name].CopyFrom(numpy_helper.from_array(values, name))

    errors = []
    for data in (model.SerializeToString(), same.SerializeToString()):
        truth, found = (
            open_session(graph).run(["logits"], {"images": images})[0] for graph in (data, quantize(data, [images]))
        )
        errors.append(np.linalg.norm(found - truth) / np.linalg.norm(truth))
    assert errors[1] < 3 * errors[0]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "over 0 calibration images"),
        ([np.empty((0, 3, SIZE, SIZE), np.float32)], "over 0 calibration images"),
        ([make_images(2), np.full((1, 3, SIZE, SIZE), np.nan, np.float32)], "after the first 2 .*not finite"),
        ([np.full((1, 3, SIZE, SIZE), np.inf, np.float32)], "not finite"),
        ([make_images(2).astype(np.float64)], "float32 images .*got float64"),
        ([make_images(2)[:, :, 1:]], r"shape \[N, \*\[3, 48, 48\]\]"),
        ([np.zeros((1, 3, SIZE, SIZE), np.float32)], "positive finite one"),
    ],
)
def test_useless_calibration_is_refused(batches: list[np.ndarray], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        quantize(build("average"), batches)


def test_a_file_that_is_int8_already_is_refused(int8: bytes) -> None:
    with pytest.raises(UnsupportedModel, match="none has a Relu after it and another before it"):
        quantize(int8, [make_images(2)])


def test_int8_is_accepted_where_it_decides_alike(exact: bytes, int8: bytes) -> None:
    images = make_images(24, seed=7)
    true_N = decisions(int8, images)

    found = accept(exact, int8, [(images[:10], true_N[:10]), (images[10:], true_N[10:])], macro_f1)

    agreement = (decisions(exact, images) == true_N).mean()
    assert found.accepted and found.num_images == 24 and found.agreement == agreement
    assert found.macro_f1_int8 == macro_f1(true_N, true_N)
    assert 0 < found.largest_probability_difference < 1 and found.drop_points <= 0
    assert 0.5 < found.maps_cosine_lowest <= found.maps_cosine_median <= 1 and 0.5 < found.maps_energy_ratio < 2
    assert found.to_json()["drop_points"] == found.drop_points


def test_int8_is_rejected_with_its_figures_where_macro_f1_falls() -> None:
    exact, images = build("average"), make_images(24, seed=7)
    spoiled = onnx.load_model_from_string(quantize(exact, [images]))
    for tensor in spoiled.graph.initializer:
        if tensor.name == "head.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, 0, 0, 1e6], np.float32), tensor.name))
    true_N, data = decisions(exact, images), spoiled.SerializeToString()

    with pytest.raises(Int8Rejected, match=r"macro-F1 from .* points, allowed are less than 0\.5") as caught:
        accept(exact, data, [(images, true_N)], macro_f1)
    assert caught.value.acceptance == compare(exact, data, [(images, true_N)], macro_f1)
    assert caught.value.acceptance is not None and not caught.value.acceptance.accepted
    assert caught.value.acceptance.agreement == (true_N == 3).mean()
    with pytest.raises(UnsupportedModel, match="given none"):
        accept(exact, data, [], macro_f1)


PARSE = """
import sys, tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
if not parser.parse(open(sys.argv[1], "rb").read()):
    sys.exit("; ".join(str(parser.get_error(at)) for at in range(parser.num_errors)))
layers = [network.get_layer(at) for at in range(network.num_layers)]
print(*{str(layer.get_output(0).dtype) for layer in layers if layer.type == trt.LayerType.QUANTIZE})
"""


def test_tensorrt_takes_it_and_reads_its_values_as_int8(int8: bytes, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    file = tmp_path / "model.int8.onnx"
    file.write_bytes(int8)

    parsed = subprocess.run(
        [sys.executable, "-c", PARSE, str(file)], check=False, capture_output=True, text=True, timeout=120
    )

    assert parsed.returncode == 0, parsed.stderr
    assert parsed.stdout.split() == ["DataType.INT8"]
