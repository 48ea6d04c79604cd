"""What the heads read: bounded, blind to brightness, the same on every machine, and the average head as it was."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fl.model.flat import gather, num_parameters, scatter
from fl.model.head import WidePooling, random_signs
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing


def make_model(head: str = "wide", random_features: int = 0, frozen_through: str = "block4_conv3") -> SplitVgg19:
    settings = NetworkSettings(
        width=0.125,
        head=head,
        random_features=random_features,
        frozen_through=frozen_through,  # type: ignore[arg-type]
    )
    model = SplitVgg19(settings).eval()
    initialise_from_nothing(model, torch.Generator().manual_seed(1))
    return model


def maps(seed: int, channels: int, side: int) -> Tensor:
    return torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(seed)).square()


def test_wide_head_reads_means_and_maxima_of_the_prefix_and_of_block_5_each_at_unit_root_mean_square() -> None:
    model, images_NCHW = make_model(), torch.rand(3, 3, 64, 64)

    with torch.no_grad():
        prefix = model.prefix(images_NCHW)
        last = model.tail(prefix)
        features_NJ = model.head_features(prefix)
        parts = [prefix.mean((2, 3)), prefix.amax((2, 3)), last.mean((2, 3)), last.amax((2, 3))]

    assert features_NJ.shape == (3, 4 * 64)
    for part, found in zip(parts, features_NJ.split(64, dim=1), strict=True):
        torch.testing.assert_close(found, part / part.square().mean(1, keepdim=True).sqrt())


def test_layer_that_ends_a_block_is_read_after_its_pool() -> None:
    model = make_model(frozen_through="block4_conv4")
    images_NCHW = torch.rand(2, 3, 64, 64)

    with torch.no_grad():
        pooled = model.prefix(images_NCHW)
        parts = model.pooling.parts(pooled, model.tail(pooled))  # type: ignore[union-attr,operator]

    assert pooled.shape[2:] == (4, 4)
    assert parts[1].equal(pooled.amax((2, 3)))


def test_random_features_stand_beside_the_pooled_values_and_are_rectified_projections_of_them() -> None:
    pooling = WidePooling(6, 5, 40)

    features_NJ = pooling(maps(1, 6, 5), maps(2, 5, 2))

    assert features_NJ.shape == (3, 22 + 40) and pooling.num_features == 62
    assert pooling.random_RF is not None
    torch.testing.assert_close(features_NJ[:, 22:], (features_NJ[:, :22] @ pooling.random_RF.T).clamp(min=0))
    assert 0.2 < (features_NJ[:, 22:] > 0).float().mean() < 0.8, "a feature that is always on or off tells nothing"


@pytest.mark.parametrize("random_features", [0, 30])
def test_features_do_not_change_with_the_scale_of_the_maps_and_stay_in_their_bounds(random_features: int) -> None:
    pooling = WidePooling(6, 5, random_features)
    first, second = maps(1, 6, 5), maps(2, 5, 2)
    spike = torch.zeros(3, 6, 5, 5)
    spike[:, 2, 1, 1] = 7.0

    torch.testing.assert_close(pooling(first * 1000, second / 50), pooling(first, second))
    for features_NJ in (pooling(first, second), pooling(spike, second), pooling(spike * 0, second * 0)):
        assert features_NJ.min() >= 0 and features_NJ.max() <= pooling.largest_feature
    assert pooling(spike, second).max() == pytest.approx(math.sqrt(6)), "one channel alone has the root of their number"


def test_random_matrix_is_the_same_for_ever_and_half_of_it_is_positive() -> None:
    signs_RF = random_signs(64, 100)

    assert signs_RF.abs().unique().tolist() == pytest.approx([0.1])
    assert abs(signs_RF.sign().mean().item()) < 0.05
    digest = hashlib.sha256((signs_RF > 0).numpy().tobytes()).hexdigest()
    assert digest == "8fc1407dfa880e285238a1c8d304e636ef3b24f5b2d42175bf461d758cf3952e"
    assert not torch.equal(random_signs(100, 64).flatten() > 0, signs_RF.flatten() > 0)


@pytest.mark.parametrize(("random_features", "values"), [(0, 4 * 256 + 4), (32, 4 * (256 + 32) + 4)])
def test_what_travels_is_tail_and_linear_head_and_no_random_matrix(random_features: int, values: int) -> None:
    model, other = make_model(random_features=random_features), make_model("average")

    trained = model.trained_parameters()

    assert [name for name, _ in trained] == [name for name, _ in other.trained_parameters()]
    assert model.head.weight.numel() + model.head.bias.numel() == values
    assert num_parameters(trained) == sum(p.numel() for p in model.tail.parameters()) + values
    assert not [name for name in model.state_dict() if name.startswith("pooling")]
    model.load_state_dict(model.state_dict())
    scatter(gather(trained), trained)


def test_wide_head_scores_in_float32_where_the_convolutions_run_in_bfloat16() -> None:
    model, images_NCHW = make_model(random_features=16), torch.rand(2, 3, 64, 64)

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        prefix = model.prefix(images_NCHW)
        logits_NK = model.classify(prefix)
        features_NJ = model.head_features(prefix)

    assert prefix.dtype is torch.bfloat16
    assert logits_NK.dtype is features_NJ.dtype is torch.float32
    torch.testing.assert_close(logits_NK, features_NJ @ model.head.weight.T + model.head.bias)


def test_gradient_reaches_the_tail_through_every_part() -> None:
    model = make_model(random_features=16)

    model(torch.rand(2, 3, 64, 64)).square().sum().backward()

    assert all(parameter.grad is not None and parameter.grad.any() for _, parameter in model.trained_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "wide", "frozen_through": None}, "frozen_through is null; name a layer"),
        ({"random_features": 8}, "head `average` takes none"),
        ({"head": "wide", "random_features": -1}, "greater than or equal to 0"),
    ],
)
def test_head_without_what_it_reads_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkSettings.model_validate(settings)
