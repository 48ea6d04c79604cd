"""The model before round 1: pretrained or random weights, warmed up where the scenario says so; made once a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fl.errors import CheckpointError
from fl.model.flat import FlatParameters, gather
from fl.model.vgg import SplitVgg19, initialise_head
from fl.model.weights import load_weights
from fl.random import derive_seed
from fl.server.checkpoint import load_start, save_start
from fl.training.trainer import ModelState, TrainerSetup, load_model_state, model_state
from kernels.spec import PreprocessSpec
from service.spec import JobSpec

_BASELINE = "baseline.parameters"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """A whole model's weights, and the trained parameters that each arm of the job begins with.

    warmup: what the warm-up was (epochs, seconds, last loss), None where there was none. analytic: what the closed form
    took (sites, bytes, ridge, seconds), None where there was none.
    """

    state: ModelState
    scenario_parameters: FlatParameters
    baseline_parameters: FlatParameters
    warmup: dict[str, Any] | None
    analytic: dict[str, Any] | None = None

    def digest(self) -> str:
        """Return a digest of all weights."""
        digest = hashlib.sha256()
        for name in sorted(self.state):
            digest.update(name.encode() + self.state[name].tobytes())
        if self.analytic is not None:
            digest.update(self.scenario_parameters.tobytes())
        return digest.hexdigest()


def preprocess_spec(spec: JobSpec) -> PreprocessSpec:
    """Return the one definition of preprocessing that training, evaluation and the bundle share."""
    return PreprocessSpec(size=spec.preprocess.size, normalization=spec.model.weights.input_normalization())


def initial_model_state(spec: JobSpec) -> ModelState:
    """Return the weights of the job's source, with a fresh head. Raises WeightsError."""
    model = SplitVgg19(spec.model.network)
    load_weights(model, spec.model.weights, seed=spec.seed)
    return model_state(model)


def trainer_setup(
    spec: JobSpec, state: ModelState, *, store_root: Path, num_threads: int, state_root: Path | None = None
) -> TrainerSetup:
    """Return what workers are made of. state_root: where sites keep what they remember."""
    return TrainerSetup(
        network=spec.model.network,
        speed=spec.model.speed,
        preprocess=preprocess_spec(spec),
        augment=spec.fl.augment,
        local=spec.fl.local,
        store_root=store_root,
        crop_backend=spec.preprocess.backend,
        seed=spec.seed,
        num_threads=num_threads,
        state=state,
        state_root=state_root,
    )


def make_start(spec: JobSpec, initial: ModelState, warmed: ModelState, warmup: dict[str, Any] | None) -> Start:
    """Return the start of both arms.

    The baseline begins as the study's unhelped sites do, with pretrained convolutions and a fresh head. Where nothing
    pretrained is to be had, the warmed-up convolutions stand in for it, so that the arms differ by the help alone.
    """
    pretrained = initial if spec.model.weights.source != "random" else warmed
    return Start(
        state=warmed,
        scenario_parameters=gather(_model(spec, warmed).trained_parameters()),
        baseline_parameters=gather(_with_fresh_head(spec, pretrained).trained_parameters()),
        warmup=warmup,
    )


def read_start(folder: Path, spec: JobSpec, *, data_digest: str) -> Start | None:
    """Return the start that this run saved, or None where it has none yet.

    Raises CheckpointError where it was made from other data: a warm-up on these would give another model.
    """
    found = load_start(folder)
    if found is None:
        return None
    state, facts = found
    if facts["data"] != data_digest:
        raise CheckpointError(
            f"{folder}: this run was begun with other scans, or splits of them, than the job finds now; "
            "restore them, or start again with a new --run-dir"
        )
    baseline = state.pop(_BASELINE)
    parameters = gather(_model(spec, state).trained_parameters())
    return Start(state=state, scenario_parameters=parameters, baseline_parameters=baseline, warmup=facts["warmup"])


def write_start(folder: Path, start: Start, *, data_digest: str) -> None:
    """Save the start durably, so that a resumed run begins from the same bytes."""
    facts = {"data": data_digest, "warmup": start.warmup}
    save_start(folder, {**start.state, _BASELINE: start.baseline_parameters}, facts)


def read_closed_form(folder: Path, start: Start, *, job_digest: str) -> Start | None:
    """Return the start with the closed form that this run saved, None where it has none yet.

    Raises CheckpointError where it was made by another job.
    """
    found = load_start(folder)
    if found is None:
        return None
    state, facts = found
    if facts["job"] != job_digest:
        raise CheckpointError(
            f"{folder}: was made by another job (other spec, data or start); resume with the run's own spec.yaml and "
            "data, or start again with a new --run-dir"
        )
    return replace(start, scenario_parameters=state["parameters"], analytic=facts["analytic"])


def write_closed_form(folder: Path, start: Start, *, job_digest: str) -> None:
    """Save a start's closed form durably: its sums cost each site a pass over its scans."""
    save_start(folder, {"parameters": start.scenario_parameters}, {"job": job_digest, "analytic": start.analytic})


def _model(spec: JobSpec, state: ModelState) -> SplitVgg19:
    model = SplitVgg19(spec.model.network)
    load_model_state(model, state)
    return model


def _with_fresh_head(spec: JobSpec, state: ModelState) -> SplitVgg19:
    model = _model(spec, state)
    initialise_head(model, torch.Generator().manual_seed(derive_seed(spec.seed, "baseline-head")))
    return model
