"""Muon at the server: the sites' mean gradient, made orthogonal layer by layer, and a step along it.

With one local step of sgd at rate 1 the mean of the sites' parameters is the global ones less the federation's mean
gradient: rounds are then steps of central training whatever the partition, and what counts is how far one step leads.
Sign-like steps (Adam) push every weight by the same amount and destroy what a closed-form head has learnt; Muon moves
all directions of a layer's matrix by the same amount instead, and needs a quarter of the rounds (docs/zero_share.md).

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; its Newton-Schulz iteration of
fifth order with their coefficients. Adam (Kingma & Ba 2015) for what is no hidden layer: biases and the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fl.model.flat import FlatParameters, Layout
from fl.server.means import Aggregation, RoundMean, StreamedMean
from fl.server.strategy import Learned, StrategyState
from fl.training.encoding import Encoding
from fl.training.exchange import RoundTask
from fl.types import Site

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan et al.: all singular values end between 0.7 and 1.2 after five iterations, which is as good as one."""

ADAM_BETAS = (0.9, 0.95)
ADAM_EPSILON = 1e-8


class MuonSettings(BaseModel):
    """Muon at the server (Jordan et al. 2024), for one or a few local steps of sgd at learning rate 1 in each round."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(0.002, gt=0, description="Peak step of convolutions: their change's spectral norm.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of the mean gradient, Nesterov's.")
    adam_learning_rate: float = Field(3e-5, gt=0, description="Peak rate of Adam for biases and the head.")
    warmup_rounds: int = Field(3, ge=0, description="Rounds over which both rates rise to their peak.")
    decay_rounds: int = Field(20, ge=1, description="Round in which both rates have fallen to almost zero; linear.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon:
    """Strategy of Muon at the server. layout: what the flat parameters are."""

    settings: MuonSettings
    layout: Layout
    aggregation: Aggregation
    encoding: Encoding = "float32"

    def initial(self, parameters: FlatParameters) -> StrategyState:
        """Return the moments before round 1: `first` and `second` [P], zero."""
        return {"first": np.zeros_like(parameters), "second": np.zeros_like(parameters)}

    def begin(
        self, round: int, selected: Sequence[Site], parameters: FlatParameters, state: StrategyState
    ) -> _MuonAggregate:
        """Begin a round whose task is the parameters alone."""
        task = RoundTask(round=round, parameters=parameters, encoding=self.encoding)
        return _MuonAggregate(self, task, RoundMean(selected, self.aggregation, len(parameters)), state)


class _MuonAggregate(StreamedMean):
    def __init__(self, strategy: Muon, task: RoundTask, mean: RoundMean, state: StrategyState) -> None:
        super().__init__(task, mean)
        self._strategy = strategy
        self._state = state

    def result(self) -> Learned:
        gradient = self.task.parameters - self.mean()
        return step(self._strategy, self.task.round, self.task.parameters, gradient, self._state)


def step(
    strategy: Muon, round: int, parameters: FlatParameters, gradient: FlatParameters, state: StrategyState
) -> Learned:
    """Return the parameters [P] and moments after one step along the mean gradient [P]; a pure function."""
    settings = strategy.settings
    share = schedule(settings, round)
    first, second, after = state["first"].copy(), state["second"].copy(), parameters.copy()
    for shape, piece in _pieces(strategy.layout):
        if len(shape) == 4:
            move = _muon(gradient[piece], first[piece], settings.momentum, shape)
            after[piece] -= np.float32(settings.learning_rate * share) * move
        else:
            move = _adam(gradient[piece], first[piece], second[piece], round)
            after[piece] -= np.float32(settings.adam_learning_rate * share) * move
    return Learned(parameters=after, state={"first": first, "second": second})


def schedule(settings: MuonSettings, round: int) -> float:
    """Return the share of the peak rates in a round: linear up, then linear down to almost nothing."""
    if round <= settings.warmup_rounds:
        return round / settings.warmup_rounds
    whole = max(1, settings.decay_rounds - settings.warmup_rounds) + 1
    return max(1.0 - (round - settings.warmup_rounds) / whole, 1.0 / whole)


def orthogonalise(matrix_RC: Tensor) -> Tensor:
    """Return the nearest matrix whose singular values are all about one, [R, C] float32; zero stays zero."""
    a, b, c = COEFFICIENTS
    is_tall = matrix_RC.shape[0] > matrix_RC.shape[1]
    x: Tensor = matrix_RC.T if is_tall else matrix_RC
    x = x / x.norm().clamp(min=torch.finfo(torch.float32).tiny)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if is_tall else x


def _muon(gradient: NDArray[Any], first: NDArray[Any], momentum: float, shape: tuple[int, ...]) -> NDArray[Any]:
    first *= np.float32(momentum)
    first += gradient
    ahead = gradient + np.float32(momentum) * first
    moved: NDArray[Any] = orthogonalise(torch.from_numpy(ahead).reshape(shape[0], -1)).reshape(-1).numpy()
    return moved


def _adam(gradient: NDArray[Any], first: NDArray[Any], second: NDArray[Any], round: int) -> NDArray[Any]:
    beta1, beta2 = ADAM_BETAS
    first += np.float32(1 - beta1) * (gradient - first)
    second += np.float32(1 - beta2) * (gradient * gradient - second)
    root = np.sqrt(second / np.float32(1 - beta2**round)) + np.float32(ADAM_EPSILON)
    moved: NDArray[Any] = first / np.float32(1 - beta1**round) / root
    return moved


def _pieces(layout: Layout) -> Iterator[tuple[tuple[int, ...], slice]]:
    start = 0
    for _, shape in layout:
        end = start + math.prod(shape)
        yield shape, slice(start, end)
        start = end
