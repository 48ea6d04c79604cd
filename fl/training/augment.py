"""Augmentation as fixed, addressable views of an image.

View v of an image is one draw of rotation, shift and flip that depends on the job's seed, the image and v alone.
With V views, epoch e trains on view e mod V, so that the frozen prefix runs V times an image and never again; with
V = 0 every epoch draws a fresh view (the study's protocol) and nothing is stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from fl.random import stream


class AugmentSettings(BaseModel):
    """Range of the random views; all zero and no flip turns augmentation off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotation_degrees: float = Field(10.0, ge=0, le=180, description="Rotation is uniform in ± this.")
    shift_fraction: float = Field(0.05, ge=0, le=0.5, description="Shifts are uniform in ± this fraction of the side.")
    horizontal_flip: bool = Field(True, description="Flip left and right with probability one half.")
    views: int = Field(4, ge=0, description="Fixed views an image; 0 draws a fresh one every epoch and stores nothing.")

    @property
    def is_identity(self) -> bool:
        """Whether every view is the image itself."""
        return self.rotation_degrees == 0 and self.shift_fraction == 0 and not self.horizontal_flip

    def view_of_epoch(self, epoch: int) -> int:
        """Return which view an epoch (counted from 0 over the whole job) trains on."""
        if self.is_identity:
            return 0
        return epoch % self.views if self.views else epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One draw. angle_degrees counter-clockwise; shifts in fractions of the side, right and down."""

    angle_degrees: float = 0.0
    shift_right: float = 0.0
    shift_down: float = 0.0
    flip: bool = False


IDENTITY = View()


def draw_view(settings: AugmentSettings, *, seed: int, image_key: str, view: int) -> View:
    """Return view `view` of the image with this key; the same arguments give the same view everywhere."""
    if settings.is_identity:
        return IDENTITY
    generator = stream(seed, "view", image_key, view)
    angle, right, down = generator.uniform(-1, 1, 3)
    return View(
        angle_degrees=float(angle) * settings.rotation_degrees,
        shift_right=float(right) * settings.shift_fraction,
        shift_down=float(down) * settings.shift_fraction,
        flip=bool(settings.horizontal_flip and generator.random() < 0.5),
    )


def apply_views(images_NCHW: Tensor, views: Sequence[View]) -> Tensor:
    """Return the images resampled under their views: bilinear, borders repeated (as the study's generator fills).

    images_NCHW float32; N must equal len(views). Identity views return their image bit for bit.
    """
    if all(view == IDENTITY for view in views):
        return images_NCHW
    theta_N23 = torch.tensor(np.stack([_inverse_affine(view) for view in views]), dtype=images_NCHW.dtype)
    grid = functional.affine_grid(theta_N23.to(images_NCHW.device), list(images_NCHW.shape), align_corners=False)
    resampled = functional.grid_sample(images_NCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    untouched = torch.tensor([view == IDENTITY for view in views], device=images_NCHW.device)
    return torch.where(untouched[:, None, None, None], images_NCHW, resampled)


def _inverse_affine(view: View) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the 2x3 map from output to input, in the [-1, 1] coordinates of `affine_grid`."""
    radians = math.radians(view.angle_degrees)
    cos, sin, mirror = math.cos(radians), math.sin(radians), -1.0 if view.flip else 1.0
    return np.array(
        [
            [mirror * cos, -mirror * sin, -2 * mirror * view.shift_right],
            [sin, cos, -2 * view.shift_down],
        ]
    )
