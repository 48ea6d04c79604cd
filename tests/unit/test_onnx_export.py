from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.errors import ExportMismatch, UnsupportedModel
from export.onnx import OPSET, build_onnx, export_onnx, verify_against_torch
from export.predictor import open_session
from kernels.spec import PreprocessSpec

LABELS = ("glioma", "meningioma", "notumor", "pituitary")


def make_network(channels: tuple[int, ...] = (6, 8, 5), seed: int = 0) -> tuple[nn.Sequential, nn.Linear]:
    """Return blocks of two convolutions and a pool, named as VGG19's are, with random weights, and a head."""
    torch.manual_seed(seed)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = 3
    for block, out in enumerate(channels, 1):
        for conv in (1, 2):
            layers[f"block{block}_conv{conv}"] = nn.Conv2d(width, out, 3, padding=1)
            layers[f"block{block}_relu{conv}"] = nn.ReLU(inplace=True)
            width = out
        layers[f"block{block}_pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers), nn.Linear(width, len(LABELS))


def make_images(size: int, num: int = 3) -> np.ndarray:
    return np.random.default_rng(1).random((num, 3, size, size), np.float32)


def autograd_grad_cam(features: nn.Sequential, head: nn.Linear, images_NCHW: torch.Tensor) -> torch.Tensor:
    """Return Grad-CAM at the last ReLU for every label, [N,C,h,w], by backward passes as in the paper."""
    with torch.no_grad():
        activations = features[:-1](images_NCHW)
    activations.requires_grad_(True)
    logits = head(features[-1](activations).mean(dim=(2, 3)))
    cams = []
    for label in range(len(LABELS)):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), activations, retain_graph=True)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        cams.append(torch.relu((weights * activations).sum(dim=1)).detach())
    return torch.stack(cams, dim=1)


def build(features: nn.Sequential, head: nn.Linear, size: int = 24) -> bytes:
    return build_onnx(features, head, preprocess=PreprocessSpec(size=size), labels=LABELS)


@pytest.mark.parametrize(
    ("channels", "size"),
    [((6, 8, 5), 24), ((6, 8, 5), 29), ((3, 1), 7), ((1,), 5), ((8, 8, 8, 8, 8), 47), ((2, 3), 83)],
)
def test_class_maps_equal_autograd_grad_cam_at_odd_sizes_and_narrow_networks(
    channels: tuple[int, ...], size: int
) -> None:
    features, head = (part.double() for part in make_network(channels))
    images = torch.from_numpy(make_images(size)).double()
    with torch.no_grad():
        class_maps = torch.einsum("ck,nkhw->nchw", head.weight, features[:-1](images))
    closed_form = torch.relu(class_maps) / (class_maps.shape[2] * class_maps.shape[3])
    assert (autograd_grad_cam(features, head, images) - closed_form).abs().max() < 1e-12


@pytest.mark.parametrize("size", [24, 29, 47])
def test_class_maps_of_the_file_give_autograd_grad_cam(size: int) -> None:
    features, head = make_network()
    images = make_images(size)
    class_maps = open_session(build(features, head, size)).run(["class_maps"], {"images": images})[0]
    from_file = np.maximum(class_maps, 0) / (class_maps.shape[2] * class_maps.shape[3])
    truth = autograd_grad_cam(features.double(), head.double(), torch.from_numpy(images).double()).numpy()
    assert truth.max() > 0
    assert np.abs(from_file - truth).max() < 1e-5 * truth.max()


