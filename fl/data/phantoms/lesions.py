"""Where a lesion of each class grows in a given scene: its outline, its push on the brain, its mask.

A plan is drawn from (seed, class, index) and from what the scene shows; `lesion_paint` gives it its looks.
Each lesion stays within `reach_mm` of its centre: beyond that circle a slice equals its lesion-free twin.

Source for the habits of growth: Osborn et al., "Osborn's Brain" (2nd ed. 2017): glioblastoma in white matter,
with rim and oedema; meningioma broad on dura, with tail and fluid cleft; adenoma in the sella, in two lobes.

Legend: H W image; level_HW is below 1 inside the lesion and grows outwards, in units of its radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl.data.phantoms.anatomy.paint import Image, edge, hypot, spread
from fl.data.phantoms.section import Section

REACH_IN_RADII = 2.3
"""Mass effect, oedema and tail all end within this many radii of the centre."""


Pixel = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """One planned lesion. allowed_HW: coverage of where its body may lie. tail_HW: its dural tail."""

    centre_mm: tuple[float, float]
    radius_mm: float
    push_mm: float
    level_HW: Image
    allowed_HW: Image
    tail_HW: Image | None = None

    @property
    def reach_mm(self) -> float:
        """Nothing of the lesion shows beyond this distance from its centre."""
        return REACH_IN_RADII * self.radius_mm

    def off_centre(self, section: Section) -> Image:
        """Distance of each pixel from the lesion's centre, in mm."""
        right_mm, up_mm = self.centre_mm
        return hypot(section.right_HW - np.float32(right_mm), section.up_HW - np.float32(up_mm))

    def mask(self) -> NDArray[np.bool_]:
        """The tumour's body without oedema and tail."""
        return (self.level_HW < 1) & (self.allowed_HW > 0.5)


def within_reach(lesion: Lesion, section: Section) -> Lesion:
    """Return the lesion with its coverage faded to nothing at `reach_mm`."""
    fade_HW = edge(lesion.reach_mm - 3 - lesion.off_centre(section), 6)
    tail_HW = None if lesion.tail_HW is None else lesion.tail_HW * fade_HW
    return replace(lesion, allowed_HW=lesion.allowed_HW * fade_HW, tail_HW=tail_HW)


def displaced_grid(lesion: Lesion, section: Section) -> tuple[Image, Image]:
    """Return where to look up each pixel's anatomy once the lesion has pushed the brain aside (mm right, up).

    The push fades to nothing at the skull and at `reach_mm`, and nowhere folds: it is below 0.5 radii.
    """
    right_HW = section.right_HW - np.float32(lesion.centre_mm[0])
    up_HW = section.up_HW - np.float32(lesion.centre_mm[1])
    radius_HW = np.hypot(right_HW, up_HW) + np.float32(1e-3)
    rising_HW = np.clip(radius_HW / np.float32(0.8 * lesion.radius_mm), 0, 1)
    falling_HW = np.clip(1 - (radius_HW / np.float32(lesion.reach_mm)) ** 2, 0, 1) ** 2
    softness_HW = np.clip(-section.distance_HW / 6, 0, 1)
    share_HW = np.float32(lesion.push_mm) * rising_HW * falling_HW * softness_HW / radius_HW
    return section.right_HW - right_HW * share_HW, section.up_HW - up_HW * share_HW


def plan_glioma(section: Section, rng: np.random.Generator, size: float) -> Lesion:
    """A lobulated mass of 13 to 28 mm (times `size`) within the white matter, clear of the sella."""
    radius_mm = rng.uniform(13, 26) * size
    deep_HW = -section.distance_HW > min(0.6 * radius_mm, 0.7 * float(-section.distance_HW.min()))
    clear_HW = section.sella_HW > 0.8 * radius_mm + 14
    weights_HW = deep_HW * clear_HW * (np.float32(0.12) + section.white_HW)
    row, column = _pick(weights_HW, rng, otherwise_HW=-section.distance_HW + section.sella_HW)
    centre_mm = (float(section.right_HW[row, column]), float(section.up_HW[row, column]))
    level_HW = np.full_like(section.right_HW, 9)
    for lobe in range(1 + int(rng.integers(0, 3))):
        shift_mm = [rng.normal(0, 0.45 * radius_mm) if lobe else 0.0 for _ in range(2)]
        lobe_mm = radius_mm * (rng.uniform(0.4, 0.75) if lobe else 1.0)
        lobe_centre_mm = (centre_mm[0] + shift_mm[0], centre_mm[1] + shift_mm[1])
        lobe_HW = _ellipse(section, lobe_centre_mm, lobe_mm, rng.uniform(0.65, 1), rng.uniform(0, np.pi))
        level_HW = _merge(level_HW, lobe_HW)
    level_HW += np.float32(0.13) * section.fields.coarse_HW + np.float32(0.07) * section.fields.medium_HW
    return Lesion(
        centre_mm=centre_mm,
        radius_mm=radius_mm,
        push_mm=0.3 * radius_mm,
        level_HW=level_HW,
        allowed_HW=edge(-1 - section.distance_HW, 2),
    )


