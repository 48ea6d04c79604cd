"""Admission of a whole data folder: which sets it has, what of them got in, what was quarantined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl.data.admission import AdmissionSettings, admit
from fl.data.federation import AdmittedScans
from fl.data.layout import FileSet, LabelledFile, discover
from fl.errors import DataError
from fl.types import Quarantined, Scan

SITE_PREFIX = "site "

Outcome = Scan | Quarantined


@dataclass(frozen=True, kw_only=True, slots=True)
class Sets:
    """Files to admit, by set: training, testing, synthetic, and `site <name>` for hospitals' own."""

    files: Mapping[str, tuple[LabelledFile, ...]]
    remarks: tuple[str, ...]

    @property
    def num_files(self) -> int:
        """Files in all sets."""
        return sum(len(files) for files in self.files.values())


def list_sets(root: Path, synthetic_folder: Path | None, *, elsewhere: Sequence[str] = ()) -> Sets:
    """List the sets of a data folder.

    synthetic_folder: a <class>/* folder that takes the place of Synthetic/ under the root. elsewhere: sites whose
    files lie on other nodes; they are not listed here. Raises DataError for a folder that is no training layout.
    """
    layout = discover(root)
    if layout.plain is not None:
        raise DataError(
            f"{root}: has class folders only; training needs Training/ and Testing/, or sites/ and Testing/"
        )
    synthetic = layout.synthetic if synthetic_folder is None else discover(synthetic_folder).plain
    files = {
        "training": _files(layout.training),
        "testing": _files(layout.testing),
        "synthetic": _files(synthetic),
    }
    empty = [site.name for site in layout.sites if not site.files and site.name not in elsewhere]
    if empty:
        raise DataError(f"{root}: sites {', '.join(empty)} have no files; remove their folders or give them scans")
    files |= {f"{SITE_PREFIX}{site.name}": site.files for site in layout.sites if site.name not in elsewhere}
    return Sets(files=files, remarks=layout.remarks)


def admit_sets(sets: Sets, settings: AdmissionSettings, inventory: Path) -> Iterator[tuple[str, Outcome]]:
    """Yield (set name, scan or quarantined) for every file; see `admission.admit`."""
    names = (name for name, files in sets.files.items() for _ in files)
    every_file = (file for files in sets.files.values() for file in files)
    yield from zip(names, admit(every_file, settings, inventory), strict=True)


def site_files(root: Path, site: str) -> tuple[LabelledFile, ...]:
    """Return one hospital's files, as the node that holds them lists them. Raises DataError where it has none."""
    for found in discover(root).sites:
        if found.name == site:
            return found.files
    raise DataError(f"{root}: has no sites/{site}/ on the node that data.nodes pins it to")


def sort_outcomes(outcomes: Sequence[tuple[str, Outcome]]) -> AdmittedScans:
    """Return what was let in by set, and all that was not."""
    scans: dict[str, list[Scan]] = {}
    quarantined: list[Quarantined] = []
    for name, outcome in outcomes:
        admitted = scans.setdefault(name, [])  # a site all of whose files were refused must not vanish
        if isinstance(outcome, Quarantined):
            quarantined.append(outcome)
        else:
            admitted.append(outcome)
    sites = {
        name.removeprefix(SITE_PREFIX): tuple(found) for name, found in scans.items() if name.startswith(SITE_PREFIX)
    }
    return AdmittedScans(
        training=tuple(scans.get("training", ())),
        testing=tuple(scans.get("testing", ())),
        synthetic=tuple(scans.get("synthetic", ())),
        by_site=sites,
        quarantined=tuple(quarantined),
    )


def _files(file_set: FileSet | None) -> tuple[LabelledFile, ...]:
    return file_set.files if file_set is not None else ()
