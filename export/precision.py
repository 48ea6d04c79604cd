"""Our float32 graph retyped to fp16 or bf16, for runtimes that compute in the types that the file says.

TensorRT's strongly typed networks (all of them, from version 11) take each value's type from the graph. The trunk, all
convolutions, ReLUs and pools before the heads, where the time goes, gets the narrow type. Whatever follows (pooling,
scores, class maps) stays float32, because it divides by small numbers and asks which places attain a maximum. Inputs
and outputs stay float32, so that a client sees no difference.

    images ─ Cast ─ trunk (narrow) ─┬─ Cast ─ pooling, head ─ logits
                                    └─ Cast ─ class maps

ONNX Runtime's CPU provider computes neither type: it widens fp16 where it likes and refuses bf16. `emulate` therefore
writes a float32 graph that rounds where the narrow one rounds, to measure the narrow type's cost without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.card import INPUT_NAME
from export.errors import UnsupportedModel
from export.parity import BOUNDS, differences, maps_of, require_parity
from export.predictor import open_session

Narrow = Literal["fp16", "bf16"]

_TYPES: dict[Narrow, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_DTYPES: dict[Narrow, DTypeLike] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}

_TRUNK = frozenset({"Conv", "Relu", "MaxPool"})
_FLOAT32_NAMES = ("pooling", "class_maps", "head")

_BFLOAT16_OPSET, _BFLOAT16_IR = 22, 10
"""From opset 22 on, ONNX lets convolutions and pools be bfloat16."""

_LARGEST_FP16 = 65504.0
_HEADROOM = 2.0
"""How many times the largest activation seen on a few images must fit below fp16's largest number."""


def narrow(onnx_bytes: bytes, precision: Narrow) -> bytes:
    """Return the graph with its trunk in `precision`; the same bytes give the same bytes.

    onnx_bytes: a float32 file of export.onnx. Raises UnsupportedModel for a graph without such a trunk, or for weights
    that the type cannot hold.
    """
    model = onnx.load_model_from_string(onnx_bytes)
    graph, entry = model.graph, f"{INPUT_NAME}.{precision}"
    trunk = _trunk(graph)
    inside = {output for node in trunk for output in node.output}
    weights = {name for node in trunk for name in node.input} - inside - {INPUT_NAME}
    for stored in graph.initializer:
        if stored.name in weights:
            stored.CopyFrom(_narrowed(stored, precision))
    nodes = [
        _cast(INPUT_NAME, entry, _TYPES[precision]),
        *_rewired(graph, {node.name for node in trunk}, inside, entry),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    if precision == "bf16":
        _raise_opset(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def verify_narrow(
    onnx_bytes: bytes, narrow_bytes: bytes, precision: Narrow, images_NCHW: NDArray[np.float32]
) -> dict[str, float]:
    """Return how far the narrow file is from the float32 one on these images, output by output (export/parity.py).

    images_NCHW: float32, preprocessed, a few real ones. Measured by `emulate`. Raises ParityError past the precision's
    bounds, and UnsupportedModel where activations come near the largest number that fp16 holds.
    """
    session = open_session(onnx_bytes)
    names = [output.name for output in session.get_outputs()]
    truth = dict(zip(names, session.run(names, {INPUT_NAME: images_NCHW}), strict=True))
    emulated = _unoptimised(emulate(narrow_bytes))
    all_names = [output.name for output in emulated.get_outputs()]
    ours = dict(zip(all_names, emulated.run(all_names, {INPUT_NAME: images_NCHW}), strict=True))
    if precision == "fp16":
        _check_range({name: ours[name] for name in all_names if name not in names})
    found = differences(truth, ours)
    require_parity(found, maps_of(truth), BOUNDS[precision], who=f"the {precision} network (emulated)")
    return found


def emulate(narrow_bytes: bytes) -> bytes:
    """Return a float32 graph that rounds each value as the narrow graph does, sums inside a convolution being float32.

    Pools and ReLUs choose among rounded values, so only convolutions and the input are rounded. Further outputs
    `<layer>.peak`, [N,K,1,1], are the largest values that each convolution reaches before rounding. Run it without
    optimisations: they may drop the roundings.
    """
    model = onnx.load_model_from_string(narrow_bytes)
    graph = model.graph
    entry, kind = graph.node[0].output[0], graph.node[0].attribute[0].i
    for stored in graph.initializer:
        if stored.data_type == kind:
            stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored).astype(np.float32), stored.name))
    inside, nodes = {entry}, [*_rounding(INPUT_NAME, entry, kind)]
    for node in list(graph.node)[1:]:
        if not inside.intersection(node.input):
            nodes.append(node)
        elif node.op_type == "Cast":
            nodes.append(helper.make_node("Identity", node.input, node.output, name=node.name))
        else:
            inside.update(node.output)
            nodes += _emulated(node, kind)
            if node.op_type == "Conv":
                graph.output.append(helper.make_tensor_value_info(f"{node.name}.peak", TensorProto.FLOAT, None))
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString(deterministic=True))


