"""Training on one site: some epochs or steps of the tail and head on its own examples, with a fresh optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from fl.model.speed import Execution
from fl.model.vgg import SplitVgg19
from fl.random import derive_seed
from fl.training.batches import Batch, walked_steps, whole_epochs
from fl.training.losses import LossName, make_loss

Loader = Callable[[NDArray[np.int64], int], Tensor]
"""Takes example positions and the epoch (counted over the whole job); returns what `forward` reads."""

Forward = Callable[[Tensor], Tensor]

Correction = Callable[[], None]
"""Changes the gradients that a step is about to use (fl/training/corrections.py)."""

Optimizer = Literal["adam", "sgd"]


class LocalSettings(BaseModel):
    """What a site does in one round. The optimizer is fresh in each round, as in the study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(5, ge=1, description="Local epochs a round, where `steps` is null.")
    steps: int | None = Field(
        None, ge=1, description="Local steps a round, in place of epochs: the same number for a small and a large site."
    )
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    optimizer: Optimizer = Field("adam", description="adam, as in the study, or sgd: parameters less rate x gradient.")
    learning_rate: float = Field(1e-4, gt=0, description="The optimizer's learning rate.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of sgd, from rest in each round.")
    loss: LossName = Field(
        "cross_entropy",
        description="cross_entropy; calibrated: the classifier is told how often this site has each class, so that "
        "classes it lacks are not unlearnt.",
    )

    @model_validator(mode="after")
    def _momentum_is_sgds(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum is {self.momentum:g}, but optimizer is `{self.optimizer}`, which has its own; "
                "set optimizer: sgd or momentum: 0"
            )
        return self

    def schedule(self, round: int, site: str) -> Schedule:
        """Return what the site does in a round (counted from 1)."""
        steps = self.steps or 0
        return Schedule(
            epochs=self.epochs,
            first_epoch=(round - 1) * self.epochs,
            steps=self.steps,
            first_step=(round - 1) * steps,
            walk=(site,),
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            loss=self.loss,
        )

    def num_steps(self, num_examples: int) -> int:
        """Return how many steps a site with so many examples makes in a round."""
        return self.schedule(1, "").num_steps(num_examples)

    def effective_steps(self, num_steps: int) -> float:
        """Return by how many gradients, times the learning rate, so many steps of sgd move the parameters.

        Without momentum it is num_steps; with momentum m each gradient counts for all later steps as well:
        (T - m (1 - m^T) / (1 - m)) / (1 - m). Source: Wang et al. 2020, "Tackling the Objective Inconsistency Problem",
        section 4.1, the norm of a_i. Raises ValueError for another optimizer, whose steps are no sums of gradients.
        """
        if self.optimizer != "sgd":
            raise ValueError(f"steps of `{self.optimizer}` are no sums of gradients; set fl.local.optimizer: sgd")
        rest = 1.0 - self.momentum
        return (num_steps - self.momentum * (1 - self.momentum**num_steps) / rest) / rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """One training: which of the job's epochs or steps, and how to step.

    It runs epochs [first_epoch, first_epoch + epochs) of the job's count or, where `steps` is set, steps
    [first_step, first_step + steps) of the endless walk `walked_steps` at the address `walk`, which names no round.
    shape: constant, or one_cycle (Smith & Topin 2018: warm up for 30 % of the steps, then anneal to zero).
    weight_decay is Adam's, decoupled (AdamW, Loshchilov & Hutter 2019); at 0 the optimizer is plain Adam.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    first_epoch: int = 0
    steps: int | None = None
    first_step: int = 0
    walk: tuple[int | str, ...] = ()
    optimizer: Optimizer = "adam"
    momentum: float = 0.0
    loss: LossName = "cross_entropy"
    shape: Literal["constant", "one_cycle"] = "constant"
    weight_decay: float = 0.0

    def num_steps(self, num_examples: int) -> int:
        """Return how many steps this is for so many examples."""
        return self.steps if self.steps is not None else self.epochs * -(-num_examples // self.batch_size)

    def batches(self, num_examples: int, *, seed: int, address: Sequence[int | str]) -> Iterator[Batch]:
        """Yield each step's examples; `address` fixes the order of whole epochs."""
        if self.steps is None:
            epochs = range(self.first_epoch, self.first_epoch + self.epochs)
            return whole_epochs(num_examples, self.batch_size, epochs, seed=seed, address=address)
        steps = range(self.first_step, self.first_step + self.steps)
        return walked_steps(num_examples, self.batch_size, steps, seed=seed, address=self.walk)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSummary:
    """What a training reports besides its weights.

    mean_loss: the loss that was minimised, over the examples of the last whole epoch, or of all steps where the
    schedule counts steps; without what corrections add.
    """

    num_examples: int
    num_steps: int
    mean_loss: float
    seconds: float


def train(
    model: nn.Module,
    forward: Forward,
    load: Loader,
    labels: Sequence[int],
    schedule: Schedule,
    *,
    parameters: Sequence[nn.Parameter],
    execution: Execution,
    seed: int,
    address: Sequence[int | str],
    corrections: Sequence[Correction] = (),
) -> TrainingSummary:
    """Train `parameters` in place and report.

    forward: `model` itself for images, `model.classify` for features. address: what this training is (round, site);
    it fixes the order of examples and the dropout, so that the result depends on nothing that ran before.
    corrections are applied to the gradients of every step, in their order.
    """
    started = time.perf_counter()
    torch.manual_seed(derive_seed(seed, "training", *address))
    model.train()
    labels_N = torch.tensor(labels, dtype=torch.int64)
    loss_of = make_loss(schedule.loss, labels_N, execution.device)
    optimizer = _optimizer(parameters, schedule)
    num_steps = schedule.num_steps(len(labels))
    scheduler = _scheduler(optimizer, schedule, num_steps)
    total_loss, num_seen, epoch = 0.0, 0, None
    for batch in schedule.batches(len(labels), seed=seed, address=address):
        if schedule.steps is None and batch.epoch != epoch:
            total_loss, num_seen, epoch = 0.0, 0, batch.epoch
        target_B = labels_N[batch.positions].to(execution.device)
        with execution.autocast():
            logits_BK = forward(load(batch.positions, batch.epoch))
        loss = loss_of(logits_BK.float(), target_B)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for correct in corrections:
            correct()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        total_loss += float(loss.detach()) * len(batch.positions)
        num_seen += len(batch.positions)
    return TrainingSummary(
        num_examples=len(labels),
        num_steps=num_steps,
        mean_loss=total_loss / num_seen,
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


def _optimizer(parameters: Sequence[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=schedule.learning_rate, momentum=schedule.momentum, fused=True)
    return torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)


def _scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, num_steps: int
) -> torch.optim.lr_scheduler.OneCycleLR | None:
    if schedule.shape == "constant":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, total_steps=num_steps)
