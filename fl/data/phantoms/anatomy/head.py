"""A head around the stripped template: skull, scalp, face and skull base, from distances and smooth noise.

Nothing here is cut from a real head. Layers follow the distance to the cranial cavity; orbits, sinuses,
carotids, clivus and spinal canal are ellipsoids and tubes in MNI space, so every plane shows them in place.

Legend: H W image; h w a window of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fl.data.phantoms.anatomy.paint import Image, band, capsule_depth, edge, ellipsoid_depth, paint, spread
from fl.data.phantoms.section import Section

Millimetres = tuple[float, float, float]

_STRIDE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Ellipsoid:
    """A structure of one tissue; `paired` ones are repeated at -x.

    cells: how many mm noise moves its surface, which breaks it up into cells.
    """

    tissue: str
    centre: Millimetres
    radii: Millimetres
    paired: bool = False
    cells: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tube:
    """A round structure of one tissue from `start` to `end`; `paired` ones are repeated at -x."""

    tissue: str
    start: Millimetres
    end: Millimetres
    radius: float
    paired: bool = False


Structure = Ellipsoid | Tube

_FACE = (  # with the shell around the cavity, these make up the head's outline
    Ellipsoid(tissue="", centre=(0, 40, -62), radii=(66, 52, 66)),
    Ellipsoid(tissue="", centre=(0, -20, -100), radii=(58, 62, 90)),
    Ellipsoid(tissue="", centre=(0, 94, -58), radii=(13, 15, 22)),
    Ellipsoid(tissue="", centre=(64, 20, -32), radii=(17, 36, 38), paired=True),
)

_STRUCTURES: tuple[Structure, ...] = (  # later ones cover earlier ones
    Ellipsoid(tissue="mucosa", centre=(0, 48, -58), radii=(20, 34, 26), cells=7),
    Ellipsoid(tissue="fat", centre=(31, 54, -36), radii=(16, 24, 15), paired=True),
    Tube(tissue="muscle", start=(30, 54, -38), end=(9, 18, -26), radius=2.6, paired=True),
    Tube(tissue="muscle", start=(42, 58, -37), end=(18, 20, -30), radius=2.0, paired=True),
    Ellipsoid(tissue="vitreous", centre=(33, 64, -38), radii=(12, 12, 12), paired=True),
    Ellipsoid(tissue="muscle", centre=(33, 73.5, -38), radii=(4.5, 2.2, 4.5), paired=True),
    Ellipsoid(tissue="air", centre=(28, 48, -66), radii=(13, 16, 15), paired=True),
    Ellipsoid(tissue="air", centre=(7, 42, -37), radii=(6, 20, 10), paired=True, cells=1.2),
    Ellipsoid(tissue="air", centre=(6, 54, -60), radii=(5, 27, 19), paired=True, cells=1.6),
    Ellipsoid(tissue="air", centre=(9, 75, -14), radii=(9, 5, 9), paired=True, cells=0.5),
    Ellipsoid(tissue="air", centre=(54, -28, -42), radii=(9, 14, 13), paired=True, cells=2.2),
    Tube(tissue="cortical", start=(28, -24, -42), end=(48, -34, -40), radius=5, paired=True),
    Tube(tissue="air", start=(52, -14, -44), end=(78, -12, -46), radius=3.0, paired=True),
    Ellipsoid(tissue="muscle", centre=(0, 42, -104), radii=(24, 34, 20)),
    Tube(tissue="air", start=(0, 10, -66), end=(0, -2, -120), radius=6),
    Ellipsoid(tissue="marrow", centre=(0, 58, -80), radii=(26, 26, 5)),
    Tube(tissue="cortical", start=(0, -8, -38), end=(0, -24, -68), radius=8),
    Tube(tissue="marrow", start=(0, -7, -39), end=(0, -23, -67), radius=5.5),
    Ellipsoid(tissue="marrow", centre=(0, -22, -92), radii=(9, 7, 16)),
    Tube(tissue="fluid", start=(0, -42, -64), end=(0, -46, -130), radius=9),
    Tube(tissue="white", start=(0, -40, -60), end=(0, -46, -130), radius=5.5),
    Ellipsoid(tissue="cortical", centre=(0, 17, -43), radii=(17, 16, 11)),
    Ellipsoid(tissue="air", centre=(7, 17, -43), radii=(8, 14, 9), paired=True),
)

_SELLA: tuple[Structure, ...] = (
    Ellipsoid(tissue="fluid", centre=(0, 1, -19), radii=(15, 13, 8)),
    Ellipsoid(tissue="sinus", centre=(12, 2, -32), radii=(5, 10, 6), paired=True),
    Tube(tissue="artery", start=(12, -6, -44), end=(12, 8, -30), radius=2.6, paired=True),
    Ellipsoid(tissue="gland", centre=(0, 3, -32), radii=(7, 5, 3.6)),
    Tube(tissue="gland", start=(0, 2, -30), end=(0, 1, -20), radius=1.4),
    Tube(tissue="white", start=(8, 6, -18), end=(-8, 6, -18), radius=1.8),
)


def head_image(section: Section) -> Image:
    """Paint everything but the brain; float32 [H, W], levels of `anatomy.tissues`. The cavity stays empty."""
    skull_HW = np.float32(section.scene.skull_mm) * (1 + np.float32(0.16) * section.fields.coarse_HW)
    depth_HW = _depth_below_skin(section, skull_HW)
    image_HW = np.full(depth_HW.shape, section.levels["air"], dtype=np.float32)
    _paint_soft_parts(image_HW, section, depth_HW, section.distance_HW - skull_HW)
    _paint_skull(image_HW, section, depth_HW, section.distance_HW / skull_HW)
    beyond_cavity_HW = edge(section.distance_HW - 1, section.pixel_mm) * edge(depth_HW - 3, section.pixel_mm)
    _paint_structures(image_HW, section, _STRUCTURES, beyond_cavity_HW)
    _paint_meninges(image_HW, section)
    return image_HW


def paint_sella(image_HW: Image, section: Section) -> None:
    """Paint cistern, cavernous sinuses, carotids, the normal gland, its stalk and the chiasm over the image.

    Every scene has them: a normal gland that enhances is the natural mimic of a small adenoma.
    """
    _paint_structures(image_HW, section, _SELLA, np.ones_like(image_HW))


def _depth_below_skin(section: Section, skull_HW: Image) -> Image:
    """Millimetres inside the head's outline, negative in the air around it."""
    depth_HW = skull_HW + np.float32(section.scene.scalp_mm) - section.distance_HW
    for part in _FACE:
        for depth_of in _shapes(part):
            np.maximum(depth_HW, depth_of(section.points_3HW), out=depth_HW)
    return spread(depth_HW, 5.5 / section.pixel_mm)


