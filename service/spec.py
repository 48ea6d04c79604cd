"""The job spec: settings of every room, composed; read from YAML, scenario defaults and `--set`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl.data.crops import CropBackendSetting
from fl.data.federation import DataSettings, SharedSettings
from fl.model.speed import SpeedSettings
from fl.model.vgg import NetworkSettings
from fl.model.weights import WeightSettings
from fl.runtime.cluster import RaySettings
from fl.server.analytic import AnalyticSettings
from fl.server.choice import misfit, secure_misfit
from fl.server.muon import MuonSettings
from fl.server.rounds import RoundSettings
from fl.training.augment import AugmentSettings
from fl.training.local import LocalSettings
from fl.training.personal import PersonalSettings
from fl.training.warmup import WarmupSettings
from service.keys import ExportSettings
from service.layers import Explained, explain_model, overlay, validate
from service.scenarios import SCENARIOS, ScenarioName
from service.yaml_source import KeyPath, Source, key_paths, read_overrides, read_yaml


class PreprocessSettings(BaseModel):
    """Of what preprocessing means only the output size is free; the rest is the reference semantics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(200, ge=32, le=512, description="Side of the network's input in pixels; the study: 200.")
    backend: CropBackendSetting = Field(
        "auto",
        description="Speed only: who decodes and crops scans, our kernels (native) or the same kernels in NVIDIA DALI "
        "(dali); the bytes are the same. auto: native, which measures faster on a CPU.",
    )


