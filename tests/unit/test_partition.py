"""Names, groups and sizes of the parts, and how impossible requests are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fl.data.partition import (
    PARTITIONERS,
    DirichletPartition,
    IidPartition,
    OneClassPartition,
    PartitionSettings,
    QuantitySkewPartition,
    partition,
)
from fl.data.sites import SharingSettings, hospital_sites, share, simulated_sites
from fl.errors import DataError
from fl.types import Scan, Site


def make_scans(*num_by_class: int) -> list[Scan]:
    """Scans with distinct pixels and distant hashes."""
    random = np.random.default_rng(1)
    return [
        Scan(
            path=Path(f"{label}-{index}.jpg"),
            label=label,
            pixels_sha256=f"{label}-{index}",
            phash=int(random.integers(0, 2**63)),
            height=224,
            width=224,
        )
        for label, count in enumerate(num_by_class)
        for index in range(count)
    ]


def test_iid_parts_are_equal_to_one_scan_and_mixed() -> None:
    scans = make_scans(132, 134, 160, 146)

    parts = partition(scans, IidPartition(num_sites=15), seed=7)

    assert [part.name for part in parts] == [f"site-{number:02d}" for number in range(15)]
    assert {part.group for part in parts} == {"all"}
    assert {len(part.indices) for part in parts} == {38, 39}
    assert all(len({scans[index].label for index in part.indices}) == 4 for part in parts)


def test_one_class_sites_are_named_after_their_class_and_hold_nothing_else() -> None:
    scans = make_scans(21, 8, 8, 9)

    sites = simulated_sites(scans, OneClassPartition(sites_per_class=4), seed=7)

    assert [site.name for site in sites[:5]] == [
        "glioma-00",
        "glioma-01",
        "glioma-02",
        "glioma-03",
        "meningioma-00",
    ]
    assert [site.group for site in sites] == [site.name[:-3] for site in sites]
    assert [site.num_examples for site in sites[:4]] == [6, 5, 5, 5]
    assert all(len({scan.label for scan in site.scans}) == 1 for site in sites)


@pytest.mark.parametrize(
    "settings",
    [
        IidPartition(num_sites=2),
        OneClassPartition(sites_per_class=2),
        DirichletPartition(num_sites=2, alpha=100),
        QuantitySkewPartition(num_sites=2, alpha=100),
    ],
    ids=lambda settings: settings.kind,
)
def test_scans_are_shuffled_before_they_are_dealt_out(settings: PartitionSettings) -> None:
    """Neighbouring files are often slices of one patient, so cutting runs would be a different experiment."""
    for part in partition(make_scans(60, 60, 60, 60), settings, seed=4):
        assert (np.diff(part.indices) > 1).sum() > 5


def test_names_get_as_many_digits_as_they_need() -> None:
    parts = partition(make_scans(101), IidPartition(num_sites=101), seed=0)

    assert (parts[0].name, parts[-1].name) == ("site-000", "site-100")
    assert partition(make_scans(100), IidPartition(num_sites=100), seed=0)[-1].name == "site-99"


def test_dirichlet_alpha_sets_how_alike_the_sites_are() -> None:
    scans = make_scans(400, 400, 400, 400)

    def mean_largest_share(alpha: float) -> float:
        parts = partition(scans, DirichletPartition(num_sites=8, alpha=alpha), seed=3)
        counts = [Counter(scans[index].label for index in part.indices) for part in parts]
        return float(np.mean([max(count.values()) / sum(count.values()) for count in counts]))

    assert mean_largest_share(0.1) > 0.6
    assert mean_largest_share(1_000) < 0.32


def test_quantity_skew_varies_sizes_and_keeps_the_minimum() -> None:
    scans = make_scans(250, 250, 250, 250)

    parts = partition(scans, QuantitySkewPartition(num_sites=20, alpha=0.1, min_examples_per_site=7), seed=3)

    sizes = [len(part.indices) for part in parts]
    assert min(sizes) >= 7 and max(sizes) > 150 and sum(sizes) == 1_000


def test_seed_decides_and_parts_cannot_be_written_to() -> None:
    scans = make_scans(50, 50, 50, 50)
    settings = IidPartition(num_sites=4)

    first, again, other = (partition(scans, settings, seed) for seed in (1, 1, 2))

    assert [part.indices.tolist() for part in first] == [part.indices.tolist() for part in again]
    assert [part.indices.tolist() for part in first] != [part.indices.tolist() for part in other]
    with pytest.raises(ValueError, match="read-only"):
        first[0].indices[0] = 0


@pytest.mark.parametrize(
    "settings, message",
    [
        (IidPartition(num_sites=13), r"site-12 would get 0 of 12 scans, but min_examples_per_site is 1"),
        (IidPartition(num_sites=4, min_examples_per_site=4), r"would get 3 of 12 scans.*is 4; ask for fewer"),
        (OneClassPartition(sites_per_class=3), r"pituitary-02 would get 0"),
        (DirichletPartition(num_sites=7, min_examples_per_site=2), r"12 scans.*7 sites.*at least 14"),
        (DirichletPartition(num_sites=6, alpha=0.01, min_examples_per_site=2), r"of 500 draws.*raise alpha"),
        (QuantitySkewPartition(num_sites=5, min_examples_per_site=3), r"need 15 scans, but there are 12"),
    ],
)
def test_impossible_requests_say_the_numbers_and_what_to_do(settings: PartitionSettings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition(make_scans(4, 3, 3, 2), settings, seed=0)


def test_one_class_needs_scans_of_every_class() -> None:
    with pytest.raises(DataError, match="notumor-00 would get 0 of 20"):
        partition(make_scans(10, 10), OneClassPartition(sites_per_class=2), seed=0)


def test_settings_are_told_apart_by_kind_and_refuse_strange_fields() -> None:
    adapter: TypeAdapter[PartitionSettings] = TypeAdapter(PartitionSettings)

    parsed = [
        adapter.validate_python({"kind": "one_class", "sites_per_class": 8}),
        *(adapter.validate_python({"kind": kind, "num_sites": 5}) for kind in ("iid", "dirichlet", "quantity_skew")),
    ]

    assert {settings.kind for settings in parsed} == set(PARTITIONERS)
    with pytest.raises(ValidationError, match="alpha"):
        adapter.validate_python({"kind": "iid", "num_sites": 5, "alpha": 1})
    with pytest.raises(ValidationError, match="one_class"):
        adapter.validate_python({"kind": "two_class", "num_sites": 5})


def test_each_site_gets_its_own_random_half_of_the_shared_scans() -> None:
    sites = simulated_sites(make_scans(40, 40, 40, 40), OneClassPartition(sites_per_class=2), seed=5)
    shared = make_scans(25, 25, 25, 26)

    with_shared = share(sites, shared, SharingSettings(), seed=5)

    assert [site.scans for site in with_shared] == [site.scans for site in sites]
    assert {len(site.shared_scans) for site in with_shared} == {51}
    assert len({site.shared_scans for site in with_shared}) == len(sites)
    assert all(len(set(site.shared_scans)) == 51 and set(site.shared_scans) <= set(shared) for site in with_shared)
    # A site's part does not depend on who else takes part.
    assert share(sites[3:4], shared, SharingSettings(), seed=5) == with_shared[3:4]
    assert share(sites, shared, SharingSettings(fraction_per_site=1), seed=5)[0].shared_scans == tuple(shared)
    assert share(sites, shared, SharingSettings(fraction_per_site=0), seed=5) == sites


def test_hospital_sites_split_their_own_scans_and_know_when_they_have_one_class() -> None:
    folders = {"north": make_scans(20, 20, 20, 20), "east": make_scans(0, 30)}

    east, north = hospital_sites(folders, validation_fraction=0.1, seed=2)

    assert (east.name, east.group, north.group) == ("east", "meningioma", "all")
    assert (len(north.scans), len(north.validation_scans)) == (72, 8)
    assert Counter(scan.label for scan in north.validation_scans) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert not set(north.scans) & set(north.validation_scans)
    assert isinstance(east, Site) and east.num_examples == 27


def test_hospital_without_usable_scans_is_named() -> None:
    with pytest.raises(DataError, match="site 'west' has 0 usable scans"):
        hospital_sites({"west": []}, validation_fraction=0.1, seed=2)
    with pytest.raises(DataError, match="no hospital sites"):
        hospital_sites({}, validation_fraction=0.1, seed=2)
