"""The round loop: select, train, aggregate, evaluate; an iterator of states that its consumer keeps or drops.

It knows no Ray, disk or screen. How sites are reached is passed in as `train` and `evaluate`; checkpoints, progress
and tracking are consumers of what it yields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fl.errors import QuorumLost, UpdateRefused
from fl.model.flat import FlatParameters
from fl.server.aggregate import Aggregation, RoundMean, check_reply
from fl.server.selection import Sampling, select_sites
from fl.server.stopping import EarlyStopSettings, should_stop
from fl.training.trainer import Reply
from fl.types import Site


class RoundSettings(BaseModel):
    """The federation's rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(50, ge=1, le=9999, description="Most rounds to run.")
    participation: float = Field(0.5, gt=0, le=1, description="Fraction of sites that train in a round.")
    sampling: Sampling = Field("uniform", description="uniform over sites, or stratified: that fraction of each group.")
    aggregation: Aggregation = Field(
        "uniform", description="Weights of the mean: uniform, by_examples, class_balanced."
    )
    min_clients: int = Field(1, ge=1, description="Replies that a round needs to count; fewer stop the job.")
    site_timeout_seconds: float = Field(3600.0, gt=0, description="A site that takes longer is left out of the round.")
    early_stop: EarlyStopSettings | None = Field(
        default_factory=EarlyStopSettings, description="When to stop before the last round; null never does."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A selected site that a round went on without, and why."""

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Validation of one round's model."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRound:
    """What one site did in one round."""

    site: str
    num_examples: int
    loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """One finished round. Bytes count the parameters that went to and came from the sites."""

    round: int
    train_loss: float
    validation_accuracy: float
    validation_loss: float
    seconds: float
    bytes_down: int
    bytes_up: int
    sites: tuple[SiteRound, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FederationState:
    """Everything that the next round depends on, and the best model so far.

    best_round 0 is the start itself. There is no generator state: randomness is by address (`fl.random`).
    """

    start_score: Score
    parameters: FlatParameters
    best_parameters: FlatParameters
    best_round: int
    best_score: Score
    history: tuple[RoundRecord, ...] = ()

    @property
    def round(self) -> int:
        """Rounds finished."""
        return len(self.history)


TrainSites = Callable[[int, Sequence[Site], FlatParameters], Iterable[Reply | LeftOut]]
Evaluate = Callable[[FlatParameters], Score]


def initial_state(parameters: FlatParameters, evaluate: Evaluate) -> FederationState:
    """Return the state before round 1, with the start's own validation score."""
    score = evaluate(parameters)
    return FederationState(
        start_score=score, parameters=parameters, best_parameters=parameters, best_round=0, best_score=score
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
    seed: int,
    train: TrainSites,
    evaluate: Evaluate,
) -> Iterator[FederationState]:
    """Yield the state after each round until the last, or until validation stops rising.

    Raises QuorumLost where fewer than `min_clients` sites gave a usable reply.
    """
    while not is_finished(state, settings):
        state = _run_round(state, sites=sites, settings=settings, seed=seed, train=train, evaluate=evaluate)
        yield state


def _run_round(
    state: FederationState,
    *,
    sites: Sequence[Site],
    settings: RoundSettings,
    seed: int,
    train: TrainSites,
    evaluate: Evaluate,
) -> FederationState:
    started = time.perf_counter()
    round = state.round + 1
    selected = select_sites(
        sites, sampling=settings.sampling, participation=settings.participation, seed=seed, round=round
    )
    mean = RoundMean(selected, settings.aggregation, len(state.parameters))
    done: list[SiteRound] = []
    left_out: list[LeftOut] = []
    for outcome in train(round, selected, state.parameters):
        refusal = outcome if isinstance(outcome, LeftOut) else _take(outcome, mean, round, len(state.parameters))
        if refusal is not None:
            left_out.append(refusal)
        elif isinstance(outcome, Reply):
            done.append(_site_round(outcome))
    if len(done) < settings.min_clients:
        raise QuorumLost(_quorum_message(round, len(done), settings.min_clients, left_out))
    done.sort(key=lambda site: site.site)
    parameters = mean.result()
    score = evaluate(parameters)
    record = RoundRecord(
        round=round,
        train_loss=float(np.average([site.loss for site in done], weights=[site.num_examples for site in done])),
        validation_accuracy=score.accuracy,
        validation_loss=score.loss,
        seconds=time.perf_counter() - started,
        bytes_down=len(selected) * parameters.nbytes,
        bytes_up=len(done) * parameters.nbytes,
        sites=tuple(done),
        left_out=tuple(sorted(left_out, key=lambda out: out.site)),
    )
    return _advance(state, parameters, score, record)


def _take(reply: Reply, mean: RoundMean, round: int, num_parameters: int) -> LeftOut | None:
    try:
        check_reply(reply, round=round, num_parameters=num_parameters)
    except UpdateRefused as refused:
        return LeftOut(site=refused.site, reason=f"update refused: {refused.reason}")
    mean.add(reply)
    return None


def _site_round(reply: Reply) -> SiteRound:
    summary = reply.summary
    return SiteRound(
        site=reply.site, num_examples=summary.num_examples, loss=summary.mean_loss, seconds=summary.seconds
    )


def _advance(state: FederationState, parameters: FlatParameters, score: Score, record: RoundRecord) -> FederationState:
    history = (*state.history, record)
    # asked this way round, a tie with a loss of NaN is no improvement
    is_better = (score.accuracy, -score.loss) > (state.best_score.accuracy, -state.best_score.loss)
    if not is_better:
        return replace(state, parameters=parameters, history=history)
    return replace(
        state,
        parameters=parameters,
        best_parameters=parameters,
        best_round=record.round,
        best_score=score,
        history=history,
    )


def _quorum_message(round: int, num_replies: int, needed: int, left_out: Sequence[LeftOut]) -> str:
    reasons = "; ".join(f"{out.site}: {out.reason}" for out in left_out) or "no site was left out"
    return (
        f"round {round}: {num_replies} usable replies, fl.min_clients is {needed} ({reasons}). "
        "Mend these sites or lower fl.min_clients, then continue with --resume"
    )
