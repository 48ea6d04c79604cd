"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all.

`<root>/round-0007/` holds `global.safetensors`, `best.safetensors`, `strategy.safetensors`, `state.json`, which names
the SHA-256 of each, and `state.sha256`, which has its own.
It is written under a temporary name, every file fsynced, then renamed; a crash leaves the one before untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fl.durable import fsync_folder, write_synced
from fl.errors import CheckpointError
from fl.failpoint import failpoint
from fl.server.rounds import FederationState, RoundRecord, Score, SiteRound
from fl.training.exchange import LeftOut
from fl.training.trainer import ModelState

FORMAT = 2
KEPT = 2


def save_checkpoint(root: Path, state: FederationState, *, job_digest: str) -> Path:
    """Write the state durably and return its folder; the newest `KEPT` checkpoints are kept.

    job_digest: digest of what the rounds depend on (spec, data, start); a checkpoint resumes no other job.
    """
    blobs = {
        "global.safetensors": save_tensors({"parameters": state.parameters}),
        "best.safetensors": save_tensors({"parameters": state.best_parameters}),
        "strategy.safetensors": save_tensors(
            {name: np.asarray(array, order="C") for name, array in state.strategy_state.items()}
        ),
    }
    meta = {
        "format": FORMAT,
        "job_digest": job_digest,
        "round": state.round,
        "best_round": state.best_round,
        "start_score": asdict(state.start_score),
        "best_score": asdict(state.best_score),
        "history": [asdict(record) for record in state.history],
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in blobs.items()},
    }
    folder = root / f"round-{state.round:04d}"
    text = _json(meta)
    write_folder(folder, {**blobs, "state.json": text, "state.sha256": hashlib.sha256(text).hexdigest().encode()})
    folders = sorted(root.glob("round-*"))
    damaged = [other for other in folders if other.name > folder.name]  # passed over when this run was resumed
    for other in [*damaged, *folders[: -len(damaged) or None][:-KEPT]]:
        shutil.rmtree(other)
    return folder


def load_checkpoint(root: Path, *, job_digest: str) -> FederationState | None:
    """Return the newest checkpoint that is whole, or None where there is none at all.

    A damaged checkpoint is passed over for the one before it. Raises CheckpointError where all are damaged, or where
    the newest belongs to another job.
    """
    for leftover in root.glob(".round-*"):
        shutil.rmtree(leftover)  # a crash while writing
    folders = sorted(root.glob("round-*"), reverse=True)
    faults = []
    for folder in folders:
        try:
            return _read(folder, job_digest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults.append(f"{folder.name}: {error}")
    if not faults:
        return None
    raise CheckpointError(f"{root}: no usable checkpoint ({'; '.join(faults)}); start again with a new --run-dir")


def save_start(folder: Path, state: ModelState, facts: dict[str, Any]) -> None:
    """Write the whole model that round 1 starts from, with facts about how it came about, once and durably."""
    blob = save_tensors(state)
    meta = {"format": FORMAT, "facts": facts, "sha256": hashlib.sha256(blob).hexdigest()}
    write_folder(folder, {"model.safetensors": blob, "start.json": _json(meta)})


def load_start(folder: Path) -> tuple[ModelState, dict[str, Any]] | None:
    """Return the start that `save_start` wrote and its facts; None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / "start.json").read_text())
        blob = (folder / "model.safetensors").read_bytes()
        whole = hashlib.sha256(blob).hexdigest() == meta["sha256"]
        return (load_tensors(blob), meta["facts"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a new folder that appears whole or not at all, replacing one of the same name."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, data in files.items():
        write_synced(temporary / name, data)
    fsync_folder(temporary)
    failpoint("folder.written")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    failpoint("folder.renamed")
    fsync_folder(folder.parent)


def _read(folder: Path, job_digest: str) -> FederationState:
    text = (folder / "state.json").read_bytes()
    if hashlib.sha256(text).hexdigest() != (folder / "state.sha256").read_text():
        raise ValueError("state.json does not match its SHA-256")
    meta = json.loads(text)
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
    if meta["job_digest"] != job_digest:
        raise CheckpointError(
            f"{folder}: was written by another job (other spec, data or start); "
            "resume with the run's own spec.yaml and data, or start again with a new --run-dir"
        )
    return FederationState(
        start_score=Score(**meta["start_score"]),
        parameters=_blob(folder, "global.safetensors", meta)["parameters"],
        strategy_state=_blob(folder, "strategy.safetensors", meta),
        best_parameters=_blob(folder, "best.safetensors", meta)["parameters"],
        best_round=meta["best_round"],
        best_score=Score(**meta["best_score"]),
        history=tuple(_record(record) for record in meta["history"]),
    )


def _blob(folder: Path, name: str, meta: dict[str, Any]) -> dict[str, NDArray[Any]]:
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != meta["sha256"][name]:
        raise ValueError(f"{name} does not match its SHA-256")
    tensors: dict[str, NDArray[Any]] = load_tensors(data)
    return tensors


def _record(record: dict[str, Any]) -> RoundRecord:
    sites = tuple(SiteRound(**site) for site in record.pop("sites"))
    left_out = tuple(LeftOut(**out) for out in record.pop("left_out"))
    return RoundRecord(**record, sites=sites, left_out=left_out)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
