"""Recognise how a folder of MRI slices is laid out, and list its files with their labels.

Three layouts are known:

    Kaggle     Training/<class>/*   Testing/<class>/*   and optionally Synthetic/<class>/*
    hospitals  sites/<name>/<class>/*   and optionally Testing/ and Synthetic/ as above
    plain      <class>/*   (one labelled folder, for evaluation)

Names that begin with a dot are ignored. Links to files and folders are followed, because hospitals link their
archives into place; a link to a folder that contains it, or to a class folder already listed, is an error.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fl.errors import DataError
from fl.types import CLASSES

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EXPECTED_LAYOUT = (
    f"Training/<class>/ and Testing/<class>/, or sites/<name>/<class>/, or <class>/, "
    f"where <class> is one of {', '.join(CLASSES)}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFile:
    """One file and the label that its folder gives it; nothing has been read yet."""

    path: Path
    label: int

    def __post_init__(self) -> None:
        if not 0 <= self.label < len(CLASSES):
            raise DataError(f"label of {self.path} is {self.label}; expected 0..{len(CLASSES) - 1}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSet:
    """The files of one set ("Training", "Testing", a site …), by class in label order, then by name."""

    name: str
    folder: Path
    files: tuple[LabelledFile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a folder holds. Sets that it does not have are None, or empty for `sites`.

    remarks: one sentence for each entry that was passed over or is missing; show them to the user.
    """

    kind: Literal["kaggle", "hospitals", "plain"]
    root: Path
    training: FileSet | None = None
    testing: FileSet | None = None
    synthetic: FileSet | None = None
    sites: tuple[FileSet, ...] = ()
    plain: FileSet | None = None
    remarks: tuple[str, ...] = ()

    @property
    def file_sets(self) -> tuple[FileSet, ...]:
        """All sets that are present: training, sites, testing, synthetic, plain."""
        candidates = (self.training, *self.sites, self.testing, self.synthetic, self.plain)
        return tuple(file_set for file_set in candidates if file_set is not None)


def discover(root: Path) -> Layout:
    """List the labelled files under `root`, sorted by name.

    Everything in a class folder is listed, whatever it is called: admission decides what is an image. Raises
    DataError where the layout is not recognised, a folder cannot be listed, a folder that should be a class
    is not one (a class that is lost through a typing error would cost accuracy in silence), or links loop.
    """
    root = Path(os.path.realpath(root))
    walk = _Walk(root=root)
    names = {entry.name for entry in walk.entries(root) if _is_folder(entry)}
    if "Training" in names and "sites" in names:
        raise DataError(f"{root} has both Training/ and sites/; keep one of them: expected {_EXPECTED_LAYOUT}")
    if "Training" in names:
        layout = _kaggle(walk, names)
    elif "sites" in names:
        layout = _hospitals(walk, names)
    elif names & set(CLASSES):
        layout = _plain(walk)
    else:
        found = ", ".join(sorted(names)) or "no folder"
        raise DataError(f"{root} has no layout that is known: found {found}; expected {_EXPECTED_LAYOUT}")
    if not any(file_set.files for file_set in layout.file_sets):
        raise DataError(f"{root}: the class folders are empty; expected image files in {_EXPECTED_LAYOUT}")
    return layout


def plain_files(root: Path) -> tuple[LabelledFile, ...]:
    """Return the files of one labelled folder <class>/*. Raises DataError where it is laid out otherwise."""
    layout = discover(root)
    if layout.plain is None:
        raise DataError(f"{root}: expected one folder a class ({', '.join(CLASSES)}), not the layout {layout.kind!r}")
    return layout.plain.files


