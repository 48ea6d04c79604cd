"""What is wrong with a collection of images before training: unreadable files, copies, label conflicts.

Nothing is changed, and nothing here decides what to do about it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.data.admission import AdmissionSettings, admit
from fl.data.duplicates import (
    NEAR_DISTANCE,
    exact_duplicate_mask,
    near_duplicate_mask,
    near_duplicates_within,
)
from fl.data.layout import FileSet, Layout, discover
from fl.errors import DataError
from fl.types import CLASSES, Quarantined, Scan

_MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SetAudit:
    """One set of class folders on its own.

    num_by_class: admitted scans. num_exact_copies: scans whose pixels were met before in the same set, so
    removing that many leaves one of each. num_near_duplicates: scans that have another one of the set within
    the near distance, copies included.
    """

    name: str
    num_files: int
    num_by_class: dict[str, int]
    num_unreadable_by_reason: dict[str, int]
    num_exact_copies: int
    num_near_duplicates: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlapAudit:
    """How many scans of one set have an exact or a near copy in another; near includes exact."""

    of: str
    found_in: str
    num_scans: int
    num_exact: int
    num_near: int
    num_near_by_class: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConflict:
    """The same pixels under two or more labels; at most one of them can be right."""

    pixels_sha256: str
    paths_by_class: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """Everything `gliofed data audit` tells. near_distance is in bits of the 63-bit perceptual hash."""

    near_distance: int
    sets: tuple[SetAudit, ...]
    overlaps: tuple[OverlapAudit, ...]
    label_conflicts: tuple[LabelConflict, ...]
    quarantined: tuple[Quarantined, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report in JSON's own types; paths as strings."""
        return {
            **asdict(self),
            "quarantined": [asdict(item) | {"path": str(item.path)} for item in self.quarantined],
        }


def audit(
    folders: Sequence[Path], settings: AdmissionSettings | None = None, inventory: Path | None = None
) -> AuditReport:
    """Admit every file of the folders and compare all their sets with themselves and with one another.

    Raises DataError where a folder's layout is not recognised; unusable files are part of the report.
    """
    if not folders:
        raise DataError("no folder to audit; name at least one")
    layouts = [discover(folder) for folder in folders]
    scans_by_set: dict[str, list[Scan]] = {}
    quarantined: list[Quarantined] = []
    sets: list[SetAudit] = []
    for name, file_set in _named_sets(layouts):
        outcomes = list(admit(file_set.files, settings or AdmissionSettings(), inventory))
        scans = [outcome for outcome in outcomes if isinstance(outcome, Scan)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]
        sets.append(_audit_set(name, scans, refused))
        scans_by_set[name] = scans
        quarantined += refused
    return AuditReport(
        near_distance=NEAR_DISTANCE,
        sets=tuple(sets),
        overlaps=_overlaps(scans_by_set),
        label_conflicts=label_conflicts(scan for scans in scans_by_set.values() for scan in scans),
        quarantined=tuple(quarantined),
        remarks=tuple(remark for layout in layouts for remark in layout.remarks),
    )


def label_conflicts(scans: Iterable[Scan]) -> tuple[LabelConflict, ...]:
    """Find scans with the very same pixels and different labels, in order of first appearance."""
    paths: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for scan in scans:
        paths[scan.pixels_sha256][scan.label].append(str(scan.path))
    return tuple(
        LabelConflict(
            pixels_sha256=pixels,
            paths_by_class={CLASSES[label]: tuple(by_label[label]) for label in sorted(by_label)},
        )
        for pixels, by_label in paths.items()
        if len(by_label) > 1
    )


