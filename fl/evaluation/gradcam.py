"""Class maps by automatic differentiation: the slow truth that the exported closed forms are held to.

Sources: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks", section 3; Draelos & Carin 2020,
"Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks".
Shape legend: N images, C channels, H W image, h w feature map, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fl.model.head import WidePooling
from fl.model.vgg import SplitVgg19


def grad_cam(features: nn.Module, head: nn.Module, images_NCHW: Tensor, label_N: Tensor) -> Tensor:
    """Return maps_Nhw float32 >= 0: where the last convolution's output speaks for each image's given class.

    features: nn.Sequential of the convolutional network, with or without a last pooling layer; the maps
        have the size before that pool. head: from globally averaged features_NC to logits_NK.
    Both should be in evaluation mode. Parameters and their `.grad` are left alone. Maps are neither scaled
    nor resized; all-zero where nothing speaks for the class.
    """
    if not isinstance(features, nn.Sequential) or len(features) == 0:
        raise TypeError(f"features must be a non-empty nn.Sequential of layers, got {type(features).__name__}")
    layers = list(features)
    pool = layers.pop() if isinstance(layers[-1], (nn.MaxPool2d, nn.AvgPool2d)) else nn.Identity()
    with torch.no_grad():
        activation_NChw = nn.Sequential(*layers)(images_NCHW)
    with torch.enable_grad():
        activation_NChw = activation_NChw.detach().requires_grad_(True)
        logits_NK = head(pool(activation_NChw).mean(dim=(2, 3)))
        score = logits_NK.gather(1, label_N.to(logits_NK.device)[:, None]).sum()
        (gradient_NChw,) = torch.autograd.grad(score, activation_NChw)
    weight_NC11 = gradient_NChw.mean(dim=(2, 3), keepdim=True)
    return torch.relu((weight_NC11 * activation_NChw.detach()).sum(dim=1)).float()


def scores_and_contributions(model: SplitVgg19, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits_NK, and maps_NKhw of what each place of the last convolution's output gives to each score.

    Gradient times activation (HiResCAM), summed over channels, at the last ReLU and, for a wide head, at the frozen
    prefix's output, whose places are summed into those of the last ReLU that they are pooled into. A wide head's root
    mean squares are held (fl/model/head.py); equal maxima share equally. So, for every head,

        maps_NKhw.sum(dim=(2, 3)) + model.head.bias == logits_NK

    Both float32 on the model's device, of a model in evaluation mode outside autocast. Parameters and their `.grad` are
    left alone.
    """
    with torch.no_grad():
        prefix_NChw = model.prefix(images_NCHW)
        last_NDhw = nn.Sequential(*list(model.tail)[:-1])(prefix_NChw)
    with torch.enable_grad():
        prefix_NChw, last_NDhw = prefix_NChw.detach().requires_grad_(True), last_NDhw.detach().requires_grad_(True)
        pooling, pooled_NDuv = model.pooling, _sharing_max_pool(last_NDhw)
        if isinstance(pooling, WidePooling):
            parts = pooling.parts(prefix_NChw, pooled_NDuv)
            features_NJ = pooling.combine(parts, [scale_N1.detach() for scale_N1 in pooling.scales(parts)])
        else:
            features_NJ = pooling(prefix_NChw, pooled_NDuv)
        logits_NK = model.head(features_NJ)
        maps = [_contributions(score, prefix_NChw, last_NDhw) for score in logits_NK.sum(dim=0)]
    return logits_NK.detach(), torch.stack(maps, dim=1)


def pooled_values(model: SplitVgg19, images_NCHW: Tensor) -> Tensor:
    """Return pooled_NF float32: what the head reads, before a wide head's random features; in evaluation mode."""
    with torch.no_grad():
        features_NJ = model.head_features(model.prefix(images_NCHW))
    pooling = model.pooling
    num_random = len(pooling.random_RF) if isinstance(pooling, WidePooling) and pooling.random_RF is not None else 0
    return features_NJ[:, : features_NJ.shape[1] - num_random].float()


def _contributions(score: Tensor, prefix_NChw: Tensor, last_NDhw: Tensor) -> Tensor:
    """Return map_Nhw of one class's score."""
    of_last, of_prefix = torch.autograd.grad(score, (last_NDhw, prefix_NChw), retain_graph=True, allow_unused=True)
    map_Nhw = (of_last * last_NDhw).sum(dim=1).detach()
    if of_prefix is None:  # an average head does not look there
        return map_Nhw
    fine_Nhw = (of_prefix * prefix_NChw).sum(dim=1).detach()
    for axis in (1, 2):
        fine_Nhw = _sum_into(fine_Nhw, axis, map_Nhw.shape[axis])
    return map_Nhw + fine_Nhw


def _sum_into(fine: Tensor, axis: int, num_cells: int) -> Tensor:
    """Return a map whose rows along an axis are summed into fewer; what halving drops goes to the last."""
    shift = next(shift for shift in range(fine.shape[axis].bit_length()) if fine.shape[axis] >> shift == num_cells)
    cells = (torch.arange(fine.shape[axis], device=fine.device) >> shift).clamp(max=num_cells - 1)
    shape = [num_cells if at == axis else length for at, length in enumerate(fine.shape)]
    return fine.new_zeros(shape).index_add(axis, cells, fine)


def _sharing_max_pool(maps_NDhw: Tensor) -> Tensor:
    """Return MaxPool2d(2) of the maps, with a gradient that equal maxima of a window share."""
    num, channels, height, width = maps_NDhw.shape
    even = maps_NDhw[:, :, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(num, channels, height // 2, 2, width // 2, 2).amax(dim=(3, 5))
