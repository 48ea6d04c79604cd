# ruff: noqa: N999
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIDE: int
MAX_PIXELS: int
MAX_THREADS: int

_Corners = tuple[int, int, int, int]

def bone_table() -> bytes: ...
def largest_contour(mask: NDArray[np.uint8]) -> _Corners | None: ...
def resize(gray: NDArray[np.uint8], out: NDArray[np.uint8]) -> None: ...
def denoise(crops: NDArray[np.uint8], out: NDArray[np.uint8], num_threads: int) -> None: ...
def gray(image: NDArray[np.uint8], out: NDArray[np.uint8], bgr: bool) -> None: ...
def crop(
    images: Sequence[NDArray[np.uint8]], out: NDArray[np.uint8], bgr: bool, num_threads: int
) -> list[_Corners | None]: ...
def finish(
    crops: NDArray[np.uint8],
    out: NDArray[Any],
    channel: Sequence[int],
    scale: float,
    mean: Sequence[float],
    stddev: Sequence[float],
    num_threads: int,
) -> None: ...
def color(
    crops: NDArray[np.uint8],
    out: NDArray[Any],
    channel: Sequence[int],
    scale: float,
    mean: Sequence[float],
    stddev: Sequence[float],
    num_threads: int,
) -> None: ...
def preprocess(
    images: Sequence[NDArray[np.uint8]],
    out: NDArray[Any],
    found: NDArray[np.bool_],
    bgr: bool,
    channel: Sequence[int],
    scale: float,
    mean: Sequence[float],
    stddev: Sequence[float],
    num_threads: int,
) -> None: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
