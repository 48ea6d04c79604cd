"""Held-out scans are dealt to sites by what each site is like."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fl.evaluation.personal import local_scans
from fl.types import Scan, Site


def scans(label: int, count: int, prefix: str = "t") -> tuple[Scan, ...]:
    return tuple(
        Scan(
            path=Path(f"{prefix}{label}{i}.png"),
            label=label,
            pixels_sha256=f"{prefix}{label}-{i}",
            phash=0,
            height=64,
            width=64,
        )
        for i in range(count)
    )


SITES = (
    Site(name="mostly-glioma", scans=scans(0, 30) + scans(1, 10)),
    Site(name="meningioma-only", scans=scans(1, 30)),
    Site(name="nothing-like-the-test", scans=scans(3, 5)),
)
HELD_OUT = scans(0, 8, "h") + scans(1, 8, "h") + scans(2, 8, "h")


def test_each_site_gets_its_own_distribution_and_no_scan_twice() -> None:
    dealt = local_scans(SITES, HELD_OUT, seed=7)

    labels = {name: Counter(scan.label for scan in own) for name, own in dealt.items()}
    assert labels == {"mostly-glioma": {0: 8, 1: 2}, "meningioma-only": {1: 6}}
    given = [scan.pixels_sha256 for own in dealt.values() for scan in own]
    assert len(given) == len(set(given))


def test_the_deal_is_by_address() -> None:
    assert local_scans(SITES, HELD_OUT, seed=7) == local_scans(SITES, HELD_OUT, seed=7)
    assert local_scans(SITES, HELD_OUT, seed=7) != local_scans(SITES, HELD_OUT, seed=8)


def test_a_hospital_is_measured_on_what_it_kept_itself() -> None:
    kept = scans(2, 3, "own")
    hospital = Site(name="h", scans=scans(0, 30), validation_scans=kept)

    dealt = local_scans((hospital, SITES[0]), HELD_OUT, seed=7)

    assert dealt["h"] == kept
    assert Counter(scan.label for scan in dealt["mostly-glioma"]) == {0: 8, 1: 8}
