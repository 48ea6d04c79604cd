"""A narrow graph is the float32 graph with a narrow trunk, and what its rounding costs is measured truly."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from torch import nn

from export.errors import ParityError, UnsupportedModel
from export.onnx import build_onnx
from export.parity import BOUNDS, Bounds, differences, maps_of, require_parity
from export.precision import Narrow, emulate, narrow, verify_narrow
from export.predictor import open_session
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from kernels.spec import PreprocessSpec
from service.ship import wide_head

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TORCH_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS: tuple[Narrow, ...] = ("fp16", "bf16")


def make_model(head: str) -> SplitVgg19:
    options = {"random_features": 24, "frozen_through": "block4_conv3"} if head == "wide" else {}
    model = SplitVgg19(NetworkSettings.model_validate({"width": 0.125, "head": head, **options})).eval()
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    return model


def build(head: str, size: int = 50) -> bytes:
    model = make_model(head)
    return build_onnx(
        model.features(), model.head, preprocess=PreprocessSpec(size=size), labels=LABELS, wide=wide_head(model)
    )


def make_images(size: int = 50, num: int = 3) -> np.ndarray:
    return np.random.default_rng(1).random((num, 3, size, size), np.float32)


@pytest.mark.parametrize("head", ["average", "wide"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_trunk_is_narrow_and_all_else_stays_float32(head: str, precision: Narrow) -> None:
    data = narrow(build(head), precision)
    assert data == narrow(build(head), precision), "the same file gives the same bytes"
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {weight.name: weight.data_type for weight in model.graph.initializer}
    for node in model.graph.node:
        narrow_trunk = node.name.startswith("block")
        for name in (*node.input[1:], *node.output):
            kind = kinds.get(name, TensorProto.FLOAT)
            if narrow_trunk and node.op_type != "Cast":
                assert kind == TYPES[precision], (node.name, name)
            elif node.name != f"images.{precision}.cast":
                assert kind not in TYPES.values(), (node.name, name)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    exact = onnx.load_model_from_string(build(head))
    assert model.metadata_props == exact.metadata_props
    assert [output.name for output in model.graph.output] == [output.name for output in exact.graph.output]


def make_whole_numbers() -> tuple[nn.Sequential, nn.Linear]:
    """A network whose float32 sums are exact, whatever their order: small whole numbers all along."""
    generator, layers, channels = torch.Generator().manual_seed(3), OrderedDict[str, nn.Module](), 3
    for block in (1, 2):
        convolution = nn.Conv2d(channels, 8, 3, padding=1)
        with torch.no_grad():
            convolution.weight.copy_(torch.randint(-3, 4, convolution.weight.shape, generator=generator))
            convolution.bias.copy_(torch.randint(-9, 10, (8,), generator=generator))  # type: ignore[union-attr]
        layers |= {f"block{block}_conv1": convolution, f"block{block}_relu1": nn.ReLU()}
        layers[f"block{block}_pool"], channels = nn.MaxPool2d(2), 8
    head = nn.Linear(8, len(LABELS))
    with torch.no_grad():
        head.weight.copy_(torch.randint(-3, 4, head.weight.shape, generator=generator))
    return nn.Sequential(layers), head


@pytest.mark.parametrize("precision", PRECISIONS)
def test_emulation_rounds_where_a_narrow_network_rounds(precision: Narrow) -> None:
    """The truth: torch in float32, with the input, the weights and each convolution's output rounded."""
    (features, head), kind = make_whole_numbers(), TORCH_TYPES[precision]
    data = build_onnx(features, head, preprocess=PreprocessSpec(size=24), labels=LABELS)
    images = np.random.default_rng(1).integers(0, 300, (2, 3, 24, 24)).astype(np.float32)
    truth, activations = {}, torch.from_numpy(images).to(kind).to(torch.float32)
    with torch.no_grad():
        for name, layer in list(features.named_children())[:-1]:
            activations = layer(activations)
            if isinstance(layer, nn.Conv2d):
                truth[f"{name}.peak"] = activations.amax(dim=(2, 3), keepdim=True).numpy()
                activations = activations.to(kind).to(torch.float32)
        truth["class_maps"] = torch.einsum("ck,nkhw->nchw", head.weight, activations).numpy()

    names = list(truth)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(emulate(narrow(data, precision)), options, providers=["CPUExecutionProvider"])
    for name, found in zip(names, session.run(names, {"images": images}), strict=True):
        np.testing.assert_array_equal(found, truth[name], err_msg=name)
    (exact,) = open_session(data).run(["class_maps"], {"images": images})
    assert (exact != truth["class_maps"]).any(), "there was something to round"


