"""The job spec: settings of every room, composed; read from YAML, scenario defaults and `--set`."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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
from service.scenarios import SCENARIOS, ScenarioName
from service.yaml_source import KeyPath, Source, SpecError, key_paths, read_overrides, read_yaml


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

        The name, the cluster, where files lie, what a round bears and when to stop are left out: a job may go on after
        its data have moved, after a lost quorum with fewer `min_clients`, or for more rounds.
        """
        unused = {"phantom"} if self.data.source == "folder" else set()
        exempt: dict[str, Any] = {
            "name": True,
            "ray": True,
            "data": {"cache_dir", "root", "nodes"} | unused,
            "shared": {"folder"},
            "preprocess": {"backend"},
            "model": {"weights": {"path"}},
            "fl": {"min_clients", "site_timeout_seconds", "rounds", "early_stop", "personal"},
        }
        content = self.model_dump(mode="json", exclude=exempt)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """One setting of a resolved spec: its value, who set it, what it means."""

    key: str
    value: Any
    origin: str
    description: str


def load_spec(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read and validate a job file. Raises SpecError with a `file:line:column: key: fault` line for each fault."""
    return _validate(*_merged(path, overrides), path)


def explain(path: Path, overrides: Sequence[str] = ()) -> list[Explained]:
    """Return every setting of the job, in order, with where its value comes from."""
    values, places = _merged(path, overrides)
    spec = _validate(values, places, path)
    return list(_explain_model(spec, (), places))


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
    values: dict[str, Any] = {}
    places: dict[KeyPath, str] = {}
    for source in (base, file, settings):
        values = _overlay(values, source.values)
        places.update(source.places)
    # where one alternative replaced another, the settings of the one that is gone have no say
    kept = set(key_paths(values))
    return values, {path: place for path, place in places.items() if path in kept}


def _overlay(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return lower under upper, mapping by mapping; a mapping of another `kind` or `source` replaces, not mixes."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not _are_alternatives(below, value):
            merged[key] = _overlay(below, value)
        else:
            merged[key] = value
    return merged


def _are_alternatives(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> bool:
    return any(tag in lower and tag in upper and lower[tag] != upper[tag] for tag in ("kind", "source"))


def _validate(values: dict[str, Any], places: Mapping[KeyPath, str], path: Path) -> JobSpec:
    try:
        return JobSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError([_fault(item, values, places, path) for item in error.errors()]) from error


def _fault(item: Any, values: Mapping[str, Any], places: Mapping[KeyPath, str], path: Path) -> str:
    # pydantic names the member of a union (`iid`) inside the location; it is no key of the file
    location = _existing_keys(item["loc"], values)
    where = next((places[location[:end]] for end in range(len(location), 0, -1) if location[:end] in places), str(path))
    key = ".".join(map(str, location)) or "job"
    if item["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown setting{_suggestion(location)}"
    if item["type"] == "missing":
        return f"{where}: {key}: required, but not set"
    message = item["msg"].removeprefix("Value error, ")
    given = item["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{where}: {key}: {message}{shown}"


def _existing_keys(location: Sequence[Any], values: Any) -> KeyPath:
    keys: list[str | int] = []
    for depth, key in enumerate(location):
        last = depth == len(location) - 1
        is_tag = isinstance(values, Mapping) and key in (values.get("kind"), values.get("source"))
        if isinstance(values, Mapping) and (key in values or (last and not is_tag)):
            keys.append(key)
            values = values.get(key)
    return tuple(keys)


def _suggestion(location: KeyPath) -> str:
    known = [str(".".join(map(str, path))) for path in _all_settings(JobSpec)]
    prefix = ".".join(map(str, location[:-1]))
    siblings = [key for key in known if key.rpartition(".")[0] == prefix]
    names = {key.rpartition(".")[2]: key for key in siblings}
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {names[close[0]]}?"
    elsewhere = [key for key in known if key.rpartition(".")[2] == str(location[-1])]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    return f"; known here: {', '.join(names)}" if names else ""


def _all_settings(model: type[BaseModel], above: KeyPath = ()) -> Iterator[KeyPath]:
    for name, info in model.model_fields.items():
        yield (*above, name)
        for inner in _models_in(info.annotation):
            yield from _all_settings(inner, (*above, name))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _explain_model(model: BaseModel, above: KeyPath, places: Mapping[KeyPath, str]) -> Iterator[Explained]:
    for name, info in type(model).model_fields.items():
        value, path = getattr(model, name), (*above, name)
        if isinstance(value, BaseModel):
            yield from _explain_model(value, path, places)
        else:
            yield Explained(
                key=".".join(map(str, path)),
                value=value,
                origin=places.get(path, "default"),
                description=info.description or "",
            )
