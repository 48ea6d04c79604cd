"""A content-addressed store of equally shaped arrays, memory-mapped, safe against crashes and rot.

A store is a folder; every process that writes owns one segment in it: `<id>.rows` (the arrays, one after another)
and `<id>.index` (one 40-byte record a row: key, checksum of the row, checksum of the record). A row is written
before its record, so whatever a crash leaves behind has no valid record and is simply computed again. The checksum
of a row is verified when a process first reads it; a row that fails is forgotten and rebuilt.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fl.errors import DataError

_RECORD = struct.Struct("<32sI")
_RECORD_BYTES = _RECORD.size + 4

Compute = Callable[[Sequence[int]], NDArray[np.generic]]
"""Takes positions in the key list that was asked for; returns their rows, [len, *row_shape]."""


@dataclass(slots=True)
class _Segment:
    rows: Path
    index: Path
    num_records: int = 0
    mapped: NDArray[np.generic] | None = None


@dataclass(slots=True)
class _Place:
    segment: _Segment
    row: int
    checksum: int
    verified: bool


class ArrayStore:
    """Rows of one shape and dtype under string keys.

    root: folder of all stores. namespace: what the rows depend on besides their key (preprocessing, weights, ...);
        rows of different namespaces never meet. row_shape, dtype: of every row.
    Not thread-safe; any number of processes may share a store, each sees what the others had written when it last
    missed a key.
    """

    def __init__(self, root: Path, namespace: str, row_shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        address = hashlib.sha256(f"{namespace}|{row_shape}|{self._dtype.str}".encode()).hexdigest()
        self._folder = root / address[:24]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._segments: dict[Path, _Segment] = {}
        self._places: dict[bytes, list[_Place]] = {}
        self._own: Path | None = None
        self._refresh()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk."""
        return int(np.prod(self._row_shape)) * self._dtype.itemsize

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Return the positions of keys that have no valid row, the first position only where a key repeats."""
        digests = [_digest(key) for key in keys]
        if any(digest not in self._places for digest in digests):
            self._refresh()
        seen: set[bytes] = set()
        absent = []
        for position, digest in enumerate(digests):
            if digest not in seen and self._valid_place(digest) is None:
                absent.append(position)
            seen.add(digest)
        return absent

    def get(self, keys: Sequence[str], compute: Compute) -> NDArray[np.generic]:
        """Return rows [len(keys), *row_shape], computing and storing those that are missing or damaged."""
        absent = self.missing(keys)
        if absent:
            self.put([keys[position] for position in absent], compute(absent))
        out = np.empty((len(keys), *self._row_shape), self._dtype)
        for position, key in enumerate(keys):
            place = self._valid_place(_digest(key))
            if place is None:
                raise DataError(f"{self._folder}: a row just written reads back damaged; check this disk")
            out[position] = self._map(place.segment)[place.row]
        return out

    def put(self, keys: Sequence[str], rows: NDArray[np.generic]) -> None:
        """Append rows under their keys. Raises DataError where the disk is full."""
        if rows.shape != (len(keys), *self._row_shape) or rows.dtype != self._dtype:
            raise ValueError(
                f"rows are {rows.dtype}{list(rows.shape)}, the store holds {self._dtype}{[len(keys), *self._row_shape]}"
            )
        payloads = [np.ascontiguousarray(row).tobytes() for row in rows]
        records = [_record(_digest(key), data) for key, data in zip(keys, payloads, strict=True)]
        if self._own is None:
            self._own = self._folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        try:
            _append(self._own.with_suffix(".rows"), payloads)
            _append(self._own.with_suffix(".index"), records)
        except OSError as error:
            self._own = None  # rows appended after half a row would not lie where their records say
            raise DataError(
                f"{self._folder}: cannot store {len(keys)} rows ({error}); free disk or set data.cache_dir"
            ) from error
        self._refresh()

    def _refresh(self) -> None:
        """Learn the rows that any process has written since the last look."""
        for index in sorted(self._folder.glob("*.index")):
            segment = self._segments.setdefault(index, _Segment(rows=index.with_suffix(".rows"), index=index))
            self._read_new_records(segment)

    def _read_new_records(self, segment: _Segment) -> None:
        num_rows = segment.rows.stat().st_size // self.row_bytes if segment.rows.exists() else 0
        with segment.index.open("rb") as file:
            file.seek(segment.num_records * _RECORD_BYTES)
            data = file.read()
        for start in range(0, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
            if segment.num_records >= num_rows:
                return  # its row is not on disk yet, or never will be
            record = data[start : start + _RECORD_BYTES]
            row = segment.num_records
            segment.num_records += 1
            if zlib.crc32(record[: _RECORD.size]) != int.from_bytes(record[_RECORD.size :], "little"):
                continue
            digest, checksum = _RECORD.unpack_from(record)
            place = _Place(segment=segment, row=row, checksum=checksum, verified=False)
            self._places.setdefault(digest, []).append(place)

    def _valid_place(self, digest: bytes) -> _Place | None:
        """Return where a sound row of the key lies; damaged ones are forgotten on the way."""
        places = self._places.get(digest, [])
        while places:
            place = places[-1]
            if not place.verified:
                row = self._map(place.segment)[place.row]
                place.verified = zlib.crc32(np.ascontiguousarray(row).tobytes()) == place.checksum
            if place.verified:
                return place
            places.pop()
        return None

    def _map(self, segment: _Segment) -> NDArray[np.generic]:
        if segment.mapped is None or len(segment.mapped) < segment.num_records:
            num_rows = segment.rows.stat().st_size // self.row_bytes
            segment.mapped = np.memmap(segment.rows, self._dtype, "r", shape=(num_rows, *self._row_shape))
        return segment.mapped


def _append(path: Path, pieces: Sequence[bytes]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(pieces))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _record(digest: bytes, row: bytes) -> bytes:
    body = _RECORD.pack(digest, zlib.crc32(row))
    return body + zlib.crc32(body).to_bytes(4, "little")
