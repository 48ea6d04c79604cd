"""Make the federation's sites, from dealt-out scans or hospitals' own folders, and share scans with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fl.data.partition import PartitionSettings, partition
from fl.data.splits import stratified_split
from fl.errors import DataError
from fl.random import stream
from fl.types import CLASSES, Scan, Site


class SharingSettings(BaseModel):
    """How much of the shared set (a holdout, or synthetic images) every site trains on besides its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction_per_site: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Random part of the shared scans that each site receives (study: a half)",
    )


def simulated_sites(scans: Sequence[Scan], settings: PartitionSettings, seed: int) -> tuple[Site, ...]:
    """Deal training scans out to simulated sites, as `partition` does. Errors: those of `partition`."""
    return tuple(
        Site(name=part.name, group=part.group, scans=tuple(scans[index] for index in part.indices))
        for part in partition(scans, settings, seed)
    )


def hospital_sites(
    scans_by_site: Mapping[str, Sequence[Scan]], validation_fraction: float, seed: int
) -> tuple[Site, ...]:
    """Make one site of each hospital's folder, with its own training/validation split, in name order.

    Within a site no near-copy lies on both sides. Copies between hospitals are not looked for: no hospital
    sees another's scans; `gliofed data audit` on their folders shows them where one party may read all.
    Raises DataError for a site that has no scan to train on.
    """
    if not scans_by_site:
        raise DataError("no hospital sites were given; expected at least one folder under sites/")
    return tuple(_hospital_site(name, scans_by_site[name], validation_fraction, seed) for name in sorted(scans_by_site))


def share(
    sites: Sequence[Site], shared_scans: Sequence[Scan], settings: SharingSettings, seed: int
) -> tuple[Site, ...]:
    """Give each site its own random part of the shared scans, in place of what it had.

    The part depends on the seed, the site's name and the shared scans, not on which other sites there are. It
    is drawn without regard to class, as the study does.
    """
    return tuple(replace(site, shared_scans=_random_part(shared_scans, settings, seed, site.name)) for site in sites)


def _hospital_site(name: str, scans: Sequence[Scan], validation_fraction: float, seed: int) -> Site:
    split = stratified_split(scans, validation_fraction, seed, f"validation of site {name}")
    if not len(split.remaining):
        raise DataError(f"site {name!r} has {len(scans)} usable scans; expected at least one to train on")
    labels = {scan.label for scan in scans}
    return Site(
        name=name,
        scans=tuple(scans[index] for index in split.remaining),
        validation_scans=tuple(scans[index] for index in split.selected),
        group=CLASSES[labels.pop()] if len(labels) == 1 else "all",
    )


def _random_part(scans: Sequence[Scan], settings: SharingSettings, seed: int, site_name: str) -> tuple[Scan, ...]:
    num_chosen = int(np.floor(len(scans) * settings.fraction_per_site + 0.5))
    chosen = stream(seed, "shared", site_name).permutation(len(scans))[:num_chosen]
    return tuple(scans[index] for index in np.sort(chosen))
