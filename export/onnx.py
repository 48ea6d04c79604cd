"""A VGG-like torch network written as an ONNX graph, node by node, and proved equal to it.

The graph is written by hand rather than traced so that the same weights give the same bytes, nodes and
weights keep the layers' names, and the class maps come out beside the logits.

    images [batch,3,S,S] ─ convolutions, ReLU, pools ─ A ─┬─ last pool ─ average ─┬─ head ─ logits [batch,C]
                                                          │                       └─ embedding [batch,K]
                                                          └─ 1x1 conv, head.weight ─ class_maps [batch,C,h,w]

Grad-CAM at A (Selvaraju et al. 2017) needs no backward pass here. A non-overlapping max pool hands the
gradient of each of its P windows to exactly one element of A, global average pooling makes that gradient
w[c,k]/P, so its mean over the h*w elements of A is w[c,k]/(h*w), whatever the weights and whether or not h
and w are even: Grad-CAM = relu(class_maps) / (h*w), exactly.

With a wide head (export/onnx_wide.py) the maps' meaning is another: summed over its places, a map is the class's
score less the head's bias. The graph says in each output's doc string which it is.

Shape legend: N batch, C classes, K channels, h w class map, S image side.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from export.bundle import LABELS_KEY, PREPROCESS_KEY, canonical_json
from export.card import INPUT_NAME, OUTPUT_NAMES
from export.errors import ExportMismatch, UnsupportedModel
from export.graph import Graph
from export.onnx_checks import WideHead, check_network
from export.onnx_wide import WIDE_MAPS, write_wide_outputs
from export.predictor import open_session
from kernels.spec import PreprocessSpec

OPSET = 17
"""Every operator used here has kept its float32 meaning from opset 14 to today's, so a newer set would only
shut older readers out (Triton images, TensorRT 8.6 and 10); 17 is their common ground and takes per-channel
QDQ too."""

IR_VERSION = 8
"""The file format that came with opset 17; ONNX Runtime reads it since 1.12."""

DEFAULT_TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the output's largest value. Measured on full-width VGG19 at 224
pixels: 4e-7 for logits and 2e-6 for class maps, from float32 sums in another order. A transposed, swapped or
missing layer differs by 1e-2 and more. A single slightly wrong weight among millions can stay below it."""

MOVED_TOLERANCE = 1e-2
"""Share of a wide head's class maps that may lie elsewhere. Where a maximum is attained twice up to rounding, torch and
ONNX Runtime may give it to different places, and the map of an image moves by about one channel's part. Measured on
full-width VGG19 at 160 pixels: at most 6e-7 on 80 slices; a map turned over its diagonal is 1.2 away."""


_Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""logits_NC, class_maps_NChw, embedding_NE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far ONNX Runtime and torch are apart: largest difference as a share of the output's largest
    value; for a wide head's class maps, the share of all they hold that lies elsewhere.
    """

    logits: float
    class_maps: float
    embedding: float
    num_images: int


def export_onnx(
    features: nn.Sequential,
    head: nn.Linear,
    *,
    preprocess: PreprocessSpec,
    labels: Sequence[str],
    images_NCHW: NDArray[np.float32],
    wide: WideHead | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> tuple[bytes, Agreement]:
    """Return the ONNX file's bytes, once ONNX Runtime has been seen to agree with torch on the given images.

    images_NCHW: a few real inputs, preprocessed as `preprocess` says. Raises UnsupportedModel or
    ExportMismatch.
    """
    model = build_onnx(features, head, preprocess=preprocess, labels=labels, wide=wide)
    return model, verify_against_torch(model, features, head, images_NCHW, wide=wide, tolerance=tolerance)


def build_onnx(
    features: nn.Sequential,
    head: nn.Linear,
    *,
    preprocess: PreprocessSpec,
    labels: Sequence[str],
    wide: WideHead | None = None,
) -> bytes:
    """Return the ONNX file's bytes; the same weights, spec and labels give the same bytes.

    features: named Conv2d (3x3, padding 1), ReLU and MaxPool2d(2) children, ending in Conv2d, ReLU,
    MaxPool2d. head: linear layer over the globally averaged features, or over what `wide` says. Dropout has no
    place at inference: leave it out. All weights float32 and finite; they are stored inside the file, never beside
    it. Raises UnsupportedModel. Does not run the graph; `export_onnx` does.
    """
    layers = list(features.named_children())
    check_network(layers, head, preprocess.size, labels, wide)
    graph = Graph(size=preprocess.size)
    for name, layer in layers[:-1]:
        _WRITERS[type(layer)](graph, name, layer)
    if wide is None:
        _write_outputs(graph, layers[-1][0], head)
    else:
        write_wide_outputs(graph, layers, head, wide)
    maps_doc = f"Grad-CAM at the last convolution is relu(class_maps) / {graph.size**2}" if wide is None else WIDE_MAPS
    num_embedded = head.in_features - (0 if wide is None or wide.random_RF is None else len(wide.random_RF))
    model = _model(graph, preprocess, labels, maps_doc, num_embedded)
    onnx.checker.check_model(model, full_check=True)  # full: with strict shape inference over the whole graph
    return bytes(model.SerializeToString(deterministic=True))


def verify_against_torch(
    onnx_bytes: bytes,
    features: nn.Sequential,
    head: nn.Linear,
    images_NCHW: NDArray[np.float32],
    *,
    wide: WideHead | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Agreement:
    """Return how far ONNX Runtime (CPU) and torch are apart on these images, or raise ExportMismatch.

    images_NCHW: float32, at least one. tolerance: largest |difference| allowed, as a share of the largest
    |value| that torch gives for that output over all images. Values that are not finite never agree.
    """
    session = open_session(onnx_bytes, num_threads=torch.get_num_threads())
    wanted = session.get_inputs()[0].shape[1:]
    if len(images_NCHW) == 0 or images_NCHW.dtype != np.float32 or list(images_NCHW.shape[1:]) != wanted:
        raise UnsupportedModel(
            f"verification needs float32 images of shape [N, *{wanted}] with N >= 1; got {images_NCHW.dtype} "
            f"of shape {images_NCHW.shape}. Pass a few scans, preprocessed as the file says"
        )
    expected = _torch_outputs(features, head, images_NCHW) if wide is None else _wide_truth(wide, images_NCHW)
    actual = session.run(list(OUTPUT_NAMES), {INPUT_NAME: images_NCHW})
    (logits, class_maps, embedding), (true_logits, true_maps, true_embedding) = actual, expected
    return Agreement(
        logits=_compare(OUTPUT_NAMES[0], logits, true_logits, tolerance),
        class_maps=_compare(OUTPUT_NAMES[1], class_maps, true_maps, tolerance)
        if wide is None
        else _compare_places(class_maps, true_maps, tolerance),
        embedding=_compare(OUTPUT_NAMES[2], embedding, true_embedding, tolerance),
        num_images=len(images_NCHW),
    )


def _torch_outputs(features: nn.Sequential, head: nn.Linear, images_NCHW: NDArray[np.float32]) -> _Outputs:
    """Return torch's logits_NC, class_maps_NChw and embedding_NE, as the training code computes them."""
    if head.weight.is_cuda:  # a GPU may round to TF32, which is no truth to compare with
        features, head = copy.deepcopy(features).cpu(), copy.deepcopy(head).cpu()
    with torch.no_grad():
        activations = torch.from_numpy(images_NCHW.copy())  # a copy: ReLU may work in place
        for layer in list(features)[:-1]:
            activations = layer(activations)
        class_maps = torch.einsum("ck,nkhw->nchw", head.weight, activations)
        embedding = features[-1](activations).mean(dim=(2, 3))
        logits = head(embedding)
    return logits.numpy(), class_maps.numpy(), embedding.numpy()


def _wide_truth(wide: WideHead, images_NCHW: NDArray[np.float32]) -> _Outputs:
    logits_NC, class_maps_NChw = wide.truth(torch.from_numpy(images_NCHW.copy()))  # a copy: ReLU may work in place
    embedding_NE = wide.pooled(torch.from_numpy(images_NCHW.copy()))
    return logits_NC.numpy(), class_maps_NChw.numpy(), embedding_NE.numpy()


def _compare(output: str, ours: NDArray[np.float32], truth: NDArray[np.float32], tolerance: float) -> float:
    """Return the worst difference as a share of truth's largest value; raise ExportMismatch if it is too
    much.
    """
    if ours.shape != truth.shape:
        raise ExportMismatch(
            f"ONNX Runtime gives {output} of shape {ours.shape}, torch {truth.shape}: the file is not this "
            f"network's; export it again",
            output=output,
            worst=float("nan"),
            index=(),
        )
    differences = np.abs(ours.astype(np.float64) - truth)
    ranked = np.where(np.isfinite(differences), differences, np.inf)
    index = tuple(int(axis) for axis in np.unravel_index(int(ranked.argmax()), ranked.shape))
    worst, scale = float(differences[index]), float(np.abs(truth, dtype=np.float64).max())
    if not np.isfinite(worst) or worst > tolerance * scale:
        raise ExportMismatch(
            f"ONNX Runtime and torch disagree on {output}{list(index)}: {ours[index]:.9g} against "
            f"{truth[index]:.9g}, difference {worst:.3g}, allowed {tolerance * scale:.3g} ({tolerance:g} of "
            f"the largest value {scale:.3g}). Nothing was exported: check that the weights did not change "
            f"since the graph was built, then export again; do not raise the tolerance to pass",
            output=output,
            worst=worst,
            index=index,
        )
    return worst / scale if scale > 0 else 0.0


