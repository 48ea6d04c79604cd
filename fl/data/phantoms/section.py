"""One planar cut through a head: where each pixel lies in the template, and what it meets there.

Legend: H W image rows and columns, P points; a leading 3 holds MNI millimetres (x right, y front, z up).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl.data.phantoms.anatomy.tissues import tissue_levels
from fl.data.phantoms.atlas import Atlas
from fl.data.phantoms.scene import Fields, Scene, head_points, image_grid_mm

Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What painters of anatomy and lesions may know of a scene; images float32 [H, W], lengths in mm.

    right_HW, up_HW: position in the image. points_3HW: position in the head. distance_HW: to the wall of the
    cranial cavity, negative inside. white_HW: probability of white matter. sella_HW: distance to the sella.
    levels: image level of each tissue.
    """

    scene: Scene
    fields: Fields
    right_HW: Image
    up_HW: Image
    points_3HW: Image
    distance_HW: Image
    white_HW: Image
    sella_HW: Image
    levels: dict[str, float]

    @property
    def pixel_mm(self) -> float:
        """Side of a pixel."""
        return self.scene.field_of_view_mm / len(self.right_HW)


def cut_section(atlas: Atlas, scene: Scene, fields: Fields, size: int) -> Section:
    """Cut the scene's plane through the atlas, `size` pixels wide."""
    right_HW, up_HW = image_grid_mm(scene, size)
    points_3HW = head_points(scene, fields, right_HW, up_HW)
    distance_HW = atlas.distance_at(points_3HW)
    white_HW = np.zeros_like(distance_HW)
    white_HW[distance_HW < 0] = atlas.white_at(points_3HW[:, distance_HW < 0])
    to_sella_3HW = points_3HW - np.array(scene.sella_mm, dtype=np.float32)[:, None, None]
    return Section(
        scene=scene,
        fields=fields,
        right_HW=right_HW,
        up_HW=up_HW,
        points_3HW=points_3HW,
        distance_HW=distance_HW,
        white_HW=white_HW,
        sella_HW=np.sqrt(np.square(to_sella_3HW).sum(axis=0)),
        levels=tissue_levels(scene),
    )