def plan_meningioma(section: Section, rng: np.random.Generator, size: float) -> Lesion:
    """A smooth mass of 11 to 22 mm (times `size`) that sits broadly on convexity, skull base or falx."""
    radius_mm = rng.uniform(11, 22) * size
    on_falx = rng.random() < 0.25 and section.scene.plane != "sagittal"
    if on_falx:
        base, inwards, side_HW = _falx_base(section, rng, radius_mm)
    else:
        base, inwards, side_HW = _wall_base(section, rng, radius_mm)
    base_mm = (float(section.right_HW[base]), float(section.up_HW[base]))
    flatness = rng.uniform(0.75, 1)
    lift_mm = rng.uniform(0.45, 0.85) * flatness * radius_mm
    centre_mm = (base_mm[0] + inwards[0] * lift_mm, base_mm[1] + inwards[1] * lift_mm)
    angle = float(np.arctan2(inwards[1], inwards[0]) + np.pi / 2)
    level_HW = _ellipse(section, centre_mm, radius_mm, flatness, angle)
    level_HW += np.float32(0.05) * section.fields.coarse_HW + np.float32(0.015) * section.fields.medium_HW
    off_base_HW = np.hypot(section.right_HW - base_mm[0], section.up_HW - base_mm[1])
    has_tail, tail_length = rng.random() < 0.8, rng.uniform(1.4, 1.75)
    wall_HW = np.abs(section.points_3HW[0]) - 1 if on_falx else np.abs(section.distance_HW + 1)
    tail_HW = np.exp(-((wall_HW / np.float32(1.2)) ** 2)) * edge(tail_length * radius_mm - off_base_HW, 0.5 * radius_mm)
    return Lesion(
        centre_mm=centre_mm,
        radius_mm=radius_mm,
        push_mm=0.45 * radius_mm,
        level_HW=level_HW,
        allowed_HW=edge(0.3 - section.distance_HW, section.pixel_mm) * side_HW,
        tail_HW=tail_HW * edge(0.8 - section.distance_HW, section.pixel_mm) if has_tail else None,
    )


def plan_pituitary(section: Section, rng: np.random.Generator, size: float) -> Lesion:
    """A round mass of 7.5 to 14 mm (times `size`) in the sella; upright views may show an upper lobe."""
    radius_mm = rng.uniform(7.5, 14) * size
    row, column = np.unravel_index(int(section.sella_HW.argmin()), section.sella_HW.shape)
    upright = section.scene.plane != "axial"
    rise_mm = 0.35 * (radius_mm - 6) if upright else 0.0
    right_mm, up_mm = rng.normal(0, 1.2), rng.normal(0, 1.2) + rise_mm
    centre_mm = (float(section.right_HW[row, column]) + right_mm, float(section.up_HW[row, column]) + up_mm)
    level_HW = _ellipse(section, centre_mm, radius_mm, rng.uniform(0.8, 1), rng.uniform(0, np.pi))
    lobe_mm, lobe_rise_mm = radius_mm * rng.uniform(0.65, 0.85), radius_mm * rng.uniform(0.9, 1.15)
    sway_mm, snowman = rng.normal(0, 1.5), rng.random() < 0.65
    if upright and snowman:
        upper_mm = (centre_mm[0] + sway_mm, centre_mm[1] + lobe_rise_mm)
        level_HW = _merge(level_HW, _ellipse(section, upper_mm, lobe_mm, 0.9, 0.0))
    level_HW += np.float32(0.06) * section.fields.coarse_HW + np.float32(0.02) * section.fields.medium_HW
    return Lesion(
        centre_mm=centre_mm,
        radius_mm=radius_mm,
        push_mm=0.4 * radius_mm,
        level_HW=level_HW,
        allowed_HW=np.ones_like(level_HW),
    )


