"""A site's audit log: a line says what a message held and keeps none of it, and its lines are one chain."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fl.audit_chain import verify
from fl.hospital.audit import LONGEST_TEXT, AuditLog
from fl.runtime.flower_internals import ensure_identity


def message(content: RecordDict, kind: str = "train", round: str = "3") -> Message:
    ensure_identity()
    return Message(content, dst_node_id=7, message_type=kind, group_id=round)


def parameters(length: int = 5) -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({"parameters": Array(np.arange(length, dtype=np.float32))}),
            "metrics": MetricRecord({"num-examples": 12, "loss": 0.5}),
            "config": ConfigRecord({"encoding": "float32"}),
        }
    )


def test_a_line_says_what_a_message_held_and_keeps_no_array(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.sending(message(parameters()))
        log.sending(message(RecordDict({"config": ConfigRecord({"text": "x" * (LONGEST_TEXT + 1), "raw": b"secret"})})))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["event"], first["kind"], first["round"], first["bytes"]) == ("sending", "train", "3", 20)
    digest = hashlib.sha256(np.arange(5, dtype=np.float32).tobytes()).hexdigest()
    about = {"name": "arrays/parameters", "shape": [5], "dtype": "float32", "bytes": 20, "sha256": digest}
    assert first["arrays"] == [about]
    assert first["metrics"] == {"metrics": {"num-examples": 12, "loss": 0.5}}
    assert first["settings"] == {"config": {"encoding": "float32"}}
    assert set(second["settings"]["config"]["text"]) == {"bytes", "sha256"}
    assert "secret" not in path.read_text() and "xxx" not in path.read_text()


def test_messages_and_events_are_one_chain_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.note("started", site="north")
    with AuditLog(path) as log:
        log.received(message(parameters()))
        log.sending(Message(Error(1, "no"), reply_to=message(parameters())))
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["started", "received", "sending"]
    found = verify(path)
    assert (found.num_lines, found.fault, found.torn_bytes) == (3, None, 0)
