"""SCAFFOLD: local steps that are corrected for how a site's gradient differs from the federation's.

Every site keeps a control variate c_i, its own mean gradient, on its disk (fl/training/site_state.py); the server
keeps their mean c and sends it as `control`. A site adds c - c_i to each of its gradients, so that many local steps go
where the federation's would, and returns by how much its c_i changed as `control-delta`.
Source: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", algorithm 1,
option II.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fl.errors import UpdateRefused
from fl.model.flat import FlatParameters
from fl.server.aggregate import ExactMean
from fl.server.means import move
from fl.server.strategy import Learned, StrategyState
from fl.training.corrections import CONTROL, CONTROL_DELTA
from fl.training.encoding import Encoding
from fl.training.exchange import Reply, RoundTask
from fl.types import Site


class ScaffoldSettings(BaseModel):
    """SCAFFOLD (Karimireddy et al. 2020). It needs local sgd, and all sites weigh the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["scaffold"] = "scaffold"
    server_learning_rate: float = Field(
        1.0, gt=0, description="Step of the global parameters towards the mean of the sites' (the paper's eta_g)."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaffold:
    """Strategy of SCAFFOLD.

    num_sites: all sites of the federation, taking part or not: c moves by the share of them that answered.
    """

    num_sites: int
    server_learning_rate: float = 1.0
    encoding: Encoding = "float32"

    def initial(self, parameters: FlatParameters) -> StrategyState:
        """Return the control variate before round 1, which is zero as every site's is."""
        return {CONTROL: np.zeros_like(parameters)}

    def begin(
        self, round: int, selected: Sequence[Site], parameters: FlatParameters, state: StrategyState
    ) -> _ScaffoldAggregate:
        """Begin a round whose task carries the control variate c beside the parameters."""
        task = RoundTask(
            round=round, parameters=parameters, broadcast={CONTROL: state[CONTROL]}, encoding=self.encoding
        )
        return _ScaffoldAggregate(self, task)


class _ScaffoldAggregate:
    def __init__(self, strategy: Scaffold, task: RoundTask) -> None:
        self.task = task
        self._strategy = strategy
        self._parameters = ExactMean(len(task.parameters))
        self._control_delta = ExactMean(len(task.parameters))
        self._num_replies = 0

    def add(self, site: Site, parameters: FlatParameters, reply: Reply) -> None:
        if CONTROL_DELTA not in reply.extra:
            raise UpdateRefused(site.name, f"it has no `{CONTROL_DELTA}`, which strategy scaffold needs")
        self._parameters.add(parameters, 1.0)
        self._control_delta.add(reply.extra[CONTROL_DELTA], 1.0)
        self._num_replies += 1

    def add_mean(self, parameters: FlatParameters) -> None:
        raise ValueError("strategy scaffold needs each site's control delta; turn secure aggregation off")

    def result(self) -> Learned:
        after = move(self.task.parameters, [(self._parameters.result(), self._strategy.server_learning_rate)])
        share = np.float32(self._num_replies / self._strategy.num_sites)
        control = self.task.broadcast[CONTROL] + share * self._control_delta.result()
        return Learned(parameters=after, state={CONTROL: control})
