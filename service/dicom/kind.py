"""Whether a file is DICOM, told without pydicom, which takes half a second to import."""

from __future__ import annotations

PREFIX = slice(128, 132)
"""Where a file says that it is DICOM (PS3.10, section 7.1)."""


def is_dicom(data: bytes) -> bool:
    """Tell whether a file's bytes are a DICOM file with a preamble."""
    return data[PREFIX] == b"DICM"
