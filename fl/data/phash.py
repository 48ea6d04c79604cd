"""A 63-bit perceptual hash of a grey image, and Hamming distances between many of them.

Legend: H, W height and width; N, M images.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

NUM_BITS = 63
_REDUCED_SIDE = 32
_NUM_FREQUENCIES = 8
_CHUNK_ROWS = 256
_CHUNK_COLUMNS = 8192


def _cosines() -> NDArray[np.float64]:
    """The first rows of the unnormalised DCT-II matrix, float64 [8, 32]."""
    frequency = np.arange(_NUM_FREQUENCIES)[:, None]
    position = np.arange(_REDUCED_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * position + 1) / (2 * _REDUCED_SIDE))


_COSINES = _cosines()


def perceptual_hash(gray_HW: NDArray[np.uint8]) -> int:
    """Return the image's 63-bit DCT hash as a non-negative int; near-copies differ in few bits.

    Reduced to 32×32 by area averaging, transformed (DCT-II); the 8×8 lowest frequencies without the constant
    term are compared with their median, row by row, first bit highest. It is `imagehash.phash` but for area
    averaging instead of Lanczos and for the constant term. A flat image hashes to 0. It is not robust to
    mirroring or rotation, and it says nothing about whether two images show the same patient.
    """
    reduced_HW = cv2.resize(gray_HW, (_REDUCED_SIDE, _REDUCED_SIDE), interpolation=cv2.INTER_AREA)
    spectrum = _COSINES @ reduced_HW.astype(np.float64) @ _COSINES.T
    # Rounding removes the last digits, in which machines differ: without it a flat image would hash to noise.
    coefficients = spectrum.round(6).ravel()[1:]
    bits = np.concatenate([[False], coefficients > np.median(coefficients)])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_matches(
    hashes_N: Hashes, others_M: Hashes, max_distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield, chunk by chunk, the index pairs (n, m) whose Hamming distance is at most `max_distance`.

    Every pair of an element of the first array with one of the second is met once. Memory is bounded by the
    chunk (about 20 MB) plus the pairs in it, whatever N and M are.
    """
    for top in range(0, len(hashes_N), _CHUNK_ROWS):
        rows = hashes_N[top : top + _CHUNK_ROWS, None]
        for left in range(0, len(others_M), _CHUNK_COLUMNS):
            columns = others_M[None, left : left + _CHUNK_COLUMNS]
            row, column = np.nonzero(np.bitwise_count(rows ^ columns) <= max_distance)
            if len(row):
                yield row + top, column + left
