"""VGG19 as a frozen prefix, a trained tail and a linear head.

Source: Simonyan & Zisserman 2015, "Very Deep Convolutional Networks", configuration E; the classifier is replaced
by global pooling (fl/model/head.py), dropout and one linear layer; with `head: average` as in the founding study.

Shape legend: N batch, C channels, h w feature map, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from fl.model.head import AveragePooling, WidePooling
from fl.types import CLASSES

BLOCKS: tuple[tuple[int, int], ...] = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
"""(number of convolutions, channels at width 1) of each block."""

CONV_NAMES: tuple[str, ...] = tuple(
    f"block{block}_conv{conv}" for block, (depth, _) in enumerate(BLOCKS, 1) for conv in range(1, depth + 1)
)


def _known_conv(name: str | None) -> str | None:
    if name is not None and name not in CONV_NAMES[:-1]:
        raise ValueError(
            f"{name!r} is not a layer that a tail can follow; choose null or one of {', '.join(CONV_NAMES[:-1])}"
        )
    return name


class NetworkSettings(BaseModel):
    """Which VGG19: how wide, where frozen, and what its head reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: float = Field(1.0, gt=0, le=1, description="Multiplier of every layer's channels; 1 is VGG19.")
    frozen_through: Annotated[str | None, AfterValidator(_known_conv)] = Field(
        "block4_conv3",
        description="Last frozen layer; everything after it is trained. null trains all of it.",
    )
    dropout: float = Field(0.4, ge=0, lt=1, description="Dropout before the linear head.")
    head: Literal["average", "wide"] = Field(
        "average",
        description="What the linear head reads. average: the mean of block 5, as in the study. wide: mean and maximum "
        "of the frozen layers' output and of block 5, which a head in closed form needs.",
    )
    random_features: int = Field(
        0, ge=0, le=16384, description="Fixed random ReLU features between a wide pooling and the linear head; 0: none."
    )

    @model_validator(mode="after")
    def _wide_has_what_it_reads(self) -> Self:
        if self.head == "wide" and self.frozen_through is None:
            raise ValueError("head `wide` reads the frozen layers' output, but frozen_through is null; name a layer")
        if self.random_features and self.head != "wide":
            raise ValueError(
                f"random_features is {self.random_features}, but head `{self.head}` takes none; set head: wide or 0"
            )
        return self


