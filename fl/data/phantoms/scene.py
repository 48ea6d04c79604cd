"""Everything about a phantom but its lesion: plane, place, head, contrast, scanner noise.

A scene is drawn from settings and index alone. The class is not an argument of anything in this module, so
no class can be told by its slices, contrasts, head shapes or noise. Every plane passes within a few
millimetres of the sella, because a pituitary adenoma can lie nowhere else: each scene can host each class.

Legend: H W image rows and columns; a leading 3 holds MNI millimetres (x right, y front, z up).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fl.data.phantoms.settings import PhantomSettings
from fl.random import stream

Image = NDArray[np.float32]
Plane = Literal["axial", "coronal", "sagittal"]
Contrast = Literal["t1c", "t1", "t2", "flair"]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
CONTRASTS: tuple[Contrast, ...] = ("t1c", "t1", "t2", "flair")
PLANE_SHARES = (0.4, 0.3, 0.3)
CONTRAST_SHARES = (0.7, 0.06, 0.12, 0.12)
"""Contrast-enhanced T1 leads, as in the public collections of these four classes."""

SELLA_MM = (0.0, 3.0, -31.0)
"""Centre of the pituitary fossa in the template's space."""

_AXES = {  # image right, image up, out of the image
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "coronal": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The scalars of one scene; equal scenes with equal fields give equal lesion-free images.

    tilt_degrees: of the plane about the image's right and up axes. offset_mm: of the plane from the sella.
    centre_mm: of the image within the plane, from the sella. stretch: head scale across and along the image.
    ageing: widening of the fluid spaces, in T1 levels. tissue_jitter: relative changes of the tissue levels.
    """

    plane: Plane
    contrast: Contrast
    mirrored: bool
    tilt_degrees: tuple[float, float]
    spin_degrees: float
    offset_mm: float
    centre_mm: tuple[float, float]
    field_of_view_mm: float
    stretch: tuple[float, float]
    warp_mm: float
    slice_thickness_mm: float
    sella_mm: tuple[float, float, float]
    skull_mm: float
    scalp_mm: float
    ageing: float
    tissue_jitter: tuple[float, ...]
    num_incidental_spots: int
    gain: float
    shading: float
    noise: float
    blur_mm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """Random images of one scene, float32 [H, W].

    warp_right, warp_up, warp_out: in units of `Scene.warp_mm`. coarse, medium, fine: smooth noise of about
    unit deviation with 9, 20 and 42 cells across. grain_real, grain_imaginary: white noise of unit deviation.
    """

    warp_right_HW: Image
    warp_up_HW: Image
    warp_out_HW: Image
    coarse_HW: Image
    medium_HW: Image
    fine_HW: Image
    shading_HW: Image
    grain_real_HW: Image
    grain_imaginary_HW: Image


def draw_scene(settings: PhantomSettings, index: int) -> Scene:
    """Draw the scene of one index; it depends on seed, difficulty and index, never on a class."""
    rng = stream(settings.seed, "phantom-scene", index)
    plane = PLANES[int(rng.choice(len(PLANES), p=PLANE_SHARES))]
    contrast = CONTRASTS[int(rng.choice(len(CONTRASTS), p=CONTRAST_SHARES))]
    mirrored = bool(rng.random() < 0.5)
    field_of_view_mm = rng.uniform(198, 228)
    return Scene(
        plane=plane,
        contrast=contrast,
        mirrored=mirrored,
        tilt_degrees=(rng.uniform(-16, 16), rng.uniform(-9, 9)),
        spin_degrees=rng.normal(0, 4),
        offset_mm=rng.uniform(-5, 5),
        centre_mm=_image_centre(plane, mirrored, field_of_view_mm, rng),
        field_of_view_mm=field_of_view_mm,
        stretch=(rng.uniform(0.92, 1.1), rng.uniform(0.92, 1.1)),
        warp_mm=rng.uniform(1.2, 3.2),
        slice_thickness_mm=rng.uniform(1.5, 5),
        sella_mm=(rng.normal(0, 1), SELLA_MM[1] + rng.normal(0, 1), SELLA_MM[2] + rng.normal(0, 1)),
        skull_mm=rng.uniform(5, 8.5),
        scalp_mm=rng.uniform(6, 10),
        ageing=rng.uniform(-0.06, 0.1),
        tissue_jitter=tuple(float(jitter) for jitter in rng.uniform(-1, 1, 16)),
        num_incidental_spots=int(rng.poisson(0.4 + 3 * settings.difficulty)),
        gain=rng.uniform(0.85, 1.15),
        shading=rng.uniform(0.05, 0.16),
        noise=rng.uniform(0.5, 1.5) * (0.007 + 0.03 * settings.difficulty),
        blur_mm=rng.uniform(0.5, 1.1),
    )


def draw_fields(settings: PhantomSettings, index: int) -> Fields:
    """Draw the random images of one index, on the settings' grid."""
    rng = stream(settings.seed, "phantom-fields", index)
    size = settings.size_pixels

    def warp() -> Image:
        return smooth_noise(rng, size, 5) + np.float32(0.35) * smooth_noise(rng, size, 14)

    return Fields(
        warp_right_HW=warp(),
        warp_up_HW=warp(),
        warp_out_HW=smooth_noise(rng, size, 4),
        coarse_HW=smooth_noise(rng, size, 9),
        medium_HW=smooth_noise(rng, size, 20),
        fine_HW=smooth_noise(rng, size, 42),
        shading_HW=smooth_noise(rng, size, 2),
        grain_real_HW=rng.standard_normal((size, size), dtype=np.float32),
        grain_imaginary_HW=rng.standard_normal((size, size), dtype=np.float32),
    )


def smooth_noise(rng: np.random.Generator, size: int, num_cells: int) -> Image:
    """Noise of about unit deviation that varies over size / num_cells pixels; float32 [size, size]."""
    nodes = rng.standard_normal((num_cells + 3, num_cells + 3), dtype=np.float32)
    return np.asarray(cv2.resize(nodes, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def image_grid_mm(scene: Scene, size: int) -> tuple[Image, Image]:
    """Millimetres to the right of and above the image centre at every pixel; two float32 [size, size]."""
    steps_mm = (np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)) * np.float32(
        scene.field_of_view_mm / size
    )
    right_HW, down_HW = np.meshgrid(steps_mm, steps_mm)
    return right_HW, -down_HW


def head_points(scene: Scene, fields: Fields, right_HW: Image, up_HW: Image) -> Image:
    """Where each image position (mm) lies in the template; float32 [3, H, W]. The head's shape is in here."""
    right_axis, up_axis, out_axis = plane_axes(scene)
    warp_mm = np.float32(scene.warp_mm)
    along_right_HW = right_HW * np.float32(scene.stretch[0]) + warp_mm * fields.warp_right_HW + scene.centre_mm[0]
    along_up_HW = up_HW * np.float32(scene.stretch[1]) + warp_mm * fields.warp_up_HW + scene.centre_mm[1]
    along_out_HW = np.float32(0.7) * warp_mm * fields.warp_out_HW + np.float32(scene.offset_mm)
    points_3HW = np.empty((3, *right_HW.shape), dtype=np.float32)
    for axis in range(3):
        points_3HW[axis] = (
            np.float32(scene.sella_mm[axis])
            + np.float32(right_axis[axis]) * along_right_HW
            + np.float32(up_axis[axis]) * along_up_HW
            + np.float32(out_axis[axis]) * along_out_HW
        )
    return points_3HW


def plane_axes(scene: Scene) -> NDArray[np.float64]:
    """Unit vectors image-right, image-up and out of the image, as rows, in MNI space."""
    right, up, out = (np.array(axis, dtype=np.float64) for axis in _AXES[scene.plane])
    if scene.mirrored:
        right = -right
    right, out = _turn(right, out, scene.tilt_degrees[1])
    up, out = _turn(up, out, scene.tilt_degrees[0])
    right, up = _turn(right, up, scene.spin_degrees)
    return np.stack([right, up, out])


def _image_centre(
    plane: Plane, mirrored: bool, field_of_view_mm: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Centre the head, in mm from the sella; upright images end a little below the skull base."""
    sideways_mm, upwards_mm = (float(shift_mm) for shift_mm in rng.uniform(-5, 5, 2))
    if plane == "axial":
        return sideways_mm, -18 + upwards_mm
    if plane == "sagittal":
        sideways_mm += 12 if mirrored else -12
    bottom_mm = -58 + upwards_mm
    return sideways_mm, bottom_mm + field_of_view_mm / 2


def _turn(
    first: NDArray[np.float64], second: NDArray[np.float64], degrees: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotate two perpendicular unit vectors in their common plane."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return first * cosine + second * sine, second * cosine - first * sine
