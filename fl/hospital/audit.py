"""A site's audit log: every message it received and sent, in a hash-chained log (`fl.audit_chain`).

A line is on the disk before its message leaves. Arrays are described (name, shape, dtype, bytes, SHA-256), never
stored; numbers and short texts are written in clear.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from flwr.app import Array, Message, RecordDict

from fl.audit_chain import ChainedLog
from fl.runtime.flower_internals import view

LONGEST_TEXT = 2000
"""Longer texts and all bytes are described like arrays: a log is not where data may hide."""


class AuditLog(ChainedLog):
    """The log of one site, open for writing. Errors: AuditLogError, as of `ChainedLog`."""

    def received(self, message: Message) -> None:
        """Append a message that came from the coordinator."""
        self.append([{"event": "received", **describe(message)}])

    def sending(self, message: Message) -> None:
        """Append a message that is about to leave, and see it to the disk."""
        self.append([{"event": "sending", **describe(message)}])


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
