"""Laws of every partition: disjoint, complete, deterministic, at least the minimum everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl.data.partition import (
    DirichletPartition,
    IidPartition,
    OneClassPartition,
    PartitionSettings,
    QuantitySkewPartition,
    partition,
)
from fl.errors import DataError
from fl.types import CLASSES, Scan

num_sites = st.integers(1, 12)
minimum = st.integers(1, 4)
alphas = st.floats(0.01, 10_000)

settings_of_any_kind = st.one_of(
    st.builds(IidPartition, num_sites=num_sites, min_examples_per_site=minimum),
    st.builds(OneClassPartition, sites_per_class=st.integers(1, 5), min_examples_per_site=minimum),
    st.builds(DirichletPartition, num_sites=st.integers(1, 6), alpha=alphas, min_examples_per_site=minimum),
    st.builds(QuantitySkewPartition, num_sites=num_sites, alpha=alphas, min_examples_per_site=minimum),
)
scan_lists = st.lists(st.integers(0, 3), max_size=60).map(
    lambda labels: [
        Scan(path=Path(str(index)), label=label, pixels_sha256=str(index), phash=index, height=64, width=64)
        for index, label in enumerate(labels)
    ]
)


@given(scans=scan_lists, settings=settings_of_any_kind, seed=st.integers(0, 2**63 - 1))
def test_every_scan_goes_to_exactly_one_site_or_the_request_is_refused(
    scans: list[Scan], settings: PartitionSettings, seed: int
) -> None:
    try:
        parts = partition(scans, settings, seed)
    except DataError:
        return

    assert sorted(np.concatenate([part.indices for part in parts]).tolist()) == list(range(len(scans)))
    assert all(len(part.indices) >= settings.min_examples_per_site for part in parts)
    assert len({part.name for part in parts}) == len(parts)
    assert all(part.group == "all" or part.name.startswith(f"{part.group}-") for part in parts)
    again = partition(scans, settings, seed)
    assert [part.indices.tolist() for part in again] == [part.indices.tolist() for part in parts]


@given(scans=scan_lists, seed=st.integers(0, 99), sites_per_class=st.integers(1, 4))
def test_one_class_sites_never_mix_labels(scans: list[Scan], seed: int, sites_per_class: int) -> None:
    try:
        parts = partition(scans, OneClassPartition(sites_per_class=sites_per_class), seed)
    except DataError:
        fewest = min(sum(scan.label == label for scan in scans) for label in range(len(CLASSES)))
        assert fewest < sites_per_class
        return

    assert len(parts) == sites_per_class * len(CLASSES)
    assert all({CLASSES[scans[index].label] for index in part.indices} == {part.group} for part in parts)


@given(scans=scan_lists, sites=num_sites, seed=st.integers(0, 99))
def test_iid_sizes_differ_by_one_at_most_and_only_too_few_scans_are_refused(
    scans: list[Scan], sites: int, seed: int
) -> None:
    try:
        parts = partition(scans, IidPartition(num_sites=sites), seed)
    except DataError:
        assert len(scans) < sites
        return

    sizes = [len(part.indices) for part in parts]
    assert max(sizes) - min(sizes) <= 1
