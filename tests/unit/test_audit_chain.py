"""A hash-chained log: whatever is changed in it shows, and whatever happens to its process or disk, it can go on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl.audit_chain import ChainedLog, verify
from fl.errors import AuditLogError

NUM_LINES = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    with ChainedLog(path) as log:
        log.note("started", site="north")
    with ChainedLog(path) as log:
        log.append(
            [{"event": "answered", "label": "glioma", "milliseconds": number} for number in range(NUM_LINES - 1)]
        )
    return path.read_bytes()


def test_an_undisturbed_log_is_whole_over_restarts(written: bytes, tmp_path: Path) -> None:
    found = verify(save(tmp_path, written))
    assert (found.num_lines, found.fault, found.torn_bytes, found.first_number) == (NUM_LINES, None, 0, 1)


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
        with pytest.raises(AuditLogError, match="changed after it was written"):
            ChainedLog(path)
        assert path.read_bytes() == b"".join(tampered), "a broken log is evidence, it is not to be touched"


def test_a_log_that_was_cut_short_shows_by_the_digest_that_was_noted(written: bytes, tmp_path: Path) -> None:
    noted = verify(save(tmp_path, written)).head
    shortened = verify(save(tmp_path, b"".join(written.splitlines(keepends=True)[:-1])))
    assert shortened.fault is None and shortened.head != noted


def test_a_line_torn_by_a_crash_is_described_and_the_chain_goes_on(written: bytes, tmp_path: Path) -> None:
    for torn in (1, 40, len(written.splitlines()[-1])):
        path = save(tmp_path, written[: -(len(written.splitlines()[-1]) + 1)] + written.splitlines()[-1][:torn])
        assert (verify(path).fault, verify(path).torn_bytes) == (None, torn)
        with ChainedLog(path) as log:
            log.note("started")
        entries = read(path)
        assert verify(path).fault is None
        assert [entry["event"] for entry in entries[-2:]] == ["recovered", "started"]
        assert entries[-2]["torn_bytes"] == torn


def test_two_processes_never_write_one_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ChainedLog(path), pytest.raises(AuditLogError, match="another process"):
        ChainedLog(path)
    with ChainedLog(path, max_bytes=1) as log:
        log.note("started")
        log.note("and set aside")
        with pytest.raises(AuditLogError, match="another process"):
            ChainedLog(path)
    assert verify(path).num_lines == 3


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    max_bytes=st.integers(1, 1500),
    restart_after=st.integers(0, 11),
)
def test_the_chain_goes_on_over_files_restarts_and_groups_of_lines(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], max_bytes: int, restart_after: int
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    number = 0
    for groups in (sizes[:restart_after], sizes[restart_after:]):
        with ChainedLog(path, max_bytes=max_bytes) as log:
            for size in groups:
                log.append([{"event": "answered", "count": number + each} for each in range(size)])
                number += size
            head, num_lines = log.head, log.num_lines
    entries = [entry for file in files_of(path) for entry in read(file)]
    found = verify(path)
    assert (found.fault, found.head, found.num_lines, found.first_number) == (None, head, num_lines, 1)
    assert [entry["number"] for entry in entries] == list(range(1, num_lines + 1))
    assert [entry["count"] for entry in entries if entry["event"] == "answered"] == list(range(number))


def test_a_file_missing_in_between_or_changed_shows_and_older_ones_taken_away_are_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ChainedLog(path, max_bytes=300) as log:
        for number in range(12):
            log.note("answered", count=number)
    oldest, second, *_, newest, _ = files_of(path)
    assert second.stem == f"audit-{read(second)[0]['number']:012d}"
    content, number = newest.read_bytes(), int(read(newest)[0]["number"])
    newest.write_bytes(content.replace(b'"continued"', b'"Continued"'))
    assert str(verify(path).fault).startswith(f"line {number + 1}: does not follow")
    newest.unlink()
    assert "does not follow" in str(verify(path).fault)
    newest.write_bytes(content[:-1])
    assert "no end" in str(verify(path).fault)
    newest.write_bytes(content)
    head_of_oldest = verify(path).fault, read(second)[0]["previous"]
    oldest.unlink()
    found = verify(path)
    assert (found.fault, found.first_previous) == head_of_oldest
    assert found.first_number == read(second)[0]["number"] > 1


def test_a_crash_while_a_file_is_set_aside_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ChainedLog(path) as log:
        log.note("started")
    os.link(path, tmp_path / f"audit-{1:012d}.jsonl")  # as far as it came
    (tmp_path / ".audit.jsonl.next").write_bytes(b'{"number": 2, "prev')
    assert verify(path).num_lines == 1
    with ChainedLog(path, max_bytes=1) as log:
        log.note("answered")
    assert [entry["event"] for file in files_of(path) for entry in read(file)] == ["started", "continued", "answered"]
    assert verify(path).fault is None


def test_an_emptied_log_with_older_files_beside_it_is_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ChainedLog(path, max_bytes=1) as log:
        log.note("started")
        log.note("answered")
    path.write_bytes(b"")
    with pytest.raises(AuditLogError, match="put the file back"):
        ChainedLog(path)


def test_a_full_disk_is_an_error_and_the_log_goes_on_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ChainedLog(path) as log:
        log.note("started")
        with at_most(path.stat().st_size + 100), pytest.raises(AuditLogError, match="cannot be written"):
            log.append([{"event": "answered", "count": number} for number in range(3)])
        with pytest.raises(AuditLogError, match="open the log again"):
            log.note("answered")
    with ChainedLog(path) as log:
        log.note("resumed")
    assert [entry["event"] for entry in read(path)] == ["started", "recovered", "resumed"]
    assert verify(path).fault is None


def test_a_log_that_was_moved_or_removed_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ChainedLog(path) as log:
        log.note("started")
        path.rename(tmp_path / "elsewhere.jsonl")
        with pytest.raises(AuditLogError, match="moved or removed"):
            log.note("answered")


def test_a_path_that_cannot_be_a_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(AuditLogError, match="cannot be opened"):
        ChainedLog(tmp_path)
    with pytest.raises(AuditLogError, match="cannot be read"):
        verify(tmp_path / "nothing.jsonl")


def test_it_needs_neither_flower_nor_numpy() -> None:
    code = (
        "import sys, fl.audit_chain; sys.exit(any(name in sys.modules for name in ('flwr', 'numpy', 'torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_of(path: Path) -> list[Path]:
    return [*sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")), path]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(folder: Path, content: bytes) -> Path:
    path = folder / "log.jsonl"
    path.write_bytes(content)
    return path
