"""When a federation has learnt what it will learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class EarlyStopSettings(BaseModel):
    """Stop when the moving average of validation accuracy no longer rises."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int = Field(5, ge=1, description="Rounds in the moving average.")
    min_delta: float = Field(0.001, ge=0, description="Only a rise of more than this counts.")
    patience: int = Field(5, ge=1, description="Rounds without a rise after which to stop.")


def should_stop(accuracies: Sequence[float], settings: EarlyStopSettings) -> bool:
    """Return whether the history of one validation accuracy a round ends in a plateau.

    A pure function of the history, so a resumed run decides as an uninterrupted one.
    """
    best, waited = -np.inf, 0
    for end in range(settings.window, len(accuracies) + 1):
        average = float(np.mean(accuracies[end - settings.window : end]))
        if average > best + settings.min_delta:
            best, waited = average, 0
        else:
            waited += 1
    return waited >= settings.patience
