"""The outputs of a network with a wide head, as ONNX nodes: scores, and where in the image each score comes from.

    P, the frozen maps ──┬─ mean ─┐                     ┌─ embedding [batch,F]
                         ├─ max ──┤  each over its root ├──────────────┐
    A ─ last pool ─ L ───┼─ mean ─┤    mean square: x ──┤              ├─ head ─ logits [batch,C]
                         └─ max ──┘                     └─ relu(S x), ─┘
                                                           if any
A class map is gradient times activation (HiResCAM, Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for
faithful explanations of convolutional neural networks"), at P and at A, without a backward pass: the head is linear
in the pooled values once the root mean squares are held (as Ali et al. 2022, "XAI for Transformers: Better
Explanations through Conservative Propagation", do with layer norm's) and the random features' ReLUs are seen, so

    score[c] - bias[c] = sum over parts and channels of v[c,part,k] pooled[part,k]

and each pooled value is a sum over places: a mean of all, or a maximum where it is attained, ties sharing equally.
Summed over its places, a class map is therefore the score less the head's bias.

Shape legend: N batch, C classes, K channels of P or L, F pooled values, R random features, J = F + R, h w class map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from export.card import OUTPUT_NAMES
from export.graph import Graph
from export.onnx_checks import WideHead, channels_after

WIDE_MAPS = (
    "what each place gives to each score (gradient times activation, HiResCAM): summed over h and w, and with the "
    "head's bias, it is the score"
)
"""Doc string of the class maps of a wide head."""

_SMALLEST_RMS = 1e-6
"""As in training: maps below this are as good as dead."""

_NO_SHARE = 1e-6
"""Less than any share of places at which a maximum is attained; keeps a quantised graph from dividing by zero."""


def write_wide_outputs(graph: Graph, layers: Sequence[tuple[str, nn.Module]], head: nn.Linear, wide: WideHead) -> None:
    """Write the outputs; the graph stands at A, the last ReLU's output.

    Names of nodes for the maps alone begin with `class_maps`, those between convolutions and head with `pooling`. Leave
    both and `head` out of an int8 quantisation: they cost next to nothing, and a quantiser mistakes the head's weight,
    which maps and scores share.
    """
    frozen, activations, last_pool = f"{wide.frozen_layer}.out", graph.tensor, layers[-1][0]
    graph.add("MaxPool", last_pool, [activations], f"{last_pool}.out", kernel_shape=[2, 2], strides=[2, 2])
    side, channels, last_channels = graph.size, *(channels_after(layers, n) for n in (wide.frozen_layer, last_pool))
    sources = [
        _Pooled.write(graph, "frozen", frozen, channels, graph.sides[frozen]),
        _Pooled.write(graph, "last", graph.tensor, last_channels, side // 2),
    ]
    weights = _write_scores(graph, sources, head, wide)
    seen = [_seen_in_frozen(graph, sources[0]), _seen_in_last(graph, sources[1], activations, side)]
    frozen_map = _write_map(graph, "frozen", weights[0], seen[0], (head.out_features, sources[0].side))
    last_map = _write_map(graph, "last", weights[1], seen[1], (head.out_features, side // 2 * 2))
    placed = [_fold(graph, frozen_map, sources[0].side, side), _pad(graph, last_map, side)]
    graph.add("Add", "class_maps", placed, OUTPUT_NAMES[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pooled:
    """One tensor's pooling, by name: maps [batch,K,s,s], peak [batch,K,1,1], rms [batch,1] of mean and maximum."""

    name: str
    maps: str
    channels: int
    side: int
    peak: str
    rms: tuple[str, str]
    scaled: tuple[str, str]

    @staticmethod
    def write(graph: Graph, name: str, maps: str, channels: int, side: int) -> _Pooled:
        pooled = {
            "mean": graph.node("GlobalAveragePool", f"pooling.{name}.mean", [maps]),
            "max": graph.node("GlobalMaxPool", f"pooling.{name}.max", [maps]),
        }
        smallest = graph.constant(f"pooling.{name}.smallest_rms", np.array(_SMALLEST_RMS, np.float32))
        scaled, rms = [], []
        for kind, tensor in pooled.items():
            flat = graph.node("Flatten", f"pooling.{name}.{kind}.flat", [tensor], axis=1)
            square = graph.node("Mul", f"pooling.{name}.{kind}.square", [flat, flat])
            power = graph.node("ReduceMean", f"pooling.{name}.{kind}.power", [square], axes=[1], keepdims=1)
            root = graph.node("Sqrt", f"pooling.{name}.{kind}.root", [power])
            rms.append(graph.node("Max", f"pooling.{name}.{kind}.rms", [root, smallest]))
            scaled.append(graph.node("Div", f"pooling.{name}.{kind}.scaled", [flat, rms[-1]]))
        return _Pooled(
            name=name,
            maps=maps,
            channels=channels,
            side=side,
            peak=pooled["max"],
            rms=(rms[0], rms[1]),
            scaled=(scaled[0], scaled[1]),
        )


