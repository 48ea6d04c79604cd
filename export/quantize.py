"""A float32 graph's convolutions in int8, as an ONNX file that ONNX Runtime and TensorRT both take.

    activations ─ QuantizeLinear ─ DequantizeLinear ─┐
                  int8 weight ───── DequantizeLinear ─┴─ Conv + bias ─ Relu ─ QuantizeLinear ─ ...

The file says in standard operators where values are rounded (QDQ), and each runtime fuses what it can. The form:

- Every Conv that a Relu alone reads, but the first, multiplies int8 by int8. The first has three channels and the
  network's only signed input, and is as quick in float32. Pools between stay in int8. All else is float32: it costs
  next to nothing, and a quantiser that works by operator mistakes the head's weight, which maps and scores share.
- What a Relu lets through is rounded to 0..127 and stored as uint8 with zero point 0. ONNX Runtime takes that as it
  stands and drops the Relu; stored as int8 the same numbers keep each Relu apart, and one convolution of a wide head in
  float32. TensorRT, which knows no uint8 here, reads the same numbers as int8: its parser says so in a warning. Of 256
  levels half are given away for that and for the next point.
- There is one scale for all channels of a value, so dark channels would fall into a few levels. Before a Relu its
  channels are multiplied by powers of two that bring each near the brightest, and the weights that read them are
  divided by them; float32 nodes that read them get a Mul that undoes it. In float32 nothing changes, not by a bit.
- Weights are int8 in -127..127, one scale for each output channel, zero point 0; see export/rounding.py for how.
- Biases are float32: TensorRT takes no int32 ones, and ONNX Runtime rounds them itself.

Sums are the same on x86 processors with and without VNNI. Those without add two products in 16 bits, which saturates
for uint8 up to 255 (ONNX Runtime's documentation of `session.x64quantprecision`, and its pull request 24220 on
VPMADDUBSW in convolutions); here two products are at most 2 * 127 * 127 = 32258 < 32767. Only values above all that
calibration saw, which ONNX Runtime keeps up to twice as large (TensorRT cuts them off), could still saturate;
of those there are few, and none side by side were seen. Leave
that option off: it triples the time, with VNNI too, for the same bits (docs/int8.md).

Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", sections 2 and 3 (static
ranges, symmetric weights by channel).

Shape legend: N batch, C classes, H W image, O output channels, h w class map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.quantize_calibration import LEVELS, Calibration, Layers, calibrate
from export.rounding import round_weights

_LARGEST_BIAS = 2**30
"""In units of activation scale times weight scale, as whose multiple ONNX Runtime stores it in 32 bits."""


def quantize(onnx_bytes: bytes, calibration_batches: Iterable[NDArray[np.float32]], *, num_threads: int = 1) -> bytes:
    """Return the graph with convolutions in int8; inputs, outputs and metadata as before.

    calibration_batches: float32 [N,3,H,W], preprocessed as the file says, read once and one at a time; a few dozen
    images of each class. They say how large each channel can be, and which errors of weights cancel. The same file and
    batches give the same bytes on the same kind of machine with the same number of threads. Memory: one image's
    activations, and 4 K^2 bytes for each layer of K weights an output channel (0.7 GB for VGG19). Raises
    UnsupportedModel for a graph without such convolutions, and for calibration images that are none, not finite, or
    leave a layer dark.
    """
    model = onnx.load_model_from_string(onnx_bytes)
    layers = Layers.find(model)
    writer = _Writer(model, layers, calibrate(model, layers, calibration_batches, num_threads))
    nodes = [new for node in model.graph.node for new in writer.rewrite(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


@dataclass(slots=True)
class _Writer:
    """Rewrites a graph's nodes one by one.

    rounded: rounded values by their first name, channels still multiplied. restored: the same as float32 nodes read
    them.
    """

    model: ModelProto
    layers: Layers
    calibration: Calibration
    rounded: dict[str, str] = field(default_factory=dict)
    restored: dict[str, str] = field(default_factory=dict)

    def rewrite(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that take this one's place."""
        before: list[NodeProto] = []
        if node.name in self.layers.convolutions:
            before.append(self._weight_in_int8(node))
        elif node.name in self.layers.relu_of:
            self._multiply_outputs(node)
        in_int8 = node.name in self.layers.convolutions or node.output[0] in self.layers.source
        for index, name in enumerate(node.input):
            if name in self.rounded:
                node.input[index] = self.rounded[name] if in_int8 else self._restore(name, before)
        after = self._rounding(node.output[0]) if node.output[0] in self.layers.source else []
        return [*before, node, *after]

    def _rounding(self, name: str) -> list[NodeProto]:
        """Return the nodes that round a value; all who read it, float32 ones too, see what the next layer sees."""
        source = self.layers.source[name]
        scale, zero = f"{source}.scale", f"{source}.zero"
        if name == source:
            self._store(scale, np.array(self.calibration.scales[source], np.float32))
            self._store(zero, np.array(0, np.uint8))
        self.rounded[name] = f"{name}.rounded"
        return [
            helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.int8"], name=f"{name}.quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{name}.int8", scale, zero], [f"{name}.rounded"], name=f"{name}.dequantize"
            ),
        ]

    def _restore(self, name: str, before: list[NodeProto]) -> str:
        """Return the rounded value's name with its channels' gains undone, having added the node that does it."""
        if name not in self.restored:
            source = self.layers.source[name]
            self.restored[name] = f"{name}.restored"
            undo = f"{name}.undo"
            self._store(undo, 1 / self.calibration.gains_C[source][:, None, None])
            inputs = [self.rounded[name], undo]
            before.append(helper.make_node("Mul", inputs, [self.restored[name]], name=f"{name}.restore"))
        return self.restored[name]

    def _multiply_outputs(self, conv: NodeProto) -> None:
        """Give a float32 Conv's channels their gains; its weight and bias are its own."""
        gain_O = self.calibration.gains_C[self.layers.relu_of[conv.name]]
        for name in conv.input[1:]:
            values = self._stored(name)
            self._replace(name, values * gain_O.reshape(-1, *[1] * (values.ndim - 1)))

    def _weight_in_int8(self, conv: NodeProto) -> NodeProto:
        """Store a Conv's weight in int8 and return the node that makes it float32 again."""
        name, source = conv.input[1], self.layers.source[conv.input[0]]
        weight_OCHW = self._stored(name)
        gain_O = self.calibration.gains_C[self.layers.relu_of[conv.name]]
        gain_K = np.repeat(self.calibration.gains_C[source], weight_OCHW[0, 0].size)
        weight_OK = weight_OCHW.reshape(len(weight_OCHW), -1) / gain_K
        bias_O = self._stored(conv.input[2]) if len(conv.input) > 2 else np.zeros(len(weight_OK), np.float32)
        scale_O = _weight_scales(weight_OK, bias_O, self.calibration.scales[source])
        moments = self.calibration.moments.pop(conv.name)
        steps_OK = round_weights(weight_OK, scale_O, moments.covariance(gain_K), LEVELS)
        lost_OK = weight_OK - steps_OK * scale_O[:, None]
        self._replace(name, steps_OK.reshape(weight_OCHW.shape))
        if len(conv.input) > 2:
            self._replace(conv.input[2], (bias_O + lost_OK @ moments.mean(gain_K)) * gain_O)
        self._store(f"{name}.scale", scale_O * gain_O)
        self._store(f"{name}.zero", np.zeros(len(scale_O), np.int8))
        conv.input[1] = f"{name}.rounded"
        inputs = [name, f"{name}.scale", f"{name}.zero"]
        return helper.make_node("DequantizeLinear", inputs, [conv.input[1]], name=f"{name}.dequantize", axis=0)

    def _stored(self, name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(next(tensor for tensor in self.model.graph.initializer if tensor.name == name))

    def _replace(self, name: str, values: NDArray[np.generic]) -> None:
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    def _store(self, name: str, values: NDArray[np.generic]) -> None:
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))


def _weight_scales(
    weight_OK: NDArray[np.float32], bias_O: NDArray[np.float32], activation_scale: np.float32
) -> NDArray[np.float32]:
    """Return the scale of each output channel, float32 [O], positive.

    It spans the channel's weights, and is coarser only where the bias would not fit 32 bits in its units.
    """
    spanned_O = np.abs(weight_OK).max(axis=1) / LEVELS
    for_bias_O = np.abs(bias_O) / (activation_scale * np.float32(_LARGEST_BIAS))
    scale_O: NDArray[np.float32] = np.maximum(spanned_O, for_bias_O).astype(np.float32)
    scale_O[scale_O == 0] = 1  # a channel of zeros
    return scale_O
