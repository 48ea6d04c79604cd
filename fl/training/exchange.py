"""What a server asks of a site in a round, and what the site answers: the only values that travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl.model.flat import FlatParameters
from fl.training.encoding import Encoding, Update
from fl.training.local import TrainingSummary
from fl.types import Site

Scalar = bool | int | float | str

JOB = "job"
"""Name in a task's config of the job, or the arm of one, that a round belongs to: sites keep their memories apart."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoundTask:
    """One round's request, the same for every selected site, so that it is broadcast once.

    parameters: the global model's [P]. broadcast: further arrays [P] of the strategy by name (SCAFFOLD's `control`).
    config: further values by name: the strategy's in Flower's spelling (`proximal-mu`), and `JOB`. encoding: how to
    answer.
    Arrays may be read-only.
    """

    round: int
    parameters: FlatParameters
    broadcast: Mapping[str, FlatParameters] = field(default_factory=dict)
    config: Mapping[str, Scalar] = field(default_factory=dict)
    encoding: Encoding = "float32"

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays that go to one site."""
        return self.parameters.nbytes + sum(array.nbytes for array in self.broadcast.values())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reply:
    """What a site returns from a round: its update and what it says about it.

    update: its parameters, or an encoded difference to the task's. extra: further arrays [P] that the strategy asked
    for (SCAFFOLD's `control-delta`). metrics: further numbers that it asked for (adaptive clipping's `norm_bit`).
    """

    site: str
    round: int
    update: Update
    summary: TrainingSummary
    extra: Mapping[str, FlatParameters] = field(default_factory=dict)
    metrics: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays that came from the site."""
        return self.update.nbytes + sum(array.nbytes for array in self.extra.values())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Assignment:
    """A selected site, and which of its rounds was counted last: the state on its disk that it goes on from."""

    site: Site
    state_round: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A selected site that a round went on without, or one of its replies that was not counted, and why."""

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SecureMean:
    """All that secure aggregation shows of a round: the mean of the sites that stayed, and what each says of itself.

    parameters: [P]. num_clipped: entries of updates that were larger than the aggregation's range, all sites together.
    """

    parameters: FlatParameters
    summaries: Mapping[str, TrainingSummary]
    bytes_up: int
    num_clipped: int
