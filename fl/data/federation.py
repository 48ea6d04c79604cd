"""From admitted scans to a federation: sites, shared set, validation, test, and what is known about copies.

Pure: scans in, one frozen value out. Reading folders is `layout` and `admission`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl.data.admission import AdmissionSettings
from fl.data.duplicates import exact_duplicate_mask, near_duplicate_mask
from fl.data.partition import PartitionSettings
from fl.data.phantoms.settings import PhantomSettings
from fl.data.sites import SharingSettings, hospital_sites, share, simulated_sites
from fl.data.splits import SplitSettings, split_training
from fl.errors import DataError
from fl.types import CLASSES, Quarantined, Scan, Site

DataKind = Literal["phantom", "mri"]


class DataSettings(BaseModel):
    """Which scans, whose, and what is held back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["phantom", "folder"] = Field(
        "folder", description="phantom: the embedded generated data set. folder: real scans under `root`."
    )
    root: Path | None = Field(
        None,
        description="Training|Testing/<class>/* (Kaggle), or sites/<name>/<class>/* plus Testing/<class>/*.",
    )
    phantom: PhantomSettings = Field(default_factory=PhantomSettings, description="For source `phantom`.")
    partition: PartitionSettings | None = Field(
        None, description="How Training is dealt to simulated sites; null where the folder holds real sites."
    )
    validation_fraction: float = Field(0.1, gt=0, le=0.5, description="Of the training scans; never the test set.")
    admission: AdmissionSettings = Field(default_factory=AdmissionSettings, description="What counts as an image.")
    nodes: dict[str, str] = Field(
        default_factory=dict,
        description="Site name to the Ray custom resource of the node that holds its folder.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Phantoms and features; null: $GLIOFED_CACHE or ~/.cache/gliofed. May grow to several GB.",
    )

    @model_validator(mode="after")
    def _root_goes_with_folder(self) -> Self:
        if self.source == "folder" and self.root is None:
            raise ValueError("source is `folder`, so root must name one; or choose source: phantom")
        if self.nodes and self.partition is not None:
            raise ValueError("nodes pins real sites; with a partition sites are simulated, set partition: null")
        return self


