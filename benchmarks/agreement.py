"""Whether two ways computed the same: exactly, or within the levels that Intel's rounding is known to cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.reference import normalize
from kernels.spec import PreprocessSpec

SAME_LEVEL = 1e-4
"""The same 8-bit level everywhere: what is left is the last bit of normalising it in another order of operations."""
SAME_LEVEL_BFLOAT16 = 1.0
"""As SAME_LEVEL; where that last bit decides how bfloat16 is rounded, a step is about a level."""
IPP_LEVELS = 3.0
"""IPP's bilateral filter cuts fractions off where OpenCV rounds: one grey level, up to three after BONE and resize."""
IPP_LEVELS_BFLOAT16 = 4.0
"""As IPP_LEVELS; steps of bfloat16 are about a level wide, so a value may land one further off."""


def within_levels(spec: PreprocessSpec, most_levels: float) -> Callable[[Any, Any], str | None]:
    """Compare network inputs of `spec`; the difference is told in levels of 0 to 255, most_levels are allowed.

    Either side is float32, bfloat16 or its bits as uint16, [..., 3, S, S]; or levels uint8 [S, S, 3] (blue green red),
    which are normalised first; or a list of those.
    """
    std_C = np.array(spec.normalization.std, np.float32)[:, None, None]

    def differs(ours: Any, theirs: Any) -> str | None:
        ours_NCHW, theirs_NCHW = _as_float32(ours, spec), _as_float32(theirs, spec)
        if ours_NCHW.shape != theirs_NCHW.shape:
            return f"shape {ours_NCHW.shape} against {theirs_NCHW.shape}"
        off_NCHW = np.abs(ours_NCHW - theirs_NCHW) * std_C / np.float32(spec.normalization.scale)
        # A level is a float quotient here: it comes out a few millionths too large or too small.
        if (most := float(off_NCHW.max())) <= most_levels * 1.001:
            return None
        return (
            f"{np.mean(off_NCHW > 0):.2%} of the values differ, by up to {most:.3g} levels; {most_levels:g} are allowed"
        )

    return differs


def identical(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> str | None:
    """Compare lists of arrays, or the items of two arrays, for equal shapes and values."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    wrong = [place for place, (one, other) in pairs if not np.array_equal(one, other)]
    return f"{len(wrong)} of {len(ours)} items differ, first item {wrong[0]}" if wrong else None


def _as_float32(images: Any, spec: PreprocessSpec) -> NDArray[np.float32]:
    if isinstance(images, list):
        return np.stack([_as_float32(image, spec) for image in images])
    if isinstance(images, torch.Tensor):
        return np.asarray(images.float().numpy(), np.float32)
    if images.dtype == np.uint8:
        return normalize(images, spec)
    if images.dtype == np.uint16:
        images = (images.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(images, np.float32)
