"""Admit image files: read, decode within limits, identify by pixels and by perceptual hash, or quarantine.

An inventory file can remember what was admitted, so that a later run reads only what has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl.data.layout import LabelledFile
from fl.data.phash import perceptual_hash
from fl.types import Quarantined, Scan
from kernels.decode import DECODER, DecodeLimits, UnreadableImage, decode_gray

_LOG = logging.getLogger(__name__)
_INVENTORY_FORMAT = 1
MOST_PIXELS = 1_000_000_000
MOST_FILE_BYTES = 2**31
_FILES_AHEAD_PER_THREAD = 8
# A file changed twice within one tick of the file system's clock keeps its mtime: do not trust young ones.
_YOUNG_FILE_NS = 3_000_000_000


class AdmissionSettings(BaseModel):
    """What counts as a usable image, and how many are read at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_side_pixels: int = Field(default=32, ge=8, le=4096, description="Smallest width or height that is accepted")
    max_pixels: int = Field(
        default=64_000_000,
        ge=1024,
        le=MOST_PIXELS,
        description="Largest width times height, against decompression bombs",
    )
    max_file_bytes: int = Field(
        default=64 * 2**20, ge=1024, le=MOST_FILE_BYTES, description="Largest file that is read"
    )
    num_threads: int = Field(default=2, ge=1, le=256, description="Threads that read and decode")

    @model_validator(mode="after")
    def _some_image_must_pass(self) -> Self:
        if self.min_side_pixels**2 > self.max_pixels:
            raise ValueError(
                f"min_side_pixels {self.min_side_pixels} squared exceeds max_pixels {self.max_pixels}: "
                "no image could pass"
            )
        return self

    @property
    def decode_limits(self) -> DecodeLimits:
        """The same limits as the decoder takes them."""
        return DecodeLimits(
            min_side_pixels=self.min_side_pixels, max_pixels=self.max_pixels, max_bytes=self.max_file_bytes
        )


