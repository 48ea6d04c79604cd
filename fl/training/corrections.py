"""What a round may add to a site's gradients: the proximal term of FedProx, the control variates of SCAFFOLD."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fl.errors import GliofedError
from fl.model.flat import FlatParameters
from fl.training.local import Correction

CONTROL = "control"
"""Name of SCAFFOLD's c in a task's broadcast, and of a site's c_i in what it remembers."""

CONTROL_DELTA = "control-delta"
"""Name of a reply's c_i+ - c_i [P]."""

PROXIMAL_MU = "proximal-mu"
"""Name of FedProx's mu in a task's config, in Flower's spelling."""


def proximal(parameters: Sequence[nn.Parameter], mu: float) -> Correction:
    """Return the gradient of mu/2 |w - w_0|^2, where w_0 are the parameters' values now.

    Source: Li et al. 2020, "Federated Optimization in Heterogeneous Networks", algorithm 2.
    Raises GliofedError unless mu is finite and not negative.
    """
    if not (math.isfinite(mu) and mu >= 0):
        raise GliofedError(f"{PROXIMAL_MU} is {mu}, expected a finite number >= 0; correct the strategy's settings")
    start = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def correct() -> None:
        for parameter, origin in zip(parameters, start, strict=True):
            assert parameter.grad is not None
            parameter.grad.add_(parameter - origin, alpha=mu)

    return correct


def constant(parameters: Sequence[nn.Parameter], drift: FlatParameters) -> Correction:
    """Return the addition of a flat array [P] to the parameters' gradients: SCAFFOLD's c - c_i."""
    ends = np.cumsum([parameter.numel() for parameter in parameters])
    pieces = [
        torch.from_numpy(piece).view(parameter.shape).to(parameter.device)
        for piece, parameter in zip(np.split(drift, ends[:-1]), parameters, strict=True)
    ]

    def correct() -> None:
        for parameter, piece in zip(parameters, pieces, strict=True):
            assert parameter.grad is not None
            parameter.grad.add_(piece)

    return correct


def control_delta(
    control: FlatParameters, start: FlatParameters, end: FlatParameters, *, learning_rate: float, steps: float
) -> FlatParameters:
    """Return c_i+ - c_i [P] after local steps of sgd from `start` to `end`: (start - end) / (steps x rate) - c.

    control: the server's c. steps: `LocalSettings.effective_steps`. The site's corrected gradients have the mean
    (start - end) / (steps x rate), and its own ones that less c - c_i, which is c_i+.
    Source: Karimireddy et al. 2020, "SCAFFOLD", algorithm 1, line 12, option II.
    """
    delta = start - end
    delta *= np.float32(1.0 / (learning_rate * steps))
    delta -= control
    return delta
