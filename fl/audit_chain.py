"""A hash-chained log: one JSON object a line, each bound to the line before, over as many files as it takes.

A line holds the SHA-256 of the line before it, so that none can be changed, removed or put in without every later line
showing it. What is cut off at the end shows only against a digest of the last line that was noted elsewhere: `verify`
tells it. A full file is set aside as `<stem>-<number of its first line>.<suffix>` and the next one begins with a line
`continued`, which carries number and digest on. Needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fl.durable import fsync_folder
from fl.errors import AuditLogError

BEGINNING = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a look at a log found. head: digest of the last whole line; num_lines: its number.

    first_number, first_previous: number of the first line that was there to be looked at (1, unless older files were
    taken away; 0 in an empty log) and the digest that the line before it must have. fault: first broken line and why,
    or None. torn_bytes: of a last line without an end, as a crash while writing leaves it.
    """

    num_lines: int = 0
    head: str = BEGINNING
    first_number: int = 0
    first_previous: str = BEGINNING
    fault: str | None = None
    torn_bytes: int = 0

    def __str__(self) -> str:
        """Return what was found, in a sentence."""
        if self.fault is not None:
            return self.fault
        older = torn = ""
        if self.first_number > 1:
            older = (
                f"; lines 1 to {self.first_number - 1} are in files that were taken away, the last of which must end "
                f"with the line {self.first_previous}"
            )
        if self.torn_bytes:
            torn = f"; {self.torn_bytes} bytes of a line that a crash cut off follow"
        return f"{self.num_lines} lines, each follows from the one before{older}{torn}; last line {self.head}"


class ChainedLog:
    """The log, open for writing by this process alone. Use as a context manager; one thread at a time.

    A torn last line is cut off and described by a line of its own. max_bytes: size after which a file is set aside;
    None keeps one file. Raises AuditLogError where another process has the log open, or where the file to write on is
    broken: a log that was tampered with is kept as it is, and nothing is to be sent on its account.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self._path, self._max_bytes = path, max_bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise AuditLogError(f"{path}: cannot be opened ({error.strerror}); expected a file of this user") from error
        try:
            self._lock()
            found = self._found()
            self._head, self._number = found.head, found.num_lines
            if found.torn_bytes:
                self._cut(found.torn_bytes)
        except BaseException:
            os.close(self._file)
            raise
        self._usable = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def head(self) -> str:
        """Digest of the last line."""
        return self._head

    @property
    def num_lines(self) -> int:
        """Number of the last line."""
        return self._number

    def note(self, event: str, **facts: Any) -> None:
        """Append one event and see it to the disk."""
        self.append([{"event": event, **facts}])

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append a line for each entry and see them all to the disk at once.

        Entries are JSON objects; `number`, `previous` and `time` are the log's own (`time`: an entry may bring it).
        Raises AuditLogError where the disk takes them not or not whole, or the file is no longer where it was. The log
        is of no use then; open it anew, which looks at what was kept of it.
        """
        if not self._usable:
            raise AuditLogError(f"{self._path}: an earlier line could not be written; open the log again")
        self._usable = False  # until all is well: what the disk holds after a fault is not known
        try:
            self._require_in_place()
            if self._max_bytes is not None and os.fstat(self._file).st_size >= self._max_bytes:
                self._set_aside()
            self._write(self._file, entries)
        except OSError as error:
            raise AuditLogError(f"{self._path}: cannot be written ({error.strerror}); is the disk full?") from error
        self._usable = True

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        self._usable = False
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, file: int, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write and fsync entries; head and number move only once they are on the disk."""
        head, number, lines = self._head, self._number, []
        for entry in entries:
            number += 1
            line = _encode({"number": number, "previous": head, "time": _now(), **entry})
            head = _digest(line)
            lines.append(line + b"\n")
        data = b"".join(lines)
        if os.write(file, data) != len(data):
            raise OSError(0, "it took a part of a line only")
        os.fsync(file)
        self._head, self._number = head, number

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # else the owner set this very file aside between our opening and locking it
            locked = _same_file(self._file, self._path)
        except BlockingIOError:
            locked = False
        if not locked:
            raise AuditLogError(f"{self._path}: another process has this log open; stop it first")

    def _found(self) -> Verified:
        found = _verify_file(self._path, None)
        aside = _set_aside_files(self._path)
        if found.num_lines == 0 and found.fault is None and aside:
            raise AuditLogError(
                f"{self._path}: is empty, yet {aside[-1].name} came before it; put the file back that was there, or "
                "move those away as well for a new log to begin"
            )
        if found.fault is not None:
            raise AuditLogError(
                f"{self._path}: {found.fault}; the log was changed after it was written. Keep it for whoever must look "
                "into that, and move it away for a new one to begin"
            )
        return found

    def _require_in_place(self) -> None:
        if not _same_file(self._file, self._path):
            raise AuditLogError(f"{self._path}: the file was moved or removed while it was in use; open the log again")

    def _set_aside(self) -> None:
        """Go on in a new file. The log's own name is never missing, and its file is locked at all times."""
        first = json.loads(_first_line(self._path))["number"]
        aside = self._path.with_name(f"{self._path.stem}-{first:012d}{self._path.suffix}")
        fresh = self._path.with_name(f".{self._path.name}.next")
        fresh.unlink(missing_ok=True)
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(file, [{"event": "continued", "after": aside.name}])
            aside.unlink(missing_ok=True)  # of a crash between the next two lines: a second name of this file
            os.link(self._path, aside)
            fresh.replace(self._path)
        except BaseException:
            os.close(file)
            raise
        fsync_folder(self._path.parent)
        os.close(self._file)
        self._file = file

    def _cut(self, torn_bytes: int) -> None:
        size = os.fstat(self._file).st_size
        torn = os.pread(self._file, torn_bytes, size - torn_bytes)
        os.ftruncate(self._file, size - torn_bytes)
        facts = {"torn_bytes": torn_bytes, "torn_sha256": hashlib.sha256(torn).hexdigest()}
        self._write(self._file, [{"event": "recovered", **facts}])


