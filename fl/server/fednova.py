"""FedNova: sites that make different numbers of local steps, averaged so that none pulls harder for it.

FedAvg weighs a site by how far it walked, and so ends at the optimum of another objective than the one that was asked
for. FedNova divides each site's way by its number of steps, and multiplies the mean by the mean number of steps.
Source: Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
equations 6 and 9, section 4.1 for momentum.

With shares p_i, steps a_i and ways D_i the next parameters are x + (sum p_i a_i) (sum p_i D_i / a_i). That is FedAvg's
mean with weights p_i / a_i and then a step towards it of length (sum p_i a_i) (sum p_i / a_i), which is 1 where all
a_i are equal: so the exact mean of parameters serves here too, with the same precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fl.errors import UpdateRefused
from fl.model.flat import FlatParameters
from fl.server.aggregate import ExactMean
from fl.server.means import Aggregation, Shares, move
from fl.server.strategy import Learned, StrategyState
from fl.training.encoding import Encoding
from fl.training.exchange import Reply, RoundTask
from fl.training.local import LocalSettings
from fl.types import Site


class FedNovaSettings(BaseModel):
    """FedNova (Wang et al. 2020). It needs local sgd; shares of the sites are those of fl.aggregation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["fednova"] = "fednova"


@dataclass(frozen=True, kw_only=True, slots=True)
class FedNova:
    """Strategy of FedNova.

    local: what every site does in a round; it gives the number of steps that a site of so many examples makes, and
    a reply that reports another number is refused, because the mean is multiplied by what sites say here.
    """

    aggregation: Aggregation
    local: LocalSettings
    encoding: Encoding = "float32"

    def initial(self, parameters: FlatParameters) -> StrategyState:
        """Return no state: nothing is remembered."""
        return {}

    def begin(
        self, round: int, selected: Sequence[Site], parameters: FlatParameters, state: StrategyState
    ) -> _FedNovaAggregate:
        """Begin a round whose task is the parameters alone."""
        task = RoundTask(round=round, parameters=parameters, encoding=self.encoding)
        return _FedNovaAggregate(self, task, Shares(selected, self.aggregation))


class _Group:
    """The replies of one group, with weights p and steps a."""

    def __init__(self, num_parameters: int) -> None:
        self.mean = ExactMean(num_parameters)
        self._weights: list[float] = []
        self._steps: list[float] = []

    def add(self, parameters: FlatParameters, weight: float, steps: float) -> None:
        self.mean.add(parameters, weight / steps)
        self._weights.append(weight)
        self._steps.append(steps)

    # fsum is exact, so that these too are the same in every order of replies
    def mean_steps(self) -> float:
        return self._average([weight * steps for weight, steps in zip(self._weights, self._steps, strict=True)])

    def mean_inverse_steps(self) -> float:
        return self._average([weight / steps for weight, steps in zip(self._weights, self._steps, strict=True)])

    def _average(self, weighted: Sequence[float]) -> float:
        return math.fsum(weighted) / math.fsum(self._weights)


class _FedNovaAggregate:
    def __init__(self, strategy: FedNova, task: RoundTask, shares: Shares) -> None:
        self.task = task
        self._local = strategy.local
        self._shares = shares
        self._groups: dict[str, _Group] = {}

    def add(self, site: Site, parameters: FlatParameters, reply: Reply) -> None:
        expected, reported = self._local.num_steps(site.num_examples), reply.summary.num_steps
        if reported != expected:
            raise UpdateRefused(
                site.name, f"it reports {reported} local steps, its {site.num_examples} examples make {expected}"
            )
        group = self._groups.setdefault(self._shares.group(site), _Group(len(self.task.parameters)))
        group.add(parameters, self._shares.weight(site), self._local.effective_steps(expected))

    def add_mean(self, parameters: FlatParameters) -> None:
        raise ValueError("strategy fednova weighs each site by its steps; turn secure aggregation off")

    def result(self) -> Learned:
        if not self._groups:
            raise ValueError("mean of no parameters; add at least one reply")
        groups = [self._groups[name] for name in sorted(self._groups)]
        steps = math.fsum(group.mean_steps() for group in groups) / len(groups)
        ways = [(group.mean.result(), steps * group.mean_inverse_steps() / len(groups)) for group in groups]
        return Learned(parameters=move(self.task.parameters, ways), state={})