class SharedSettings(SharingSettings):
    """What the federation shares with its sites and warms up on (Case 2 and 3 of the study)."""

    source: Literal["holdout", "synthetic"] = Field(
        description="holdout: a stratified part of Training. synthetic: generated images."
    )
    holdout_fraction: float = Field(0.05, gt=0, lt=0.5, description="Part of each class of Training, for `holdout`.")
    folder: Path | None = Field(
        None,
        description="Folder <class>/* of generated images, for `synthetic`; null: Synthetic/ under the root.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmittedScans:
    """What admission let in, by set. by_site is empty where sites are simulated from `training`."""

    training: tuple[Scan, ...] = ()
    testing: tuple[Scan, ...] = ()
    synthetic: tuple[Scan, ...] = ()
    by_site: Mapping[str, tuple[Scan, ...]]
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Federation:
    """Everything about the data that the rest of the journey needs.

    validation_scans: the coordinator's; hospitals keep their own in `Site.validation_scans`. near_copies_T: which
    test scans have a near-copy among anything trained or validated on; exact_copies_T: a pixel-for-pixel copy.
    """

    data_kind: DataKind
    sites: tuple[Site, ...]
    shared_scans: tuple[Scan, ...]
    validation_scans: tuple[Scan, ...]
    test_scans: tuple[Scan, ...]
    near_copies_T: NDArray[np.bool_]
    exact_copies_T: NDArray[np.bool_]
    quarantined: tuple[Quarantined, ...]

    @property
    def training_scans(self) -> tuple[Scan, ...]:
        """All sites' own training scans."""
        return tuple(scan for site in self.sites for scan in site.scans)

    @property
    def all_validation_scans(self) -> tuple[Scan, ...]:
        """The coordinator's and every site's."""
        return self.validation_scans + tuple(scan for site in self.sites for scan in site.validation_scans)

    def digest(self) -> str:
        """Return a digest of which pixels and labels each site, split and shared set holds."""
        digest = hashlib.sha256()
        for name, scans in self._named_sets():
            digest.update(f"\n{name}\n".encode())
            digest.update("".join(f"{scan.pixels_sha256}{scan.label}" for scan in scans).encode())
        return digest.hexdigest()

    def _named_sets(self) -> Iterable[tuple[str, Sequence[Scan]]]:
        for site in self.sites:
            yield f"site {site.name}", site.scans
            yield f"shared {site.name}", site.shared_scans
            yield f"validation {site.name}", site.validation_scans
        yield from (
            ("shared", self.shared_scans),
            ("validation", self.validation_scans),
            ("test", self.test_scans),
        )


def build_federation(
    admitted: AdmittedScans, data: DataSettings, shared: SharedSettings | None, *, seed: int
) -> Federation:
    """Split, partition and share admitted scans. Raises DataError where the data cannot give what is asked."""
    if bool(admitted.by_site) == (data.partition is not None):
        raise DataError(
            f"data.partition is {data.partition}, and {data.root} {'holds' if admitted.by_site else 'has no'} "
            "sites/<name>/; simulated sites need a partition, real ones need data.partition: null"
        )
    if not admitted.testing:
        raise DataError(f"{data.root}: no usable test scan; expected Testing/<class>/* beside the training data")
    holdout_fraction = shared.holdout_fraction if shared is not None and shared.source == "holdout" else 0.0
    if admitted.by_site:
        if holdout_fraction:
            raise DataError(
                "shared.source is `holdout`, but real hospitals' scans stay where they are; share synthetic images"
            )
        sites = hospital_sites(admitted.by_site, data.validation_fraction, seed)
        sites = _pin(sites, data.nodes)
        validation: tuple[Scan, ...] = ()
        holdout: tuple[Scan, ...] = ()
    else:
        settings = SplitSettings(validation_fraction=data.validation_fraction, holdout_fraction=holdout_fraction)
        split = split_training(admitted.training, settings, seed)
        validation, holdout = split.validation_scans, split.holdout_scans
        assert data.partition is not None
        sites = simulated_sites(split.training_scans, data.partition, seed)
    shared_scans = _shared_scans(shared, holdout, admitted.synthetic)
    if shared is not None:
        sites = share(sites, shared_scans, shared, seed)
    seen = [
        *(scan for site in sites for scan in (*site.scans, *site.validation_scans)),
        *validation,
        *shared_scans,
    ]
    if not validation and not any(site.validation_scans for site in sites):
        raise DataError(
            f"{data.root}: no scan could be set apart for validation (every class is one group of near-copies); "
            "bring more different scans"
        )
    return Federation(
        data_kind="phantom" if data.source == "phantom" else "mri",
        sites=sites,
        shared_scans=shared_scans,
        validation_scans=validation,
        test_scans=admitted.testing,
        near_copies_T=near_duplicate_mask(admitted.testing, seen),
        exact_copies_T=exact_duplicate_mask(admitted.testing, seen),
        quarantined=admitted.quarantined,
    )


def _shared_scans(
    shared: SharedSettings | None, holdout: tuple[Scan, ...], synthetic: tuple[Scan, ...]
) -> tuple[Scan, ...]:
    if shared is None:
        return ()
    scans = holdout if shared.source == "holdout" else synthetic
    missing = [name for label, name in enumerate(CLASSES) if all(scan.label != label for scan in scans)]
    if missing:
        raise DataError(
            f"shared.source is `{shared.source}`, but its {len(scans)} scans have none of {', '.join(missing)}; "
            "give shared.folder (or Synthetic/ under data.root) images of every class"
        )
    return scans


def _pin(sites: Sequence[Site], nodes: Mapping[str, str]) -> tuple[Site, ...]:
    unknown = sorted(set(nodes) - {site.name for site in sites})
    if unknown:
        raise DataError(
            f"data.nodes names {', '.join(unknown)}; the sites are {', '.join(site.name for site in sites)}"
        )
    return tuple(replace(site, node_resource=nodes.get(site.name)) for site in sites)
