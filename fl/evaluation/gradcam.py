"""Grad-CAM by automatic differentiation: the slow truth that the exported closed form is held to.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks", section 3.
Shape legend: N images, C channels, H W image, h w feature map, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