def admit(
    files: Iterable[LabelledFile], settings: AdmissionSettings, inventory: Path | None = None
) -> Iterator[Scan | Quarantined]:
    """Yield one Scan or Quarantined for each file, in input order.

    Never raises for a file's sake: whatever cannot be used comes back as Quarantined with one of the reasons
    missing, permission_denied, not_a_file, empty, unreadable (the system refused), failed (an unforeseen
    error), or those of the decoder (not_an_image, truncated, too_small, too_large, corrupt). Each thread has
    one file in memory at a time.

    inventory: a JSON-lines file that remembers admitted files by (path, size, mtime); created where it is
    missing, rebuilt where it is damaged or was made with other limits, extended and replaced atomically at
    the end. Quarantined files are looked at anew each time. A change that keeps size and mtime goes unseen.
    """
    known = _read_inventory(inventory, settings) if inventory else {}
    fresh: dict[str, _Entry] = {}
    try:
        for path, outcome in _examine_all(files, settings, known):
            if isinstance(outcome, _Examined):
                if outcome.entry is not None:
                    fresh[str(path)] = outcome.entry
                yield outcome.scan
            else:
                yield outcome
    finally:
        if inventory and fresh:
            _write_inventory(inventory, settings, known | fresh)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """What the inventory remembers of an admitted file."""

    size: int
    mtime_ns: int
    pixels_sha256: str
    phash: int
    height: int
    width: int

    def scan(self, file: LabelledFile) -> Scan:
        return Scan(
            path=file.path,
            label=file.label,
            pixels_sha256=self.pixels_sha256,
            phash=self.phash,
            height=self.height,
            width=self.width,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Examined:
    """An admitted scan, and its entry where the inventory has not got it yet."""

    scan: Scan
    entry: _Entry | None


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_Inventory = dict[str, _Entry]


def _examine_all(
    files: Iterable[LabelledFile], settings: AdmissionSettings, known: _Inventory
) -> Iterator[tuple[Path, _Examined | Quarantined]]:
    """Examine files in threads, a bounded number ahead of the consumer, and yield in input order."""
    waiting: deque[tuple[Path, Future[_Examined | Quarantined]]] = deque()
    num_ahead = settings.num_threads * _FILES_AHEAD_PER_THREAD
    with ThreadPoolExecutor(settings.num_threads, thread_name_prefix="admission") as pool:
        try:
            for file in files:
                if len(waiting) >= num_ahead:
                    path, future = waiting.popleft()
                    yield path, future.result()
                waiting.append((file.path, pool.submit(_examine, file, settings, known.get(str(file.path)))))
            while waiting:
                path, future = waiting.popleft()
                yield path, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _examine(file: LabelledFile, settings: AdmissionSettings, known: _Entry | None) -> _Examined | Quarantined:
    """Examine one file; whatever goes wrong with it becomes a Quarantined."""
    path = file.path
    try:
        return _examine_or_raise(file, settings, known)
    except (_RefusedError, UnreadableImage) as error:
        reason, detail = error.reason, str(error)
    except FileNotFoundError:
        reason, detail = "missing", f"{path} does not exist (any more), or is a link to nowhere"
    except PermissionError:
        reason, detail = "permission_denied", f"{path} may not be read by this user; change its permissions"
    except OSError as error:
        reason, detail = "unreadable", f"{path} could not be read: {error.strerror or error}"
    except Exception as error:  # a decoder's fault with one file must not end the admission of thousands
        reason, detail = "failed", f"{path} could not be examined: {type(error).__name__}: {error}"
    return Quarantined(path=path, reason=reason, detail=detail)


def _examine_or_raise(file: LabelledFile, settings: AdmissionSettings, known: _Entry | None) -> _Examined:
    status = file.path.stat()
    _check_status(file.path, status, settings)
    if known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return _Examined(scan=known.scan(file), entry=None)
    entry = _identify(file.path, status, settings)
    is_settled = time.time_ns() - status.st_mtime_ns > _YOUNG_FILE_NS
    return _Examined(scan=entry.scan(file), entry=entry if is_settled else None)


def _check_status(path: Path, status: os.stat_result, settings: AdmissionSettings) -> None:
    """Refuse what must not even be opened: reading a pipe would wait for ever."""
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "device, pipe or socket"
        raise _RefusedError("not_a_file", f"{path} is a {kind}; expected an image file")
    if status.st_size == 0:
        raise _RefusedError("empty", f"{path} has no bytes; copy it again from its source")
    if status.st_size > settings.max_file_bytes:
        limit = settings.max_file_bytes
        raise _RefusedError("too_large", f"{path} has {status.st_size} bytes; max_file_bytes is {limit}")


def _identify(path: Path, status: os.stat_result, settings: AdmissionSettings) -> _Entry:
    with path.open("rb") as file:
        # A file that has grown since its size was taken is a byte past the limit: the decoder refuses it.
        data = file.read(settings.max_file_bytes + 1)
    gray_HW = decode_gray(data, limits=settings.decode_limits, source=str(path))
    height, width = gray_HW.shape
    return _Entry(
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        pixels_sha256=pixels_digest(gray_HW),
        phash=perceptual_hash(gray_HW),
        height=height,
        width=width,
    )


def pixels_digest(gray_HW: NDArray[np.uint8]) -> str:
    """Return the hex SHA-256 of the shape and the grey pixels, in row order."""
    height, width = gray_HW.shape
    digest = hashlib.sha256(f"gray8 {height}x{width}\n".encode())
    digest.update(np.ascontiguousarray(gray_HW).data)
    return digest.hexdigest()


def _inventory_header(settings: AdmissionSettings, body: str) -> dict[str, object]:
    """What must agree for an inventory to be used; the decoder's version too, for it decides the pixels."""
    return {
        "format": _INVENTORY_FORMAT,
        "decoder": DECODER,
        "limits": settings.model_dump(exclude={"num_threads"}),
        "body_sha256": hashlib.sha256(body.encode()).hexdigest(),
    }


def _read_inventory(path: Path, settings: AdmissionSettings) -> _Inventory:
    """Read an inventory; an empty one where there is none, or where it is damaged or of other settings."""
    try:
        header, _, body = path.read_text(encoding="ascii").partition("\n")
        if json.loads(header) != _inventory_header(settings, body):
            _LOG.info("inventory %s is damaged or was made with other settings; it is rebuilt", path)
            return {}
        rows = (json.loads(line) for line in body.splitlines())
        return {str(row.pop("path")): _Entry(**row) for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _LOG.warning("inventory %s cannot be used (%s); it is rebuilt", path, error)
        return {}


def _write_inventory(path: Path, settings: AdmissionSettings, entries: _Inventory) -> None:
    """Replace the inventory atomically. It is a cache: where that fails, a warning is all that happens."""
    rows = ({"path": name, **asdict(entry)} for name, entry in sorted(entries.items()))
    body = "".join(json.dumps(row) + "\n" for row in rows)
    text = json.dumps(_inventory_header(settings, body)) + "\n" + body
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace_atomically(path, text.encode("ascii"))
    except OSError as error:
        _LOG.warning("inventory %s could not be written (%s); the next run reads all files again", path, error)


def _replace_atomically(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
