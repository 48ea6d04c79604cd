"""Grad-CAM: the closed form holds, ties in the pool included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fl.evaluation.gradcam import grad_cam
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
