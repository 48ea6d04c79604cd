"""A head of the site's own on the global model's features, to see what a site would gain by it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fl.model.speed import Execution
from fl.model.vgg import SplitVgg19
from fl.training.local import Schedule, train

BATCH = 16


class PersonalSettings(BaseModel):
    """Tuning of the linear head on one site, for its own use: nothing of it is sent or goes into the global model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(10, ge=1, description="Passes over the site's own training scans.")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's learning rate.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PersonalAnswers:
    """Logits_NK float32 of a site's held-out scans: the global model's, and with the head tuned on the site."""

    of_global: NDArray[np.float32]
    of_tuned: NDArray[np.float32]


@contextmanager
def head_inputs(model: SplitVgg19) -> Iterator[list[Tensor]]:
    """While open, collect what the model's linear head reads, features_NJ float32, one piece for each forward."""
    seen: list[Tensor] = []
    watch = model.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().float()))
    try:
        yield seen
    finally:
        watch.remove()


def tune_head(
    head: nn.Linear,
    features_NJ: Tensor,
    labels: Sequence[int],
    settings: PersonalSettings,
    *,
    execution: Execution,
    seed: int,
    site: str,
) -> nn.Linear:
    """Return a copy of the head, trained by cross-entropy on features that stay as they are."""
    tuned = copy.deepcopy(head)
    train(
        tuned,
        tuned,
        lambda positions, _: features_NJ[torch.from_numpy(positions)],
        labels,
        Schedule(epochs=settings.epochs, batch_size=BATCH, learning_rate=settings.learning_rate),
        parameters=list(tuned.parameters()),
        execution=execution,
        seed=seed,
        address=("personal", site),
    )
    return tuned