@dataclass(frozen=True, kw_only=True, slots=True)
class _Walk:
    """One pass over a tree: remembers what was passed over and where each class folder really lies."""

    root: Path
    remarks: list[str] = field(default_factory=list)
    real_paths: dict[Path, Path] = field(default_factory=dict)

    def entries(self, folder: Path) -> list[Path]:
        try:
            return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise DataError(
                f"{folder} cannot be listed ({error.strerror}); expected a folder that this user may read"
            ) from None

    def remark(self, path: Path, expected: str) -> None:
        self.remarks.append(f"{path} was passed over: expected {expected}")

    def enter(self, folder: Path) -> None:
        """Refuse a folder that contains itself through links, or whose files are listed already."""
        real, parent = folder.resolve(), folder.parent.resolve()
        if real == parent or real in parent.parents:
            raise DataError(f"{folder} is a link to a folder that contains it ({real}); remove the link")
        if (earlier := self.real_paths.setdefault(real, folder)) != folder:
            raise DataError(f"{folder} and {earlier} are the same folder ({real}): scans would count twice; remove one")


def _kaggle(walk: _Walk, names: set[str]) -> Layout:
    _check_top_level(walk, expected=("Training", "Testing", "Synthetic"))
    return Layout(
        kind="kaggle",
        root=walk.root,
        training=_file_set(walk, walk.root / "Training"),
        testing=_optional_file_set(walk, "Testing", names),
        synthetic=_optional_file_set(walk, "Synthetic", names),
        remarks=tuple(walk.remarks),
    )


def _hospitals(walk: _Walk, names: set[str]) -> Layout:
    _check_top_level(walk, expected=("sites", "Testing", "Synthetic"))
    walk.enter(walk.root / "sites")
    sites = []
    for entry in walk.entries(walk.root / "sites"):
        if not _is_folder(entry):
            walk.remark(entry, "one folder for each site, sites/<name>/<class>/")
        elif not SITE_NAME.fullmatch(entry.name):
            raise DataError(
                f"site folder {entry.name!r} in {entry.parent} cannot name a site: expected up to 64 of "
                "A-Z a-z 0-9 . _ -, the first a letter or digit; rename the folder"
            )
        else:
            sites.append(_file_set(walk, entry))
    return Layout(
        kind="hospitals",
        root=walk.root,
        sites=tuple(sites),
        testing=_optional_file_set(walk, "Testing", names),
        synthetic=_optional_file_set(walk, "Synthetic", names),
        remarks=tuple(walk.remarks),
    )


def _plain(walk: _Walk) -> Layout:
    file_set = _file_set(walk, walk.root)
    return Layout(kind="plain", root=walk.root, plain=file_set, remarks=tuple(walk.remarks))


def _check_top_level(walk: _Walk, expected: tuple[str, ...]) -> None:
    """Remark on what does not belong to the layout; refuse a name that differs from one only by case."""
    for entry in walk.entries(walk.root):
        if entry.name in expected and _is_folder(entry):
            continue
        meant = [name for name in expected if name.casefold() == entry.name.casefold()]
        if meant and _is_folder(entry):
            raise DataError(f"{entry} is not spelt as expected; rename the folder to {meant[0]}")
        walk.remark(entry, f"only the folders {', '.join(expected)} here")


def _optional_file_set(walk: _Walk, name: str, names: set[str]) -> FileSet | None:
    return _file_set(walk, walk.root / name) if name in names else None


def _file_set(walk: _Walk, folder: Path) -> FileSet:
    """List one set of class folders, in label order."""
    walk.enter(folder)
    unknown = []
    for entry in walk.entries(folder):
        if not _is_folder(entry):
            walk.remark(entry, f"images only inside the class folders {', '.join(CLASSES)}")
        elif entry.name not in CLASSES:
            unknown.append(entry.name)
    if unknown:
        raise DataError(
            f"{folder} has folders that are no class: {', '.join(map(repr, unknown))}; expected only "
            f"{', '.join(CLASSES)}; rename them or move them away"
        )
    files: list[LabelledFile] = []
    for label, name in enumerate(CLASSES):
        if not _is_folder(folder / name):
            walk.remarks.append(f"{folder / name} is missing: the set has no scans of this class")
            continue
        walk.enter(folder / name)
        files += [LabelledFile(path=path, label=label) for path in walk.entries(folder / name)]
    return FileSet(name=folder.name, folder=folder, files=tuple(files))


def _is_folder(path: Path) -> bool:
    """Like Path.is_dir, but False also where a link loops or a parent may not be searched."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False
