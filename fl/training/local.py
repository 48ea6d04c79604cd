"""Training on one site: some epochs of the tail and head on its own examples, with a fresh optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from fl.model.speed import Execution
from fl.model.vgg import SplitVgg19
from fl.random import derive_seed, stream

Loader = Callable[[NDArray[np.int64], int], Tensor]
"""Takes example positions and the epoch (counted over the whole job); returns what `forward` reads."""

Forward = Callable[[Tensor], Tensor]


class LocalSettings(BaseModel):
    """What a site does in one round. The optimizer is fresh in each round, as in the study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(5, ge=1, description="Local epochs a round.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    learning_rate: float = Field(1e-4, gt=0, description="Adam's learning rate.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """One training: epochs [first_epoch, first_epoch + epochs) of the job's count, and how to step.

    shape: constant, or one_cycle (Smith & Topin 2018: warm up for 30 % of the steps, then anneal to zero).
    weight_decay is decoupled (AdamW, Loshchilov & Hutter 2019); at 0 the optimizer is plain Adam.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    first_epoch: int = 0
    shape: Literal["constant", "one_cycle"] = "constant"
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSummary:
    """What a training reports besides its weights. mean_loss: cross-entropy over the last epoch's examples."""

    num_examples: int
    num_steps: int
    mean_loss: float
    seconds: float


def train(
    model: SplitVgg19,
    forward: Forward,
    load: Loader,
    labels: Sequence[int],
    schedule: Schedule,
    *,
    parameters: Sequence[torch.nn.Parameter],
    execution: Execution,
    seed: int,
    address: Sequence[int | str],
) -> TrainingSummary:
    """Train `parameters` in place and report.

    forward: `model` itself for images, `model.classify` for features. address: what this training is (round, site);
    it fixes the order of examples and the dropout, so that the result depends on nothing that ran before.
    """
    started = time.perf_counter()
    torch.manual_seed(derive_seed(seed, "training", *address))
    model.train()
    labels_N = torch.tensor(labels, dtype=torch.int64)
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    steps_per_epoch = -(-len(labels) // schedule.batch_size)
    scheduler = _scheduler(optimizer, schedule, steps_per_epoch * schedule.epochs)
    total_loss = 0.0
    for epoch in range(schedule.first_epoch, schedule.first_epoch + schedule.epochs):
        order = stream(seed, "order", *address, epoch).permutation(len(labels))
        total_loss = 0.0
        for start in range(0, len(order), schedule.batch_size):
            chosen = order[start : start + schedule.batch_size]
            target_B = labels_N[chosen].to(execution.device)
            with execution.autocast():
                logits_BK = forward(load(chosen, epoch))
            loss = functional.cross_entropy(logits_BK.float(), target_B)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total_loss += float(loss.detach()) * len(chosen)
    return TrainingSummary(
        num_examples=len(labels),
        num_steps=steps_per_epoch * schedule.epochs,
        mean_loss=total_loss / len(labels),
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def predict(
    model: SplitVgg19,
    forward: Forward,
    load: Loader,
    num_examples: int,
    *,
    batch_size: int,
    execution: Execution,
) -> NDArray[np.float32]:
    """Return logits_NK float32 of examples 0..num_examples-1, dropout off."""
    model.eval()
    pieces = []
    for start in range(0, num_examples, batch_size):
        chosen = np.arange(start, min(start + batch_size, num_examples))
        with execution.autocast():
            pieces.append(forward(load(chosen, 0)).float().cpu().numpy())
    return np.concatenate(pieces) if pieces else np.zeros((0, model.head.out_features), np.float32)


def _scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, num_steps: int
) -> torch.optim.lr_scheduler.OneCycleLR | None:
    if schedule.shape == "constant":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, total_steps=num_steps)
