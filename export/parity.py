"""How far two ways of computing one network are apart, and how far they may be.

The bounds are shares of what the exact network (float32 in ONNX Runtime on the CPU) gives, one for values and one for
class maps. A map's places hang on where a maximum lies, and rounding may move a maximum to a neighbour as good; so for
maps the share of all they hold that lies elsewhere counts, not the largest difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.errors import ParityError

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """values: largest difference as a share of the output's largest value. maps: share of the maps lying elsewhere."""

    values: float
    maps: float


BOUNDS: dict[Precision, Bounds] = {
    "fp32": Bounds(values=1e-4, maps=1e-2),
    "tf32": Bounds(values=1e-2, maps=5e-2),
    "fp16": Bounds(values=1e-2, maps=5e-2),
    "bf16": Bounds(values=6e-2, maps=2e-1),
    "int8": Bounds(values=1e-1, maps=4e-1),
}
"""What each precision may differ by. Measured on the CPU, on three trained networks and 8 to 12 slices each: fp16 by
`export.precision.emulate` at most 2e-3 and 2e-2, bf16 1.4e-2 and 9e-2. tf32 has fp16's digits and its bounds. int8 is
held to ONNX Runtime on the int8 file itself, so that what counts is only how another library groups the roundings
(ONNX Runtime fused and not fused are 4e-2 and 2.3e-1 apart); what quantising costs is judged by macro-F1 elsewhere."""


def differences(truth: Mapping[str, NDArray[np.float32]], ours: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return each output's difference, as `Bounds` counts it: [N, ...] arrays of one shape, maps being those of 4 axes.

    Infinite where a value is not finite. Raises ParityError for outputs that are missing, empty
    or of another shape.
    """
    found: dict[str, float] = {}
    for name, true in truth.items():
        if name not in ours or ours[name].shape != true.shape:
            got = f"shape {ours[name].shape}" if name in ours else f"only {sorted(ours)}"
            raise ParityError(f"output {name} should have shape {true.shape}; got {got}. Build from the same file")
        if true.size == 0:
            raise ParityError(f"output {name} has shape {true.shape}: there is nothing to compare. Pass a few images")
        found[name] = _difference(true.astype(np.float64), ours[name].astype(np.float64))
    return found


def require_parity(found: Mapping[str, float], maps: frozenset[str], bounds: Bounds, *, who: str) -> None:
    """Raise ParityError unless every output is within its bound. maps: names of the outputs that are maps."""
    for name, worst in found.items():
        allowed = bounds.maps if name in maps else bounds.values
        if worst > allowed:
            raise ParityError(
                f"{who} gives {name} {worst:.3g} away from float32 in ONNX Runtime, allowed {allowed:g}. Do not serve "
                f"it: use a wider precision, or look for damaged weights; the bounds are not there to be raised"
            )


def maps_of(outputs: Mapping[str, NDArray[np.float32]]) -> frozenset[str]:
    """Return the names of the outputs that are maps: those of four axes."""
    return frozenset(name for name, value in outputs.items() if value.ndim == 4)


def _difference(true: NDArray[np.float64], ours: NDArray[np.float64]) -> float:
    gaps, sizes = np.abs(true - ours), np.abs(true)
    if not np.isfinite(gaps).all():
        return float("inf")
    gap, size = (gaps.sum(), sizes.sum()) if true.ndim == 4 else (gaps.max(), sizes.max())
    return float(gap / max(size, np.finfo(np.float32).tiny))