def _paint_soft_parts(image_HW: Image, section: Section, depth_HW: Image, beyond_skull_HW: Image) -> None:
    """Muscle, fat between the muscles of the face, fat under the skin, skin."""
    fields, levels, pixel_mm = section.fields, section.levels, section.pixel_mm
    muscle_HW = np.float32(levels["muscle"]) * (1 + np.float32(0.12) * fields.fine_HW)
    paint(image_HW, muscle_HW, edge(depth_HW, pixel_mm))
    lobules_HW = edge(fields.medium_HW + np.float32(0.4) * fields.coarse_HW - np.float32(0.5), 0.6)
    deep_HW = edge(depth_HW - 6, 3) * edge(beyond_skull_HW - 5, 3)
    paint(image_HW, 0.85 * levels["fat"], lobules_HW * deep_HW)
    fat_HW = np.float32(levels["fat"]) * (1 + np.float32(0.07) * fields.medium_HW)
    paint(image_HW, fat_HW, band(depth_HW, 1.0, section.scene.scalp_mm, pixel_mm))
    paint(image_HW, levels["skin"], band(depth_HW, 0, 1.4, pixel_mm))


def _paint_skull(image_HW: Image, section: Section, depth_HW: Image, share_HW: Image) -> None:
    """Dark inner and outer tables with patchy marrow between. share_HW: 0 at the inner, 1 at the outer."""
    inside_head_HW = edge(depth_HW - 2, section.pixel_mm)
    paint(image_HW, section.levels["cortical"], edge(1 - share_HW, 0.3) * inside_head_HW)
    patches_HW = np.clip(np.float32(0.55) + np.float32(0.45) * section.fields.medium_HW, 0, 1)
    paint(image_HW, section.levels["marrow"], band(share_HW, 0.38, 0.74, 0.24) * inside_head_HW * patches_HW)


