"""Training of the global model before the first round, on data that the federation shares (Case 2 and 3)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fl.training.local import Schedule


class WarmupSettings(BaseModel):
    """Warm-up on the shared set; the study: 10 epochs, tail only, at the local learning rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(10, ge=1, description="Passes over the shared set.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "one_cycle"] = Field("constant", description="Learning rate over the warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay; 0 is plain Adam.")
    layers: Literal["tail", "all"] = Field(
        "tail",
        description="tail: what rounds train. all: the whole network, for a start from random weights.",
    )

    def as_schedule(self) -> Schedule:
        """Return the training schedule of this warm-up."""
        return Schedule(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            shape=self.schedule,
            weight_decay=self.weight_decay,
        )
