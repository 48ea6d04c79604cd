"""What a phantom data set is: how many slices, how hard, how many hospitals. Nothing here draws anything."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

GENERATOR_VERSION = 1
"""Raised whenever the same settings give other pixels, so that no cache mixes two generators."""

MAX_IMAGES_PER_SET = 1_000_000

FIRST_INDEX = {"Training": 0, "Testing": MAX_IMAGES_PER_SET, "Synthetic": 2 * MAX_IMAGES_PER_SET}
"""Where each set's scene indices begin. The ranges never meet, so no scene is in two sets."""


class PhantomSettings(BaseModel):
    """A reproducible set of phantom slices. Equal settings give byte-identical files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_train: int = Field(2400, ge=0, le=MAX_IMAGES_PER_SET, description="Training slices in total, classes in turn.")
    num_test: int = Field(600, ge=0, le=MAX_IMAGES_PER_SET, description="Test slices in total, classes in turn.")
    num_synthetic: int = Field(
        0,
        ge=0,
        le=MAX_IMAGES_PER_SET,
        description="Slices of the public pool that stands in for generated images.",
    )
    size_pixels: int = Field(160, ge=64, le=512, description="Side of the square files.")
    difficulty: float = Field(
        0.2,
        ge=0,
        le=1,
        description="0: large, bright lesions, little noise. 1: small, faint, atypical, noisy, many mimics.",
    )
    num_sites: int = Field(
        0,
        ge=0,
        le=1000,
        description="0: Training/<class>/. N: sites/<name>/<class>/, each site with its own scanner.",
    )
    site_variation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="How far the sites' scanners differ (tone curve, noise, shading, sharpness).",
    )
    seed: int = Field(7, ge=0, lt=2**63, description="Seed of every draw.")
