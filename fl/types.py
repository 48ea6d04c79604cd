"""The nouns that every room of `fl` shares. Plain frozen values; no torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CLASSES: tuple[str, ...] = ("glioma", "meningioma", "notumor", "pituitary")
"""Class names in label order; a label is an index into this tuple."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """One admitted MRI slice.

    pixels_sha256: hex digest of its shape and decoded grey pixels; equal digests are pixel-for-pixel copies
        whatever the file format. It is the image's identity in every store.
    phash: 63-bit DCT perceptual hash as a non-negative int.
    """

    path: Path
    label: int
    pixels_sha256: str
    phash: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A file that was refused at admission, and why. It is reported, never dropped in silence."""

    path: Path
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One federated participant: a hospital, or a simulated one.

    scans: its own training scans. shared_scans: what the federation handed to it (Case 2 and 3), else empty.
    validation_scans: its own held-back scans where hospitals bring their own folders, else empty.
    group: the class name of a one-class site, else "all"; stratified sampling draws within groups.
    node_resource: Ray custom resource of the node that holds its data, or None for any node.
    """

    name: str
    scans: tuple[Scan, ...]
    shared_scans: tuple[Scan, ...] = ()
    validation_scans: tuple[Scan, ...] = ()
    group: str = "all"
    node_resource: str | None = None

    @property
    def num_examples(self) -> int:
        """Training examples a local epoch runs over, shared ones included."""
        return len(self.scans) + len(self.shared_scans)
