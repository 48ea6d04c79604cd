"""The strategy that a job asks for: its settings, of whatever kind, and the strategy that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fl.model.flat import Layout
from fl.server.fednova import FedNova, FedNovaSettings
from fl.server.flower import FlowerStrategy
from fl.server.flower_options import WEIGHTED, FlowerSettings
from fl.server.means import Aggregation, MeanStrategy
from fl.server.muon import Muon, MuonSettings
from fl.server.scaffold import Scaffold, ScaffoldSettings
from fl.server.strategy import Strategy
from fl.training.encoding import Encoding
from fl.training.local import LocalSettings


class MeanSettings(BaseModel):
    """The mean of the sites' parameters, weighed by fl.aggregation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mean"] = Field("mean", description="The mean of the sites' parameters.")


StrategySettings = MeanSettings | FlowerSettings | ScaffoldSettings | FedNovaSettings | MuonSettings
"""Discriminated by `kind`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What strategies need to know of the job besides their own settings.

    num_sites: all sites of the federation. layout: of the flat parameters. seed: of the job.
    """

    aggregation: Aggregation
    encoding: Encoding
    num_sites: int
    local: LocalSettings
    layout: Layout
    seed: int


def misfit(
    settings: StrategySettings, aggregation: Aggregation, encoding: Encoding, local: LocalSettings
) -> str | None:
    """Return why a strategy cannot do with these weights, this encoding or this local training, None where it can."""
    if isinstance(settings, FlowerSettings):
        return _flower_misfit(settings, aggregation, encoding)
    if isinstance(settings, MeanSettings):
        return None
    if local.optimizer != "sgd":
        return (
            f"strategy {settings.kind} counts on sites that step along gradients, but fl.local.optimizer is "
            f"{local.optimizer}; set it to sgd"
        )
    if isinstance(settings, ScaffoldSettings) and aggregation != "uniform":
        return f"strategy scaffold weighs sites the same, but fl.aggregation is {aggregation}; set it to uniform"
    return None


def secure_misfit(settings: StrategySettings, aggregation: Aggregation, encoding: Encoding) -> str | None:
    """Return why a strategy cannot do with the mean alone, which is all that secure aggregation shows it."""
    single = isinstance(settings, ScaffoldSettings | FedNovaSettings)
    if single or (isinstance(settings, FlowerSettings) and not settings.takes_mean):
        name = settings.name if isinstance(settings, FlowerSettings) else settings.kind
        return f"strategy {name} needs each site's reply, which secure aggregation hides; choose a strategy of means"
    if aggregation == "class_balanced":
        return "secure aggregation shows one sum, but fl.aggregation is class_balanced; set uniform or by_examples"
    if encoding != "float32":
        return f"secure aggregation has an encoding of its own, but fl.encoding is {encoding}; set it to float32"
    return None


def make_strategy(settings: StrategySettings, job: Surroundings) -> Strategy:
    """Return the strategy. Raises ValueError where `misfit` says why."""
    if fault := misfit(settings, job.aggregation, job.encoding, job.local):
        raise ValueError(fault)
    match settings:
        case FlowerSettings():
            return FlowerStrategy(settings=settings, aggregation=job.aggregation, encoding=job.encoding, seed=job.seed)
        case ScaffoldSettings():
            return Scaffold(
                num_sites=job.num_sites, server_learning_rate=settings.server_learning_rate, encoding=job.encoding
            )
        case FedNovaSettings():
            return FedNova(aggregation=job.aggregation, local=job.local, encoding=job.encoding)
        case MuonSettings():
            return Muon(settings=settings, layout=job.layout, aggregation=job.aggregation, encoding=job.encoding)
        case MeanSettings():
            return MeanStrategy(aggregation=job.aggregation, encoding=job.encoding)


def describe_strategy(settings: StrategySettings, aggregation: Aggregation) -> str:
    """Return a strategy in a few words, for the report."""
    weights = aggregation.replace("_", " ")
    if not isinstance(settings, FlowerSettings):
        return f"{settings.kind}, {weights}"
    wrapped = f" in {settings.dp.name}" if settings.dp is not None else ""
    return f"Flower's {settings.name}{wrapped}, {weights}"


def _flower_misfit(settings: FlowerSettings, aggregation: Aggregation, encoding: Encoding) -> str | None:
    if settings.dp is not None and aggregation != "uniform":
        return (
            f"noise of {settings.dp.name} is measured for sites that weigh the same, but fl.aggregation is "
            f"{aggregation}; set it to uniform"
        )
    if settings.name not in WEIGHTED and aggregation != "uniform":
        return f"Flower's {settings.name} weighs sites the same, but fl.aggregation is {aggregation}; set it to uniform"
    if settings.clipping is not None and encoding != "float32":
        return f"sites clip parameters for {settings.name}, but their encoding is {encoding}; set it to float32"
    return None
