"""How a Triton repository is laid out and how its server batches."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from export.parity import Precision


class TritonSettings(BaseModel):
    """Settings of a model repository; the defaults suit one GPU that answers single slices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default="gliofed", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="The network's name; others are derived."
    )
    version: int = Field(default=1, ge=1, description="Version, a folder of Triton's; raise it for a new bundle.")
    device: Literal["gpu", "cpu"] = Field(default="gpu", description="Where networks and preprocessing run.")
    instances: int = Field(default=1, ge=1, le=64, description="Instances of each network a device.")
    max_batch: int = Field(default=32, ge=1, le=1024, description="Largest batch; engines must take it.")
    preferred_batches: tuple[int, ...] = Field(default=(8, 16, 32), description="Batches that are sent on at once.")
    max_queue_delay_us: int = Field(default=2000, ge=0, description="Longest wait for more images, in microseconds.")
    max_queue_size: int = Field(default=256, ge=1, description="Requests that wait; further ones are refused.")
    queue_timeout_us: int = Field(
        default=2_000_000, ge=1, description="Longest time in the queue, in microseconds; then refused."
    )
    preprocessing: bool = Field(default=True, description="Add DALI's preprocessing and an ensemble that takes JPEGs.")
    engine_precision: Precision = Field(default="fp16", description="Engines of this precision are added, if given.")
    preprocessing_threads: int = Field(default=4, ge=1, le=256, description="CPU threads of DALI.")

    @model_validator(mode="after")
    def _batches_fit(self) -> TritonSettings:
        batches = self.preferred_batches
        if list(batches) != sorted(set(batches)) or any(not 1 <= batch <= self.max_batch for batch in batches):
            raise ValueError(
                f"preferred_batches are {batches}; expected rising sizes of 1 to max_batch {self.max_batch}"
            )
        return self
