"""Which sites take part in a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from fl.random import stream
from fl.types import Site

Sampling = Literal["uniform", "stratified"]


def _uniform(sites: Sequence[Site], participation: float, generator: np.random.Generator) -> list[Site]:
    count = max(1, round(participation * len(sites)))
    return [sites[i] for i in sorted(generator.choice(len(sites), count, replace=False))]


def _stratified(sites: Sequence[Site], participation: float, generator: np.random.Generator) -> list[Site]:
    groups = sorted({site.group for site in sites})
    return [
        site
        for group in groups
        for site in _uniform([member for member in sites if member.group == group], participation, generator)
    ]


SAMPLINGS: Mapping[Sampling, Callable[[Sequence[Site], float, np.random.Generator], list[Site]]] = {
    "uniform": _uniform,
    "stratified": _stratified,
}


def select_sites(
    sites: Sequence[Site], *, sampling: Sampling, participation: float, seed: int, round: int
) -> tuple[Site, ...]:
    """Return the participants of a round: a function of the seed and the round alone.

    uniform: a fraction of all sites. stratified: that fraction of each group's sites, at least one of each.
    """
    return tuple(SAMPLINGS[sampling](sites, participation, stream(seed, "participation", round)))
