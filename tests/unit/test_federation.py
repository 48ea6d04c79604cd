"""From admitted scans to a federation: simulated and real sites, what is shared, what leaks never."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fl.data.duplicates import near_duplicate_mask
from fl.data.federation import AdmittedScans, DataSettings, Federation, SharedSettings, build_federation
from fl.data.intake import list_sets, sort_outcomes
from fl.errors import DataError
from fl.types import CLASSES, Quarantined, Scan

FOLDER: dict[str, Any] = {"root": Path("/data"), "validation_fraction": 0.2}
IID = DataSettings.model_validate({**FOLDER, "partition": {"kind": "iid", "num_sites": 5}})
ONE_CLASS = DataSettings.model_validate({**FOLDER, "partition": {"kind": "one_class", "sites_per_class": 2}})
HOSPITALS = DataSettings.model_validate({**FOLDER, "partition": None})
HOLDOUT = SharedSettings(source="holdout", holdout_fraction=0.1)
SYNTHETIC = SharedSettings(source="synthetic")


def scans(prefix: str, per_class: int, labels: range = range(4)) -> tuple[Scan, ...]:
    """Scans whose pixels and hashes are far from all others."""
    random = np.random.default_rng(list(prefix.encode()))
    return tuple(
        Scan(
            path=Path(f"{prefix}/{CLASSES[label]}/{index}.jpg"),
            label=label,
            pixels_sha256=f"{prefix}-{label}-{index}",
            phash=int(random.integers(0, 2**63)),
            height=224,
            width=224,
        )
        for label in labels
        for index in range(per_class)
    )


def admitted(**sets: Any) -> AdmittedScans:
    return AdmittedScans(**{"training": scans("train", 40), "testing": scans("test", 6), "by_site": {}, **sets})


def build(data: DataSettings, shared: SharedSettings | None = None, seed: int = 7, **sets: Any) -> Federation:
    return build_federation(admitted(**sets), data, shared, seed=seed)


def labels(some: tuple[Scan, ...]) -> Counter[int]:
    return Counter(scan.label for scan in some)


def test_iid_federation_deals_all_scans_but_the_validation_ones() -> None:
    federation = build(IID)

    assert [site.name for site in federation.sites] == [f"site-{i:02d}" for i in range(5)]
    assert labels(federation.validation_scans) == dict.fromkeys(range(4), 8)
    everything = federation.training_scans + federation.validation_scans
    assert sorted(scan.pixels_sha256 for scan in everything) == sorted(s.pixels_sha256 for s in scans("train", 40))
    assert federation.test_scans == scans("test", 6)
    assert federation.shared_scans == () and not any(site.shared_scans for site in federation.sites)
    assert not federation.near_copies_T.any() and len(federation.near_copies_T) == 24
    assert federation.data_kind == "mri"


def test_one_class_sites_have_their_class_and_a_share_of_the_holdout_of_all() -> None:
    federation = build(ONE_CLASS, HOLDOUT)

    assert labels(federation.shared_scans) == dict.fromkeys(range(4), 4)
    assert len(federation.sites) == 8
    for site in federation.sites:
        assert {CLASSES[scan.label] for scan in site.scans} == {site.group}
        assert len(site.shared_scans) == 8 and set(site.shared_scans) <= set(federation.shared_scans)
    assert len({site.shared_scans for site in federation.sites}) == 8, "every site draws its own half"
    apart = [set(federation.training_scans), set(federation.validation_scans), set(federation.shared_scans)]
    assert sum(map(len, apart)) == len(set().union(*apart)) == 160


def test_synthetic_scans_are_shared_and_cost_the_sites_nothing() -> None:
    federation = build(ONE_CLASS, SYNTHETIC, synthetic=scans("synthetic", 10))

    assert federation.shared_scans == scans("synthetic", 10)
    assert len(federation.training_scans) == 128
    assert all(len(site.shared_scans) == 20 for site in federation.sites)


def test_phantoms_are_named_as_such() -> None:
    data = DataSettings.model_validate({"source": "phantom", "partition": {"kind": "iid", "num_sites": 2}})

    assert build(data).data_kind == "phantom"


def test_hospitals_keep_their_own_validation_and_are_pinned_where_asked() -> None:
    by_site = {"Bonn": scans("bonn", 10), "Aachen": scans("aachen", 20, range(1))}
    data = HOSPITALS.model_copy(update={"nodes": {"Bonn": "node_bonn"}})

    federation = build(data, training=(), by_site=by_site)

    aachen, bonn = federation.sites
    assert (aachen.name, aachen.group, aachen.node_resource) == ("Aachen", "glioma", None)
    assert (bonn.name, bonn.group, bonn.node_resource) == ("Bonn", "all", "node_bonn")
    assert len(aachen.validation_scans) == 4 and labels(bonn.validation_scans) == dict.fromkeys(range(4), 2)
    assert federation.validation_scans == ()
    assert federation.all_validation_scans == aachen.validation_scans + bonn.validation_scans
    for site in federation.sites:
        assert set(site.scans) | set(site.validation_scans) == set(by_site[site.name])
        assert not set(site.scans) & set(site.validation_scans)


def test_pin_of_an_unknown_site_lists_the_sites() -> None:
    data = HOSPITALS.model_copy(update={"nodes": {"Köln": "r"}})

    with pytest.raises(DataError, match=r"data\.nodes names Köln; the sites are Bonn"):
        build(data, training=(), by_site={"Bonn": scans("bonn", 10)})


def test_hospital_whose_files_were_all_refused_is_an_error_and_does_not_vanish() -> None:
    refused = Quarantined(path=Path("sites/Bonn/glioma/a.jpg"), reason="truncated", detail="...")
    outcomes = [*(("site Aachen", scan) for scan in scans("aachen", 10)), ("site Bonn", refused)]

    sorted_out = sort_outcomes(outcomes)

    assert sorted_out.quarantined == (refused,)
    with pytest.raises(DataError, match="'Bonn' has 0 usable scans"):
        build_federation(replace(sorted_out, testing=scans("test", 2)), HOSPITALS, None, seed=7)


def test_outcomes_are_sorted_by_set_in_their_order() -> None:
    sets = {"training": scans("a", 2), "testing": scans("b", 1), "synthetic": scans("c", 1), "site X": scans("d", 1)}

    sorted_out = sort_outcomes([(name, scan) for name, some in sets.items() for scan in some])

    found = (sorted_out.training, sorted_out.testing, sorted_out.synthetic, sorted_out.by_site["X"])
    assert found == tuple(sets.values())


@pytest.mark.parametrize(
    ("data", "shared", "sets", "message"),
    [
        (IID, None, {"by_site": {"Bonn": scans("bonn", 10)}}, r"real ones need data\.partition: null"),
        (HOSPITALS, None, {}, "has no sites/<name>/; simulated sites need a partition"),
        (IID, None, {"testing": ()}, "no usable test scan; expected Testing/<class>"),
        (HOSPITALS, HOLDOUT, {"by_site": {"Bonn": scans("bonn", 10)}}, "real hospitals' scans stay where they are"),
        (ONE_CLASS, SYNTHETIC, {"synthetic": scans("s", 3, range(1, 4))}, "its 9 scans have none of glioma"),
        (ONE_CLASS, SYNTHETIC, {}, "0 scans have none of glioma, meningioma, notumor, pituitary"),
        (IID, None, {"training": scans("t", 1)}, "site-04 would get 0 of 4|could be set apart for validation"),
    ],
)
def test_data_that_cannot_give_what_is_asked_is_an_error(
    data: DataSettings, shared: SharedSettings | None, sets: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build(data, shared, **sets)


def test_data_without_any_validation_scan_is_an_error() -> None:
    """Each class is one chain of copies, which may not be torn apart."""
    copies = tuple(replace(scan, phash=scan.label << 20) for scan in scans("train", 5))
    data = DataSettings.model_validate({**FOLDER, "partition": {"kind": "iid", "num_sites": 2}})

    with pytest.raises(DataError, match="no scan could be set apart for validation"):
        build(data, training=copies)


def test_copies_in_training_validation_and_shared_set_all_spoil_a_test_scan() -> None:
    clean = build(ONE_CLASS, SYNTHETIC, synthetic=scans("synthetic", 10))
    copied = {
        "training": clean.training_scans[0],
        "validation": clean.validation_scans[0],
        "shared": clean.shared_scans[0],
    }
    near = {name: replace(scan, pixels_sha256=f"near {name}", phash=scan.phash ^ 0b11) for name, scan in copied.items()}
    far = replace(copied["training"], pixels_sha256="far", phash=copied["training"].phash ^ 0b111)
    tests = (*copied.values(), *near.values(), far, *scans("test", 1))

    federation = build(ONE_CLASS, SYNTHETIC, synthetic=scans("synthetic", 10), testing=tests)

    assert federation.exact_copies_T.tolist() == [True] * 3 + [False] * 8
    assert federation.near_copies_T.tolist() == [True] * 6 + [False] * 5


def test_copies_in_a_hospitals_own_validation_spoil_a_test_scan() -> None:
    by_site = {"Bonn": scans("bonn", 10)}
    clean = build(HOSPITALS, training=(), by_site=by_site)

    spoilt = build(
        HOSPITALS, training=(), by_site=by_site, testing=(*scans("test", 1), clean.sites[0].validation_scans[0])
    )

    assert spoilt.near_copies_T.tolist() == [False] * 4 + [True]


def test_digest_changes_with_every_set_and_with_nothing_else() -> None:
    base = build(ONE_CLASS, HOLDOUT)
    moved = build(
        ONE_CLASS,
        HOLDOUT,
        training=tuple(replace(scan, path=Path("/elsewhere") / scan.path) for scan in scans("train", 40)),
    )
    relabelled = list(scans("test", 6))
    relabelled[0] = replace(relabelled[0], label=3)
    others = [
        build(ONE_CLASS, HOLDOUT, seed=8),
        build(ONE_CLASS),
        build(IID),
        build(ONE_CLASS, HOLDOUT, testing=tuple(relabelled)),
        build(ONE_CLASS, HOLDOUT, testing=scans("test", 5)),
        build(ONE_CLASS, HOLDOUT, training=scans("train", 41)),
    ]

    assert base.digest() == moved.digest()
    assert len({base.digest(), *(other.digest() for other in others)}) == 1 + len(others)


hashes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**12 - 1)), min_size=40, max_size=70)


@given(items=hashes, seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_no_near_copy_is_ever_in_two_of_training_validation_and_holdout(
    items: list[tuple[int, int]], seed: int
) -> None:
    crowded = tuple(
        Scan(path=Path(str(i)), label=label, pixels_sha256=str(i), phash=phash, height=64, width=64)
        for i, (label, phash) in enumerate(items)
    )
    data = DataSettings.model_validate({**FOLDER, "partition": {"kind": "iid", "num_sites": 1}})
    try:
        federation = build(data, HOLDOUT, seed=seed, training=crowded)
    except DataError:
        return  # one chain of copies for a class: told, and not torn

    sides = (federation.training_scans, federation.validation_scans, federation.shared_scans)
    assert sum(map(len, sides)) == len(crowded)
    for one in sides:
        assert not any(near_duplicate_mask(one, other).any() for other in sides if other is not one)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="root must name one"):
        DataSettings()
    with pytest.raises(ValidationError, match="set partition: null"):
        DataSettings.model_validate({**FOLDER, "partition": {"kind": "iid", "num_sites": 2}, "nodes": {"a": "b"}})


def test_hospital_folder_without_any_file_is_an_error_and_does_not_vanish(tmp_path: Path) -> None:
    (tmp_path / "sites" / "full" / "glioma").mkdir(parents=True)
    (tmp_path / "sites" / "full" / "glioma" / "a.jpg").touch()
    (tmp_path / "sites" / "bare" / "glioma").mkdir(parents=True)
    with pytest.raises(DataError, match=r"sites bare have no files"):
        list_sets(tmp_path, None)
    assert list_sets(tmp_path, None, elsewhere=["bare"]).num_files == 1
