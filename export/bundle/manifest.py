"""MANIFEST.json: the SHA-256 and the size of every file of a bundle, and the files as they lie in a folder."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.bundle.encoding import json_bytes, parse_json
from export.bundle.layout import FORMAT_VERSION, MANIFEST, SIGNATURE, check_names
from export.errors import BundleError, UntrustedBundle

MAX_MANIFEST_BYTES = 1 << 20
_FORMAT = "gliofed-bundle"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the manifest says of one file."""

    sha256: str
    size_bytes: int


def entry_of(data: bytes) -> Entry:
    """Return the entry of a file with these bytes."""
    return Entry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def manifest_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return the manifest of these files. Raises BundleError unless they make a bundle."""
    check_names(files)
    entries = {name: entry_of(data) for name, data in files.items()}
    listed = {name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes} for name, entry in entries.items()}
    return json_bytes(MANIFEST, {"format": _FORMAT, "format_version": FORMAT_VERSION, "files": listed})


def parse_manifest(data: bytes) -> dict[str, Entry]:
    """Return the entries by name, having refused whatever this version's manifest does not have."""
    manifest = parse_json(MANIFEST, data)
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != (_FORMAT, FORMAT_VERSION):
        raise BundleError(
            MANIFEST,
            f"format is {found[0]!r} version {found[1]!r}; this gliofed reads {_FORMAT!r} version {FORMAT_VERSION}, "
            "which is signed. Export the model again from its run, or use the gliofed that wrote it",
        )
    files = manifest.get("files")
    if set(manifest) != {"format", "format_version", "files"} or not isinstance(files, dict):
        raise BundleError(MANIFEST, f"has keys {sorted(manifest)}; expected format, format_version and files")
    check_names(files)
    return {name: _parse_entry(name, entry) for name, entry in files.items()}


def check_inventory(root: Path, expected: Collection[str]) -> None:
    """Raise UntrustedBundle unless the folder holds the expected plain files, manifest, signature and no more."""
    folders = {Path(name).parent.as_posix() for name in expected}
    found: set[str] = set()
    try:
        for name, path in _walk(root, folders):
            if path.is_symlink():
                raise UntrustedBundle(name, "is a link; a bundle holds plain files only. Copy the bundle again")
            if path.is_dir() and name not in folders:
                raise UntrustedBundle(name, f"is a folder in {root} but not in the manifest; remove it")
            if not path.is_dir():
                found.add(name)
    except OSError as error:
        raise UntrustedBundle(str(root), f"cannot be listed ({error}); copy the bundle again") from error
    if missing := set(expected) - found:
        raise UntrustedBundle(min(missing), f"is in the manifest but not in {root}; copy the bundle again")
    if extra := found - set(expected) - {MANIFEST, SIGNATURE}:
        raise UntrustedBundle(min(extra), f"is in {root} but not in the manifest; remove it")


def read_verified(root: Path, name: str, entry: Entry) -> bytes:
    """Return the bytes of one file, which are those that the manifest says. Raises UntrustedBundle otherwise."""
    data = read_plain_file(root, name, entry.size_bytes)
    if len(data) != entry.size_bytes:
        problem = f"has {len(data)} bytes; the manifest says {entry.size_bytes}. Copy the bundle again"
        raise UntrustedBundle(name, problem)
    if (actual := hashlib.sha256(data).hexdigest()) != entry.sha256:
        problem = f"has SHA-256 {actual}; the manifest says {entry.sha256}. It was altered or damaged: copy it again"
        raise UntrustedBundle(name, problem)
    return data


def read_plain_file(root: Path, name: str, max_bytes: int) -> bytes:
    """Return the file's bytes; links, pipes and files larger than max_bytes are refused before they are read."""
    try:
        # no waiting for a pipe's other end, and no way through a link that was put there a moment ago
        descriptor = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UntrustedBundle(name, f"is missing from {root}; copy the bundle again") from error
    except OSError as error:
        raise UntrustedBundle(name, f"cannot be read from {root} ({error}); expected a plain file") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedBundle(name, f"is no plain file in {root}; copy the bundle again")
        if status.st_size > max_bytes:
            raise UntrustedBundle(name, f"has {status.st_size} bytes; expected at most {max_bytes}")
        try:
            return file.read(max_bytes + 1)
        except OSError as error:
            raise UntrustedBundle(name, f"cannot be read from {root} ({error})") from error


def _parse_entry(name: str, entry: object) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"sha256", "size_bytes"}:
        raise BundleError(MANIFEST, f"entry of {name} is {entry!r}; expected sha256 and size_bytes")
    sha256, size = entry["sha256"], entry["size_bytes"]
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BundleError(MANIFEST, f"sha256 of {name} is {sha256!r}; expected 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BundleError(MANIFEST, f"size_bytes of {name} is {size!r}; expected a whole number, 0 or more")
    return Entry(sha256=sha256, size_bytes=size)


def _walk(root: Path, folders: Collection[str], above: str = "") -> Iterator[tuple[str, Path]]:
    """Yield what lies in the folder and in those of its folders that are named, in order, by name."""
    for path in sorted((root / above).iterdir()):
        name = path.relative_to(root).as_posix()
        yield name, path
        if name in folders and path.is_dir() and not path.is_symlink():
            yield from _walk(root, folders, name)
