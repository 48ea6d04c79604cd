"""What a quantiser must know of a graph's layers, and what it measures on calibration images.

Shape legend: N batch, C channels of one value, H W image, O output channels, K inputs of one output value (channels
times kernel places), n sampled places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.errors import UnsupportedModel
from export.predictor import open_session
from export.rounding import Moments

LEVELS = 127
"""Largest whole number that a value or weight becomes."""

PLACES = 100
"""Of each layer and image as many places are sampled, or all, if they are fewer."""

_LARGEST_GAIN = 32
"""A channel that calibration left nearly dark may be brighter elsewhere, and must not run over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """Which parts of a graph become int8.

    convolutions: Conv nodes by name. relu_of: the Relu's output by the name of its Conv, int8 or not. source: for the
    output of a Relu itself, for that of a pool over rounded values the Relu's output whose numbers it repeats.
    """

    convolutions: dict[str, NodeProto]
    relu_of: dict[str, str]
    source: dict[str, str]

    @staticmethod
    def find(model: ModelProto) -> Layers:
        """Read them off the graph's structure; names do not count."""
        nodes, images = model.graph.node, {value.name for value in model.graph.input}
        readers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        after = {node.name: readers.get(node.output[0], []) for node in nodes if node.op_type == "Conv"}
        relu_of = {name: users[0].output[0] for name, users in after.items() if [u.op_type for u in users] == ["Relu"]}
        source = {name: name for name in relu_of.values()}
        for node in nodes:
            if node.op_type == "MaxPool" and node.input[0] in source:
                source[node.output[0]] = source[node.input[0]]
        convolutions = {node.name: node for node in nodes if node.name in relu_of and node.input[0] in source}
        if not convolutions:
            raise UnsupportedModel(
                f"of {len(after)} convolutions none has a Relu after it and another before it, where int8 would help; "
                f"expected a graph of export/onnx.py with inputs {sorted(images)} and at least two such layers"
            )
        return Layers(convolutions=convolutions, relu_of=relu_of, source=source)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What was measured. scales: of each Relu's output; gains_C: powers of two, 1 and more, that its channels are
    multiplied by before they are rounded; moments: of each int8 convolution's inputs as they were, by its name.
    """

    scales: dict[str, np.float32]
    gains_C: dict[str, NDArray[np.float32]]
    moments: dict[str, Moments]


def calibrate(
    model: ModelProto, layers: Layers, batches: Iterable[NDArray[np.float32]], num_threads: int
) -> Calibration:
    """Run the float32 graph on the images, one by one, and keep maxima and moments only."""
    relus, inputs = list(layers.relu_of.values()), list(dict.fromkeys(n.input[0] for n in layers.convolutions.values()))
    session = open_session(_ending_in(model, relus, inputs), num_threads=num_threads)
    image_name, wanted = session.get_inputs()[0].name, session.get_inputs()[0].shape[1:]
    largest_C: dict[str, NDArray[np.float32]] = {}
    moments, num_images = {name: Moments() for name in layers.convolutions}, 0
    for images_NCHW in batches:
        _check_images(images_NCHW, wanted, num_images)
        rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in moments}
        for image_CHW in images_NCHW:
            values = session.run(None, {image_name: image_CHW[None]})
            for name, value_C in zip(relus, values, strict=False):
                largest_C[name] = np.maximum(largest_C.get(name, value_C), value_C)
            planes = dict(zip(inputs, values[len(relus) :], strict=True))
            for name, conv in layers.convolutions.items():
                rows[name].append(_sample(planes[conv.input[0]][0], conv, num_images))
            num_images += 1
        for name, sampled in rows.items():
            if sampled:
                moments[name].add(np.concatenate(sampled))
    _check_bright(relus, largest_C, num_images)
    return Calibration(
        scales={name: np.float32(value_C.max() / LEVELS) for name, value_C in largest_C.items()},
        gains_C={name: _gains(value_C) for name, value_C in largest_C.items()},
        moments=moments,
    )


def _gains(largest_C: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest powers of two that leave each channel below the brightest; 1 for dark ones.

    The next layer's weights are divided by them (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization
    and Bias Correction", section 4.1, with measured ranges). Powers of two change no float32 result.
    """
    share_C = np.where(largest_C > 0, largest_C / largest_C.max(), 1)
    gains_C: NDArray[np.float32] = np.exp2(np.floor(-np.log2(share_C))).astype(np.float32)
    return np.minimum(gains_C, np.float32(_LARGEST_GAIN))


def _sample(plane_CHW: NDArray[np.float32], conv: NodeProto, seed: int) -> NDArray[np.float32]:
    """Return what the kernel sees at some places, [n,K]; the same places for the same seed."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    padded = np.pad(plane_CHW, ((0, 0), (top, bottom), (left, right)))
    seen_CHWhw = sliding_window_view(padded, tuple(given["kernel_shape"]), axis=(1, 2))
    height, width = seen_CHWhw.shape[1:3]
    generator = np.random.default_rng(seed)
    places = generator.choice(height * width, min(PLACES, height * width), replace=False)
    sampled_Cnhw = seen_CHWhw[:, places // width, places % width]
    return np.ascontiguousarray(sampled_Cnhw.swapaxes(0, 1)).reshape(len(places), -1)


def _check_bright(relus: Sequence[str], largest_C: dict[str, NDArray[np.float32]], num_images: int) -> None:
    for name in relus:
        value = largest_C[name].max() if name in largest_C else 0
        if not 0 < value < np.inf:
            raise UnsupportedModel(
                f"over {num_images} calibration images the largest value of {name} is {value}; expected a positive "
                f"finite one. Calibrate on a few dozen real images of each class; if that is what they are, the "
                f"layer is dead: train again"
            )


def _check_images(images_NCHW: NDArray[np.float32], wanted: Sequence[int], num_before: int) -> None:
    if images_NCHW.dtype != np.float32 or list(images_NCHW.shape[1:]) != list(wanted):
        raise UnsupportedModel(
            f"calibration needs float32 images of shape [N, *{wanted}]; got {images_NCHW.dtype} of shape "
            f"{images_NCHW.shape}. Preprocess them as the file says"
        )
    if not np.isfinite(images_NCHW).all():
        raise UnsupportedModel(
            f"calibration images after the first {num_before} hold values that are not finite; check their source"
        )


def _ending_in(model: ModelProto, relus: Sequence[str], inputs: Sequence[str]) -> bytes:
    """Return the graph with these outputs: each Relu's maximum by channel, and what the int8 convolutions read."""
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in relus:
        largest = helper.make_node("ReduceMax", [name], [f"{name}.largest"], axes=[0, 2, 3], keepdims=0)
        probe.graph.node.append(largest)
        probe.graph.output.append(helper.make_tensor_value_info(f"{name}.largest", TensorProto.FLOAT, None))
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs)
    return bytes(probe.SerializeToString(deterministic=True))
