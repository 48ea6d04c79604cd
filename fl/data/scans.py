"""Reading one admitted scan again, and knowing that it is still the same image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.data.admission import pixels_digest
from fl.errors import DataError
from kernels.decode import UnreadableImage, decode_gray


def read_gray(path: Path, expected_pixels_sha256: str) -> NDArray[np.uint8]:
    """Return gray_HW uint8 of a scan. Raises DataError where the file vanished or changed since its admission."""
    try:
        gray_HW = decode_gray(path.read_bytes(), source=str(path))
    except (OSError, UnreadableImage) as error:
        raise DataError(
            f"{path}: was admitted, but cannot be read any more ({error}); restore the file or start a new run"
        ) from error
    if pixels_digest(gray_HW) != expected_pixels_sha256:
        raise DataError(f"{path}: changed since its admission; restore the file or start a new run")
    return gray_HW
