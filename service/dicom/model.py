"""The model that answers, as the DICOM side sees it, and the identifiers that its results get."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.answer import Answer

_ROOT = uuid.UUID("8f0c6a43-41a5-5b57-9c0e-6a1d7c2be1f4")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Which model answered. digest: the bundle's SHA-256, hex. software: gliofed's own version."""

    name: str
    version: str
    digest: str
    precision: str
    software: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A model ready to answer.

    answer: grey slices uint8 [H,W] to one answer each. draw: a slice and its answer to a picture of where the model
    looked, uint8 BGR [H,W,3].
    """

    identity: ModelIdentity
    answer: Callable[[Sequence[NDArray[np.uint8]]], list[Answer]]
    draw: Callable[[NDArray[np.uint8], Answer], NDArray[np.uint8]]


def derived_uid(*parts: object) -> str:
    """Return the UID that belongs to these texts: 2.25 and a name-based UUID (PS3.5 B.2), always the same."""
    return f"2.25.{uuid.uuid5(_ROOT, '|'.join(str(part) for part in parts)).int}"
