"""Files that appear whole or not at all, and stay after a power cut: temporary name, fsync, rename."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write one file that appears whole or not at all, replacing one of the same name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_synced(temporary, data)
    temporary.replace(path)
    fsync_folder(path.parent)


def write_secret(path: Path, data: bytes) -> None:
    """Write one file for this user's eyes that appears whole or not at all; a power cut may lose it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a leftover would keep its own mode
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    temporary.replace(path)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
