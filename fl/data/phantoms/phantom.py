"""One phantom slice: a scene that knows no class, and the lesion of a class grown into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl.data.phantoms.acquisition import ScannerProfile, acquire
from fl.data.phantoms.anatomy.brain import paint_brain, paint_falx, paint_incidental_spots
from fl.data.phantoms.anatomy.head import head_image, paint_sella
from fl.data.phantoms.anatomy.paint import Image
from fl.data.phantoms.atlas import Atlas
from fl.data.phantoms.lesion_paint import PAINTERS, Looks
from fl.data.phantoms.lesions import PLANNERS, Lesion, displaced_grid, within_reach
from fl.data.phantoms.scene import Scene, draw_fields, draw_scene, head_points
from fl.data.phantoms.section import Section, cut_section
from fl.data.phantoms.settings import PhantomSettings
from fl.random import stream
from fl.types import CLASSES

_MAX_DRAWS = 4
_MIN_SHARE_VISIBLE = 0.45
"""A lesion whose mask is smaller than this share of its full disc is drawn again, elsewhere in the scene."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phantom:
    """One slice.

    image_HW: uint8. mask_HW: bool, the tumour without oedema; all False for notumor. reach_HW: bool, a disc
    that holds every pixel in which the slice differs from its lesion-free twin. scene: alike for all labels.
    """

    image_HW: NDArray[np.uint8]
    mask_HW: NDArray[np.bool_]
    reach_HW: NDArray[np.bool_]
    scene: Scene
    label: int
    index: int


def make_phantom(
    atlas: Atlas, *, label: int, index: int, settings: PhantomSettings, scanner: ScannerProfile
) -> Phantom:
    """Return the phantom of one label and scene index. Pure: equal arguments give equal pixels.

    The same index with another label gives a twin: the same head, plane, contrast and noise, another lesion.
    """
    scene, fields = draw_scene(settings, index), draw_fields(settings, index)
    section = cut_section(atlas, scene, fields, settings.size_pixels)
    lesion_rng = stream(settings.seed, "phantom-lesion", CLASSES[label], index)
    lesion = _plan(section, CLASSES[label], lesion_rng, settings.difficulty)
    image_HW = _anatomy(atlas, section, lesion, stream(settings.seed, "phantom-spots", index))
    if lesion is not None:
        PAINTERS[CLASSES[label]](image_HW, lesion, section, lesion_rng, _looks(settings.difficulty))
    return Phantom(
        image_HW=acquire(image_HW, scene, fields, scanner),
        mask_HW=np.zeros(image_HW.shape, dtype=np.bool_) if lesion is None else lesion.mask(),
        reach_HW=_reach(lesion, section),
        scene=scene,
        label=label,
        index=index,
    )


def _plan(section: Section, name: str, rng: np.random.Generator, difficulty: float) -> Lesion | None:
    """Draw a lesion; draw again where the cavity's wall has cut away most of it, and keep the fullest."""
    planner = PLANNERS[name]
    if planner is None:
        return None
    fullest, best_share = None, -1.0
    for _ in range(_MAX_DRAWS):
        lesion = within_reach(planner(section, rng, 1.4 - 0.6 * difficulty), section)
        share = float(lesion.mask().sum()) * section.pixel_mm**2 / (np.pi * lesion.radius_mm**2)
        if share > best_share:
            fullest, best_share = lesion, share
        if share >= _MIN_SHARE_VISIBLE:
            break
    return fullest


def _looks(difficulty: float) -> Looks:
    return Looks(visibility=1.15 - 0.6 * difficulty, atypical=0.02 + 0.35 * difficulty)


def _anatomy(atlas: Atlas, section: Section, lesion: Lesion | None, spot_rng: np.random.Generator) -> Image:
    """Paint head and brain; a lesion only moves the places where the brain is looked up."""
    image_HW, points_3HW = head_image(section), section.points_3HW
    if lesion is not None:
        points_3HW = head_points(section.scene, section.fields, *displaced_grid(lesion, section))
    paint_brain(image_HW, section, atlas, points_3HW)
    paint_sella(image_HW, section)
    paint_falx(image_HW, section, points_3HW)
    paint_incidental_spots(image_HW, section, spot_rng)
    return image_HW


def _reach(lesion: Lesion | None, section: Section) -> NDArray[np.bool_]:
    """The lesion's disc, widened by what the blur carries outwards."""
    if lesion is None:
        return np.zeros(section.right_HW.shape, dtype=np.bool_)
    blur_margin_mm = 8 * max(section.scene.blur_mm, section.pixel_mm)
    return lesion.off_centre(section) < lesion.reach_mm + blur_margin_mm
