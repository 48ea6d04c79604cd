"""Where phantoms, features and the inventory of admitted files are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from service.spec import JobSpec


def cache_folder(spec: JobSpec) -> Path:
    """Return data.cache_dir, else $GLIOFED_CACHE, else ~/.cache/gliofed; absolute, so that workers agree."""
    chosen = spec.data.cache_dir or os.environ.get("GLIOFED_CACHE") or Path.home() / ".cache" / "gliofed"
    return Path(chosen).expanduser().absolute()