@pytest.mark.parametrize(("size", "num"), [(24, 1), (24, 5), (29, 2), (47, 1)])
def test_graph_answers_as_torch_does_for_any_batch(size: int, num: int) -> None:
    features, head = make_network()
    model = build(features, head, size)
    images = make_images(size, num)
    agreement = verify_against_torch(model, features, head, images)
    assert agreement.num_images == num
    assert max(agreement.logits, agreement.class_maps, agreement.embedding) < 1e-5
    logits, class_maps, embedding = open_session(model).run(None, {"images": images})
    assert logits.shape == (num, 4)
    with torch.no_grad():
        averaged = features(torch.from_numpy(images)).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(embedding, averaged, rtol=1e-4, atol=1e-6)
    assert class_maps.shape == (num, 4, size // 4, size // 4)


def test_same_weights_give_the_same_bytes_and_others_do_not() -> None:
    first, again, other = (build(*make_network(seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_file_names_what_it_needs_and_keeps_every_weight_inside_once() -> None:
    features, head = make_network()
    spec = PreprocessSpec(size=24)
    model = onnx.load_model_from_string(build_onnx(features, head, preprocess=spec, labels=LABELS))
    properties = {item.key: json.loads(item.value) for item in model.metadata_props}
    assert PreprocessSpec.from_json(properties["gliofed.preprocess"]) == spec
    assert properties["gliofed.labels"] == list(LABELS)
    assert (model.producer_name, model.opset_import[0].version) == ("gliofed", OPSET)
    expected = {name for name, _ in features.named_parameters()} | {"head.weight", "head.bias"}
    assert sorted(weight.name for weight in model.graph.initializer) == sorted(expected)
    assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in model.graph.initializer)
    assert {"block1_conv1", "block3_pool"} <= {node.name for node in model.graph.node}


def test_export_returns_a_verified_file() -> None:
    features, head = make_network()
    model, agreement = export_onnx(
        features, head, preprocess=PreprocessSpec(size=24), labels=LABELS, images_NCHW=make_images(24)
    )
    assert model == build(features, head)
    assert agreement.logits < 1e-5


@pytest.mark.parametrize("weight", ["block1_conv1.weight", "block3_conv2.bias", "head.weight", "head.bias"])
def test_a_sabotaged_weight_in_the_file_is_found(weight: str) -> None:
    features, head = make_network()
    model = onnx.load_model_from_string(build(features, head))
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(stored).copy()
    values.flat[0] += 0.05
    stored.CopyFrom(numpy_helper.from_array(values, weight))
    with pytest.raises(ExportMismatch, match=r"disagree on (logits|class_maps|embedding)") as caught:
        verify_against_torch(model.SerializeToString(), features, head, make_images(24))
    assert caught.value.worst > 0
    assert len(caught.value.index) in (2, 4)
    assert "export again" in str(caught.value)


def test_an_answer_that_is_not_finite_never_agrees() -> None:
    features, head = make_network()
    images = make_images(24)
    images[1, 0, 3, 3] = np.nan
    with pytest.raises(ExportMismatch):
        verify_against_torch(build(features, head), features, head, images)


def test_images_of_a_size_that_the_file_does_not_take_are_refused() -> None:
    features, head = make_network()
    with pytest.raises(UnsupportedModel, match=r"shape \(3, 3, 32, 32\)"):
        verify_against_torch(build(features, head), features, head, make_images(32))


@pytest.mark.parametrize("images", [make_images(24)[:0], make_images(24).astype(np.float64), make_images(24)[0]])
def test_verification_needs_real_float32_images(images: np.ndarray) -> None:
    features, head = make_network()
    with pytest.raises(UnsupportedModel, match="verification needs"):
        verify_against_torch(build(features, head), features, head, images)


def _with(features: nn.Sequential, name: str, layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict([(name, layer), *features.named_children()]))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout(0.4), "extra is a Dropout"),
        (nn.BatchNorm2d(3), "extra is a BatchNorm2d"),
        (nn.Conv2d(3, 3, 5, padding=1), r"extra has kernel_size=\(5, 5\)"),
        (nn.Conv2d(3, 3, 3), r"extra has padding=\(0, 0\)"),
        (nn.Conv2d(3, 3, 3, padding=1, stride=2), r"extra has stride=\(2, 2\)"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "extra has padding_mode='reflect'"),
        (nn.Conv2d(3, 7, 3, padding=1), "block1_conv1 reads 3 channels but gets 7"),
        (nn.MaxPool2d(3), "extra has kernel_size=3"),
        (nn.MaxPool2d(2, ceil_mode=True), "extra has ceil_mode=True"),
        (nn.Conv2d(3, 3, 3, padding=1).half(), r"extra.weight is torch.float16"),
    ],
)
def test_what_the_graph_could_not_say_faithfully_is_refused(layer: nn.Module, message: str) -> None:
    features, head = make_network()
    with pytest.raises(UnsupportedModel, match=message):
        build(_with(features, "extra", layer), head)


def test_a_diverged_network_a_foreign_head_and_a_tiny_image_are_refused() -> None:
    features, head = make_network()
    with pytest.raises(UnsupportedModel, match="head maps 9 features to 4 classes"):
        build(features, nn.Linear(9, 4))
    with pytest.raises(UnsupportedModel, match="must end in Conv2d, ReLU, MaxPool2d"):
        build(features[:-1], head)
    with pytest.raises(UnsupportedModel, match="too small for 3 poolings"):
        build(features, head, size=7)
    with torch.no_grad():
        features[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(UnsupportedModel, match=r"block1_conv1\.weight holds NaN"):
        build(features, head)
