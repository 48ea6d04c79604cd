"""What preprocessing means, as one small value that travels with the model.

Training writes a PreprocessSpec into the bundle and serving reads it back, so the two cannot drift apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

CROP_SIZE = 256
SEMANTICS = "bone-v1"
MAX_SIZE = 2048


class SpecError(ValueError):
    """A stored or given preprocessing definition that this version does not carry out."""


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


class Box(NamedTuple):
    """Columns [left, right) and rows [top, bottom) of an image, in pixels."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """The head at a fixed size: crop_HW uint8 [256, 256]; box None means no contour, whole image used."""

    crop_HW: NDArray[np.uint8]
    box: Box | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """Maps BONE levels 0..255 to network input: (level * scale - mean[c]) / std[c].

    Computed as gain * level + offset, rounded once, with gain = scale / std and offset = -mean / std in float32.
    c counts in channel_order, which is also the order of the output planes.
    """

    channel_order: Literal["rgb", "bgr"]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.channel_order not in ("rgb", "bgr"):
            raise SpecError(f"channel_order is {self.channel_order!r}, expected 'rgb' or 'bgr'")
        if not _is_number(self.scale, 1e-6, 1e6):
            raise SpecError(f"scale is {self.scale!r}, expected a number of 1e-6 to 1e6")
        for name, values, low in (("mean", self.mean, -1e6), ("std", self.std, 1e-6)):
            triple = isinstance(values, tuple) and len(values) == 3
            if not triple or not all(_is_number(value, low, 1e6) for value in values):
                raise SpecError(f"{name} is {values!r}, expected a tuple of three numbers of {low} to 1e6")


UNIT = Normalization(channel_order="bgr", scale=1 / 255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessSpec:
    """The whole definition: semantics name, output side in pixels, normalisation.

    "bone-v1": head region by Gaussian blur, threshold 45 and the largest contour; 256x256; bilateral filter;
    BONE map in 8 bits; bilinear resize in 8 bits; normalisation in float32.
    """

    semantics: str = SEMANTICS
    size: int = 200
    normalization: Normalization = UNIT

    def __post_init__(self) -> None:
        if self.semantics != SEMANTICS:
            raise SpecError(f"semantics is {self.semantics!r}; this version carries out {SEMANTICS!r} only")
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            raise SpecError(f"size is {self.size!r}, expected an int of 1 to {MAX_SIZE}")
        if not isinstance(self.normalization, Normalization):
            raise SpecError(f"normalization is {self.normalization!r}, expected a Normalization")

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values; from_json gives back an equal spec."""
        values = asdict(self)
        values["normalization"]["mean"] = list(self.normalization.mean)
        values["normalization"]["std"] = list(self.normalization.std)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PreprocessSpec:
        """Inverse of to_json. Raises SpecError for missing or unknown keys and unknown semantics."""
        _require_keys("preprocess spec", values, cls)
        inner = values["normalization"]
        _require_keys("normalization", inner, Normalization)
        normalization = Normalization(
            channel_order=inner["channel_order"],
            scale=inner["scale"],
            mean=_triple("mean", inner["mean"]),
            std=_triple("std", inner["std"]),
        )
        return cls(semantics=values["semantics"], size=values["size"], normalization=normalization)

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: part of every key under which features are stored."""
        canonical = json.dumps(_floats(self.to_json()), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _floats(values: dict[str, Any]) -> dict[str, Any]:
    # 1 and 1.0 are equal specs, so they must not differ as text.
    inner = values["normalization"]
    numbers = {name: [float(v) for v in inner[name]] for name in ("mean", "std")}
    return values | {"normalization": inner | numbers | {"scale": float(inner["scale"])}}


def _triple(name: str, values: object) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise SpecError(f"{name} is {values!r}, expected three numbers")
    return (values[0], values[1], values[2])


def _require_keys(what: str, values: object, owner: type[PreprocessSpec] | type[Normalization]) -> None:
    expected = {field.name for field in fields(owner)}
    if not isinstance(values, Mapping):
        raise SpecError(f"{what} is {values!r}, expected an object with keys {sorted(expected)}")
    missing, unknown = sorted(expected - set(values)), sorted(map(str, set(values) - expected))
    if missing or unknown:
        raise SpecError(
            f"{what} has missing keys {missing} and unknown keys {unknown}, expected {sorted(expected)}; "
            "it was probably written by another version"
        )
