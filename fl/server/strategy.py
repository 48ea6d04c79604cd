"""What the round loop knows of a way to learn from replies: it begins a round, takes replies in any order, ends it.

A strategy has no memory of its own: what it carries from round to round is a `StrategyState`, an explicit value that
is checkpointed, so that a resumed run goes on with the same momentum, control variates or clipping norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from fl.model.flat import FlatParameters
from fl.training.exchange import Reply, RoundTask
from fl.types import Site

StrategyState = Mapping[str, NDArray[Any]]
"""Arrays by name, scalars as arrays of shape []; empty for strategies that remember nothing."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Learned:
    """What a round's replies came to: the next global parameters [P] and the strategy's next state."""

    parameters: FlatParameters
    state: StrategyState


class Aggregate(Protocol):
    """One round of a strategy. `task` goes to every selected site; replies are added as they come."""

    @property
    def task(self) -> RoundTask:
        """What the selected sites are asked."""

    def add(self, site: Site, parameters: FlatParameters, reply: Reply) -> None:
        """Take one reply that was checked; parameters [P] are the site's, decoded. Neither array may be kept.

        Raises UpdateRefused where the strategy cannot use it.
        """

    def add_mean(self, parameters: FlatParameters) -> None:
        """Take the mean of all replies, where secure aggregation shows nothing else; then `add` is never called.

        Raises ValueError where the strategy needs each site's reply by itself.
        """

    def result(self) -> Learned:
        """Return what was learnt. Raises ValueError where nothing was added."""


class Strategy(Protocol):
    """A way to learn from replies."""

    def initial(self, parameters: FlatParameters) -> StrategyState:
        """Return the state before round 1."""

    def begin(
        self, round: int, selected: Sequence[Site], parameters: FlatParameters, state: StrategyState
    ) -> Aggregate:
        """Begin round `round` (counted from 1) with the selected sites from the global parameters [P]."""
