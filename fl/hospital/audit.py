"""A site's audit log: everything it received and sent, one JSON object a line, each bound to the line before.

A line holds the SHA-256 of the line before it, so that none can be changed, removed or put in without every later line
showing it. What is cut off at the end shows only against a digest of the last line that was noted elsewhere: `verify`
tells it. A line is on the disk before its message leaves. Arrays are described (name, shape, dtype, bytes, SHA-256),
never stored; numbers and short texts are written in clear.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from flwr.app import Array, Message, RecordDict

from fl.errors import HospitalError
from fl.runtime.flower_internals import view

BEGINNING = "0" * 64
LONGEST_TEXT = 2000
"""Longer texts and all bytes are described like arrays: a log is not where data may hide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a look at a log found. head: digest of the last whole line. fault: first broken line and why, or None.

    torn_bytes: of a last line without an end, as a crash while writing leaves it.
    """

    num_lines: int
    head: str
    fault: str | None
    torn_bytes: int = 0


class AuditLog:
    """The log, open for writing by this process alone. Use as a context manager.

    A torn last line is cut off and described by a line of its own. Raises HospitalError where another process has the
    log open, or where it is broken: a log that was tampered with is kept as it is, and nothing is sent on its account.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise HospitalError(f"{path}: another process of this site is running; stop it first") from error
        found = verify(path)
        if found.fault is not None:
            os.close(self._file)
            raise HospitalError(
                f"{path}: {found.fault}; the log was changed after it was written. Keep it for whoever must look into "
                "that, and move it away for a new one to begin"
            )
        self._head, self._number = found.head, found.num_lines
        if found.torn_bytes:
            self._cut(found.torn_bytes)

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.close(self._file)

    @property
    def head(self) -> str:
        """Digest of the last line."""
        return self._head

    def note(self, event: str, **facts: Any) -> None:
        """Append an event that is no message."""
        self._append({"event": event, **facts})

    def received(self, message: Message) -> None:
        """Append a message that came from the coordinator."""
        self._append({"event": "received", **describe(message)})

    def sending(self, message: Message) -> None:
        """Append a message that is about to leave, and see it to the disk."""
        self._append({"event": "sending", **describe(message)})

    def _append(self, facts: Mapping[str, Any]) -> None:
        entry = {"number": self._number + 1, "previous": self._head, "time": _now(), **facts}
        line = json.dumps(entry, ensure_ascii=True, allow_nan=True).encode()
        os.write(self._file, line + b"\n")
        os.fsync(self._file)
        self._head, self._number = _digest(line), self._number + 1

    def _cut(self, torn_bytes: int) -> None:
        size = os.fstat(self._file).st_size
        torn = os.pread(self._file, torn_bytes, size - torn_bytes)
        os.ftruncate(self._file, size - torn_bytes)
        self.note("recovered", torn_bytes=torn_bytes, torn_sha256=hashlib.sha256(torn).hexdigest())


def verify(path: Path) -> Verified:
    """Read a log from the beginning and find its first broken line. Raises HospitalError where it cannot be read."""
    head, number = BEGINNING, 0
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return Verified(num_lines=number, head=head, fault=None, torn_bytes=len(line))
                fault = _fault(line[:-1], number + 1, head)
                if fault is not None:
                    return Verified(num_lines=number, head=head, fault=f"line {number + 1}: {fault}")
                head, number = _digest(line[:-1]), number + 1
    except OSError as error:
        raise HospitalError(f"{path}: cannot be read ({error.strerror}); expected a site's audit log") from error
    return Verified(num_lines=number, head=head, fault=None)


def describe(message: Message) -> dict[str, Any]:
    """Return what a message holds, without its arrays: kind, round, arrays, metrics and settings by record name."""
    metadata = message.metadata
    facts: dict[str, Any] = {"kind": metadata.message_type, "round": metadata.group_id, "run": str(metadata.run_id)}
    if message.has_error():
        return {**facts, "error": {"code": message.error.code, "reason": message.error.reason}}
    content: RecordDict = message.content
    arrays = [
        _describe_array(f"{record}/{name}", array)
        for record, arrays in content.array_records.items()
        for name, array in arrays.items()
    ]
    return {
        **facts,
        "bytes": sum(array["bytes"] for array in arrays),
        "arrays": arrays,
        "metrics": {name: dict(record) for name, record in content.metric_records.items()},
        "settings": {
            name: {key: _shortened(value) for key, value in record.items()}
            for name, record in content.config_records.items()
        },
    }


def _describe_array(name: str, array: Array) -> dict[str, Any]:
    values = view(array)
    digest = hashlib.sha256(np.ascontiguousarray(values).data if values.ndim else values.tobytes())
    return {
        "name": name,
        "shape": list(values.shape),
        "dtype": str(values.dtype),
        "bytes": values.nbytes,
        "sha256": digest.hexdigest(),
    }


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        value = value.encode()
    if isinstance(value, bytes):
        return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return value


def _fault(line: bytes, number: int, previous: str) -> str | None:
    try:
        entry = json.loads(line)
        found = (entry["number"], entry["previous"])
    except (ValueError, KeyError, TypeError):
        return "is no entry of this log"
    if found[1] != previous:
        return "does not follow from the line before, which was changed, or lines were removed or put in between"
    return None if found[0] == number else f"has number {found[0]}"


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
