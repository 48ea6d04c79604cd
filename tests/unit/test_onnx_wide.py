"""A wide head's graph answers and explains as the training code does, in operators that other runtimes take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from export.card import OUTPUT_NAMES
from export.errors import ExportMismatch, UnsupportedModel
from export.onnx import build_onnx, export_onnx, verify_against_torch
from export.onnx_checks import WideHead
from export.predictor import open_session
from fl.evaluation.gradcam import pooled_values, scores_and_contributions
from fl.model.head import WidePooling
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from kernels.spec import PreprocessSpec

LABELS = ("glioma", "meningioma", "notumor", "pituitary")


def make_model(random_features: int = 24, frozen_through: str = "block4_conv3") -> SplitVgg19:
    """A model whose black background is no zero, so that maxima are tied."""
    settings = NetworkSettings(width=0.125, head="wide", random_features=random_features, frozen_through=frozen_through)
    model, generator = SplitVgg19(settings).eval(), torch.Generator().manual_seed(1)
    initialise_from_nothing(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.1)
    return model


def wide_of(model: SplitVgg19) -> WideHead:
    assert isinstance(model.pooling, WidePooling)
    return WideHead(
        frozen_layer=list(dict(model.prefix.named_children()))[-1],
        random_RF=model.pooling.random_RF,
        truth=lambda images_NCHW: scores_and_contributions(model, images_NCHW),
        pooled=lambda images_NCHW: pooled_values(model, images_NCHW),
    )


def make_images(size: int, num: int = 3) -> np.ndarray:
    images = np.random.default_rng(1).random((num, 3, size, size), np.float32)
    images[:, :, :, size // 2 :] = 0
    return images


def build(model: SplitVgg19, size: int, wide: WideHead | None = None) -> bytes:
    return build_onnx(
        model.features(), model.head, preprocess=PreprocessSpec(size=size), labels=LABELS, wide=wide or wide_of(model)
    )


@pytest.mark.parametrize("size", [32, 50, 83])
@pytest.mark.parametrize(
    ("random_features", "frozen_through"),
    [(0, "block4_conv3"), (24, "block4_conv3"), (8, "block2_conv1"), (0, "block4_conv4"), (8, "block5_conv3")],
)
def test_graph_scores_and_explains_as_torch_does_and_its_maps_add_up_to_its_scores(
    size: int, random_features: int, frozen_through: str
) -> None:
    model, images = make_model(random_features, frozen_through), make_images(size)
    logits_NC, class_maps_NChw = scores_and_contributions(model, torch.from_numpy(images))

    found, maps, embedding = open_session(build(model, size)).run(list(OUTPUT_NAMES), {"images": images})

    np.testing.assert_allclose(found, logits_NC, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedding, pooled_values(model, torch.from_numpy(images)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps, class_maps_NChw, atol=1e-5 * float(class_maps_NChw.abs().max()) + 1e-6)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)) + model.head.bias.detach().numpy(), found, rtol=1e-4, atol=1e-5)


def test_export_verifies_the_graph_and_the_file_says_what_its_maps_mean() -> None:
    model = make_model()
    data, agreement = export_onnx(
        model.features(),
        model.head,
        preprocess=PreprocessSpec(size=50),
        labels=LABELS,
        images_NCHW=make_images(50),
        wide=wide_of(model),
    )
    assert data == build(model, 50), "the same weights give the same bytes"
    assert max(agreement.logits, agreement.class_maps, agreement.embedding) < 1e-5
    graph = onnx.load_model_from_string(data).graph
    assert "summed over h and w" in graph.output[1].doc_string
    stored = [weight.name for weight in graph.initializer]
    assert len(set(stored)) == len(stored) and {"head.weight", "head.bias", "random.weight"} <= set(stored)


OPERATORS = {  # each in TensorRT's operator support matrix; nothing with a kernel of ONNX Runtime's own
    *("Conv", "Relu", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Concat", "Gemm", "MatMul"),
    *("Mul", "Div", "Add", "Max", "Sqrt", "ReduceMean", "Equal", "Greater", "Cast", "Split", "Slice", "Reshape"),
    *("Unsqueeze", "Pad"),
}


@pytest.mark.parametrize("size", [32, 50, 83])
def test_graph_has_common_operators_only_and_maps_apart_by_name(size: int) -> None:
    nodes = onnx.load_model_from_string(build(make_model(), size)).graph.node

    assert {node.op_type for node in nodes} <= OPERATORS
    for_maps = {output for node in nodes if node.name.startswith("class_maps") for output in node.output}
    others = [node for node in nodes if not node.name.startswith("class_maps")]
    assert not [node.name for node in others if for_maps & set(node.input)], "scores need nothing of the maps"


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        ("block1_conv1.weight", "logits"),
        ("random.weight", "logits"),
        ("head.bias", "logits"),
        ("class_maps.frozen.cell", "sums of class_maps"),
        ("class_maps.fold_rows", "class_maps"),
        ("class_maps.last.at_peak.share.least", "class_maps"),
    ],
)
def test_a_sabotaged_graph_is_found(weight: str, what: str) -> None:
    model, images = make_model(), make_images(50)
    damaged = onnx.load_model_from_string(build(model, 50))
    stored = next(tensor for tensor in damaged.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(stored).copy()
    changed = {"class_maps.fold_rows": values[::-1], "class_maps.last.at_peak.share.least": values + np.float32(1e6)}
    stored.CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(changed.get(weight, values * np.float32(1.05))), weight)
    )
    with pytest.raises(ExportMismatch, match=f"disagree on .*{what}"):
        verify_against_torch(damaged.SerializeToString(), model.features(), model.head, images, wide=wide_of(model))


def test_one_maximum_found_at_another_place_is_no_mismatch_and_a_map_turned_is() -> None:
    model, images = make_model(), make_images(83)
    data = build(model, 83)
    logits, maps = scores_and_contributions(model, torch.from_numpy(images))
    moved = maps.clone()
    moved[0, 1, 0, 0] += 0.002 * maps.abs().sum()
    moved[0, 1, 4, 4] -= 0.002 * maps.abs().sum()

    def verify(truth: torch.Tensor) -> float:
        wide = replace(wide_of(model), truth=lambda _: (logits, truth))
        return verify_against_torch(data, model.features(), model.head, images, wide=wide).class_maps

    assert 0.003 < verify(moved) < 0.005
    with pytest.raises(ExportMismatch, match="disagree on class_maps"):
        verify(maps.transpose(2, 3))


def test_an_embedding_of_something_else_is_found() -> None:
    model, images = make_model(), make_images(50)
    wide = replace(wide_of(model), pooled=lambda images_NCHW: pooled_values(model, images_NCHW).flip(1))
    with pytest.raises(ExportMismatch, match="disagree on embedding"):
        verify_against_torch(build(model, 50), model.features(), model.head, images, wide=wide)


def test_head_that_reads_something_else_is_refused() -> None:
    model = make_model()
    wide = wide_of(model)
    assert wide.random_RF is not None
    for changed, message in (
        (replace(wide, frozen_layer="block9"), "frozen_layer is 'block9'"),
        (replace(wide, frozen_layer="block5_pool"), "before the last convolution"),
        (replace(wide, frozen_layer="block1_relu1"), "head reads 280 features"),
        (replace(wide, random_RF=None), "256 pooled values and 0 random"),
        (replace(wide, random_RF=wide.random_RF[:, :9]), "random features read 9 values; the pooling gives 256"),
    ):
        with pytest.raises(UnsupportedModel, match=message):
            build(model, 32, changed)
    with pytest.raises(UnsupportedModel, match="head maps 280 features to 3 classes"):
        build_onnx(model.features(), nn.Linear(280, 3), preprocess=PreprocessSpec(size=32), labels=LABELS, wide=wide)


def test_int8_graph_keeps_its_answers_and_its_maps_still_add_up(tmp_path: Path) -> None:
    model, images = make_model(), make_images(50, num=8)
    (tmp_path / "model.onnx").write_bytes(build(model, 50))
    nodes = onnx.load(tmp_path / "model.onnx").graph.node

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter([{"images": images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    quantize_static(
        tmp_path / "model.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[node.name for node in nodes if node.name.startswith(("class_maps", "pooling", "head"))],
        extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
    )
    quantised = open_session((tmp_path / "int8.onnx").read_bytes()).run(["logits", "class_maps"], {"images": images})
    exact = open_session((tmp_path / "model.onnx").read_bytes()).run(["logits", "class_maps"], {"images": images})
    assert (quantised[0].argmax(1) == exact[0].argmax(1)).all()
    assert np.abs(quantised[0] - exact[0]).max() < 0.3 * np.abs(exact[0]).max()
    assert np.corrcoef(quantised[1].ravel(), exact[1].ravel())[0, 1] > 0.8
    np.testing.assert_allclose(
        quantised[1].sum(axis=(2, 3)) + model.head.bias.detach().numpy(), quantised[0], rtol=1e-3, atol=1e-3
    )
