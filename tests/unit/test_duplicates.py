"""Chunked matching against the plain loop, group numbering, and memory at the size of a large archive."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fl.data.duplicates import (
    duplicate_groups,
    exact_duplicate_mask,
    exact_groups,
    near_duplicate_mask,
    near_duplicates_within,
)
from fl.data.phash import near_matches
from fl.types import Scan


def scan(pixels: str, phash: int, label: int = 0) -> Scan:
    return Scan(path=Path(pixels), label=label, pixels_sha256=pixels, phash=phash, height=224, width=224)


def scans_of(hashes: np.ndarray) -> list[Scan]:
    return [scan(f"p{index}", int(phash)) for index, phash in enumerate(hashes)]


@pytest.mark.parametrize("num_rows, num_columns", [(0, 5), (5, 0), (1, 1), (257, 83), (300, 8195)])
def test_chunked_matches_equal_the_plain_loop(num_rows: int, num_columns: int) -> None:
    random = np.random.default_rng(num_rows)
    rows = random.integers(0, 2**10, num_rows, dtype=np.uint64) << np.uint64(53)
    columns = random.integers(0, 2**10, num_columns, dtype=np.uint64) << np.uint64(53)

    found = [pair for chunk in near_matches(rows, columns, 2) for pair in zip(*chunk, strict=True)]

    column_list = columns.tolist()
    expected = {
        (i, j)
        for i, row in enumerate(rows.tolist())
        for j, column in enumerate(column_list)
        if (row ^ column).bit_count() <= 2
    }
    assert len(found) == len(expected)
    assert set(found) == expected


def test_mask_marks_copies_and_neighbours_up_to_the_distance() -> None:
    train = [scan("a", 0b0000), scan("b", 0b1111 << 40)]
    test = [scan("a", 0b0111 << 20), scan("c", 0b0011), scan("d", 0b0111), scan("e", 0b1111 << 40)]

    assert near_duplicate_mask(test, train).tolist() == [True, True, False, True]
    assert near_duplicate_mask(test, train, max_distance=3).tolist() == [True, True, True, True]
    assert near_duplicate_mask(test, train, max_distance=0).tolist() == [True, False, False, True]
    assert exact_duplicate_mask(test, train).tolist() == [True, False, False, False]
    assert near_duplicate_mask([], train).tolist() == []
    assert near_duplicate_mask(test, []).tolist() == [False] * 4


def test_near_duplicates_within_a_set_need_another_scan() -> None:
    scans = [scan("a", 0), scan("b", 0b11), scan("c", 0b111 << 30), scan("d", 1 << 62), scan("d", 0b11 << 50)]

    assert near_duplicates_within(scans).tolist() == [True, True, False, True, True]
    assert near_duplicates_within(scans[2:3]).tolist() == [False]
    assert near_duplicates_within([]).tolist() == []


def test_exact_groups_list_only_shared_pixels_in_order() -> None:
    scans = [scan("b", 0), scan("a", 0), scan("b", 0), scan("c", 0), scan("a", 0)]

    assert [group.tolist() for group in exact_groups(scans)] == [[0, 2], [1, 4]]


def test_groups_follow_chains_of_copies_and_near_copies() -> None:
    scans = [
        scan("far", 0b11111 << 30),
        scan("a", 0b0000),
        scan("b", 0b0011),
        scan("c", 0b1111),  # 4 bits from a, but 2 from b
        scan("far", 0b11111 << 50),  # same pixels as the first
        scan("alone", 0b10101010101),
    ]

    assert duplicate_groups(scans).tolist() == [0, 1, 1, 1, 0, 2]
    assert duplicate_groups(scans, max_distance=0).tolist() == [0, 1, 2, 3, 0, 4]
    assert duplicate_groups([]).tolist() == []


def test_twenty_thousand_scans_stay_far_below_500_megabytes() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 20_000, dtype=np.uint64)
    hashes[:6_000] = hashes[0]  # one image six thousand times: 36 million pairs if they were listed
    hashes[7_000:8_000] = hashes[8_000:9_000] ^ np.uint64(3)
    scans = scans_of(hashes)

    tracemalloc.start()
    mask_N = near_duplicate_mask(scans, scans)
    groups_N = duplicate_groups(scans)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert mask_N.all()
    assert groups_N.max() + 1 == 20_000 - 5_999 - 1_000
    assert peak_bytes < 100e6
