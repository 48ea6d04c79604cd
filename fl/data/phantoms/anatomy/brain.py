"""The brain inside the cavity, from the template, in the scene's contrast; the falx; and harmless spots.

Legend: H W image, P points; a leading 3 holds MNI millimetres.
"""

from __future__ import annotations

import numpy as np

from fl.data.phantoms.anatomy.paint import Image, edge, paint
from fl.data.phantoms.anatomy.tissues import brain_curve
from fl.data.phantoms.atlas import Atlas
from fl.data.phantoms.scene import plane_axes
from fl.data.phantoms.section import Section


def paint_brain(image_HW: Image, section: Section, atlas: Atlas, points_3HW: Image) -> None:
    """Paint brain and fluid over the cavity, averaged over the slice's thickness.

    points_3HW: where to look each pixel up in the template; the section's own points, or those that a lesion
    has pushed there.
    """
    in_cavity_HW = section.distance_HW < section.pixel_mm
    points_3P = points_3HW[:, in_cavity_HW]
    step_3 = (plane_axes(section.scene)[2] * section.scene.slice_thickness_mm / 4).astype(np.float32)[:, None]
    t1_P = (atlas.t1_at(points_3P + step_3) + atlas.t1_at(points_3P - step_3)) * np.float32(0.5)
    nodes, targets = brain_curve(section.scene, section.levels)
    image_P = image_HW[in_cavity_HW]
    coverage_P = edge(-section.distance_HW[in_cavity_HW], section.pixel_mm)
    paint(image_P, np.interp(t1_P, nodes, targets).astype(np.float32), coverage_P)
    image_HW[in_cavity_HW] = image_P


def paint_falx(image_HW: Image, section: Section, points_3HW: Image) -> None:
    """A dural line in the midline, above and around the corpus callosum. points_3HW: as for the brain."""
    x_HW, y_HW, z_HW = points_3HW
    beyond_callosum_HW = np.hypot((y_HW + 15) / 55, (z_HW - 5) / 28) - 1
    line_HW = edge(np.float32(0.7) - np.abs(x_HW), section.pixel_mm)
    line_HW *= edge(beyond_callosum_HW, 0.1) * edge(z_HW + 5, 5)
    inside_HW = edge(-1 - section.distance_HW, section.pixel_mm)
    paint(image_HW, section.levels["dura"], np.float32(0.6) * line_HW * inside_HW)


def paint_incidental_spots(image_HW: Image, section: Section, rng: np.random.Generator) -> None:
    """Paint small white-matter spots and vessels seen end-on: part of the scene, hence alike in all classes.

    They stop a network from calling every bright dot a tumour. They are bright in t2 and flair; in t1 and t1c
    a spot is either a bright vessel or a dark, old lacune.
    """
    candidates = np.flatnonzero(section.white_HW > 0.7)
    for _ in range(section.scene.num_incidental_spots):
        position, strength, radius_mm = rng.random(), rng.uniform(0.1, 0.35), rng.uniform(1.2, 3.2)
        darker = section.scene.contrast in ("t1c", "t1") and rng.random() < 0.5
        if not candidates.size:
            continue
        row, column = divmod(int(candidates[int(position * candidates.size)]), image_HW.shape[1])
        right_HW = section.right_HW - section.right_HW[row, column]
        up_HW = section.up_HW - section.up_HW[row, column]
        spot_HW = np.exp((right_HW**2 + up_HW**2) / np.float32(-(radius_mm**2)))
        image_HW += np.float32(-0.5 * strength if darker else strength) * spot_HW
