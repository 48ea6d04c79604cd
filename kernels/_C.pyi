# ruff: noqa: N999
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_SIDE: int
MAX_PIXELS: int
MAX_OUTPUT_SIDE: int
MAX_THREADS: int

def bone_table() -> bytes: ...
def largest_contour(mask: NDArray[np.uint8]) -> tuple[int, int, int, int] | None: ...
def resize(gray: NDArray[np.uint8], out: NDArray[np.uint8]) -> None: ...
def denoise(crop: NDArray[np.uint8], out: NDArray[np.uint8]) -> None: ...
def crop(gray: NDArray[np.uint8], out: NDArray[np.uint8]) -> tuple[int, int, int, int] | None: ...
def finish(
    crops: NDArray[np.uint8],
    out: NDArray[np.float32],
    channel: Sequence[int],
    scale: float,
    mean: Sequence[float],
    stddev: Sequence[float],
    num_threads: int,
) -> None: ...
def preprocess(
    grays: Sequence[NDArray[np.uint8]],
    out: NDArray[np.float32],
    found: NDArray[np.bool_],
    channel: Sequence[int],
    scale: float,
    mean: Sequence[float],
    stddev: Sequence[float],
    num_threads: int,
) -> None: ...
