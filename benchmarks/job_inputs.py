"""What both sides of `job_vs_flower` get: the same files, sites, start and settings, laid down in one folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from benchmarks.inputs import DEFAULT_FOLDER
from fl.data.federation import Federation, build_federation
from fl.data.intake import admit_sets, list_sets, sort_outcomes
from fl.data.phantoms import PhantomSettings, phantom_folder, write_phantom_folder
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from fl.training.local import LocalSettings
from fl.types import CLASSES, Scan
from service.spec import JobSpec, load_spec
from service.start import initial_model_state, preprocess_spec

PHANTOM_PIXELS = 224
DATA_VARIABLE = "GLIOFED_BENCH_DATA"
WEIGHTS = (
    Path(os.environ.get("GLIOFED_REAL_DATA", DEFAULT_FOLDER)).parent / "weights/vgg16-imagenet-conv.fp16.safetensors"
)
SEED = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSize:
    """How much work a job is. pixels: side of the network's input. Training and test scans are of all classes alike."""

    num_train: int
    num_test: int
    num_sites: int
    rounds: int = 5
    epochs: int = LocalSettings().epochs
    pixels: int = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class JobInputs:
    """job: our job file. plain: what the peer's program reads. source: what the scans and weights are, as one line."""

    job: Path
    plain: Path
    source: str


def lay_down(folder: Path, size: JobSize) -> JobInputs:
    """Write both programs' input, with phantoms or, where `$GLIOFED_BENCH_DATA` names a folder, scans from there."""
    folder.mkdir(parents=True)
    root, source = _scans(folder, size)
    weights, normalization, origin = _weights(folder)
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(_job(root, weights, normalization, size, folder / "cache")), encoding="utf-8")
    spec = load_spec(job)
    plain = folder / "plain.json"
    plain.write_text(json.dumps(_plain(spec, folder)), encoding="utf-8")
    return JobInputs(job=job, plain=plain, source=f"{source}, {origin}")


def federation_of(spec: JobSpec, cache: Path) -> Federation:
    """Return the job's sites, validation and test scans, as the job itself makes them; admission is kept in `cache`."""
    assert spec.data.root is not None
    cache.mkdir(parents=True, exist_ok=True)
    outcomes = admit_sets(list_sets(spec.data.root, None), spec.data.admission, cache / "inventory.jsonl")
    return build_federation(sort_outcomes(list(outcomes)), spec.data, spec.shared, seed=spec.seed)


def _job(root: Path, weights: Path, normalization: str, size: JobSize, cache: Path) -> dict[str, Any]:
    no_views = {"rotation_degrees": 0, "shift_fraction": 0, "horizontal_flip": False}
    return {
        "name": "bench",
        "scenario": "iid",
        "seed": SEED,
        "data": {
            **{"source": "folder", "root": str(root), "cache_dir": str(cache), "validation_fraction": 0.1},
            "partition": {"kind": "iid", "num_sites": size.num_sites, "min_examples_per_site": 1},
        },
        "preprocess": {"size": size.pixels},
        "model": {"weights": {"source": "file", "path": str(weights), "normalization": normalization}},
        "fl": {
            **{"rounds": size.rounds, "participation": 1.0, "aggregation": "by_examples", "early_stop": None},
            **{"local": {"epochs": size.epochs}, "augment": no_views},
        },
        "ray": {"threads": 1},
    }


def _plain(spec: JobSpec, folder: Path) -> dict[str, Any]:
    federation = federation_of(spec, folder / "cache-of-plain")
    start = folder / "start.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in initial_model_state(spec).items()}, start)
    return {
        "start": str(start),
        "preprocess": preprocess_spec(spec).to_json(),
        "dropout": spec.model.network.dropout,
        "sites": [_pairs(site.scans) for site in federation.sites],
        "validation": _pairs(federation.validation_scans),
        "test": _pairs(federation.test_scans),
        "rounds": spec.fl.rounds,
        "epochs": spec.fl.local.epochs,
        "batch_size": spec.fl.local.batch_size,
        "learning_rate": spec.fl.local.learning_rate,
        "seed": spec.seed,
    }


def _pairs(scans: Sequence[Scan]) -> list[tuple[str, int]]:
    return [(str(scan.path), scan.label) for scan in scans]


def _scans(folder: Path, size: JobSize) -> tuple[Path, str]:
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen is not None:
        return _copy_scans(Path(chosen), folder / "scans", size), f"{size.num_train} real training scans"
    settings = PhantomSettings(
        num_train=size.num_train, num_test=size.num_test, size_pixels=PHANTOM_PIXELS, difficulty=0.0, seed=SEED
    )
    for _ in write_phantom_folder(settings, folder, num_processes=1):
        pass
    return phantom_folder(settings, folder).images, f"{size.num_train} phantom training scans"


def _copy_scans(root: Path, target: Path, size: JobSize) -> Path:
    for name, count in (("Training", size.num_train), ("Testing", size.num_test)):
        for label in CLASSES:
            found = sorted(path for path in (root / name / label).glob("*") if path.is_file())
            wanted = count // len(CLASSES)
            if len(found) < wanted:
                raise SystemExit(
                    f"{DATA_VARIABLE}: {root / name / label} has {len(found)} scans, the benchmark needs {wanted}; "
                    "name a folder in Kaggle's layout with more, or none for phantoms"
                )
            (target / name / label).mkdir(parents=True)
            for path in found[:: len(found) // wanted][:wanted]:
                shutil.copy(path, target / name / label / path.name)
    return target


def _weights(folder: Path) -> tuple[Path, str, str]:
    if WEIGHTS.is_file():
        return WEIGHTS, "caffe", "ImageNet start"
    model, path = SplitVgg19(NetworkSettings()), folder / "weights.safetensors"
    initialise_from_nothing(model, torch.Generator().manual_seed(SEED))
    convolutions = model.features().state_dict()
    save_file(convolutions, path)
    return path, "torchvision", "random start"
