"""How bright each tissue is in each contrast: the one table of MR physics that the phantoms have.

Levels are fractions of the display window, chosen to look like clinical images; they are not simulated from
relaxation times. t1c is T1 after gadolinium.
"""

from __future__ import annotations

from fl.data.phantoms.scene import Contrast, Scene

_LEVELS: dict[str, tuple[float, float, float, float]] = {
    # tissue:    t1c   t1    t2    flair
    "air":      (0.01, 0.01, 0.01, 0.01),
    "fluid":    (0.11, 0.12, 0.90, 0.08),
    "gray":     (0.34, 0.44, 0.50, 0.46),
    "white":    (0.41, 0.58, 0.34, 0.37),
    "cortical": (0.04, 0.04, 0.04, 0.04),
    "marrow":   (0.46, 0.50, 0.30, 0.28),
    "fat":      (0.82, 0.88, 0.62, 0.62),
    "muscle":   (0.32, 0.36, 0.18, 0.22),
    "skin":     (0.42, 0.42, 0.32, 0.34),
    "vitreous": (0.12, 0.13, 0.93, 0.10),
    "mucosa":   (0.62, 0.42, 0.72, 0.62),
    "artery":   (0.10, 0.06, 0.04, 0.05),
    "vein":     (0.78, 0.20, 0.12, 0.14),
    "dura":     (0.55, 0.30, 0.14, 0.22),
    "sinus":    (0.52, 0.34, 0.26, 0.30),
    "gland":    (0.60, 0.46, 0.46, 0.46),
}  # fmt: skip
_COLUMN: dict[Contrast, int] = {"t1c": 0, "t1": 1, "t2": 2, "flair": 3}
_JITTER = 0.12


def tissue_levels(scene: Scene) -> dict[str, float]:
    """Return each tissue's level in this scene; every scene moves each of them by up to 12 %."""
    column = _COLUMN[scene.contrast]
    return {
        tissue: levels[column] * (1 + _JITTER * jitter)
        for (tissue, levels), jitter in zip(_LEVELS.items(), scene.tissue_jitter, strict=True)
    }


def brain_curve(scene: Scene, levels: dict[str, float]) -> tuple[list[float], list[float]]:
    """Return the piecewise linear map from template T1 level to image level, as (from, to) nodes."""
    fluid_until = 0.36 + scene.ageing
    nodes = [0.0, fluid_until, 0.72, 1.0, 1.3]
    beyond_white = levels["white"] + 0.3 * (levels["white"] - levels["gray"])
    return nodes, [levels["fluid"], levels["fluid"], levels["gray"], levels["white"], beyond_white]


def brain_level(levels: dict[str, float], share_white: float) -> float:
    """Return the level between grey (0) and white (1) matter; lesions are set against it."""
    return levels["gray"] + share_white * (levels["white"] - levels["gray"])
