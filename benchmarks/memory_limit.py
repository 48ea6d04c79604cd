"""The least time in which memory can take a batch in and give a batch out, measured and not looked up."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from benchmarks.case import Run

# Not zero: some processors clear lines without sending them, three times as fast as any data can go.
PATTERN_BYTE = 0x5A
PATTERN_WORD = 0x5A5A5A5A


def moves(source: NDArray[np.uint8], target: NDArray[np.generic]) -> tuple[Run, ...]:
    """Runs that read every byte of `source` and write every byte of `target`, and compute nothing.

    Both arrays are C-contiguous. Reading is a maximum over vectors of bytes; writing is the C library's memset, which
    goes past the caches for large blocks, or NumPy's fill, which does not. Which is faster depends on the sizes.
    """
    flat, words = source.reshape(-1), target.reshape(-1).view(np.uint32)

    def read_then_memset() -> None:
        np.maximum.reduce(flat)
        ctypes.memset(target.ctypes.data, PATTERN_BYTE, target.nbytes)

    def read_then_fill() -> None:
        np.maximum.reduce(flat)
        words.fill(PATTERN_WORD)

    return read_then_memset, read_then_fill
