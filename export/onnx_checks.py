"""Which networks the ONNX writers describe completely; anything else is refused, never approximated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.errors import UnsupportedModel

WRITTEN: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.ReLU, nn.MaxPool2d)
"""Exact types: a subclass may compute something else."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WideHead:
    """What a wide head reads beside the last maps.

    frozen_layer: name of the layer whose output P is. random_RF: [R, F] float32 of the random features, None for none.
    truth: images_NCHW to (logits_NC, class_maps_NChw) float32, by the training code, which the graph is held to.
    pooled: images_NCHW to the pooled values [N,F] float32 before any random features, by the training code too.
    """

    frozen_layer: str
    random_RF: Tensor | None
    truth: Callable[[Tensor], tuple[Tensor, Tensor]]
    pooled: Callable[[Tensor], Tensor]


def check_network(
    layers: list[tuple[str, nn.Module]], head: nn.Linear, size: int, labels: Sequence[str], wide: WideHead | None
) -> None:
    """Raise UnsupportedModel unless the graph writers describe this network completely."""
    channels = 3
    for name, layer in layers:
        _check_layer(name, layer)
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels:
                raise UnsupportedModel(f"{name} reads {layer.in_channels} channels but gets {channels}")
            channels = layer.out_channels
    if [type(layer) for _, layer in layers[-3:]] != [nn.Conv2d, nn.ReLU, nn.MaxPool2d]:
        ending = ", ".join(type(layer).__name__ for _, layer in layers[-3:]) or "nothing"
        raise UnsupportedModel(
            f"features must end in Conv2d, ReLU, MaxPool2d (class maps hang there); they end in {ending}"
        )
    if wide is not None:
        _check_wide_head(layers, head, wide)
        channels = head.in_features
    if (head.in_features, head.out_features) != (channels, len(labels)):
        raise UnsupportedModel(
            f"head maps {head.in_features} features to {head.out_features} classes; the last convolution "
            f"gives {channels} and there are {len(labels)} labels"
        )
    num_pools = sum(isinstance(layer, nn.MaxPool2d) for _, layer in layers)
    if size >> num_pools < 1:
        raise UnsupportedModel(
            f"images of {size} pixels are too small for {num_pools} poolings; at least {2**num_pools}"
        )
    for name, parameter in [*_parameters(layers), *((f"head.{n}", p) for n, p in head.named_parameters())]:
        _check_weight(name, parameter)
    if wide is not None and wide.random_RF is not None:
        _check_weight("random_RF", wide.random_RF)


def _parameters(layers: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Parameter]]:
    return [(f"{name}.{key}", value) for name, layer in layers for key, value in layer.named_parameters()]


def _check_layer(name: str, layer: nn.Module) -> None:
    if type(layer) not in WRITTEN:
        known = ", ".join(kind.__name__ for kind in WRITTEN)
        raise UnsupportedModel(
            f"{name} is a {type(layer).__name__}, which the exporter does not write; it writes {known}. "
            f"Leave out what has no effect at inference (Dropout), or teach export/onnx.py this layer"
        )
    wanted: dict[str, object] = {}
    if isinstance(layer, nn.Conv2d):
        wanted = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
        wanted["padding_mode"] = "zeros"
    elif isinstance(layer, nn.MaxPool2d):
        wanted = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False}
        wanted["return_indices"] = False
    for setting, value in wanted.items():
        if getattr(layer, setting) != value:
            raise UnsupportedModel(
                f"{name} has {setting}={getattr(layer, setting)!r}; the exporter writes only {value!r}"
            )


def _check_weight(name: str, parameter: Tensor) -> None:
    if parameter.dtype != torch.float32:
        raise UnsupportedModel(f"{name} is {parameter.dtype}; expected torch.float32. Call .float() on the model first")
    if not bool(torch.isfinite(parameter).all()):
        raise UnsupportedModel(f"{name} holds NaN or infinity: the training run diverged, export an earlier checkpoint")


def _check_wide_head(layers: Sequence[tuple[str, nn.Module]], head: nn.Linear, wide: WideHead) -> None:
    """Raise UnsupportedModel unless the head reads what `wide` says."""
    names = [name for name, _ in layers]
    if wide.frozen_layer not in names[:-3]:
        raise UnsupportedModel(f"frozen_layer is {wide.frozen_layer!r}; expected one before the last convolution")
    num_pooled = sum(2 * channels_after(layers, name) for name in (wide.frozen_layer, names[-1]))
    num_random = 0 if wide.random_RF is None else len(wide.random_RF)
    if head.in_features != num_pooled + num_random:
        raise UnsupportedModel(
            f"head reads {head.in_features} features; a wide head of these layers reads {num_pooled} pooled values and "
            f"{num_random} random features"
        )
    if wide.random_RF is not None and wide.random_RF.shape[1] != num_pooled:
        raise UnsupportedModel(f"random features read {wide.random_RF.shape[1]} values; the pooling gives {num_pooled}")


def channels_after(layers: Sequence[tuple[str, nn.Module]], name: str) -> int:
    """Return how many channels a layer's output has."""
    channels = 3
    for layer_name, layer in layers:
        channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
        if layer_name == name:
            break
    return channels