def _paint_meninges(image_HW: Image, section: Section) -> None:
    """Dura on the inner table, and the sagittal sinus in the midline."""
    distance_HW, pixel_mm = section.distance_HW, section.pixel_mm
    paint(image_HW, section.levels["dura"], np.float32(0.55) * band(distance_HW, -0.4, 0.9, pixel_mm))
    off_midline_HW = np.abs(section.points_3HW[0])
    sinus_HW = edge(5 - off_midline_HW - np.float32(0.9) * np.abs(distance_HW + 1), pixel_mm)
    convexity_HW = edge(section.points_3HW[2] - 5, 6)
    paint(image_HW, section.levels["vein"], sinus_HW * convexity_HW)


def _paint_structures(image_HW: Image, section: Section, structures: tuple[Structure, ...], allowed_HW: Image) -> None:
    """Paint each structure that the section meets, within the window that holds it."""
    for structure in structures:
        cells = structure.cells if isinstance(structure, Ellipsoid) else 0.0
        # A pixel lies within 0.71 strides of a sample, and depth changes by less than 1.4 mm in a mm.
        margin_mm = 1.2 * _STRIDE * section.pixel_mm + 2 * cells
        for depth_of in _shapes(structure):
            window = _window(depth_of(section.points_3HW[:, ::_STRIDE, ::_STRIDE]), margin_mm)
            if window is None:
                continue
            depth_hw = depth_of(section.points_3HW[:, *window])
            depth_hw += np.float32(cells) * (section.fields.fine_HW[window] - 1)
            coverage_hw = edge(depth_hw, 1.3 * section.pixel_mm) * allowed_HW[window]
            paint(image_HW[window], section.levels[structure.tissue], coverage_hw)


def _window(depth_hw: Image, margin_mm: float) -> tuple[slice, slice] | None:
    """From depths at every eighth pixel, the rows and columns that can hold the structure, or None."""
    rows, columns = np.nonzero(depth_hw > -margin_mm)
    if not rows.size:
        return None
    return (
        slice(max(0, (int(rows.min()) - 1) * _STRIDE), (int(rows.max()) + 1) * _STRIDE + 1),
        slice(max(0, (int(columns.min()) - 1) * _STRIDE), (int(columns.max()) + 1) * _STRIDE + 1),
    )


def _shapes(structure: Structure) -> list[Callable[[Image], Image]]:
    """Depth as a function of points, once for each side that the structure lies on."""
    if isinstance(structure, Tube):
        ends = zip(_sides(structure.start, structure.paired), _sides(structure.end, structure.paired), strict=True)
        return [partial(capsule_depth, start_mm=a, end_mm=b, radius_mm=structure.radius) for a, b in ends]
    centres = _sides(structure.centre, structure.paired)
    return [partial(ellipsoid_depth, centre_mm=centre, radii_mm=structure.radii) for centre in centres]


def _sides(point: Millimetres, paired: bool) -> tuple[Millimetres, ...]:
    return (point, (-point[0], point[1], point[2])) if paired else (point,)