def _write_scores(graph: Graph, sources: Sequence[_Pooled], head: nn.Linear, wide: WideHead) -> list[str]:
    """Write logits and embedding; return for each source the name of v [batch,C,2K], what values count for a score."""
    features = OUTPUT_NAMES[2]
    graph.add("Concat", "pooling.all", [name for source in sources for name in source.scaled], features, axis=1)
    weight = effective = graph.weigh("head.weight", head.weight)
    if wide.random_RF is not None:
        random = graph.weigh("random.weight", wide.random_RF)
        raw = graph.node("Gemm", "pooling.random", [features, random], transB=1)
        positive = graph.node("Relu", "pooling.random.relu", [raw])
        effective = _see_through(graph, weight, random, positive, wide.random_RF)
        features = graph.node("Concat", "pooling.features", [features, positive], axis=1)
    bias = [graph.weigh("head.bias", head.bias)] if head.bias is not None else []
    graph.add("Gemm", "head", [features, weight, *bias], OUTPUT_NAMES[0], transB=1)

    widths = graph.constant("class_maps.widths", np.repeat([source.channels for source in sources], 2))
    pieces = graph.split("class_maps.parts", effective, widths, num_outputs=4, axis=-1)
    axis = graph.constant("class_maps.axis", np.array([2]))
    divided = []
    for piece, rms in zip(pieces, [name for source in sources for name in source.rms], strict=True):
        lifted = graph.node("Unsqueeze", f"class_maps.{rms}.row", [rms, axis])
        divided.append(graph.node("Div", f"class_maps.{rms}.weight", [piece, lifted]))
    return [
        graph.node("Concat", f"class_maps.{source.name}.weight", divided[2 * at : 2 * at + 2], axis=2)
        for at, source in enumerate(sources)
    ]


def _see_through(graph: Graph, weight: str, random: str, positive: str, random_RF: Tensor) -> str:
    """Return the name of [batch,C,F]: the head's weights of pooled values, the open random features' included."""
    num_random, num_pooled = random_RF.shape
    zero = graph.constant("class_maps.zero", np.array(0, np.float32))
    axis = graph.constant("class_maps.row", np.array([1]))
    sizes = graph.constant("class_maps.kinds", np.array([num_pooled, num_random]))
    direct, through = graph.split("class_maps.direct", weight, sizes, num_outputs=2, axis=1)
    is_open = graph.node("Greater", "class_maps.open", [positive, zero])
    open_row = graph.node("Unsqueeze", "class_maps.open.row", [graph.as_float("class_maps.open", is_open), axis])
    chosen = graph.node("Mul", "class_maps.open.weight", [through, open_row])
    reached = graph.node("MatMul", "class_maps.random", [chosen, random])
    return graph.node("Add", "class_maps.effective", [reached, direct])


def _seen_in_frozen(graph: Graph, source: _Pooled) -> str:
    """Return the name of [batch,2K,s*s]: what each place gives to mean and maximum, times the number of places."""
    peak = graph.node("Mul", "class_maps.frozen.peak", [source.maps, _share_of_peak(graph, source)])
    both = graph.node("Concat", "class_maps.frozen.both", [source.maps, peak], axis=1)
    shape = graph.constant("class_maps.frozen.shape", np.array([0, 2 * source.channels, source.side**2]))
    return graph.node("Reshape", "class_maps.frozen.seen", [both, shape])