def _trunk(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes from the input to the last pool, in order."""
    reached, trunk = {INPUT_NAME}, []
    for node in graph.node:
        if node.op_type in _TRUNK and not node.name.startswith(_FLOAT32_NAMES) and node.input[0] in reached:
            reached.update(node.output)
            trunk.append(node)
    if not any(node.op_type == "Conv" for node in trunk):
        raise UnsupportedModel(
            f"no convolution reads {INPUT_NAME}, directly or over ReLUs and pools: this is no float32 file of "
            f"export.onnx (an int8 file stays as it is). Pass the bundle's model.onnx"
        )
    return trunk


def _narrowed(stored: TensorProto, precision: Narrow) -> TensorProto:
    exact = numpy_helper.to_array(stored)
    with np.errstate(over="ignore"):  # told below, with the weight's name
        values = exact.astype(_DTYPES[precision])
    if not np.isfinite(values.astype(np.float32)).all():
        raise UnsupportedModel(
            f"{stored.name} reaches {np.abs(exact).max():.3g}, more than {precision} holds; keep fp32, or bf16"
        )
    return numpy_helper.from_array(values, stored.name)


def _rewired(graph: GraphProto, trunk: set[str], inside: set[str], entry: str) -> Iterator[NodeProto]:
    """Yield all nodes; the trunk reads `entry`, the others read the trunk through casts, one for each value."""
    widened: set[str] = set()
    for node in graph.node:
        if node.name in trunk:
            node.input[:] = [entry if name == INPUT_NAME else name for name in node.input]
            yield node
            continue
        for name in dict.fromkeys(node.input):
            if name in inside and name not in widened:
                widened.add(name)
                yield _cast(name, f"{name}.float32", TensorProto.FLOAT)
        node.input[:] = [f"{name}.float32" if name in inside else name for name in node.input]
        yield node


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=kind)


def _raise_opset(model: ModelProto) -> None:
    """Say the operators' newer set. Of those we use only ReduceMean changed its form: axes became an input."""
    model.opset_import[0].version, model.ir_version = _BFLOAT16_OPSET, _BFLOAT16_IR
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            (axes,) = [attribute for attribute in node.attribute if attribute.name == "axes"]
            stored = numpy_helper.from_array(np.array(axes.ints, np.int64), f"{node.name}.axes")
            model.graph.initializer.append(stored)
            node.input.append(stored.name)
            node.attribute.remove(axes)


def _emulated(node: NodeProto, kind: int) -> list[NodeProto]:
    if node.op_type != "Conv":
        return [node]
    (output,) = node.output
    node.output[:] = [f"{output}.exact"]
    peak = helper.make_node("GlobalMaxPool", [f"{output}.exact"], [f"{node.name}.peak"], name=f"{node.name}.peak")
    return [node, peak, *_rounding(f"{output}.exact", output, kind)]


def _rounding(source: str, target: str, kind: int) -> tuple[NodeProto, NodeProto]:
    return _cast(source, f"{target}.narrow", kind), _cast(f"{target}.narrow", target, TensorProto.FLOAT)


def _unoptimised(onnx_bytes: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])


def _check_range(peaks: Mapping[str, NDArray[np.float32]]) -> None:
    for name, peak_NK11 in peaks.items():
        largest = float(peak_NK11.max())
        if not largest * _HEADROOM <= _LARGEST_FP16:
            raise UnsupportedModel(
                f"{name.removesuffix('.peak')} reaches {largest:.3g} on these images; fp16 ends at {_LARGEST_FP16:g} "
                f"and another image may well reach {_HEADROOM:g} times as much. Use bf16, which has float32's range"
            )
