"""The split VGG19 is torchvision's, cut where the settings say, and knows its own shapes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models import vgg19

from fl.model.flat import num_parameters
from fl.model.vgg import CONV_NAMES, NetworkSettings, SplitVgg19, feature_shape, initialise_from_nothing


def narrow(frozen_through: str | None = "block4_conv3", width: float = 0.125) -> NetworkSettings:
    return NetworkSettings(width=width, frozen_through=frozen_through)


def test_features_equal_those_of_torchvision_on_the_same_weights() -> None:
    theirs, ours = vgg19(weights=None).features.eval(), SplitVgg19(NetworkSettings()).eval()
    convolutions = [[layer for layer in one if isinstance(layer, nn.Conv2d)] for one in (theirs, ours.features())]
    for source, target in zip(*convolutions, strict=True):
        target.load_state_dict(source.state_dict())
    images_NCHW = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 4 - 2

    with torch.no_grad():
        expected, found = theirs(images_NCHW), ours.tail(ours.prefix(images_NCHW))

    assert [type(layer) for layer in ours.features()] == [type(layer) for layer in theirs]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.abs().max() > 1e-3, "all features vanished: the comparison would say nothing"


def test_study_split_trains_11_801_092_parameters_in_12_tensors() -> None:
    model = SplitVgg19(NetworkSettings())

    trained = model.trained_parameters()

    assert [name for name, _ in trained] == [
        *(f"tail.block4_conv4.{part}" for part in ("weight", "bias")),
        *(f"tail.block5_conv{conv}.{part}" for conv in (1, 2, 3, 4) for part in ("weight", "bias")),
        *(f"head.{part}" for part in ("weight", "bias")),
    ]
    assert num_parameters(trained) == 11_801_092
    assert all(parameter.requires_grad for _, parameter in trained)
    assert not any(parameter.requires_grad for parameter in model.prefix.parameters())


@pytest.mark.parametrize(
    ("frozen_through", "last_of_prefix", "first_of_tail"),
    [
        ("block4_conv3", "block4_relu3", "block4_conv4"),
        ("block4_conv4", "block4_pool", "block5_conv1"),
        ("block1_conv2", "block1_pool", "block2_conv1"),
        ("block5_conv3", "block5_relu3", "block5_conv4"),
    ],
)
def test_layers_without_weights_stay_with_the_frozen_convolution(
    frozen_through: str, last_of_prefix: str, first_of_tail: str
) -> None:
    model = SplitVgg19(narrow(frozen_through))

    assert list(dict(model.prefix.named_children()))[-1] == last_of_prefix
    assert next(name for name, _ in model.tail.named_children()) == first_of_tail


@pytest.mark.parametrize("width", [0.125, 0.07, 0.01])
@pytest.mark.parametrize("size", [32, 47, 64, 97])
@pytest.mark.parametrize("frozen_through", [None, "block1_conv1", "block2_conv2", "block4_conv3", "block5_conv3"])
def test_feature_shape_agrees_with_the_network(frozen_through: str | None, size: int, width: float) -> None:
    settings = narrow(frozen_through, width)

    with torch.no_grad():
        features_NChw = SplitVgg19(settings).prefix(torch.zeros(1, 3, size, size))

    assert tuple(features_NChw.shape[1:]) == feature_shape(settings, size)


@pytest.mark.parametrize(("width", "channels"), [(1.0, 512), (0.07, 36), (0.01, 8)])
def test_channels_follow_the_width_rounded_and_never_fewer_than_eight(width: float, channels: int) -> None:
    assert feature_shape(NetworkSettings(width=width), 200) == (channels, 25, 25)


def test_frozen_prefix_gets_no_gradient_and_the_tail_does() -> None:
    model = SplitVgg19(narrow())
    before = [parameter.clone() for parameter in model.prefix.parameters()]

    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()

    assert all(parameter.grad is None for parameter in model.prefix.parameters())
    assert all(torch.equal(now, then) for now, then in zip(model.prefix.parameters(), before, strict=True))
    assert all(parameter.grad is not None for _, parameter in model.trained_parameters())


def test_nothing_frozen_trains_everything() -> None:
    model = SplitVgg19(narrow(None))

    assert not list(model.prefix.children())
    assert num_parameters(model.trained_parameters()) == sum(p.numel() for p in model.parameters())


def test_forward_is_prefix_then_classify_and_head_is_linear_on_pooled_features() -> None:
    model = SplitVgg19(narrow()).eval()
    images_NCHW = torch.rand(3, 3, 96, 96)

    with torch.no_grad():
        features_NChw = model.features()(images_NCHW)
        expected_NK = features_NChw.mean(dim=(2, 3)) @ model.head.weight.T + model.head.bias

        torch.testing.assert_close(model(images_NCHW), expected_NK)
        torch.testing.assert_close(model.classify(model.prefix(images_NCHW)), expected_NK)


def test_start_from_nothing_keeps_the_signal_through_all_nineteen_layers_and_repeats() -> None:
    first, second, other = (SplitVgg19(narrow()) for _ in range(3))
    for model, seed in ((first, 5), (second, 5), (other, 6)):
        initialise_from_nothing(model, torch.Generator().manual_seed(seed))
    images_NCHW = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    states = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
    with torch.no_grad():
        pooled_NC = first.features()(images_NCHW).mean(dim=(2, 3))
    assert pooled_NC.std(dim=0).max() > 1e-3, "images are told apart no more after the last layer"


def test_layer_that_no_tail_can_follow_is_refused_with_the_choices() -> None:
    with pytest.raises(ValidationError, match=r"'block5_conv4' is not a layer that a tail can follow.*block5_conv3"):
        NetworkSettings(frozen_through=CONV_NAMES[-1])
    with pytest.raises(ValidationError, match="block4_conv3"):
        NetworkSettings(frozen_through="block4_relu3")