class SplitVgg19(nn.Module):
    """VGG19 in three parts: `prefix` (frozen), `tail` (trained convolutions), `head` (trained, linear).

    prefix and tail are `nn.Sequential` whose children carry the layers' names (block4_conv4, block4_relu4, ...).
    Between tail and head stands `pooling`, which has nothing to train: maps in, features_NJ out.
    Forward takes images_NCHW (already preprocessed) and returns logits_NK.
    """

    def __init__(self, settings: NetworkSettings, num_classes: int = len(CLASSES)) -> None:
        super().__init__()
        layers = _vgg19_layers(settings.width)
        boundary = _boundary(layers, settings.frozen_through)
        items = list(layers.items())
        self.prefix = nn.Sequential(OrderedDict(items[:boundary]))
        self.tail = nn.Sequential(OrderedDict(items[boundary:]))
        self.dropout = nn.Dropout(settings.dropout)
        self.pooling = _pooling(settings, self.prefix)
        self.head = nn.Linear(self.pooling.num_features, num_classes)
        self.prefix.requires_grad_(False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.classify(self.prefix(images_NCHW))

    def classify(self, features_NChw: Tensor) -> Tensor:
        """Return logits_NK of features that the frozen prefix made."""
        features_NJ = self.dropout(self.head_features(features_NChw))
        # a wide head's float32 features keep a float32 head under autocast: its scores are sums of large terms
        exact = torch.autocast(features_NJ.device.type, enabled=False)
        with exact if features_NJ.dtype is torch.float32 else nullcontext():
            logits: Tensor = self.head(features_NJ)
        return logits

    def head_features(self, features_NChw: Tensor) -> Tensor:
        """Return what the linear head reads, features_NJ, of features that the frozen prefix made; without dropout."""
        features_NJ: Tensor = self.pooling(features_NChw, self.tail(features_NChw))
        return features_NJ

    def features(self) -> nn.Sequential:
        """Return prefix and tail as one Sequential that shares their layers, for export and explanation."""
        return nn.Sequential(OrderedDict([*self.prefix.named_children(), *self.tail.named_children()]))

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that federated rounds train and send, in a fixed order."""
        tail = [(f"tail.{name}", parameter) for name, parameter in self.tail.named_parameters()]
        return tail + [(f"head.{name}", parameter) for name, parameter in self.head.named_parameters()]


def feature_shape(settings: NetworkSettings, image_size: int) -> tuple[int, int, int]:
    """Return (C, h, w) of one image's features after the frozen prefix."""
    layers = _vgg19_layers(settings.width)
    names = list(layers)[: _boundary(layers, settings.frozen_through)]
    channels, side = 3, image_size
    for name in names:
        layer = layers[name]
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        elif isinstance(layer, nn.MaxPool2d):
            side //= 2
    return channels, side, side


def initialise_from_nothing(model: SplitVgg19, generator: torch.Generator) -> None:
    """Fill every weight for training without pretrained weights.

    A plain VGG19 of He-initialised layers takes many epochs to leave chance. Starting every convolution that keeps
    its number of channels as Dirac plus small noise makes the network begin as a shallow one (one He layer per
    change of width) that deepens as it learns (idea: Chen, Goodfellow, Shlens 2015, "Net2Net").
    """
    for layer in model.features():
        if isinstance(layer, nn.Conv2d):
            _initialise_conv(layer, generator)
    initialise_head(model, generator)


def initialise_head(model: SplitVgg19, generator: torch.Generator) -> None:
    """Draw a fresh linear head: normal weights of variance 1/C, zero bias."""
    nn.init.normal_(model.head.weight, std=model.head.in_features**-0.5, generator=generator)
    nn.init.zeros_(model.head.bias)


def _initialise_conv(layer: nn.Conv2d, generator: torch.Generator) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    if layer.in_channels == layer.out_channels:
        with torch.no_grad():
            layer.weight.mul_(0.5)
            centre = torch.arange(layer.out_channels)
            layer.weight[centre, centre, 1, 1] += 1.0


def _pooling(settings: NetworkSettings, prefix: nn.Sequential) -> AveragePooling | WidePooling:
    last_channels = _channels(BLOCKS[-1][1], settings.width)
    if settings.head == "average":
        return AveragePooling(last_channels)
    prefix_channels = [layer.out_channels for layer in prefix if isinstance(layer, nn.Conv2d)][-1]
    return WidePooling(prefix_channels, last_channels, settings.random_features)


def _channels(channels: int, width: float) -> int:
    return max(8, round(channels * width))


def _vgg19_layers(width: float) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    in_channels = 3
    for block, (depth, channels) in enumerate(BLOCKS, 1):
        out_channels = _channels(channels, width)
        for conv in range(1, depth + 1):
            layers[f"block{block}_conv{conv}"] = nn.Conv2d(in_channels, out_channels, 3, padding=1)
            layers[f"block{block}_relu{conv}"] = nn.ReLU(inplace=True)
            in_channels = out_channels
        layers[f"block{block}_pool"] = nn.MaxPool2d(2)
    return layers


def _boundary(layers: OrderedDict[str, nn.Module], frozen_through: str | None) -> int:
    """Return how many layers are frozen: up to the named one and what has no weights right after it."""
    if frozen_through is None:
        return 0
    names = list(layers)
    index = names.index(frozen_through) + 1
    while index < len(names) and "_conv" not in names[index]:
        index += 1
    return index