@pytest.mark.parametrize("head", ["average", "wide"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_narrow_network_is_found_close_enough(head: str, precision: Narrow) -> None:
    data = build(head)
    found = verify_narrow(data, narrow(data, precision), precision, make_images())
    assert set(found) == {output.name for output in open_session(data).get_outputs()}
    assert 0 < found["logits"] <= BOUNDS[precision].values


def _scaled(data: bytes, weight: str, factor: float) -> bytes:
    model = onnx.load_model_from_string(data)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(stored)
    stored.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), weight))
    return model.SerializeToString()


def test_another_networks_weights_are_found_out() -> None:
    data = build("wide")
    with pytest.raises(ParityError, match=r"fp16 network \(emulated\) gives .* away from float32"):
        verify_narrow(data, _scaled(narrow(data, "fp16"), "block3_conv1.weight", -1), "fp16", make_images())


def test_activations_near_fp16s_end_are_refused_and_bf16_holds_them() -> None:
    data, images = build("average"), make_images()
    peaks = [f"block{block}_conv1.peak" for block in range(1, 6)]
    largest = max(
        float(peak.max()) for peak in open_session(emulate(narrow(data, "bf16"))).run(peaks, {"images": images})
    )
    fits, near = (_scaled(data, "block1_conv1.weight", reach / largest) for reach in (10_000, 40_000))
    verify_narrow(fits, narrow(fits, "fp16"), "fp16", images)
    verify_narrow(near, narrow(near, "bf16"), "bf16", images)
    with pytest.raises(UnsupportedModel, match=r"fp16 ends at 65504.*Use bf16"):
        verify_narrow(near, narrow(near, "fp16"), "fp16", images)


def test_weights_that_fp16_cannot_hold_and_other_files_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"block1_conv1\.weight reaches .* more than fp16 holds"):
        narrow(_scaled(build("average"), "block1_conv1.weight", 1e7), "fp16")
    with pytest.raises(UnsupportedModel, match="no convolution reads images"):
        narrow(narrow(build("average"), "fp16"), "fp16")


@settings(deadline=None, max_examples=50)
@given(scale=st.floats(1e-3, 1e3), share=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_differences_do_not_hang_on_the_outputs_scale_and_count_maps_as_a_whole(
    scale: float, share: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    truth = {
        "logits": generator.normal(size=(3, 4)).astype(np.float32),
        "maps": generator.random((3, 4, 5, 5), np.float32) + np.float32(0.1),
    }
    ours = {name: value * np.float32(1 + share) for name, value in truth.items()}
    found = differences({n: v * np.float32(scale) for n, v in truth.items()}, {n: v * scale for n, v in ours.items()})
    assert found == pytest.approx({"logits": share, "maps": share}, abs=1e-4)
    assert maps_of(truth) == {"maps"}


def test_values_that_are_not_finite_and_missing_outputs_never_pass() -> None:
    truth = {"logits": np.ones((1, 2), np.float32)}
    found = differences(truth, {"logits": np.array([[1, np.nan]], np.float32)})
    with pytest.raises(ParityError, match="Do not serve"):
        require_parity(found, frozenset(), Bounds(values=1e9, maps=1e9), who="it")
    with pytest.raises(ParityError, match="nothing to compare"):
        differences({"logits": np.ones((0, 2), np.float32)}, {"logits": np.ones((0, 2), np.float32)})
    for ours in ({}, {"logits": np.ones((2, 2), np.float32)}):
        with pytest.raises(ParityError, match="output logits should have shape"):
            differences(truth, ours)
