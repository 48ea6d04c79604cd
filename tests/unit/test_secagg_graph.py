"""The graph of masks: its laws, and that the stated numbers of colluding and dropping sites are really withstood."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import ceil, inf

import pytest

from fl.privacy.secagg.graph import (
    COMPLETE_UP_TO,
    FAILURE_BITS,
    SECURITY_BITS,
    choose_degree,
    rate_degree,
    ring_neighbours,
    ring_order,
)

Graph = dict[str, tuple[str, ...]]


def graph(num_sites: int, degree: int, address: bytes = b"round 1") -> Graph:
    order = ring_order([f"site-{number}" for number in range(num_sites)], address)
    return {site: ring_neighbours(order, site, degree) for site in order}


def connected(links: Graph, left: Iterable[str]) -> bool:
    left = set(left)
    reached, frontier = set(), [next(iter(left))]
    while frontier:
        site = frontier.pop()
        if site not in reached:
            reached.add(site)
            frontier += [peer for peer in links[site] if peer in left]
    return reached == left


@pytest.mark.parametrize(("num_sites", "degree"), [(2, 1), (3, 2), (7, 6), (9, 2), (16, 8), (17, 6), (100, 36)])
def test_graph_is_regular_symmetric_and_connected(num_sites: int, degree: int) -> None:
    links = graph(num_sites, degree)

    for site, peers in links.items():
        assert len(set(peers)) == degree and site not in peers
        assert all(site in links[peer] for peer in peers)
    assert connected(links, links)


def test_graph_follows_from_its_address_alone() -> None:
    sites = [f"site-{number}" for number in range(30)]

    assert ring_order(sites, b"round 1") == ring_order(sites[::-1], b"round 1")
    assert ring_order(sites, b"round 1") != ring_order(sites, b"round 2")


def test_no_seven_of_sixteen_sites_part_a_graph_of_eight_neighbours() -> None:
    links = graph(16, 8)

    assert all(connected(links, set(links) - set(gone)) for gone in combinations(links, 7))


def test_choice_for_sixteen_sites_withstands_three_colluding_and_four_dropping_for_certain() -> None:
    degree = choose_degree(16, 3, 4)

    assert (degree.neighbours, degree.threshold) == (8, 5)
    assert degree.privacy_bits == degree.survival_bits == inf


@pytest.mark.parametrize(("colluding", "dropping"), [(0.1, 0.1), (0.15, 0.2), (0.2, 0.25), (0.4, 0.4)])
@pytest.mark.parametrize("num_sites", [3, 8, 9, 16, 30, 100, 400])
def test_choice_reaches_both_bounds_or_is_the_complete_graph(num_sites: int, colluding: float, dropping: float) -> None:
    lost = min(ceil(dropping * num_sites), num_sites - 2)
    degree = choose_degree(num_sites, ceil(colluding * num_sites), lost)

    assert 2 * degree.threshold > degree.neighbours + 1
    if degree.neighbours < num_sites - 1:
        assert num_sites > COMPLETE_UP_TO and degree.neighbours % 2 == 0
        assert degree.privacy_bits >= SECURITY_BITS and degree.survival_bits >= FAILURE_BITS


@pytest.mark.parametrize(
    ("n", "k", "threshold", "colluding", "dropping"), [(10, 4, 3, 3, 3), (12, 4, 4, 4, 2), (10, 4, 5, 3, 1)]
)
def test_bounds_hold_against_every_set_of_colluding_and_dropping_sites(
    n: int, k: int, threshold: int, colluding: int, dropping: int
) -> None:
    """The order on the ring is uniform, so counting all sets on one ring is counting all orders for one set."""
    links = graph(n, k)
    broken = failed = total = 0
    for gone in combinations(links, dropping):
        alive = set(links) - set(gone)
        # a survivor holds one of its own shares; a drop-out's key shares lie with its living neighbours
        failed += any(len(alive & set(links[site])) + (site in alive) < threshold for site in links)
        for corrupt in combinations(links, colluding):
            total += 1
            honest = alive - set(corrupt)
            exposed = any(len(set(corrupt) & set(links[site])) >= threshold for site in set(links) - set(corrupt))
            broken += exposed or (len(honest) > 0 and not connected(links, honest))
    sets_dropping = total // sum(1 for _ in combinations(links, colluding))
    rated = rate_degree(n, k, threshold, colluding, dropping)

    assert 0 < broken / total <= 2**-rated.privacy_bits
    assert 0 < failed / sets_dropping <= 2**-rated.survival_bits


def test_impossible_numbers_are_refused() -> None:
    for num_sites, colluding, dropping in ((1, 0, 0), (5, -1, 0), (5, 0, -1)):
        with pytest.raises(ValueError, match="expected >= 2"):
            choose_degree(num_sites, colluding, dropping)