def format_audit(report: AuditReport) -> str:
    """Lay the report out as plain text, at most 20 lines for each list; the JSON form has everything."""
    near = f"near: Hamming distance <= {report.near_distance} of a 63-bit perceptual hash, copies included"
    sections = [
        _table(["set", "files", *CLASSES, "unreadable", "copies", "near"], map(_set_row, report.sets)),
        _table(
            ["of", "found in", "scans", "exact", "near", *(f"near {name}" for name in CLASSES)],
            (_overlap_row(overlap) for overlap in report.overlaps if overlap.num_near),
        )
        if any(overlap.num_near for overlap in report.overlaps)
        else "No scan of one set has a copy in another.",
        near,
        _listing("label conflicts (same pixels, different labels)", map(_conflict_line, report.label_conflicts)),
        _listing("unreadable files", (f"{item.reason}: {item.detail}" for item in report.quarantined)),
        _listing("passed over or missing", report.remarks),
    ]
    return "\n\n".join(sections) + "\n"


def _named_sets(layouts: Sequence[Layout]) -> list[tuple[str, FileSet]]:
    """Name each set; with several folders, or where names would clash, by its full path."""
    pairs = [(layout, file_set) for layout in layouts for file_set in layout.file_sets]
    num_with_name = Counter(file_set.name for _, file_set in pairs)
    named = [
        (file_set.name if num_with_name[file_set.name] == 1 else str(file_set.folder), file_set)
        for _, file_set in pairs
    ]
    if len({name for name, _ in named}) < len(named):
        raise DataError("the same folder was named twice; name each folder once")
    return named


def _audit_set(name: str, scans: Sequence[Scan], refused: Sequence[Quarantined]) -> SetAudit:
    return SetAudit(
        name=name,
        num_files=len(scans) + len(refused),
        num_by_class=_count_by_class(scans, np.ones(len(scans), dtype=np.bool_)),
        num_unreadable_by_reason=dict(sorted(Counter(item.reason for item in refused).items())),
        num_exact_copies=len(scans) - len({scan.pixels_sha256 for scan in scans}),
        num_near_duplicates=int(near_duplicates_within(scans).sum()),
    )


def _overlaps(scans_by_set: Mapping[str, Sequence[Scan]]) -> tuple[OverlapAudit, ...]:
    return tuple(
        _overlap(of, scans_by_set[of], found_in, scans_by_set[found_in])
        for of, found_in in permutations(scans_by_set, 2)
    )


def _overlap(of: str, scans: Sequence[Scan], found_in: str, others: Sequence[Scan]) -> OverlapAudit:
    is_near_N = near_duplicate_mask(scans, others)
    return OverlapAudit(
        of=of,
        found_in=found_in,
        num_scans=len(scans),
        num_exact=int(exact_duplicate_mask(scans, others).sum()),
        num_near=int(is_near_N.sum()),
        num_near_by_class=_count_by_class(scans, is_near_N),
    )


def _count_by_class(scans: Sequence[Scan], mask_N: NDArray[np.bool_]) -> dict[str, int]:
    counts = Counter(scan.label for scan, is_counted in zip(scans, mask_N, strict=True) if is_counted)
    return {name: counts[label] for label, name in enumerate(CLASSES)}


def _set_row(item: SetAudit) -> list[object]:
    return [
        item.name,
        item.num_files,
        *item.num_by_class.values(),
        sum(item.num_unreadable_by_reason.values()),
        item.num_exact_copies,
        item.num_near_duplicates,
    ]


def _overlap_row(item: OverlapAudit) -> list[object]:
    return [
        item.of,
        item.found_in,
        item.num_scans,
        item.num_exact,
        item.num_near,
        *item.num_near_by_class.values(),
    ]


def _conflict_line(conflict: LabelConflict) -> str:
    return " | ".join(f"{name}: {', '.join(paths)}" for name, paths in conflict.paths_by_class.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Align columns: the first (and any text) to the left, numbers to the right."""
    rows = list(rows)
    cells = [[_printable(str(value)) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [all(isinstance(row[index], int) for row in rows) for index in range(len(header))]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _listing(title: str, lines: Iterable[str]) -> str:
    items = [_printable(line) for line in lines]
    more = [f"  … and {len(items) - _MAX_LISTED} more"] if len(items) > _MAX_LISTED else []
    return "\n".join([f"{title}: {len(items)}", *(f"  {item}" for item in items[:_MAX_LISTED]), *more])


def _printable(text: str) -> str:
    """Escape what a terminal would obey or could not show: a file may have any name."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
