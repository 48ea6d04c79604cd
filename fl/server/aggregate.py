"""The weighted mean of sites' parameters, exact and in any order.

Replies arrive in any order and floating-point sums depend on it. Here every weighted value is rounded once to a
64-bit fixed-point number and summed in integers, so the sum is the same bytes for every order, can be resumed or
retried without a trace, and needs one accumulator however many sites reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fl.errors import UpdateRefused
from fl.model.flat import FlatParameters
from fl.training.trainer import Reply
from fl.types import Site

FRACTION_BITS = 36
"""Resolution 2^-36 (1.5e-11): below half a float32 step of any parameter larger than 3e-4."""

MAX_MAGNITUDE = 4096.0
"""Parameters larger than this are refused; fewer than 2^(63-36) / 4096 = 32,768 sites are summed without overflow."""

_CHUNK = 1 << 20

Aggregation = Literal["uniform", "by_examples", "class_balanced"]


class ExactMean:
    """Streaming weighted mean of flat parameters [P], weights in (0, 1]."""

    def __init__(self, num_parameters: int) -> None:
        self._sum = np.zeros(num_parameters, np.int64)
        self._weight = 0

    def add(self, parameters: FlatParameters, weight: float) -> None:
        """Add one site's parameters. The array is not kept."""
        if not 0 < weight <= 1:
            raise ValueError(f"weight is {weight}, expected 0 < weight <= 1")
        quanta = round(weight * 2**FRACTION_BITS)  # of both sums, so that equal parameters have themselves as mean
        for start in range(0, len(parameters), _CHUNK):
            scaled = parameters[start : start + _CHUNK].astype(np.float64)
            scaled *= float(quanta)
            self._sum[start : start + _CHUNK] += np.rint(scaled, out=scaled).astype(np.int64)
        self._weight += quanta

    def result(self) -> FlatParameters:
        """Return the mean in float32. Raises ValueError where nothing was added."""
        if self._weight == 0:
            raise ValueError("mean of no parameters; add at least one reply")
        mean = np.empty(len(self._sum), np.float32)
        for start in range(0, len(mean), _CHUNK):
            mean[start : start + _CHUNK] = self._sum[start : start + _CHUNK] / self._weight
        return mean


def check_reply(reply: Reply, *, round: int, num_parameters: int) -> None:
    """Raise UpdateRefused, naming the site, unless the reply can enter the mean of this round."""
    if reply.round != round:
        raise UpdateRefused(reply.site, f"it answers round {reply.round}, this is round {round}")
    if reply.parameters.dtype != np.float32 or reply.parameters.shape != (num_parameters,):
        raise UpdateRefused(
            reply.site,
            f"it sent {reply.parameters.dtype}{list(reply.parameters.shape)}, expected float32[{num_parameters}]",
        )
    largest = _largest_magnitude(reply.parameters)
    if not np.isfinite(largest):
        raise UpdateRefused(reply.site, "parameters contain NaN or infinity; look at its data and learning rate")
    if largest > MAX_MAGNITUDE:
        raise UpdateRefused(reply.site, f"a parameter has magnitude {largest:.3g}, the limit is {MAX_MAGNITUDE:g}")
    if reply.summary.num_examples < 1:
        raise UpdateRefused(reply.site, f"it trained on {reply.summary.num_examples} examples")


def _largest_magnitude(parameters: FlatParameters) -> float:
    if not len(parameters):
        return 0.0
    # max and min propagate NaN, and need no temporary array
    return float(np.maximum(np.max(parameters), -np.min(parameters)))


class RoundMean:
    """The aggregate of one round: replies in, one mean out, in any order and in constant memory.

    uniform: all sites equal (study, Case 1). by_examples: proportional to examples (FedAvg, McMahan et al. 2017).
    class_balanced: the sites of each group are averaged by examples, then the groups equally (study, Case 2 and 3),
    so that a class keeps its say when some of its sites are missing.
    """

    def __init__(self, selected: Sequence[Site], aggregation: Aggregation, num_parameters: int) -> None:
        self._aggregation = aggregation
        self._num_parameters = num_parameters
        self._sites = {site.name: site for site in selected}
        self._most_examples = max(site.num_examples for site in selected)
        self._means: dict[str, ExactMean] = {}

    def add(self, reply: Reply) -> None:
        """Add a checked reply of a selected site."""
        site = self._sites[reply.site]
        weight = 1.0 if self._aggregation == "uniform" else site.num_examples / self._most_examples
        group = site.group if self._aggregation == "class_balanced" else "all"
        if group not in self._means:
            self._means[group] = ExactMean(self._num_parameters)
        self._means[group].add(reply.parameters, weight)

    def result(self) -> FlatParameters:
        """Return the aggregated parameters in float32."""
        if len(self._means) == 1:
            return next(iter(self._means.values())).result()
        overall = ExactMean(self._num_parameters)
        for group in sorted(self._means):
            overall.add(self._means[group].result(), 1.0)
        return overall.result()