def verify(path: Path) -> Verified:
    """Read a log from the first of its files that lies beside it, and find the first broken line.

    Raises AuditLogError where it cannot be read. The log may be in use meanwhile.
    """
    while True:
        aside = _set_aside_files(path)
        found = _verify_files(path, (*aside, path))
        if _set_aside_files(path) == aside:  # else a file was set aside meanwhile, and what was read has a gap
            return found


def _verify_files(path: Path, files: Sequence[Path]) -> Verified:
    found: Verified | None = None
    for file in files:
        found = _verify_file(file, found)
        if found.fault is None and found.torn_bytes and file != path:
            found = replace(found, fault=f"line {found.num_lines + 1}: has no end, and another file follows")
        if found.fault is not None:
            return found
    assert found is not None, "the log's own file was read"
    return found


def _verify_file(path: Path, before: Verified | None) -> Verified:
    """Verify one file. before: what the files before it gave; None: this is the first that is there."""
    found = before or Verified()
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return replace(found, torn_bytes=len(line))
                if found.first_number == 0:
                    found = _begin(line[:-1])
                fault = _fault(line[:-1], found.num_lines + 1, found.head)
                if fault is not None:
                    return replace(found, fault=f"line {found.num_lines + 1}: {fault}")
                found = replace(found, num_lines=found.num_lines + 1, head=_digest(line[:-1]))
    except OSError as error:
        raise AuditLogError(f"{path}: cannot be read ({error.strerror}); expected an audit log") from error
    return found


def _begin(line: bytes) -> Verified:
    """Return where a log begins whose first line this is: at 1, or where a file before it ended."""
    try:
        entry = json.loads(line)
        if entry["event"] == "continued" and isinstance(entry["number"], int) and entry["number"] > 1:
            number, previous = entry["number"], str(entry["previous"])
            return Verified(num_lines=number - 1, head=previous, first_number=number, first_previous=previous)
    except (ValueError, KeyError, TypeError):
        pass  # no entry at all: `_fault` says so
    return Verified(first_number=1)


def _fault(line: bytes, number: int, previous: str) -> str | None:
    try:
        entry = json.loads(line)
        found = (entry["number"], entry["previous"])
    except (ValueError, KeyError, TypeError):
        return "is no entry of this log"
    if found[1] != previous:
        return "does not follow from the line before, which was changed, or lines were removed or put in between"
    return None if found[0] == number else f"has number {found[0]}"


def _set_aside_files(path: Path) -> list[Path]:
    """Return the log's earlier files, oldest first; not one that is the log's own file under a second name."""
    files = sorted(path.parent.glob(f"{path.stem}-{'[0-9]' * 12}{path.suffix}"))
    return [file for file in files if not (path.exists() and file.samefile(path))]


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline()


def _same_file(file: int, path: Path) -> bool:
    try:
        named = path.stat()
    except OSError:
        return False
    opened = os.fstat(file)
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


def _encode(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=True, allow_nan=True).encode()


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
