"""A site's audit log: whatever is changed in it shows, and whatever happens to the process, it can go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl.errors import HospitalError
from fl.hospital.audit import LONGEST_TEXT, AuditLog, verify
from fl.runtime.flower_internals import ensure_identity

NUM_LINES = 6


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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    with AuditLog(path) as log:
        log.note("started", site="north")
    with AuditLog(path) as log:
        for round in range(NUM_LINES - 2):
            log.received(message(parameters(), round=str(round)))
        log.sending(Message(Error(1, "no"), reply_to=message(parameters())))
    return path.read_bytes()


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


def test_an_undisturbed_log_is_whole_over_restarts(written: bytes, tmp_path: Path) -> None:
    found = verify(save(tmp_path, written))
    assert (found.num_lines, found.fault, found.torn_bytes) == (NUM_LINES, None, 0)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_changed_byte_before_the_last_line_shows_at_its_line_or_the_next(
    data: st.DataObject, written: bytes, tmp_path: Path
) -> None:
    lines = written.splitlines(keepends=True)
    position = data.draw(st.integers(0, len(written) - len(lines[-1]) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != written[position]))
    changed = written[:position] + bytes([value]) + written[position + 1 :]
    line = written[:position].count(b"\n") + 1
    found = verify(save(tmp_path, changed))
    assert found.fault is not None
    assert int(found.fault.split()[1].rstrip(":")) in (line, line + 1)


@pytest.mark.parametrize("number", range(NUM_LINES - 1))
def test_a_line_that_is_removed_doubled_or_moved_shows(written: bytes, tmp_path: Path, number: int) -> None:
    lines = written.splitlines(keepends=True)
    removed = [*lines[:number], *lines[number + 1 :]]
    doubled = [*lines[: number + 1], lines[number], *lines[number + 1 :]]
    swapped = [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]]
    for tampered in (removed, doubled, swapped):
        path = save(tmp_path, b"".join(tampered))
        assert verify(path).fault is not None
        with pytest.raises(HospitalError, match="changed after it was written"):
            AuditLog(path)
        assert path.read_bytes() == b"".join(tampered), "a broken log is evidence, it is not to be touched"


def test_a_log_that_was_cut_short_shows_by_the_digest_that_was_noted(written: bytes, tmp_path: Path) -> None:
    noted = verify(save(tmp_path, written)).head
    shortened = verify(save(tmp_path, b"".join(written.splitlines(keepends=True)[:-1])))
    assert shortened.fault is None and shortened.head != noted


def test_a_line_torn_by_a_crash_is_described_and_the_chain_goes_on(written: bytes, tmp_path: Path) -> None:
    for torn in (1, 40, len(written.splitlines()[-1])):
        path = save(tmp_path, written[: -(len(written.splitlines()[-1]) + 1)] + written.splitlines()[-1][:torn])
        assert (verify(path).fault, verify(path).torn_bytes) == (None, torn)
        with AuditLog(path) as log:
            log.note("started")
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        assert verify(path).fault is None
        assert [entry["event"] for entry in entries[-2:]] == ["recovered", "started"]
        assert entries[-2]["torn_bytes"] == torn


def test_two_processes_never_write_one_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path), pytest.raises(HospitalError, match="another process"):
        AuditLog(path)
    with AuditLog(path) as log:
        log.note("started")
    assert verify(path).num_lines == 1


def save(folder: Path, content: bytes) -> Path:
    path = folder / "log.jsonl"
    path.write_bytes(content)
    return path
