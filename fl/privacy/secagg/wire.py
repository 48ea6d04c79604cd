"""Bytes of small records: fixed layout, lengths before contents, nothing left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


class Writer:
    """Appends fields; `done` returns the bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> None:
        """Append bytes whose length the reader knows."""
        self._parts.append(data)

    def count(self, number: int) -> None:
        """Append a number in [0, 2^32)."""
        self.raw(number.to_bytes(4, "big"))

    def blob(self, data: bytes) -> None:
        """Append bytes with their length before them."""
        self.count(len(data))
        self.raw(data)

    def text(self, text: str) -> None:
        """Append a string."""
        self.blob(text.encode())

    def names(self, names: Iterable[str]) -> None:
        """Append several strings."""
        names = list(names)
        self.count(len(names))
        for name in names:
            self.text(name)

    def done(self) -> bytes:
        """Return all that was appended."""
        return b"".join(self._parts)


class Reader:
    """Reads the fields back; raises ValueError where they are not there or something is left over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def raw(self, length: int) -> bytes:
        """Return the next bytes."""
        data = self._data[self._place : self._place + length]
        if len(data) < length:
            raise ValueError(f"it ends at byte {len(self._data)}, within a field of {length} bytes")
        self._place += length
        return data

    def count(self) -> int:
        """Return a number."""
        return int.from_bytes(self.raw(4), "big")

    def blob(self) -> bytes:
        """Return bytes of any length."""
        return self.raw(self.count())

    def text(self) -> str:
        """Return a string."""
        return self.blob().decode()  # UnicodeDecodeError is a ValueError

    def names(self) -> tuple[str, ...]:
        """Return several strings, each only once."""
        names = tuple(self.text() for _ in range(self.count()))
        if len(set(names)) < len(names):
            raise ValueError("a name is given twice")
        return names

    def mapping(self, value: Callable[[], _T]) -> dict[str, _T]:
        """Return values by name, each name only once."""
        count = self.count()
        pairs = {self.text(): value() for _ in range(count)}
        if len(pairs) < count:
            raise ValueError("a name is given twice")
        return pairs

    def end(self) -> None:
        """Raise ValueError where bytes are left."""
        if self._place < len(self._data):
            raise ValueError(f"{len(self._data) - self._place} bytes are left over")
