"""Checkpoints come back equal, survive crashes and rot by falling back, and resume no other job."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from fl import durable
from fl.durable import write_file
from fl.errors import CheckpointError
from fl.server import checkpoint
from fl.server.checkpoint import KEPT, load_checkpoint, load_start, save_checkpoint, save_start
from fl.server.rounds import FederationState, RoundRecord, Score, SiteRound
from fl.training.exchange import LeftOut

JOB = "a" * 64


def record(round: int) -> RoundRecord:
    return RoundRecord(
        round=round,
        train_loss=1 / 3,
        validation_accuracy=0.1 * round,
        validation_loss=2 / 3,
        seconds=1.5,
        bytes_down=80,
        bytes_up=40,
        sites=(SiteRound(site="Charité", num_examples=3, loss=0.1, seconds=0.7, update_norm=0.1),),
        left_out=(LeftOut(site="b", reason="late: no reply"),),
    )


def state_after(round: int) -> FederationState:
    random = np.random.default_rng(round)
    return FederationState(
        start_score=Score(accuracy=0.25, loss=1.4),
        parameters=random.normal(size=50).astype(np.float32),
        strategy_state={"control": random.normal(size=50), "steps": np.array(round)},
        best_parameters=random.normal(size=50).astype(np.float32),
        best_round=max(0, round - 1),
        best_score=Score(accuracy=0.1 + 0.2, loss=1e-9),
        history=tuple(record(number) for number in range(1, round + 1)),
    )


def assert_same(found: FederationState | None, expected: FederationState) -> None:
    assert found is not None
    for name in ("parameters", "best_parameters"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == np.float32 and ours.tobytes() == theirs.tobytes()
    nothing = np.zeros(0, np.float32)
    assert set(found.strategy_state) == set(expected.strategy_state)
    for name, array in expected.strategy_state.items():
        ours = found.strategy_state[name]
        assert (ours.dtype, ours.shape, ours.tobytes()) == (array.dtype, array.shape, array.tobytes())
    scalars = [
        asdict(replace(s, parameters=nothing, best_parameters=nothing, strategy_state={})) for s in (found, expected)
    ]
    for one in scalars:
        del one["parameters"], one["best_parameters"]
    assert scalars[0] == scalars[1]
    assert isinstance(found.history, tuple) and found.history == expected.history


@pytest.mark.parametrize("round", [0, 1, 3])
def test_state_comes_back_equal(tmp_path: Path, round: int) -> None:
    save_checkpoint(tmp_path, state_after(round), job_digest=JOB)

    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(round))


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, job_digest=JOB) is None
    assert load_checkpoint(tmp_path / "never made", job_digest=JOB) is None


def test_newest_wins_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for round in range(5):
        folder = save_checkpoint(tmp_path, state_after(round), job_digest=JOB)
        assert folder == tmp_path / f"round-{round:04d}" and folder.is_dir()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0003", "round-0004"]
    assert len(list(tmp_path.iterdir())) == KEPT
    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(4))


def two_checkpoints(root: Path) -> Path:
    """Write rounds 1 and 2 and return the folder of round 2."""
    save_checkpoint(root, state_after(1), job_digest=JOB)
    return save_checkpoint(root, state_after(2), job_digest=JOB)


FILES = ("global.safetensors", "best.safetensors", "state.json", "state.sha256")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    path = two_checkpoints(tmp_path) / name
    data = path.read_bytes()
    middle = len(data) // 2
    if damage == "remove":
        path.unlink()
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "truncate": data[:middle], "empty": b""}[damage])

    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(1))


def test_any_flipped_byte_of_the_state_is_noticed(tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path) / "state.json"
    data = path.read_bytes()
    for offset in range(0, len(data), 7):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(1))


def test_round_repeated_after_a_fallback_replaces_the_damaged_one(tmp_path: Path) -> None:
    (two_checkpoints(tmp_path) / "best.safetensors").write_bytes(b"")

    save_checkpoint(tmp_path, state_after(2), job_digest=JOB)

    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(2))


def test_nothing_but_damaged_checkpoints_is_an_error_that_tells_each_fault(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "global.safetensors").write_bytes(b"x")

    with pytest.raises(CheckpointError, match=r"round-0002: .*SHA-256; round-0001: .*SHA-256.*new --run-dir"):
        load_checkpoint(tmp_path, job_digest=JOB)


def test_checkpoint_of_another_job_is_refused_and_left_alone(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)

    with pytest.raises(CheckpointError, match="written by another job"):
        load_checkpoint(tmp_path, job_digest="b" * 64)

    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(2))


def test_leftovers_of_a_crash_are_removed_and_not_read(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    shutil.copytree(newest, tmp_path / ".round-0003.4711")
    (tmp_path / ".round-0004.4711").mkdir()

    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0001", "round-0002"]


class Crash(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize("num_files", [0, 1, 2, 3])
def test_crash_between_any_two_files_leaves_the_round_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_files: int
) -> None:
    two_checkpoints(tmp_path)
    real, written = checkpoint.write_synced, []

    def crash_after(path: Path, data: bytes) -> None:
        if len(written) == num_files:
            path.write_bytes(data[: len(data) // 2])
            raise Crash
        written.append(path)
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", crash_after)
    with pytest.raises(Crash):
        save_checkpoint(tmp_path, state_after(3), job_digest=JOB)
    monkeypatch.undo()

    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0001", "round-0002"]
    save_checkpoint(tmp_path, state_after(3), job_digest=JOB)
    assert_same(load_checkpoint(tmp_path, job_digest=JOB), state_after(3))


def test_single_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_file(path, b"old")

    def crash(target: Path, data: bytes) -> None:
        target.write_bytes(data[:1])
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(durable, "write_synced", crash)
        write_file(path, b"new")
    assert path.read_bytes() == b"old"

    write_file(path, b"new")
    assert path.read_bytes() == b"new" and [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_start_comes_back_equal_and_a_damaged_one_counts_as_none(tmp_path: Path) -> None:
    folder = tmp_path / "start"
    model = {"head.bias": np.arange(4, dtype=np.float32), "head.weight": np.ones((4, 8), np.float32)}
    assert load_start(folder) is None

    save_start(folder, model, {"epochs": 3, "loss": 0.1})

    found = load_start(folder)
    assert found is not None and found[1] == {"epochs": 3, "loss": 0.1}
    assert {name: array.tolist() for name, array in found[0].items()} == {n: a.tolist() for n, a in model.items()}
    data = (folder / "model.safetensors").read_bytes()
    for name, spoilt in (
        ("model.safetensors", data[:-1] + bytes([data[-1] ^ 1])),
        ("start.json", b"[]"),
        ("start.json", b"{}"),
        ("start.json", b"{"),
    ):
        save_start(folder, model, {})
        (folder / name).write_bytes(spoilt)
        assert load_start(folder) is None


def test_damaged_checkpoint_of_a_later_round_takes_no_place(tmp_path: Path) -> None:
    (tmp_path / "round-0009").mkdir(parents=True)  # whatever a broken disk left of it
    for rounds in (1, 2, 3):
        save_checkpoint(tmp_path, state_after(rounds), job_digest="job")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["round-0002", "round-0003"]
