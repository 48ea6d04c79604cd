"""Class maps: the closed form holds, ties in the pool included, and what places give adds up to the score."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fl.evaluation.gradcam import grad_cam, scores_and_contributions
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing

TINY = NetworkSettings(width=0.125)


def _model(seed: int = 0) -> SplitVgg19:
    torch.manual_seed(seed)
    model = SplitVgg19(TINY).eval()
    initialise_from_nothing(model, torch.Generator().manual_seed(seed))
    return model


def _images(num: int, side: int) -> Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize("side", [32, 50, 83])
def test_it_equals_the_closed_form_of_a_global_average_pool_with_a_linear_head(side: int) -> None:
    model, images, labels = _model(), _images(3, side), torch.tensor([0, 3, 1])
    maps = grad_cam(model.features(), model.head, images, labels)
    with torch.no_grad():
        activation = model.features()[:-1](images)
        area = activation.shape[2] * activation.shape[3]
        expected = torch.relu(torch.einsum("nc,nchw->nhw", model.head.weight[labels] / area, activation))
    assert maps.shape == (3, side // 16, side // 16)
    assert maps.max() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-7)


def test_without_a_last_pool_it_equals_the_class_activation_map() -> None:
    model, images = _model(1), _images(2, 48)
    body = model.features()[:-1]
    maps = grad_cam(body, model.head, images, torch.tensor([2, 2]))
    with torch.no_grad():
        expected = torch.relu(torch.einsum("c,nchw->nhw", model.head.weight[2] / 9, body(images)))
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-7)


def test_it_finds_the_place_that_decides() -> None:
    features = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2))
    head = nn.Linear(1, 2, bias=False)
    nn.init.constant_(features[0].weight, 1.0)
    head.weight.data = torch.tensor([[1.0], [-1.0]])
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 12, 3] = 1.0
    seen = grad_cam(features, head, image, torch.tensor([0]))[0]
    assert torch.nonzero(seen).float().mean(0).tolist() == [12.0, 3.0]
    assert grad_cam(features, head, image, torch.tensor([1])).max() == 0  # it speaks against class 1


def test_each_image_is_explained_alone_and_no_gradient_is_left_behind() -> None:
    model, images, labels = _model(2), _images(3, 32), torch.tensor([1, 2, 0])
    with torch.no_grad():  # as inside an evaluation loop
        together = grad_cam(model.features(), model.head, images, labels)
        alone = torch.cat(
            [grad_cam(model.features(), model.head, images[i : i + 1], labels[i : i + 1]) for i in range(3)]
        )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)
    assert not together.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_something_that_is_no_stack_of_layers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"non-empty nn.Sequential of layers, got SplitVgg19"):
        grad_cam(_model(), nn.Linear(64, 4), _images(1, 32), torch.tensor([0]))


HEADS = [
    NetworkSettings(width=0.125),
    NetworkSettings(width=0.125, head="wide"),
    NetworkSettings(width=0.125, head="wide", random_features=48),
    NetworkSettings(width=0.125, head="wide", frozen_through="block3_conv2"),
    NetworkSettings(width=0.125, head="wide", frozen_through="block4_conv4", random_features=8),
    NetworkSettings(width=0.125, head="wide", frozen_through="block5_conv3"),
]


def _headed(settings: NetworkSettings, seed: int = 0) -> SplitVgg19:
    """A model whose black background is no zero: equal values everywhere, so that maxima are tied."""
    model = SplitVgg19(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    initialise_from_nothing(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("side", [32, 50, 83])
@pytest.mark.parametrize("settings", HEADS, ids=str)
def test_what_all_places_give_to_a_score_and_the_bias_add_up_to_the_score(settings: NetworkSettings, side: int) -> None:
    model, images = _headed(settings), _images(2, side)
    images[:, :, : side // 2] = 0

    with torch.no_grad():  # as inside an evaluation loop
        logits_NK, maps_NKhw = scores_and_contributions(model, images)
        expected_NK = model(images)

    assert maps_NKhw.shape == (2, 4, side // 16, side // 16)
    torch.testing.assert_close(logits_NK, expected_NK)
    torch.testing.assert_close(maps_NKhw.sum(dim=(2, 3)) + model.head.bias, expected_NK, rtol=1e-4, atol=1e-5)
    assert maps_NKhw.abs().max() > 1e-3 and not maps_NKhw.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_contributions_of_an_average_head_are_the_pooled_activations_under_its_weights() -> None:
    model, images = _headed(HEADS[0]), _images(2, 83)

    _, maps_NKhw = scores_and_contributions(model, images)

    with torch.no_grad():
        pooled = model.features()(images)  # 2x2 of the 5x5 places, each the largest of a window of 2x2
        expected = torch.einsum("kc,nchw->nkhw", model.head.weight, pooled) / 4
    windows = maps_NKhw[:, :, :4, :4].unflatten(3, (2, 2)).unflatten(2, (2, 2)).sum(dim=(3, 5))
    torch.testing.assert_close(windows, expected, rtol=1e-4, atol=1e-6)
    assert not maps_NKhw[:, :, 4:].any() and not maps_NKhw[:, :, :, 4:].any(), "the pool drops the odd last places"


def test_equal_maxima_share_what_they_give() -> None:
    model = SplitVgg19(HEADS[1]).eval()
    with torch.no_grad():
        for layer in model.features():
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight)  # passes values on as they are, so that equal ones stay equal
                nn.init.zeros_(layer.bias)
        model.head.weight.fill_(1.0)
    images = torch.zeros(1, 3, 96, 96)
    images[:, :, 20, 20] = images[:, :, 70, 52] = 2.0  # in places (1, 1) and (4, 3) of 6 x 6
    images[:, :, 40, 40] = 1.0

    logits_NK, maps_NKhw = scores_and_contributions(model, images)

    assert maps_NKhw[0, 0, 1, 1] == maps_NKhw[0, 0, 4, 3] > 0
    assert maps_NKhw[0, 0, 2, 2] < maps_NKhw[0, 0, 1, 1] / 4, "it has its part of the means alone"
    torch.testing.assert_close(maps_NKhw.sum(dim=(2, 3)) + model.head.bias, logits_NK)


def test_contributions_find_the_place_that_decides() -> None:
    model = _headed(HEADS[1])
    black = torch.zeros(1, 3, 96, 96)
    spotted = black.clone()
    spotted[:, :, 70:76, 20:26] = 8.0

    maps = [scores_and_contributions(model, images)[1] for images in (black, spotted)]

    changed_hw = (maps[1] - maps[0]).abs().sum(dim=(0, 1))
    row, column = divmod(int(changed_hw.argmax()), 6)
    assert abs(row - 4) <= 1 and abs(column - 1) <= 1
