"""Strategies that are a mean of the sites' parameters: the study's three weightings, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.model.flat import FlatParameters
from fl.server.aggregate import ExactMean
from fl.server.strategy import Learned, StrategyState
from fl.training.encoding import Encoding
from fl.training.exchange import Reply, RoundTask
from fl.types import Site

Aggregation = Literal["uniform", "by_examples", "class_balanced"]

_CHUNK = 1 << 20


class Shares:
    """How much each selected site has to say in a mean.

    uniform: all sites equal (study, Case 1). by_examples: proportional to examples (FedAvg, McMahan et al. 2017).
    class_balanced: the sites of each group are averaged by examples, then the groups equally (study, Case 2 and 3),
    so that a class keeps its say when some of its sites are missing.
    """

    def __init__(self, selected: Sequence[Site], aggregation: Aggregation) -> None:
        self._aggregation = aggregation
        self._most_examples = max(site.num_examples for site in selected)

    def group(self, site: Site) -> str:
        """Return the group whose mean the site is part of; the groups' means are averaged equally."""
        return site.group if self._aggregation == "class_balanced" else "all"

    def weight(self, site: Site) -> float:
        """Return the site's weight within its group, in (0, 1]."""
        return 1.0 if self._aggregation == "uniform" else site.num_examples / self._most_examples


class RoundMean:
    """The mean of one round by `Shares`: parameters in, one mean out, in any order and in constant memory."""

    def __init__(self, selected: Sequence[Site], aggregation: Aggregation, num_parameters: int) -> None:
        self._shares = Shares(selected, aggregation)
        self._num_parameters = num_parameters
        self._means: dict[str, ExactMean] = {}

    def add(self, site: Site, parameters: FlatParameters) -> None:
        """Add the parameters [P] of a selected site."""
        group = self._shares.group(site)
        if group not in self._means:
            self._means[group] = ExactMean(self._num_parameters)
        self._means[group].add(parameters, self._shares.weight(site))

    def result(self) -> FlatParameters:
        """Return the mean in float32. Raises ValueError where nothing was added."""
        if not self._means:
            raise ValueError("mean of no parameters; add at least one reply")
        if len(self._means) == 1:
            return next(iter(self._means.values())).result()
        overall = ExactMean(self._num_parameters)
        for group in sorted(self._means):
            overall.add(self._means[group].result(), 1.0)
        return overall.result()


def move(before: FlatParameters, ways: Sequence[tuple[FlatParameters, float]]) -> FlatParameters:
    """Return before + sum of length x (target - before) over (target, length), in float32, summed in float64.

    One way of length 1 ends at its target, to the bit.
    """
    after = np.empty_like(before)
    for start in range(0, len(before), _CHUNK):
        piece = slice(start, start + _CHUNK)
        origin = before[piece].astype(np.float64)
        total = origin.copy()
        for target, length in ways:
            total += length * (target[piece] - origin)
        after[piece] = total
    return after


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanStrategy:
    """The next global parameters are the mean of the sites'."""

    aggregation: Aggregation
    encoding: Encoding = "float32"

    def initial(self, parameters: FlatParameters) -> StrategyState:
        """Return no state: a mean remembers nothing."""
        return {}

    def begin(
        self, round: int, selected: Sequence[Site], parameters: FlatParameters, state: StrategyState
    ) -> _MeanAggregate:
        """Begin a round whose task is the parameters alone."""
        task = RoundTask(round=round, parameters=parameters, encoding=self.encoding)
        return _MeanAggregate(task, RoundMean(selected, self.aggregation, len(parameters)))


class StreamedMean:
    """The part of an `Aggregate` that strategies of means share: replies in one by one, or their mean at once."""

    def __init__(self, task: RoundTask, mean: RoundMean) -> None:
        self.task = task
        self._mean = mean
        self._secure: FlatParameters | None = None

    def add(self, site: Site, parameters: FlatParameters, reply: Reply) -> None:
        """Take one reply; see `Aggregate`."""
        self._mean.add(site, parameters)

    def add_mean(self, parameters: FlatParameters) -> None:
        """Take the mean of all replies; see `Aggregate`."""
        self._secure = parameters

    def mean(self) -> FlatParameters:
        """Return the mean [P] of what was taken. Raises ValueError where nothing was."""
        return self._secure if self._secure is not None else self._mean.result()


class _MeanAggregate(StreamedMean):
    def result(self) -> Learned:
        return Learned(parameters=self.mean(), state={})
