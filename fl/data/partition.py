"""Deal training scans out to simulated sites: evenly, one class each, by Dirichlet draws, or unequally.

Legend: N scans, K sites, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fl.errors import DataError
from fl.random import stream
from fl.types import CLASSES, Scan

Indices = NDArray[np.int64]

_MAX_DIRICHLET_DRAWS = 500


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """One site's share: ascending, read-only indices into the scans that were dealt out."""

    name: str
    group: str
    indices: Indices


class _PartitionBase(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    min_examples_per_site: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Fewest scans a site may have; fewer is an error, not a small site",
    )


class _NumSites(_PartitionBase):
    num_sites: int = Field(description="Number of simulated sites", ge=1, le=10_000)


class IidPartition(_NumSites):
    """Shuffle and cut into equal parts (the study's Case 1)."""

    kind: Literal["iid"] = "iid"


class OneClassPartition(_PartitionBase):
    """Every site holds one class only (the study's hard case, and its Cases 2 and 3)."""

    kind: Literal["one_class"] = "one_class"
    sites_per_class: int = Field(default=4, ge=1, le=2_500, description="Sites for each class, of equal size")


class DirichletPartition(_NumSites):
    """Each class is spread over the sites in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019)."""

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(
        default=0.5,
        ge=0.01,
        le=10_000,
        description="Small: each site sees few classes. Large: all sites look alike",
    )


class QuantitySkewPartition(_NumSites):
    """The same mixture of classes everywhere, but site sizes drawn from Dirichlet(alpha)."""

    kind: Literal["quantity_skew"] = "quantity_skew"
    alpha: float = Field(
        default=0.5,
        ge=0.01,
        le=10_000,
        description="Small: few sites hold nearly everything. Large: equal sizes",
    )


PartitionSettings = Annotated[
    IidPartition | OneClassPartition | DirichletPartition | QuantitySkewPartition, Field(discriminator="kind")
]


def partition(scans: Sequence[Scan], settings: PartitionSettings, seed: int) -> tuple[Part, ...]:
    """Deal out all scans: every one goes to exactly one site. The same arguments give the same parts.

    One-class sites are named `glioma-00`, …, the others `site-00`, …. Raises DataError where there are too
    few scans for what is asked. Duplicates are not kept together: sites only train, and two hospitals may
    well hold copies of the same image.
    """
    labels_N = np.fromiter((scan.label for scan in scans), dtype=np.int64, count=len(scans))
    parts = PARTITIONERS[settings.kind](labels_N, settings, stream(seed, "partition", settings.kind))
    smallest = min(parts, key=lambda part: len(part.indices))
    if len(smallest.indices) < settings.min_examples_per_site:
        raise DataError(
            f"partition {settings.kind}: site {smallest.name} would get {len(smallest.indices)} of "
            f"{len(scans)} scans, but min_examples_per_site is {settings.min_examples_per_site}; "
            f"ask for fewer sites than {len(parts)}, lower the minimum, or bring more scans"
        )
    return parts


def _iid(labels_N: Indices, settings: IidPartition, random: np.random.Generator) -> tuple[Part, ...]:
    return _named("site", "all", np.array_split(random.permutation(len(labels_N)), settings.num_sites))


def _one_class(labels_N: Indices, settings: OneClassPartition, random: np.random.Generator) -> tuple[Part, ...]:
    parts: list[Part] = []
    for label, name in enumerate(CLASSES):
        shuffled = random.permutation(np.flatnonzero(labels_N == label))
        parts += _named(name, name, np.array_split(shuffled, settings.sites_per_class))
    return tuple(parts)


def _dirichlet(labels_N: Indices, settings: DirichletPartition, random: np.random.Generator) -> tuple[Part, ...]:
    """Draw until every site has its minimum, as is usual; each class is cut at its cumulative proportions."""
    num_needed = settings.num_sites * settings.min_examples_per_site
    num_draws = _MAX_DIRICHLET_DRAWS if num_needed <= len(labels_N) else 0
    most_in_smallest = 0
    for _ in range(num_draws):
        site_of_N = np.empty(len(labels_N), dtype=np.int64)
        for label in range(len(CLASSES)):
            members = random.permutation(np.flatnonzero(labels_N == label))
            proportions_K = random.dirichlet(np.full(settings.num_sites, settings.alpha))
            sizes_K = apportion(len(members), proportions_K)
            site_of_N[members] = np.repeat(np.arange(settings.num_sites), sizes_K)
        num_in_smallest = int(np.bincount(site_of_N, minlength=settings.num_sites).min())
        if num_in_smallest >= settings.min_examples_per_site:
            shares = [np.flatnonzero(site_of_N == site) for site in range(settings.num_sites)]
            return _named("site", "all", shares)
        most_in_smallest = max(most_in_smallest, num_in_smallest)
    raise DataError(
        f"partition dirichlet: {len(labels_N)} scans cannot be spread over {settings.num_sites} sites with "
        f"alpha {settings.alpha} and min_examples_per_site {settings.min_examples_per_site} (at least "
        f"{num_needed} scans): of {num_draws} draws the best left a site with {most_in_smallest}; "
        "raise alpha, ask for fewer sites or lower the minimum"
    )


def _quantity_skew(labels_N: Indices, settings: QuantitySkewPartition, random: np.random.Generator) -> tuple[Part, ...]:
    """Every site gets its minimum; what is left is dealt out in the drawn proportions."""
    num_left = len(labels_N) - settings.num_sites * settings.min_examples_per_site
    if num_left < 0:
        raise DataError(
            f"partition quantity_skew: {settings.num_sites} sites with min_examples_per_site "
            f"{settings.min_examples_per_site} need {len(labels_N) - num_left} scans, but there are "
            f"{len(labels_N)}; ask for fewer sites or lower the minimum"
        )
    proportions_K = random.dirichlet(np.full(settings.num_sites, settings.alpha))
    sizes_K = settings.min_examples_per_site + apportion(num_left, proportions_K)
    shuffled = random.permutation(len(labels_N))
    return _named("site", "all", np.split(shuffled, np.cumsum(sizes_K)[:-1]))


def apportion(num_items: int, proportions_K: NDArray[np.float64]) -> Indices:
    """Round proportions to whole numbers that add up to `num_items` (largest remainders)."""
    exact_K = num_items * proportions_K
    sizes_K = np.floor(exact_K).astype(np.int64)
    by_remainder_K = np.argsort(sizes_K - exact_K, kind="stable")
    sizes_K[by_remainder_K[: num_items - int(sizes_K.sum())]] += 1
    return sizes_K


def _named(prefix: str, group: str, shares: Sequence[Indices]) -> tuple[Part, ...]:
    num_digits = max(2, len(str(len(shares) - 1)))
    parts = []
    for number, share in enumerate(shares):
        indices = np.sort(share)
        indices.setflags(write=False)
        parts.append(Part(name=f"{prefix}-{number:0{num_digits}d}", group=group, indices=indices))
    return tuple(parts)


_Partitioner = Callable[[Indices, Any, np.random.Generator], tuple[Part, ...]]

PARTITIONERS: dict[str, _Partitioner] = {
    "iid": _iid,
    "one_class": _one_class,
    "dirichlet": _dirichlet,
    "quantity_skew": _quantity_skew,
}
"""How each `kind` of PartitionSettings is dealt out."""
