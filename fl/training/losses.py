"""What a site minimises: cross-entropy, or cross-entropy that knows which classes the site has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fl.types import CLASSES

LossName = Literal["cross_entropy", "calibrated"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits_BK float32 and labels [B] int64; returns the mean loss, in nats."""

PRIOR_FLOOR = 0.1
"""Least share of a class in `log_prior`, before shares are made to sum to one."""


def make_loss(name: LossName, labels_N: Tensor, device: torch.device) -> Loss:
    """Return the loss by name, for a site with these labels [N] int64.

    cross_entropy: every step says that what is not there is unlikely, so a site that lacks a class unlearns it.
    calibrated: the logits are added to `log_prior` first, so that the softmax knows how often the site has each class
    and the logits themselves need not: at logits that are right for all sites together its gradient is zero in the
    mean. Source: Menon et al. 2021, "Long-tail Learning via Logit Adjustment", equation 10; between sites: Zhang et al.
    2022, "Federated Learning with Label Distribution Skew via Logits Calibration".

    A class that a site lacks has the floor's share, not none: with none the loss of a one-class site is zero whatever
    the logits, and it would learn nothing at all. With the floor such a site pushes each other class down by a tenth
    of what cross-entropy would, as long as it tells them apart, and in full where it takes its own scans for theirs.
    That holds for sgd. Adam divides by the gradient's size, so at a one-class site it steps as for cross-entropy.
    """
    if name == "cross_entropy":
        return functional.cross_entropy
    offset_K = log_prior(labels_N, len(CLASSES)).to(device)
    return lambda logits_BK, labels_B: functional.cross_entropy(logits_BK + offset_K, labels_B)


def log_prior(labels_N: Tensor, num_classes: int) -> Tensor:
    """Return the log of each class's share [K] float32 of the labels, PRIOR_FLOOR of them at least."""
    share_K = torch.bincount(labels_N, minlength=num_classes).double() / len(labels_N)
    floored_K = share_K.clamp(min=PRIOR_FLOOR)
    return (floored_K / floored_K.sum()).log().float()
