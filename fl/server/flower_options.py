"""Flower's strategies by name: which options a job may set, read from their signatures, and the object that results."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Literal, Self, get_type_hints

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fl.runtime.flower_internals import flower_logs

StrategyName = Literal[
    "FedAvg",
    "FedAvgM",
    "FedAdam",
    "FedAdagrad",
    "FedYogi",
    "FedProx",
    "QFedAvg",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "MultiKrum",
    "Bulyan",
]
WrapperName = Literal[
    "DifferentialPrivacyServerSideFixedClipping",
    "DifferentialPrivacyServerSideAdaptiveClipping",
    "DifferentialPrivacyClientSideFixedClipping",
    "DifferentialPrivacyClientSideAdaptiveClipping",
]
Option = bool | int | float | str

OF_MEANS = frozenset({"FedAvg", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "FedProx"})
"""Strategies that begin by averaging, and so need no reply by itself."""

WEIGHTED = OF_MEANS | {"MultiKrum"}
"""Strategies that weigh sites at all; Krum weighs the one that it takes."""

BY_DISTANCE = frozenset({"Krum", "MultiKrum", "Bulyan"})
"""Strategies that compare replies by their distances."""

_SELECTS = "gliofed itself selects sites and counts the quorum; set fl.participation or fl.min_clients"
_NAMES = "gliofed itself names the records of its messages"
_CODE = "it takes Python code, which a job file cannot hold"
OURS: Mapping[str, str] = {
    "fraction_train": _SELECTS,
    "fraction_evaluate": _SELECTS,
    "min_train_nodes": _SELECTS,
    "min_evaluate_nodes": _SELECTS,
    "min_available_nodes": _SELECTS,
    "weighted_by_key": _NAMES,
    "arrayrecord_key": _NAMES,
    "configrecord_key": _NAMES,
    "train_loss_key": _NAMES,
    "train_metrics_aggr_fn": _CODE,
    "evaluate_metrics_aggr_fn": _CODE,
    "selection_rule": _CODE,
    "accountant": _CODE,
    "eta_l": "Flower's server does not use it; sites train by fl.local.learning_rate",
    "strategy": "it is the strategy that is named beside dp",
    "num_sampled_clients": "it is the number of sites that answered, whom the noise has to hide",
}
"""Options that a job may not set, and why."""

_SET: Mapping[str, Option] = {
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
    "train_loss_key": "loss",
}


def _checked(name: str, options: Mapping[str, Option]) -> dict[str, Option]:
    """Return options as the types that the class's signature asks for. Raises ValueError naming the known ones."""
    cls = getattr(flower, name)
    hints, signature = get_type_hints(cls.__init__), inspect.signature(cls)
    known = [option for option in signature.parameters if option not in OURS]
    checked = {}
    for option, value in options.items():
        if option in OURS:
            raise ValueError(f"{option} of {name} is not for a job to set: {OURS[option]}")
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{name} has no option {option!r}; {hint}known: {', '.join(known) or 'none'}")
        try:
            checked[option] = TypeAdapter(hints[option]).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{option} of {name}: {error.errors()[0]['msg']} (given: {value!r})") from error
    required = [option for option in known if signature.parameters[option].default is inspect.Parameter.empty]
    if missing := [option for option in required if option not in options]:
        raise ValueError(f"{name} needs options {', '.join(missing)}")
    return checked


class PrivacySettings(BaseModel):
    """One of Flower's differential-privacy wrappers around the strategy.

    Adaptive clipping of flwr 1.41 runs against its paper (Andrew et al. 2019): the norm falls where most updates are
    longer than it, and rises where most are shorter, so it does not settle at `target_clipped_quantile`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: WrapperName = Field(
        description="Class in flwr.serverapp.strategy. Prefer fixed clipping: flwr 1.41's adaptive norm drifts away."
    )
    options: dict[str, Option] = Field(default_factory=dict, description="Its keyword options.", validate_default=True)

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Option], info: ValidationInfo) -> dict[str, Option]:
        return _checked(info.data["name"], options) if "name" in info.data else options


class FlowerSettings(BaseModel):
    """A strategy of Flower's, unmodified."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["flower"] = Field("flower", description="A strategy of flwr.serverapp.strategy.")
    name: StrategyName = Field(description="Class in flwr.serverapp.strategy.")
    options: dict[str, Option] = Field(default_factory=dict, description="Its keyword options.", validate_default=True)
    dp: PrivacySettings | None = Field(None, description="Differential-privacy wrapper around it; null: none.")

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Option], info: ValidationInfo) -> dict[str, Option]:
        return _checked(info.data["name"], options) if "name" in info.data else options

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        with flower_logs():
            make_flower(self, num_replies=10**9)  # only the number of sites can be wrong with that later
        return self

    @property
    def clipping(self) -> Literal["fixed", "adaptive"] | None:
        """How sites clip their own updates, None where they do not."""
        if self.dp is None or "ClientSide" not in self.dp.name:
            return None
        return "fixed" if "Fixed" in self.dp.name else "adaptive"

    @property
    def clips_on_server(self) -> bool:
        """Whether the server clips updates."""
        return self.dp is not None and "ServerSide" in self.dp.name

    @property
    def needs_each_reply(self) -> bool:
        """Whether the mean of the replies is not enough."""
        return self.name not in OF_MEANS or self.clips_on_server or self.clipping == "adaptive"

    @property
    def by_distance(self) -> bool:
        """Whether replies are compared by their distances, for which differences to the global parameters will do."""
        return self.name in BY_DISTANCE and self.dp is None

    @property
    def takes_mean(self) -> bool:
        """Whether nothing but the mean, as secure aggregation shows it, is enough: noise is for a number of replies."""
        return self.dp is None and not self.needs_each_reply


def make_flower(settings: FlowerSettings, num_replies: int) -> Strategy:
    """Return a new object of Flower's class, wrapped where asked for. Raises ValueError as the class does."""
    cls = getattr(flower, settings.name)
    ours = {option: value for option, value in _SET.items() if option in inspect.signature(cls).parameters}
    strategy: Strategy = cls(**ours, **settings.options)
    if settings.dp is None:
        return strategy
    wrapper = getattr(flower, settings.dp.name)
    wrapped: Strategy = wrapper(strategy, num_sampled_clients=num_replies, **settings.dp.options)
    return wrapped
