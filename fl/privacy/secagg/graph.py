"""Who masks with whom: a k-regular graph over the sites, and how large k must be (SecAgg+, Bell et al. 2020).

The sites stand on a ring in an order drawn by hashing; each is joined to the k/2 before and the k/2 behind it (a
Harary graph, k-connected). With k = n - 1 the graph is complete and the protocol is that of Bonawitz et al. (2017).

A round is private while the honest survivors are connected by masks, for the server learns the sum of every connected
part, and while no honest site has `threshold` colluding neighbours, for those could rebuild its keys. It ends well
while every site's secrets still have `threshold` living holders. `choose_degree` finds the smallest k that keeps all
three for a given number of colluding and of dropping sites: for certain where the numbers allow, else up to a
probability over the order on the ring.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, inf, lgamma, log, log2

SECURITY_BITS = 40
"""Largest admitted probability of a graph that is not private: 2^-40, the usual statistical security parameter."""

COMPLETE_UP_TO = 8
"""As many sites always mask with all others: it costs little, and more than was stated may then collude or drop out."""

FAILURE_BITS = 20
"""Largest admitted probability of a round that fails though no more sites drop out than stated: 2^-20."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Degree:
    """Size of a neighbourhood and what it is worth.

    threshold: shares that rebuild a secret, of neighbours + 1 holders (the site holds one of its own).
    privacy_bits, survival_bits: the stated numbers of colluding and dropping sites break privacy, or fail the round,
    with a probability of at most 2^-bits over the order on the ring; inf where no order can.
    """

    neighbours: int
    threshold: int
    privacy_bits: float
    survival_bits: float


def ring_order(sites: Sequence[str], address: bytes) -> tuple[str, ...]:
    """Return the sites in the order of SHA-256(address, name): the same everywhere, unknown before the address is."""
    return tuple(sorted(sites, key=lambda site: hashlib.sha256(address + site.encode()).digest()))


def ring_neighbours(order: Sequence[str], site: str, degree: int) -> tuple[str, ...]:
    """Return the sites that `site` masks with, sorted by name; degree is even, or all others."""
    if degree == len(order) - 1:
        return tuple(sorted(other for other in order if other != site))
    place = order.index(site)
    offsets = [offset for offset in range(-(degree // 2), degree // 2 + 1) if offset]
    return tuple(sorted(order[(place + offset) % len(order)] for offset in offsets))


@lru_cache(maxsize=64)
def choose_degree(num_sites: int, colluding: int, dropping: int) -> Degree:
    """Return the smallest neighbourhood that admits `colluding` sites beside the server and `dropping` drop-outs.

    The threshold is the largest that still survives the drop-outs, and always more than half of the holders: then a
    server that tells two halves of a neighbourhood different survivors gets neither half's answer to suffice.
    For few sites, or where no smaller graph will do, it is the complete one, with the largest threshold that survives
    the drop-outs.
    """
    if num_sites < 2 or colluding < 0 or dropping < 0:
        raise ValueError(f"{num_sites} sites, {colluding} colluding, {dropping} dropping: expected >= 2, >= 0, >= 0")
    smallest = 2 if num_sites > COMPLETE_UP_TO else num_sites
    for neighbours in range(smallest, num_sites - 1, 2):
        least = (neighbours + 1) // 2 + 1
        survived = bisect_left(
            range(least, neighbours + 2),
            True,
            key=lambda threshold: _survival_bits(num_sites, neighbours, threshold, dropping) < FAILURE_BITS,
        )
        if survived:
            degree = rate_degree(num_sites, neighbours, least + survived - 1, colluding, dropping)
            if degree.privacy_bits >= SECURITY_BITS:
                return degree
    threshold = max(num_sites - dropping, num_sites // 2 + 1)
    return rate_degree(num_sites, num_sites - 1, threshold, colluding, dropping)


def rate_degree(num_sites: int, neighbours: int, threshold: int, colluding: int, dropping: int) -> Degree:
    """Return what a neighbourhood is worth: union bounds over hypergeometric tails."""
    exposed = log2(num_sites) + _log2_tail(num_sites - 1, colluding, neighbours, threshold)
    return Degree(
        neighbours=neighbours,
        threshold=threshold,
        privacy_bits=_bits_of_any(_log2_disconnected(num_sites, neighbours, colluding + dropping), exposed),
        survival_bits=_survival_bits(num_sites, neighbours, threshold, dropping),
    )


def _survival_bits(n: int, k: int, threshold: int, dropping: int) -> float:
    """Of a survivor k + 2 - threshold neighbours must drop out to lose its secret, of a drop-out one fewer."""
    if not dropping:
        return inf
    survivor = log2(n) + _log2_tail(n - 1, dropping, k, k + 2 - threshold)
    dropped = log2(dropping) + _log2_tail(n - 1, dropping - 1, k, k + 1 - threshold)
    return _bits_of_any(survivor, dropped)


def _log2_disconnected(n: int, k: int, missing: int) -> float:
    """Bound the probability that the ring without `missing` of its sites falls apart.

    Two neighbours on the ring of those that are left stay joined over a gap of fewer than k/2, and one wider gap
    leaves a path. So it takes two separate runs of k/2 missing sites: a union bound over all pairs of runs.
    """
    if k >= n - 1 or missing < k:
        return -inf
    return log2(comb(n, 2)) + sum(log2((missing - place) / (n - place)) for place in range(k))


def _log2_tail(population: int, marked: int, draws: int, least: int) -> float:
    """log2 P[X >= least] for X marked ones among `draws` without replacement; -inf where it cannot be."""
    least = max(least, 0, draws + marked - population)
    most = min(marked, draws)
    if least > most:
        return -inf
    first = _log2_comb(marked, least) + _log2_comb(population - marked, draws - least) - _log2_comb(population, draws)
    total = term = 1.0  # relative to the first
    for hits in range(least, most):
        term *= (marked - hits) * (draws - hits) / ((hits + 1) * (population - marked - draws + hits + 1))
        total += term
    return min(first + log2(total), 0.0)


def _log2_comb(n: int, k: int) -> float:
    return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)


def _bits_of_any(*log2_probabilities: float) -> float:
    """-log2 of the sum of probabilities."""
    largest = max(log2_probabilities)
    if largest == -inf:
        return inf
    return -(largest + log2(sum(2 ** (other - largest) for other in log2_probabilities)))
