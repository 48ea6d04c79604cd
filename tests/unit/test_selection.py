"""Who takes part: counts for each sampling, and a choice that seed and round alone decide."""

from __future__ import annotations

from collections import Counter

import pytest

from fl.server.selection import Sampling, select_sites
from fl.types import CLASSES, Site


def one_class_sites(per_class: int) -> list[Site]:
    return [Site(name=f"{name}-{i:02d}", group=name, scans=()) for name in CLASSES for i in range(per_class)]


def names(sites: list[Site], sampling: Sampling, participation: float, seed: int = 7, round: int = 1) -> list[str]:
    chosen = select_sites(sites, sampling=sampling, participation=participation, seed=seed, round=round)
    return [site.name for site in chosen]


@pytest.mark.parametrize(("num_sites", "participation", "expected"), [(15, 0.5, 8), (50, 0.5, 25), (4, 1.0, 4)])
def test_uniform_takes_that_fraction_of_all(num_sites: int, participation: float, expected: int) -> None:
    sites = [Site(name=f"site-{i:02d}", scans=()) for i in range(num_sites)]

    chosen = names(sites, "uniform", participation)

    assert len(chosen) == len(set(chosen)) == expected


def test_at_least_one_site_takes_part() -> None:
    assert len(names(one_class_sites(1), "uniform", 0.01)) == 1
    assert len(names(one_class_sites(3), "stratified", 0.01)) == len(CLASSES)


@pytest.mark.parametrize(("per_class", "expected"), [(4, 2), (8, 4), (10, 5), (1, 1)])
def test_stratified_takes_that_fraction_of_each_class(per_class: int, expected: int) -> None:
    sites = one_class_sites(per_class)

    for round in range(1, 6):
        chosen = names(sites, "stratified", 0.5, round=round)
        assert Counter(name.rpartition("-")[0] for name in chosen) == dict.fromkeys(CLASSES, expected)


def test_uniform_sampling_knows_no_groups() -> None:
    sites = one_class_sites(4)

    rounds = [Counter(name.rpartition("-")[0] for name in names(sites, "uniform", 0.5, round=r)) for r in range(20)]

    assert any(counts != dict.fromkeys(CLASSES, 2) for counts in rounds)


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_choice_is_a_function_of_seed_and_round(sampling: Sampling) -> None:
    sites = one_class_sites(4)
    rounds = [tuple(names(sites, sampling, 0.5, round=round)) for round in range(1, 11)]

    backwards = [tuple(names(sites, sampling, 0.5, round=round)) for round in range(10, 0, -1)]

    assert rounds == backwards[::-1]
    assert len(set(rounds)) > 5, "rounds hardly differ"
    assert rounds != [tuple(names(sites, sampling, 0.5, seed=8, round=round)) for round in range(1, 11)]


def test_every_site_has_its_turn() -> None:
    sites = one_class_sites(4)
    seen = Counter(name for round in range(40) for name in names(sites, "uniform", 0.5, round=round))

    assert len(seen) == 16 and min(seen.values()) >= 10
