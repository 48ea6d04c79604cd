"""From the painted scene to the file's levels: shading, blur, Rician noise, tone curve; and the scanners.

Source of the noise: Gudbjartsson & Patz 1995, "The Rician distribution of noisy MRI data". The display window
is set by scene and scanner, never by the picture's own maximum: a bright lesion may not darken the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fl.data.phantoms.anatomy.paint import Image
from fl.data.phantoms.scene import Fields, Scene
from fl.random import stream


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannerProfile:
    """How one site's scanner departs from the nominal one: a tone curve, and factors on the rest."""

    name: str
    gamma: float = 1.0
    brightness: float = 1.0
    noise: float = 1.0
    shading: float = 1.0
    blur: float = 1.0

    def __post_init__(self) -> None:
        for field in ("gamma", "brightness", "noise", "shading", "blur"):
            if not (value := getattr(self, field)) > 0:
                raise ValueError(f"scanner {self.name!r}: {field} is {value}; expected a positive factor")


NOMINAL_SCANNER = ScannerProfile(name="nominal")


def draw_scanner(seed: int, site: int, variation: float) -> ScannerProfile:
    """Draw one site's scanner. variation: 0 is the nominal one; 1 changes by factors up to 1.2 to 2."""
    gamma, brightness, noise, shading, blur = stream(seed, "phantom-scanner", site).uniform(-1, 1, 5) * variation
    return ScannerProfile(
        name=f"scanner-{site + 1:02d}",
        gamma=float(1.4**gamma),
        brightness=float(1.2**brightness),
        noise=float(1.8**noise),
        shading=float(2.0**shading),
        blur=float(1.5**blur),
    )


def acquire(image_HW: Image, scene: Scene, fields: Fields, scanner: ScannerProfile) -> NDArray[np.uint8]:
    """Turn levels into the file's grey values; uint8 [H, W]. Pure: all chance is in scene and fields."""
    pixel_mm = scene.field_of_view_mm / image_HW.shape[0]
    textured_HW = image_HW * (1 + np.float32(0.03) * fields.fine_HW)
    shaded_HW = textured_HW * np.exp(np.float32(scene.shading * scanner.shading) * fields.shading_HW)
    blurred_HW = cv2.GaussianBlur(shaded_HW, (0, 0), scene.blur_mm * scanner.blur / pixel_mm)
    noise = np.float32(scene.noise * scanner.noise)
    magnitude_HW = np.hypot(blurred_HW + noise * fields.grain_real_HW, noise * fields.grain_imaginary_HW)
    window_HW = np.clip(magnitude_HW * np.float32(scene.gain * scanner.brightness), 0, 1)
    levels_HW = np.float32(255) * window_HW ** np.float32(scanner.gamma)
    return np.asarray(np.rint(levels_HW), dtype=np.uint8)
