"""Images and the scores they must give wherever a bundle is installed.

Shape legend: N images, H W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle.encoding import npy_bytes, parse_npy
from export.bundle.layout import GRAYS, INT8_LOGITS, LOGITS
from export.errors import BundleError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Golden:
    """Golden images with their scores.

    grays_NHW: uint8, before preprocessing. They travel in the clear: use phantoms, never a patient's.
    logits_NC, int8_logits_NC: float32, as the exporting machine computed them with model.onnx and with
    model.int8.onnx; the latter None where there is no such model.
    """

    grays_NHW: NDArray[np.uint8]
    logits_NC: NDArray[np.float32]
    int8_logits_NC: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        grays = self.grays_NHW
        if grays.ndim != 3 or grays.dtype != np.uint8 or grays.size == 0:
            raise BundleError(GRAYS, f"golden images must be uint8 [N,H,W], N >= 1; got {grays.dtype} {grays.shape}")
        _check_scores(LOGITS, self.logits_NC, (len(grays), *self.logits_NC.shape[1:]))
        if self.int8_logits_NC is not None:
            _check_scores(INT8_LOGITS, self.int8_logits_NC, self.logits_NC.shape)

    def to_files(self) -> dict[str, bytes]:
        """Return the files of a bundle that hold this, by name."""
        arrays: dict[str, NDArray[Any]] = {GRAYS: self.grays_NHW, LOGITS: self.logits_NC}
        if self.int8_logits_NC is not None:
            arrays[INT8_LOGITS] = self.int8_logits_NC
        return {name: npy_bytes(array) for name, array in arrays.items()}

    @classmethod
    def from_files(cls, names: Collection[str], read: Callable[[str], bytes]) -> Golden | None:
        """Return what the files of a bundle hold, None where it has no golden images."""
        if GRAYS not in names:
            return None
        arrays = {name: parse_npy(name, read(name)) for name in (GRAYS, LOGITS, INT8_LOGITS) if name in names}
        return cls(grays_NHW=arrays[GRAYS], logits_NC=arrays[LOGITS], int8_logits_NC=arrays.get(INT8_LOGITS))


def _check_scores(name: str, logits_NC: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if logits_NC.ndim != 2 or logits_NC.dtype != np.float32 or logits_NC.shape != shape:
        raise BundleError(name, f"expected float32 [{shape[0]},C]; got {logits_NC.dtype} {logits_NC.shape}")
    if not np.isfinite(logits_NC).all():
        raise BundleError(name, "golden scores must be finite; compute them again with a healthy model")
