"""Which scans are copies of one another: exactly (the same grey pixels) or nearly (perceptual hash).

Legend: N scans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fl.data.phash import Hashes, near_matches
from fl.types import Scan

NEAR_DISTANCE = 2
"""Hamming distance up to which two scans count as near-duplicates, of 63 bits."""


def exact_groups(scans: Sequence[Scan]) -> tuple[NDArray[np.int64], ...]:
    """Return index arrays of the scans that share their pixels with at least one other, in input order."""
    indices_by_pixels: defaultdict[str, list[int]] = defaultdict(list)
    for index, scan in enumerate(scans):
        indices_by_pixels[scan.pixels_sha256].append(index)
    return tuple(np.array(group) for group in indices_by_pixels.values() if len(group) > 1)


def exact_duplicate_mask(scans: Sequence[Scan], others: Sequence[Scan]) -> NDArray[np.bool_]:
    """Say of each scan whether `others` holds the very same pixels; bool [N]."""
    known = {other.pixels_sha256 for other in others}
    return np.fromiter((scan.pixels_sha256 in known for scan in scans), dtype=np.bool_, count=len(scans))


def near_duplicate_mask(
    test_scans: Sequence[Scan], train_scans: Sequence[Scan], max_distance: int = NEAR_DISTANCE
) -> NDArray[np.bool_]:
    """Say of each test scan whether a training scan is a copy or lies within `max_distance` bits; bool [N].

    The deduplicated accuracy is taken over the scans where this is False. Labels play no part.
    """
    mask_N = exact_duplicate_mask(test_scans, train_scans)
    unique_tests, unique_of_N = np.unique(hashes_of(test_scans), return_inverse=True)
    is_near = np.zeros(len(unique_tests), dtype=np.bool_)
    for rows, _ in near_matches(unique_tests, np.unique(hashes_of(train_scans)), max_distance):
        is_near[rows] = True
    return mask_N | is_near[unique_of_N]


def near_duplicates_within(scans: Sequence[Scan], max_distance: int = NEAR_DISTANCE) -> NDArray[np.bool_]:
    """Say of each scan whether another of the set is a copy or lies within `max_distance`; bool [N]."""
    hashes, hash_of_N, num_with_hash = np.unique(hashes_of(scans), return_inverse=True, return_counts=True)
    is_near = num_with_hash > 1
    for rows, columns in near_matches(hashes, hashes, max_distance):
        is_near[rows[rows != columns]] = True
    mask_N: NDArray[np.bool_] = is_near[hash_of_N]
    for group in exact_groups(scans):
        mask_N[group] = True
    return mask_N


def duplicate_groups(scans: Sequence[Scan], max_distance: int = NEAR_DISTANCE) -> NDArray[np.int64]:
    """Return a group number for each scan, int64 [N], numbered 0, 1, … by first appearance.

    Scans that are copies, or that a chain of near-copies links, share their number. A split that keeps whole
    groups on one side therefore has no near-copy across it.
    """
    if not scans:
        return np.zeros(0, dtype=np.int64)
    pixels_N = np.array(_codes(scan.pixels_sha256 for scan in scans))
    hashes, hash_of_N = np.unique(hashes_of(scans), return_inverse=True)
    # Nodes of the graph: first the distinct hashes, then the distinct pixels. Scans are edges between them:
    # a thousand copies of one image cost a thousand edges and not a million.
    rows = [hash_of_N]
    columns = [pixels_N + len(hashes)]
    for row, column in near_matches(hashes, hashes, max_distance):
        is_upper = row < column
        rows.append(row[is_upper])
        columns.append(column[is_upper])
    component_of_node = _components(np.concatenate(rows), np.concatenate(columns), num_nodes=len(hashes) + len(scans))
    return np.array(_codes(component_of_node[hash_of_N].tolist()), dtype=np.int64)


def hashes_of(scans: Sequence[Scan]) -> Hashes:
    """Gather the perceptual hashes, uint64 [N]."""
    return np.fromiter((scan.phash for scan in scans), dtype=np.uint64, count=len(scans))


def _codes(values: Iterable[Hashable]) -> list[int]:
    """Replace values by 0, 1, … in order of first appearance."""
    code_of: dict[Hashable, int] = {}
    return [code_of.setdefault(value, len(code_of)) for value in values]


def _components(rows: NDArray[np.int64], columns: NDArray[np.int64], *, num_nodes: int) -> NDArray[np.int64]:
    edges = coo_array((np.ones(len(rows), dtype=np.bool_), (rows, columns)), shape=(num_nodes, num_nodes))
    _, component_of_node = connected_components(edges, directed=False)
    return np.asarray(component_of_node, dtype=np.int64)
