"""The brain that every phantom is cut from: ICBM152 2009a, symmetric, 1 mm, as the nilearn wheel ships it.

Source: Fonov et al. 2011, "Unbiased average age-appropriate atlases for pediatric studies". Positions are in
MNI millimetres: x to the right, y to the front, z up. The template is skull-stripped; `anatomy.head` puts a
head on.

Legend: XYZ volume axes, HW image axes, P points; a leading 3 holds millimetres (x, y, z).
"""

from __future__ import annotations

import importlib.util
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fl.errors import DataError

Volume = NDArray[np.uint8]
Image = NDArray[np.float32]

_TEMPLATE_FILE = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_ATLAS_FILE = "icbm152-atlas-1.npz"
_ORIGIN_MM = np.array([-98.0, -134.0, -72.0], dtype=np.float32)
_T1_SCALE = 160.0
"""Stored T1 level of white matter; sharpened tissue above it still fits into 8 bits."""

_COARSE_MM = 2
_COARSE_MARGIN_MM = (24, 32, 48)
"""The distance volume reaches this far past the template on either side, so that a face and a neck fit."""

_DISTANCE_ZERO = 100
_DISTANCE_STEPS_PER_MM = 2.0
_CLOSING_MM = 9.0
"""Closes sulci and fissures into one cavity, and leaves the gap between the temporal poles (the sella)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Atlas:
    """Three volumes of the template brain; read-only, about 20 MB.

    t1_XYZ: sharpened T1 weighting. white_XYZ: white-matter probability. distance_XYZ: signed distance to the
    wall of the cranial cavity on a coarser, larger grid. Sample them with `t1_at`, `white_at`, `distance_at`.
    """

    t1_XYZ: Volume
    white_XYZ: Volume
    distance_XYZ: Volume

    def t1_at(self, points_3P: Image) -> Image:
        """T1 level, float32 [P]: about 0.28 in fluid, 0.72 in grey, 1 in white matter, 0 outside."""
        return _sample(self.t1_XYZ, points_3P - _ORIGIN_MM[:, None], "constant") / np.float32(_T1_SCALE)

    def white_at(self, points_3P: Image) -> Image:
        """Probability of white matter, float32 [P] in [0, 1]."""
        return _sample(self.white_XYZ, points_3P - _ORIGIN_MM[:, None], "constant") / np.float32(255)

    def distance_at(self, points_3HW: Image) -> Image:
        """Millimetres to the wall of the cranial cavity, negative inside; float32 [H, W] in [-50, 77]."""
        origin_mm = (_ORIGIN_MM - np.array(_COARSE_MARGIN_MM)).astype(np.float32)
        voxels_3HW = (points_3HW - origin_mm[:, None, None]) / np.float32(_COARSE_MM)
        steps_HW = _sample(self.distance_XYZ, voxels_3HW, "nearest")
        return (steps_HW - np.float32(_DISTANCE_ZERO)) / np.float32(_DISTANCE_STEPS_PER_MM)


def load_atlas(cache_root: Path) -> Atlas:
    """Return the atlas, built on first use (about 3 s) and kept in `cache_root` as one npz.

    Raises DataError where the nilearn wheel or its template is missing.
    """
    path = cache_root / _ATLAS_FILE
    if not path.exists():
        cache_root.mkdir(parents=True, exist_ok=True)
        _save(build_atlas(), path)
    with np.load(path, allow_pickle=False) as arrays:
        return Atlas(t1_XYZ=arrays["t1"], white_XYZ=arrays["white"], distance_XYZ=arrays["distance"])


def build_atlas() -> Atlas:
    """Read the template's T1 and white-matter volumes and derive the three volumes of an Atlas."""
    t1_XYZ = _read_template("t1")
    white_XYZ = _read_template("wm") / np.float32(255)
    brain_XYZ = t1_XYZ > 20
    t1_XYZ /= np.median(t1_XYZ[white_XYZ > 0.9])
    # The template averages 152 people; sharpening gives single sulci their edges back.
    t1_XYZ += np.float32(0.7) * (t1_XYZ - ndimage.gaussian_filter(t1_XYZ, 1.2))
    return Atlas(
        t1_XYZ=_to_uint8(t1_XYZ * _T1_SCALE),
        white_XYZ=_to_uint8(white_XYZ * 255),
        distance_XYZ=_to_uint8(_cavity_distance(brain_XYZ) * _DISTANCE_STEPS_PER_MM + _DISTANCE_ZERO),
    )


def _cavity_distance(brain_XYZ: NDArray[np.bool_]) -> Image:
    """Signed distance to the closed brain on the coarse grid, in mm, smoothed to a fraction of a voxel."""
    coarse_XYZ = brain_XYZ[::_COARSE_MM, ::_COARSE_MM, ::_COARSE_MM]
    coarse_XYZ = np.pad(coarse_XYZ, [(margin // _COARSE_MM,) * 2 for margin in _COARSE_MARGIN_MM])
    reach = _CLOSING_MM / _COARSE_MM
    dilated_XYZ = ndimage.distance_transform_edt(~coarse_XYZ) <= reach
    cavity_XYZ = ndimage.distance_transform_edt(dilated_XYZ) > reach
    outside_XYZ = ndimage.distance_transform_edt(~cavity_XYZ)
    inside_XYZ = ndimage.distance_transform_edt(cavity_XYZ)
    distance_XYZ = (outside_XYZ - inside_XYZ).astype(np.float32) * _COARSE_MM
    return np.asarray(ndimage.gaussian_filter(distance_XYZ, 0.9), dtype=np.float32)


def _read_template(kind: str) -> Image:
    """Read one volume of the template without importing nilearn, whose import takes seconds."""
    import nibabel

    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise DataError("phantoms are cut from a template in the nilearn wheel; install it: pip install nilearn")
    path = Path(found.origin).parent / _TEMPLATE_FILE.format(kind)
    if not path.exists():
        raise DataError(f"the nilearn at {path.parents[2]} has no {path.name}; install nilearn >= 0.12")
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj, dtype=np.float32)


def _save(atlas: Atlas, path: Path) -> None:
    """Write under another name and rename, so that two processes may build at once and none reads a half."""
    partial = path.with_name(f".{uuid.uuid4().hex}.npz")
    np.savez(partial, t1=atlas.t1_XYZ, white=atlas.white_XYZ, distance=atlas.distance_XYZ)
    partial.replace(path)


def _sample(volume_XYZ: Volume, voxels: Image, beyond: str) -> Image:
    """Interpolate linearly at voxel positions, [3, ...] to [...]."""
    sampled = ndimage.map_coordinates(volume_XYZ, voxels, order=1, mode=beyond, output=np.float32, prefilter=False)
    return np.asarray(sampled, dtype=np.float32)


def _to_uint8(levels: Image) -> Volume:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