Planner = Callable[[Section, np.random.Generator, float], Lesion]

PLANNERS: dict[str, Planner | None] = {
    "glioma": plan_glioma,
    "meningioma": plan_meningioma,
    "notumor": None,
    "pituitary": plan_pituitary,
}


def _wall_base(
    section: Section, rng: np.random.Generator, radius_mm: float
) -> tuple[Pixel, tuple[float, float], Image]:
    """Pick a place on the wall of the cavity; return it, the direction inwards, and no limit to a side."""
    near_wall_HW = (section.distance_HW < -0.5) & (section.distance_HW > -3)
    clear_HW = section.sella_HW > radius_mm + 22
    roomy_HW = spread(section.distance_HW, 0.6 * radius_mm / section.pixel_mm) < 1  # not in a narrow gutter
    popularity_HW = np.where(section.points_3HW[2] > -45, np.float32(1), np.float32(0.15))
    weights_HW = np.where(near_wall_HW & clear_HW & roomy_HW, popularity_HW, np.float32(0))
    base = _pick(weights_HW, rng, otherwise_HW=np.where(near_wall_HW, section.sella_HW, np.float32(0)))
    smooth_HW = spread(section.distance_HW, 6 / section.pixel_mm)
    down, right = _slope(smooth_HW, base)
    return base, (-right, down), np.ones_like(section.right_HW)


def _falx_base(
    section: Section, rng: np.random.Generator, radius_mm: float
) -> tuple[Pixel, tuple[float, float], Image]:
    """Pick a place on the falx and a side; return it, the direction away from it, that side's coverage."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    on_falx_HW = (np.abs(section.points_3HW[0]) < 2) & (section.distance_HW < -4)
    high_HW = section.points_3HW[2] > 18
    weights_HW = (on_falx_HW & high_HW & (section.sella_HW > radius_mm + 22)).astype(np.float32)
    if not weights_HW.any():  # a low axial slice shows no falx
        return _wall_base(section, rng, radius_mm)
    base = _pick(weights_HW, rng, otherwise_HW=weights_HW)
    down, right = _slope(section.points_3HW[0], base)
    inwards = (side * right, -side * down)
    return base, inwards, edge(side * section.points_3HW[0] - np.float32(0.5), section.pixel_mm)


def _slope(field_HW: Image, pixel: Pixel) -> tuple[float, float]:
    """Unit vector (down, right) of the steepest rise at a pixel."""
    down_HW, right_HW = np.gradient(field_HW, axis=0), np.gradient(field_HW, axis=1)
    down, right = float(down_HW[pixel]), float(right_HW[pixel])
    steepness = float(np.hypot(down, right)) + 1e-6
    return down / steepness, right / steepness


def _ellipse(
    section: Section, centre_mm: tuple[float, float], radius_mm: float, flatness: float, angle: float
) -> Image:
    """Level of an ellipse: 1 on its outline. flatness: minor over major axis."""
    right_HW: Image = section.right_HW - np.float32(centre_mm[0])
    up_HW: Image = section.up_HW - np.float32(centre_mm[1])
    cosine, sine = math.cos(angle), math.sin(angle)
    major_HW = right_HW * np.float32(cosine / radius_mm) + up_HW * np.float32(sine / radius_mm)
    minor_mm = radius_mm * flatness
    minor_HW = up_HW * np.float32(cosine / minor_mm) - right_HW * np.float32(sine / minor_mm)
    return hypot(major_HW, minor_HW)


def _merge(first_HW: Image, second_HW: Image) -> Image:
    """Level of two bodies that have grown together: the lower one, with a rounded waist."""
    gap_HW = np.maximum(0.5 - np.abs(first_HW - second_HW), 0)
    merged_HW: Image = np.minimum(first_HW, second_HW) - 0.5 * np.square(gap_HW)
    return merged_HW


def _pick(weights_HW: Image, rng: np.random.Generator, *, otherwise_HW: Image) -> Pixel:
    """Draw a pixel in proportion to its weight; with none positive, the largest of `otherwise_HW`."""
    cumulative = np.cumsum(weights_HW, dtype=np.float64)
    place = rng.random() * cumulative[-1]
    flat = int(np.searchsorted(cumulative, place, side="right")) if cumulative[-1] > 0 else int(otherwise_HW.argmax())
    row, column = divmod(flat, weights_HW.shape[1])
    return row, column
