"""The round loop: select, train, aggregate, evaluate; an iterator of states that its consumer keeps or drops.

It knows no Ray, disk or screen. How sites are reached is passed in as `train` and `evaluate`; checkpoints, progress
and tracking are consumers of what it yields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fl.errors import QuorumLost, UpdateRefused
from fl.failpoint import failpoint
from fl.model.flat import FlatParameters
from fl.privacy.secagg.plan import SecureAggregationSettings
from fl.server.aggregate import decode_reply, distance, require_magnitude
from fl.server.choice import MeanSettings, StrategySettings
from fl.server.means import Aggregation
from fl.server.selection import Sampling, select_sites
from fl.server.stopping import EarlyStopSettings, should_stop
from fl.server.strategy import Aggregate, Learned, Strategy, StrategyState
from fl.training.encoding import Encoding
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask, SecureMean
from fl.training.local import TrainingSummary
from fl.types import Site


class RoundSettings(BaseModel):
    """The federation's rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(50, ge=0, le=9999, description="Most rounds to run; 0 where the start is all.")
    participation: float = Field(0.5, gt=0, le=1, description="Fraction of sites that train in a round.")
    sampling: Sampling = Field("uniform", description="uniform over sites, or stratified: that fraction of each group.")
    aggregation: Aggregation = Field(
        "uniform", description="Weights of the mean: uniform, by_examples, class_balanced."
    )
    strategy: StrategySettings = Field(
        default_factory=MeanSettings, discriminator="kind", description="How the global model learns from replies."
    )
    encoding: Encoding = Field(
        "float32",
        description="How sites send their updates: float32, or bfloat16 (half) or int8 (a quarter), whose rounding "
        "errors they keep and send next time.",
    )
    secure_aggregation: SecureAggregationSettings | None = Field(
        None, description="Show the server the sum of the sites' updates and no single one; null: each one."
    )
    min_clients: int = Field(1, ge=1, description="Replies that a round needs to count; fewer stop the job.")
    site_timeout_seconds: float = Field(3600.0, gt=0, description="A site that takes longer is left out of the round.")
    early_stop: EarlyStopSettings | None = Field(
        default_factory=EarlyStopSettings, description="When to stop before the last round; null never does."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Validation of one round's model."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRound:
    """What one site did in one round.

    update_norm: L2 distance of its parameters from the global ones; None where secure aggregation hides it.
    """

    site: str
    num_examples: int
    loss: float
    seconds: float
    update_norm: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """One finished round. Bytes count the arrays that went to and came from the sites.

    num_clipped: entries of updates that were larger than secure aggregation's range, all sites together.
    """

    round: int
    train_loss: float
    validation_accuracy: float
    validation_loss: float
    seconds: float
    bytes_down: int
    bytes_up: int
    sites: tuple[SiteRound, ...]
    left_out: tuple[LeftOut, ...]
    num_clipped: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FederationState:
    """Everything that the next round depends on, and the best model so far.

    best_round 0 is the start itself. strategy_state: what the strategy carries on. There is no generator state:
    randomness is by address (`fl.random`).
    """

    start_score: Score
    parameters: FlatParameters
    strategy_state: StrategyState
    best_parameters: FlatParameters
    best_round: int
    best_score: Score
    history: tuple[RoundRecord, ...] = ()

    @property
    def round(self) -> int:
        """Rounds finished."""
        return len(self.history)

    def last_counted(self, site: str) -> int:
        """Return the last round in which the site's reply was counted, 0 for none."""
        rounds = (record.round for record in reversed(self.history) if any(done.site == site for done in record.sites))
        return next(rounds, 0)


TrainSites = Callable[[RoundTask, Sequence[Assignment]], Iterable[Reply | LeftOut | SecureMean]]
Evaluate = Callable[[FlatParameters], Score]


def initial_state(parameters: FlatParameters, strategy: Strategy, evaluate: Evaluate) -> FederationState:
    """Return the state before round 1, with the start's own validation score."""
    score = evaluate(parameters)
    return FederationState(
        start_score=score,
        parameters=parameters,
        strategy_state=strategy.initial(parameters),
        best_parameters=parameters,
        best_round=0,
        best_score=score,
    )


def is_finished(state: FederationState, settings: RoundSettings) -> bool:
    """Return whether no further round is due."""
    accuracies = [record.validation_accuracy for record in state.history]
    stopped = settings.early_stop is not None and should_stop(accuracies, settings.early_stop)
    return stopped or state.round >= settings.rounds


def run_rounds(
    state: FederationState,
    *,
    sites: Sequence[Site],
    settings: RoundSettings,
    strategy: Strategy,
    seed: int,
    train: TrainSites,
    evaluate: Evaluate,
) -> Iterator[FederationState]:
    """Yield the state after each round until the last, or until validation stops rising.

    Raises QuorumLost where fewer than `min_clients` sites gave a usable reply.
    """
    while not is_finished(state, settings):
        started = time.perf_counter()
        selected = select_sites(
            sites, sampling=settings.sampling, participation=settings.participation, seed=seed, round=state.round + 1
        )
        taken = _train(state, selected, strategy, train)
        if len(taken.done) < settings.min_clients:
            raise QuorumLost(_quorum_message(state.round + 1, taken, settings.min_clients))
        state = _advance(state, taken, evaluate, started)
        yield state


@dataclass(kw_only=True, slots=True)
class _Taken:
    """The replies of a round while they come in."""

    aggregate: Aggregate
    selected: Mapping[str, Site]
    done: dict[str, SiteRound] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    bytes_up: int = 0
    num_clipped: int = 0

    def take(self, reply: Reply) -> None:
        """Add a reply to the aggregate. Raises UpdateRefused, and then nothing was added."""
        if reply.site not in self.selected:
            raise UpdateRefused(reply.site, "it was not asked in this round")
        if reply.site in self.done:
            raise UpdateRefused(reply.site, "it has answered this round before; its first reply was counted")
        task = self.aggregate.task
        parameters = decode_reply(reply, task)
        self.aggregate.add(self.selected[reply.site], parameters, reply)
        self.bytes_up += reply.num_bytes
        self.done[reply.site] = _site_round(reply.site, reply.summary, distance(parameters, task.parameters))

    def take_mean(self, mean: SecureMean) -> None:
        """Take the mean of a secure round, which is its whole result."""
        require_magnitude("secure aggregation", "mean", mean.parameters)
        self.aggregate.add_mean(mean.parameters)
        self.bytes_up += mean.bytes_up
        self.num_clipped = mean.num_clipped
        self.done |= {site: _site_round(site, summary, None) for site, summary in mean.summaries.items()}


def _train(state: FederationState, selected: Sequence[Site], strategy: Strategy, train: TrainSites) -> _Taken:
    aggregate = strategy.begin(state.round + 1, selected, state.parameters, state.strategy_state)
    taken = _Taken(aggregate=aggregate, selected={site.name: site for site in selected})
    assignments = [Assignment(site=site, state_round=state.last_counted(site.name)) for site in selected]
    for outcome in train(aggregate.task, assignments):
        if isinstance(outcome, LeftOut):
            taken.left_out.append(outcome)
            continue
        try:
            if isinstance(outcome, SecureMean):
                taken.take_mean(outcome)
            else:
                taken.take(outcome)
            failpoint("round.reply")
        except UpdateRefused as refused:
            taken.left_out.append(LeftOut(site=refused.site, reason=f"update refused: {refused.reason}"))
    return taken


def _site_round(site: str, summary: TrainingSummary, update_norm: float | None) -> SiteRound:
    return SiteRound(
        site=site,
        num_examples=summary.num_examples,
        loss=summary.mean_loss,
        seconds=summary.seconds,
        update_norm=update_norm,
    )


def _advance(state: FederationState, taken: _Taken, evaluate: Evaluate, started: float) -> FederationState:
    learned = taken.aggregate.result()
    failpoint("round.aggregated")
    score = evaluate(learned.parameters)
    failpoint("round.scored")
    done = sorted(taken.done.values(), key=lambda site: site.site)
    record = RoundRecord(
        round=state.round + 1,
        train_loss=float(np.average([site.loss for site in done], weights=[site.num_examples for site in done])),
        validation_accuracy=score.accuracy,
        validation_loss=score.loss,
        seconds=time.perf_counter() - started,
        bytes_down=len(taken.selected) * taken.aggregate.task.num_bytes,
        bytes_up=taken.bytes_up,
        sites=tuple(done),
        left_out=tuple(sorted(taken.left_out, key=lambda out: out.site)),
        num_clipped=taken.num_clipped,
    )
    return _succeed(state, learned, score, record)


def _succeed(state: FederationState, learned: Learned, score: Score, record: RoundRecord) -> FederationState:
    history = (*state.history, record)
    state = replace(state, parameters=learned.parameters, strategy_state=learned.state, history=history)
    # asked this way round, a tie with a loss of NaN is no improvement
    is_better = (score.accuracy, -score.loss) > (state.best_score.accuracy, -state.best_score.loss)
    if not is_better:
        return state
    return replace(state, best_parameters=learned.parameters, best_round=record.round, best_score=score)


def _quorum_message(round: int, taken: _Taken, needed: int) -> str:
    reasons = "; ".join(f"{out.site}: {out.reason}" for out in taken.left_out) or "no site was left out"
    return (
        f"round {round}: {len(taken.done)} usable replies, fl.min_clients is {needed} ({reasons}). "
        "Mend these sites or lower fl.min_clients, then continue with --resume"
    )
