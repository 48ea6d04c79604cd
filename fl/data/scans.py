"""Reading admitted scans again, and knowing that they are still the same images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.data.admission import MOST_FILE_BYTES, MOST_PIXELS, pixels_digest
from fl.errors import DataError
from kernels.decode import DecodeLimits, UnreadableImage, decode_gray

# Admission has judged these files by the job's own limits, so none is refused again: the widest that a job may set.
ADMITTED = DecodeLimits(min_side_pixels=1, max_pixels=MOST_PIXELS, max_bytes=MOST_FILE_BYTES)


def read_gray(path: Path, expected_pixels_sha256: str) -> NDArray[np.uint8]:
    """Return gray_HW uint8 of a scan. Raises DataError where the file vanished or changed since its admission."""
    with still_readable():
        gray_HW = decode_gray(path.read_bytes(), limits=ADMITTED, source=str(path))
    check_unchanged(path, gray_HW, expected_pixels_sha256)
    return gray_HW


@contextmanager
def still_readable() -> Iterator[None]:
    """Turn what reading raises into a DataError that says what to do; the cause names the file."""
    try:
        yield
    except (OSError, UnreadableImage) as error:
        raise DataError(
            f"{error}: was admitted, but cannot be read any more; restore the file or start a new run"
        ) from error


def check_unchanged(path: Path, gray_HW: NDArray[np.uint8], expected_pixels_sha256: str) -> None:
    """Raise DataError unless the plane is the one that was admitted."""
    if pixels_digest(gray_HW) != expected_pixels_sha256:
        raise DataError(f"{path}: changed since its admission; restore the file or start a new run")
