"""Laws of the stratified split: disjoint, complete, no group on both sides, near the asked share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl.data.duplicates import duplicate_groups, near_duplicate_mask
from fl.data.splits import stratified_split
from fl.types import CLASSES, Scan

fractions = st.floats(0, 0.99)
seeds = st.integers(0, 2**63 - 1)
# Pairs of (label, group); few groups, so that many span classes.
labelled_groups = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 14)), max_size=70)
# Pairs of (label, hash); hashes of few bits, so that many are near and chains form.
labelled_hashes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**14 - 1)), max_size=50)


def make_scans(labels_and_hashes: list[tuple[int, int]]) -> list[Scan]:
    return [
        Scan(path=Path(str(index)), label=label, pixels_sha256=str(index), phash=phash, height=64, width=64)
        for index, (label, phash) in enumerate(labels_and_hashes)
    ]


@given(items=labelled_groups, fraction=fractions, seed=seeds)
def test_sides_are_disjoint_complete_and_share_no_group(
    items: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    groups = np.array([group for _, group in items], dtype=np.int64)

    split = stratified_split(make_scans(items), fraction, seed, "validation", groups)

    assert sorted([*split.selected.tolist(), *split.remaining.tolist()]) == list(range(len(items)))
    assert not set(groups[split.selected]) & set(groups[split.remaining])
    again = stratified_split(make_scans(items), fraction, seed, "validation", groups)
    assert np.array_equal(again.selected, split.selected)


@given(items=labelled_groups, fraction=fractions, seed=seeds)
def test_each_class_gets_its_share_to_within_its_largest_group(
    items: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    labels = np.array([label for label, _ in items], dtype=np.int64)
    groups = np.array([group * len(CLASSES) + label for label, group in items], dtype=np.int64)

    split = stratified_split(make_scans(items), fraction, seed, "validation", groups)

    for label in set(labels.tolist()):
        group_sizes = np.unique(groups[labels == label], return_counts=True)[1]
        num_selected = int((labels[split.selected] == label).sum())
        assert abs(num_selected - fraction * group_sizes.sum()) <= group_sizes.max()
        if fraction > 0 and len(group_sizes) > 1:
            assert 0 < num_selected < group_sizes.sum()


@given(items=labelled_hashes, fraction=fractions, seed=seeds)
def test_no_near_copy_is_ever_on_the_other_side(items: list[tuple[int, int]], fraction: float, seed: int) -> None:
    scans = make_scans(items)

    split = stratified_split(scans, fraction, seed, "validation")

    selected = [scans[index] for index in split.selected]
    assert not near_duplicate_mask(selected, [scans[index] for index in split.remaining]).any()


@given(items=labelled_hashes)
def test_groups_are_exactly_the_connected_components_of_nearness(items: list[tuple[int, int]]) -> None:
    group_of = list(range(len(items)))
    for i, (_, first) in enumerate(items):
        for j, (_, second) in enumerate(items[:i]):
            if (first ^ second).bit_count() <= 2:
                old, new = group_of[i], group_of[j]
                group_of = [new if group == old else group for group in group_of]

    groups = duplicate_groups(make_scans(items))

    pairs = set(zip(groups.tolist(), group_of, strict=True))
    assert len(pairs) == len(set(groups.tolist())) == len(set(group_of))
