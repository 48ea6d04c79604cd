"""Our side of `job_vs_flower` and the judge of both, as programs for `benchmarks.family.run_program`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.family import NUM_CORES
from benchmarks.job_inputs import federation_of
from fl.evaluation.metrics import evaluate
from fl.training.trainer import SiteTrainer
from fl.types import CLASSES
from service.job import run_job
from service.progress import Display
from service.runs import open_run
from service.spec import load_spec
from service.start import initial_model_state, trainer_setup


def job(job: str, scratch: str, result: str) -> dict[str, Any]:
    """Run a whole job, bundle and report included, on an empty cache; return the seconds of its phases.

    job: job file. scratch: folder for cache and run. result: .npy file for the last round's parameters.
    """
    spec = load_spec(Path(job), [f"data.cache_dir={scratch}/cache"])
    with open_run(Path(scratch) / "run", spec, resume=False) as run:
        (arm,) = run_job(run, Display(terminal=False), lambda: False)
    np.save(result, arm.state.parameters)
    phases = json.loads((Path(scratch) / "run" / "result.json").read_text(encoding="utf-8"))["phases"]
    return {"phases": {phase["name"]: phase["seconds"] for phase in phases}}


def score(job: str, scratch: str, parameters: str) -> dict[str, Any]:
    """Return the accuracy of parameters, a .npy file, on the job's test scans, by the product's own evaluation."""
    spec = load_spec(Path(job))
    scans = federation_of(spec, Path(scratch)).test_scans
    setup = trainer_setup(spec, initial_model_state(spec), store_root=Path(scratch) / "store", num_threads=NUM_CORES)
    trainer, labels_N = SiteTrainer(setup), np.array([scan.label for scan in scans], np.int64)
    return {"accuracy": evaluate(labels_N, trainer.evaluate(np.load(parameters), scans), CLASSES).accuracy}
