"""The arms of a job: the scenario itself and, where asked for, the same sites without help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fl.data.federation import Federation
from fl.evaluation.metrics import ClassificationMetrics, EvaluationReport
from fl.evaluation.personal import PersonalResult
from fl.model.flat import FlatParameters, layout_of
from fl.model.vgg import SplitVgg19
from fl.server.choice import MeanSettings, Surroundings, make_strategy
from fl.server.means import MeanStrategy
from fl.server.rounds import FederationState, RoundSettings
from fl.server.strategy import Strategy
from fl.types import Site
from service.spec import JobSpec
from service.start import Start

BASELINE_NAME = "noniid"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Arm:
    """One federation to train: who takes part, from which parameters, by which rules."""

    name: str
    role: Literal["scenario", "baseline"]
    sites: tuple[Site, ...]
    settings: RoundSettings
    strategy: Strategy
    parameters: FlatParameters


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArmResult:
    """A trained arm and its figures, measured with the best round's parameters."""

    arm: Arm
    state: FederationState
    validation: ClassificationMetrics
    test: EvaluationReport
    seconds: float
    personal: tuple[PersonalResult, ...] = ()


def arms_of(spec: JobSpec, federation: Federation, start: Start) -> tuple[Arm, ...]:
    """Return the scenario's arm and, where the spec asks for it, the baseline's."""
    rounds = RoundSettings.model_validate(spec.fl.model_dump(include=set(RoundSettings.model_fields)))
    scenario = Arm(
        name=spec.scenario,
        role="scenario",
        sites=federation.sites,
        settings=rounds,
        strategy=make_strategy(rounds.strategy, surroundings(spec, federation)),
        parameters=start.scenario_parameters,
    )
    if not spec.baseline:
        return (scenario,)
    # the plainest federation: what helps the scenario, its strategy included, does not help the baseline
    alone = tuple(replace(site, shared_scans=()) for site in federation.sites)
    baseline = Arm(
        name=BASELINE_NAME,
        role="baseline",
        sites=alone,
        settings=rounds.model_copy(update={"aggregation": "uniform", "strategy": MeanSettings()}),
        strategy=MeanStrategy(aggregation="uniform", encoding=rounds.encoding),
        parameters=start.baseline_parameters,
    )
    return scenario, baseline


def surroundings(spec: JobSpec, federation: Federation) -> Surroundings:
    """Return what strategies need to know of the job."""
    return Surroundings(
        aggregation=spec.fl.aggregation,
        encoding=spec.fl.encoding,
        num_sites=len(federation.sites),
        local=spec.fl.local,
        layout=layout_of(SplitVgg19(spec.model.network).trained_parameters()),
        seed=spec.seed,
    )
