"""What a planned lesion looks like in each contrast. Levels are set against the scene's own brain levels.

Legend: H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fl.data.phantoms.anatomy.paint import Image, band, edge, paint
from fl.data.phantoms.anatomy.tissues import brain_level
from fl.data.phantoms.lesions import Lesion
from fl.data.phantoms.section import Section


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """How plain a lesion is. visibility: its contrast, 1 is clinical. atypical: share of odd cases."""

    visibility: float
    atypical: float


def paint_glioma(image_HW: Image, lesion: Lesion, section: Section, rng: np.random.Generator, looks: Looks) -> None:
    """Oedema along white matter, an irregular bright rim, a dark necrotic core; low grades do not enhance."""
    scene, fields, level_HW = section.scene, section.fields, lesion.level_HW
    oedema_to, oedema_share = rng.uniform(1.35, 1.9), rng.uniform(0.65, 1)
    rim_width, rim, core = rng.uniform(0.22, 0.5), rng.uniform(0.65, 1), rng.uniform(0.6, 1.1)
    enhances = rng.random() > looks.atypical
    brain = brain_level(section.levels, 0.7)
    oedema_level = {"t1c": 0.52 * brain, "t1": 0.62 * brain, "t2": 0.80, "flair": 0.80}[scene.contrast]
    rim_level = {"t1c": brain + 0.55 * rim, "t1": 0.72 * brain, "t2": 0.60, "flair": 0.70}[scene.contrast]
    core_level = {"t1c": 0.45, "t1": 0.45, "t2": 0.92 / brain, "flair": 0.9}[scene.contrast] * brain * core
    fingers_HW = (np.float32(0.2) + np.float32(0.8) * section.white_HW) * lesion.allowed_HW
    oedema_HW = edge(oedema_to + np.float32(0.22) * fields.medium_HW - level_HW, 0.35) * fingers_HW
    _blend(image_HW, oedema_level, np.float32(oedema_share) * oedema_HW, looks)
    body_HW = edge(1 - level_HW, 0.12) * lesion.allowed_HW
    if not enhances:
        gray_HW = np.float32(oedema_level) * (1 + np.float32(0.1) * fields.medium_HW)
        _blend(image_HW, gray_HW, np.float32(0.95) * body_HW, looks)
        return
    ragged_HW = np.clip(
        np.float32(0.88) + np.float32(0.22) * fields.medium_HW + np.float32(0.16) * fields.fine_HW, 0.4, 1.3
    )
    _blend(image_HW, np.float32(rim_level) * ragged_HW, body_HW, looks)
    core_HW = edge(1 - rim_width + np.float32(0.14) * fields.medium_HW - level_HW, 0.12) * lesion.allowed_HW
    _blend(image_HW, np.float32(core_level) * (1 + np.float32(0.12) * fields.medium_HW), core_HW, looks)


def paint_meningioma(image_HW: Image, lesion: Lesion, section: Section, rng: np.random.Generator, looks: Looks) -> None:
    """One even, bright mass against the dura, with a fluid cleft, a dural tail and sometimes oedema."""
    scene, fields, level_HW = section.scene, section.fields, lesion.level_HW
    strength, has_oedema, oedema_to = rng.uniform(0.6, 1), rng.random() < 0.4, rng.uniform(1.3, 1.6)
    cleft = rng.uniform(0.3, 0.8) * (rng.random() > looks.atypical)
    brain = brain_level(section.levels, 0.5)
    body_level = {"t1c": brain + 0.48 * strength, "t1": 0.74 * brain, "t2": 0.66, "flair": 0.66}[scene.contrast]
    fluid_level = {"t1c": 0.12, "t1": 0.12, "t2": 0.9, "flair": 0.12}[scene.contrast]
    oedema_level = {"t1c": 0.62 * brain, "t1": 0.68 * brain, "t2": 0.80, "flair": 0.78}[scene.contrast]
    inside_HW = lesion.allowed_HW
    if has_oedema:
        swollen_HW = edge(oedema_to + np.float32(0.2) * fields.medium_HW - level_HW, 0.3) * section.white_HW * inside_HW
        _blend(image_HW, oedema_level, np.float32(0.7) * swollen_HW, looks)
    _blend(image_HW, fluid_level, np.float32(cleft) * band(level_HW, 1.0, 1.14, 0.1) * inside_HW, looks)
    if lesion.tail_HW is not None and scene.contrast == "t1c":
        _blend(image_HW, body_level, lesion.tail_HW, looks)
    even_HW = np.float32(body_level) * (1 + np.float32(0.04) * fields.medium_HW + np.float32(0.04) * fields.coarse_HW)
    _blend(image_HW, even_HW, edge(1 - level_HW, 0.09) * lesion.allowed_HW, looks)


def paint_pituitary(image_HW: Image, lesion: Lesion, section: Section, rng: np.random.Generator, looks: Looks) -> None:
    """A fairly even mass that fills the sella, under a thin dark capsule; some are cystic."""
    scene, fields, level_HW = section.scene, section.fields, lesion.level_HW
    strength, is_cystic = rng.uniform(0.5, 1), rng.random() < 0.1 + 0.5 * looks.atypical
    brain = brain_level(section.levels, 0.5)
    body_level = {"t1c": brain + 0.42 * strength, "t1": 1.15 * brain, "t2": 0.66, "flair": 0.64}[scene.contrast]
    rim_level = {"t1c": 0.12, "t1": 0.12, "t2": 0.7, "flair": 0.12}[scene.contrast]
    cyst_level = {"t1c": 0.55 * brain, "t1": 0.6 * brain, "t2": 0.92, "flair": 0.45}[scene.contrast]
    _blend(image_HW, rim_level, np.float32(0.5) * band(level_HW, 1.0, 1.16, 0.12) * lesion.allowed_HW, looks)
    even_HW = np.float32(body_level) * (1 + np.float32(0.06) * fields.medium_HW + np.float32(0.05) * fields.coarse_HW)
    _blend(image_HW, even_HW, edge(1 - level_HW, 0.12) * lesion.allowed_HW, looks)
    if is_cystic:
        _blend(
            image_HW,
            cyst_level,
            edge(np.float32(0.5) + np.float32(0.1) * fields.medium_HW - level_HW, 0.1),
            looks,
        )


Painter = Callable[[Image, Lesion, Section, np.random.Generator, Looks], None]

PAINTERS: dict[str, Painter] = {
    "glioma": paint_glioma,
    "meningioma": paint_meningioma,
    "pituitary": paint_pituitary,
}


def _blend(image_HW: Image, level: float | Image, coverage_HW: Image, looks: Looks) -> None:
    """Paint with the lesion's visibility: full coverage at 1 or above, see-through below."""
    paint(image_HW, level, coverage_HW * np.float32(min(1.0, looks.visibility)))
