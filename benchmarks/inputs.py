"""What the cases work on: 512x512 slices as JPEG files, real where there are some, else phantoms."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fl.data.phantoms import NOMINAL_SCANNER, PhantomSettings, load_atlas, make_phantom
from fl.types import CLASSES

SIDE_PIXELS = 512
DEFAULT_FOLDER = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slices:
    """JPEG files in one folder; source says what they are, as one line."""

    source: str
    paths: tuple[Path, ...]

    def colors(self) -> list[NDArray[np.uint8]]:
        """As cv2.imread returns them: uint8 [H, W, 3], blue green red."""
        return [np.asarray(cv2.imread(str(path)), np.uint8) for path in self.paths]

    def grays(self) -> list[NDArray[np.uint8]]:
        """colors() turned grey by OpenCV: uint8 [H, W]."""
        return [np.asarray(cv2.cvtColor(color_HWC, cv2.COLOR_BGR2GRAY), np.uint8) for color_HWC in self.colors()]


def collect_slices(folder: Path, num_slices: int) -> Slices:
    """Copy at most num_slices real 512x512 slices to `folder`, or draw as many phantoms where there are none.

    Real ones are looked for in mri-fullres/<class>/*.jpg under $GLIOFED_REAL_DATA or, without it, ../shared/data.
    """
    real = Path(os.environ.get("GLIOFED_REAL_DATA", DEFAULT_FOLDER)) / "mri-fullres"
    squares = [path for path in sorted(real.glob("*/*.jpg")) if _is_square(path)][:num_slices]
    if squares:
        paths = tuple(Path(shutil.copy(path, folder / path.name)) for path in squares)
        return Slices(source=f"{len(paths)} real slices of {SIDE_PIXELS}x{SIDE_PIXELS}, JPEG", paths=paths)
    paths = _draw_phantoms(folder, num_slices)
    return Slices(source=f"{len(paths)} phantom slices of {SIDE_PIXELS}x{SIDE_PIXELS}, JPEG", paths=paths)


def _is_square(path: Path) -> bool:
    image = cv2.imread(str(path))
    return image is not None and image.shape[:2] == (SIDE_PIXELS, SIDE_PIXELS)


def _draw_phantoms(folder: Path, num_phantoms: int) -> tuple[Path, ...]:
    atlas = load_atlas(folder)
    settings = PhantomSettings(size_pixels=SIDE_PIXELS)
    paths = tuple(folder / f"phantom-{index:02d}.jpg" for index in range(num_phantoms))
    for index, path in enumerate(paths):
        label = index % len(CLASSES)
        phantom = make_phantom(atlas, label=label, index=index, settings=settings, scanner=NOMINAL_SCANNER)
        cv2.imwrite(str(path), phantom.image_HW)
    return paths