class ModelSettings(BaseModel):
    """The classifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkSettings = Field(default_factory=NetworkSettings, description="Shape of the VGG19.")
    weights: WeightSettings = Field(default_factory=WeightSettings, description="Where it starts from.")
    speed: SpeedSettings = Field(default_factory=SpeedSettings, description="Speed only.")


class FederationSettings(RoundSettings):
    """How the federation learns."""

    local: LocalSettings = Field(default_factory=LocalSettings, description="A site's work in a round.")
    augment: AugmentSettings = Field(default_factory=AugmentSettings, description="Random views of training images.")
    warmup: WarmupSettings | None = Field(None, description="Training on the shared set before round 1.")
    analytic: AnalyticSettings | None = Field(
        None, description="A head in closed form from one round of sums over the sites, before round 1."
    )
    personal: PersonalSettings | None = Field(
        None, description="Measure at the end what a head tuned on each site would be worth to it; null: do not."
    )

    @model_validator(mode="after")
    def _strategy_fits(self) -> Self:
        faults = [misfit(self.strategy, self.aggregation, self.encoding, self.local)]
        if self.secure_aggregation is not None:
            faults.append(secure_misfit(self.strategy, self.aggregation, self.encoding))
        if fault := next((fault for fault in faults if fault is not None), None):
            raise ValueError(fault)
        if self.warmup is not None and self.analytic is not None:
            raise ValueError("warmup and analytic both make the head that round 1 starts from; set one of them to null")
        return self


class JobSpec(BaseModel):
    """One training job, complete: the same spec and data give the same model on the same kind of machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$", description="Names the run's folder.")
    scenario: ScenarioName = Field(
        description="Whose defaults apply: the study's iid, noniid, holdout, synthetic; ours: analytic, "
        "noniid_zero_share."
    )
    seed: int = Field(7, ge=0, lt=2**62, description="Seed of every draw.")
    baseline: bool = Field(
        False,
        description="Also train the same sites without help: nothing shared, no warm-up of the head, uniform mean.",
    )
    data: DataSettings = Field(description="Scans and sites.")
    shared: SharedSettings | None = Field(None, description="What sites share; null: nothing.")
    preprocess: PreprocessSettings = Field(default_factory=PreprocessSettings, description="Scan to network input.")
    model: ModelSettings = Field(default_factory=ModelSettings, description="The classifier.")
    fl: FederationSettings = Field(default_factory=FederationSettings, description="How the federation learns.")
    ray: RaySettings = Field(default_factory=RaySettings, description="Where it runs.")
    export: ExportSettings = Field(default_factory=ExportSettings, description="What becomes of the model.")

    @model_validator(mode="after")
    def _pieces_fit(self) -> Self:
        if self.fl.warmup is not None and self.shared is None:
            raise ValueError(
                "fl.warmup trains on the shared set, but shared is null; set shared.source or fl.warmup: null"
            )
        learns_all = self.fl.warmup is not None and self.fl.warmup.layers == "all"
        if self.model.weights.source == "random" and self.model.network.frozen_through and not learns_all:
            raise ValueError(
                "model.weights.source is `random` and a part of the network is frozen, so it would stay random; "
                "set fl.warmup.layers: all, or model.network.frozen_through: null"
            )
        holdout = self.shared.holdout_fraction if self.shared and self.shared.source == "holdout" else 0.0
        if self.data.validation_fraction + holdout > 0.9:
            raise ValueError(
                f"data.validation_fraction + shared.holdout_fraction is {self.data.validation_fraction + holdout:g}; "
                "expected at most 0.9, the sites train on the rest"
            )
        if self.fl.analytic is not None and self.model.network.head != "wide":
            raise ValueError(
                f"fl.analytic sums features exactly, which a head `{self.model.network.head}` does not bound; "
                "set model.network.head: wide"
            )
        if self.fl.rounds == 0 and self.fl.analytic is None and self.fl.warmup is None:
            raise ValueError(
                "fl.rounds is 0 and nothing is learnt before them; set fl.rounds, fl.analytic or fl.warmup"
            )
        if self.baseline and self.scenario == "noniid":
            raise ValueError("scenario noniid is the baseline itself; set baseline: false")
        if self.baseline and (self.fl.rounds == 0 or self.fl.strategy.kind == "muon"):
            raise ValueError(
                "the baseline averages what sites have trained, and this job's sites do not train by themselves; set "
                "baseline: false and compare with a run of scenario noniid"
            )
        if isinstance(self.fl.strategy, MuonSettings) and self.fl.rounds > self.fl.strategy.decay_rounds:
            raise ValueError(
                f"fl.rounds is {self.fl.rounds}, but after fl.strategy.decay_rounds, {self.fl.strategy.decay_rounds}, "
                "steps are next to nothing; raise decay_rounds with the rounds"
            )
        return self

    def to_yaml(self) -> str:
        """Return the complete spec as YAML that reads back to an equal spec."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)

    def learning_digest(self) -> str:
        """Return a digest of what decides the weights, apart from the contents of files.

        The name, the cluster, the export, where files lie, what a round bears and when to stop are left out: a job may
        go on after its data have moved, after a lost quorum with fewer `min_clients`, or for more rounds.
        """
        unused = {"phantom"} if self.data.source == "folder" else set()
        exempt: dict[str, Any] = {
            "name": True,
            "ray": True,
            "export": True,
            "data": {"cache_dir", "root", "nodes"} | unused,
            "shared": {"folder"},
            "preprocess": {"backend"},
            "model": {"weights": {"path"}},
            "fl": {"min_clients", "site_timeout_seconds", "rounds", "early_stop", "personal"},
        }
        content = self.model_dump(mode="json", exclude=exempt)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_spec(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read and validate a job file. Raises SpecError with a `file:line:column: key: fault` line for each fault."""
    return validate(JobSpec, *_merged(path, overrides), path)


def explain(path: Path, overrides: Sequence[str] = ()) -> list[Explained]:
    """Return every setting of the job, in order, with where its value comes from."""
    values, places = _merged(path, overrides)
    return list(explain_model(validate(JobSpec, values, places, path), places))


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of job files, for editors."""
    return JobSpec.model_json_schema()


def _merged(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    file, settings = read_yaml(path), read_overrides(overrides)
    scenario = settings.values.get("scenario", file.values.get("scenario"))
    base = Source(values={}, places={})
    if isinstance(scenario, str) and scenario in SCENARIOS:
        preset = SCENARIOS[scenario]
        base = Source(values=preset, places=dict.fromkeys(key_paths(preset), f"scenario {scenario}"))
    return overlay((base, file, settings))