def _seen_in_last(graph: Graph, source: _Pooled, activations: str, side: int) -> str:
    """Return the same for A: a place gives where it is its window's largest, and to the maximum where the window is.

    In windows: A is [batch,K,q,2,q,2] and what the pool made of it [batch,K,q,1,q,1].
    """
    cells, channels = source.side, source.channels
    if side % 2:
        bounds = [
            graph.constant(f"class_maps.last.{n}", np.array(v)) for n, v in (("from", [0, 0]), ("to", [2 * cells] * 2))
        ]
        axes = graph.constant("class_maps.last.axes", np.array([2, 3]))
        activations = graph.node("Slice", "class_maps.last.even", [activations, *bounds, axes])
    windowed = graph.constant("class_maps.last.windowed", np.array([0, channels, cells, 2, cells, 2]))
    single = graph.constant("class_maps.last.single", np.array([0, channels, cells, 1, cells, 1]))
    inside = graph.node("Reshape", "class_maps.last.inside", [activations, windowed])
    pooled = graph.node("Reshape", "class_maps.last.pooled", [source.maps, single])
    largest = graph.as_float(
        "class_maps.last.largest", graph.node("Equal", "class_maps.last.largest", [inside, pooled])
    )
    ties = graph.node("ReduceMean", "class_maps.last.ties", [largest], axes=[3, 5], keepdims=1)
    share = _over(graph, "class_maps.last.share", largest, ties)
    mean = graph.node("Mul", "class_maps.last.handed", [inside, share])
    peak_share = graph.node("Reshape", "class_maps.last.peak_share", [_share_of_peak(graph, source), single])
    peak = graph.node("Mul", "class_maps.last.peak", [mean, peak_share])
    both = graph.node("Concat", "class_maps.last.both", [mean, peak], axis=1)
    shape = graph.constant("class_maps.last.shape", np.array([0, 2 * channels, (2 * cells) ** 2]))
    return graph.node("Reshape", "class_maps.last.seen", [both, shape])


def _share_of_peak(graph: Graph, source: _Pooled) -> str:
    """Return the name of [batch,K,s,s]: 0 where a channel is below its maximum, elsewhere equal, 1 on average."""
    name = f"class_maps.{source.name}.at_peak"
    at_peak = graph.as_float(name, graph.node("Equal", name, [source.maps, source.peak]))
    return _over(graph, f"{name}.share", at_peak, graph.node("GlobalAveragePool", f"{name}.mean", [at_peak]))


def _over(graph: Graph, name: str, mask: str, share: str) -> str:
    least = graph.constant(f"{name}.least", np.array(_NO_SHARE, np.float32))
    return graph.node("Div", name, [mask, graph.node("Max", f"{name}.safe", [share, least])])


def _write_map(graph: Graph, name: str, weights: str, seen: str, classes_and_side: tuple[int, int]) -> str:
    """Return the name of [batch,C,side,side]: what each place gives to each score."""
    name, (num_classes, side) = f"class_maps.{name}", classes_and_side
    product = graph.node("MatMul", f"{name}.product", [weights, seen])
    shape = graph.constant(f"{name}.map_shape", np.array([0, num_classes, side, side]))
    spread = graph.node("Reshape", f"{name}.map", [product, shape])
    return graph.node("Mul", f"{name}.given", [spread, graph.constant(f"{name}.cell", np.array(side**-2, np.float32))])


def _fold(graph: Graph, maps: str, fine: int, coarse: int) -> str:
    """Return the name of maps [batch,C,coarse,coarse]: the fine places summed into those that they are pooled into.

    An odd last row or column, which the pools between drop, is summed into the last that they keep.
    """
    if fine == coarse:
        return maps
    shift = next(shift for shift in range(fine.bit_length()) if fine >> shift == coarse)
    sums = np.zeros((coarse, fine), np.float32)
    sums[np.minimum(np.arange(fine) >> shift, coarse - 1), np.arange(fine)] = 1
    down = graph.node("MatMul", "class_maps.rows", [graph.constant("class_maps.fold_rows", sums), maps])
    return graph.node("MatMul", "class_maps.columns", [down, graph.constant("class_maps.fold_columns", sums.T)])


def _pad(graph: Graph, maps: str, side: int) -> str:
    """Return the name of maps with the odd last row and column that the pool drops, where nothing comes from."""
    if side % 2 == 0:
        return maps
    pads = graph.constant("class_maps.pads", np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    return graph.node("Pad", "class_maps.padded", [maps, pads])