def _compare_places(ours: NDArray[np.float32], truth: NDArray[np.float32], tolerance: float) -> float:
    """Return which share of wide class maps lies elsewhere; raise ExportMismatch if it, or any map's sum, is off."""
    if ours.shape == truth.shape:
        _compare(f"sums of {OUTPUT_NAMES[1]}", ours.sum(axis=(2, 3)), truth.sum(axis=(2, 3)), tolerance)
        moved = float(np.abs(ours - truth).sum() / max(np.abs(truth).sum(), np.finfo(np.float32).tiny))
        if moved <= MOVED_TOLERANCE:
            return moved
    return _compare(OUTPUT_NAMES[1], ours, truth, tolerance)


def _write_conv(graph: Graph, name: str, layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d)
    inputs = [graph.tensor, graph.weigh(f"{name}.weight", layer.weight)]
    if layer.bias is not None:
        inputs.append(graph.weigh(f"{name}.bias", layer.bias))
    graph.add("Conv", name, inputs, f"{name}.out", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])


def _write_relu(graph: Graph, name: str, layer: nn.Module) -> None:
    graph.add("Relu", name, [graph.tensor], f"{name}.out")


def _write_max_pool(graph: Graph, name: str, layer: nn.Module) -> None:
    graph.size //= 2
    graph.add("MaxPool", name, [graph.tensor], f"{name}.out", kernel_shape=[2, 2], strides=[2, 2])


_WRITERS: dict[type[nn.Module], Callable[[Graph, str, nn.Module], None]] = {
    nn.Conv2d: _write_conv,
    nn.ReLU: _write_relu,
    nn.MaxPool2d: _write_max_pool,
}
"""Exact types, as `onnx_checks` asks for: a subclass may compute something else."""


def _write_outputs(graph: Graph, last_pool: str, head: nn.Linear) -> None:
    """Write the outputs from the last ReLU's activations.

    The head is a 1x1 convolution in both places, over the same stored weight, so that logits and class maps
    cannot drift apart when a later step rewrites weights (quantisation, for one).
    """
    logits, class_maps, embedding = OUTPUT_NAMES
    activations = graph.tensor
    weight = graph.weigh("head.weight", head.weight[:, :, None, None])
    graph.add("Conv", "class_maps_conv", [activations, weight], class_maps, kernel_shape=[1, 1])
    graph.add("MaxPool", last_pool, [activations], f"{last_pool}.out", kernel_shape=[2, 2], strides=[2, 2])
    graph.add("GlobalAveragePool", "average", [graph.tensor], "average.out")
    graph.add("Flatten", "pooling.embedding", ["average.out"], embedding, axis=1)
    inputs = ["average.out", weight]
    if head.bias is not None:
        inputs.append(graph.weigh("head.bias", head.bias))
    graph.add("Conv", "head", inputs, "head.out", kernel_shape=[1, 1])
    graph.add("Flatten", "flatten", ["head.out"], logits, axis=1)


def _model(
    graph: Graph, preprocess: PreprocessSpec, labels: Sequence[str], maps_doc: str, num_embedded: int
) -> onnx.ModelProto:
    """Return the finished model: typed inputs and outputs, and what a reader must know written into it."""
    size, num_classes = preprocess.size, len(labels)
    shapes: dict[str, list[str | int]] = {
        INPUT_NAME: ["batch", 3, size, size],
        OUTPUT_NAMES[0]: ["batch", num_classes],
        OUTPUT_NAMES[1]: ["batch", num_classes, graph.size, graph.size],
        OUTPUT_NAMES[2]: ["batch", num_embedded],
    }
    docs = {
        INPUT_NAME: f"MRI slices prepared as metadata_props[{PREPROCESS_KEY!r}] says",
        OUTPUT_NAMES[0]: f"unnormalised class scores, in the order of metadata_props[{LABELS_KEY!r}]",
        OUTPUT_NAMES[1]: maps_doc,
        OUTPUT_NAMES[2]: "pooled feature maps that the head reads: where an image lies among those trained on",
    }
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape, docs[name])
        for name, shape in shapes.items()
    }
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "gliofed",
            [infos[INPUT_NAME]],
            [infos[name] for name in OUTPUT_NAMES],
            graph.weights,
            doc_string="Brain-tumour class of an MRI slice, with a map for each class. Not a medical device.",
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="gliofed",
        producer_version=_version(),
    )
    properties = {LABELS_KEY: json.dumps(list(labels)), PREPROCESS_KEY: canonical_json(preprocess.to_json())}
    helper.set_model_props(model, dict(sorted(properties.items())))
    return model


def _version() -> str:
    """Return gliofed's version, or say that it runs from a source tree."""
    try:
        return version("gliofed")
    except PackageNotFoundError:
        return "source"
